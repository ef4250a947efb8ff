"""Notebooks need nothing that Windows lacks: no Unix module, no extra for the engine, no name that it refuses."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers import paths, store
from helpers.datasets import load_data

ROOT = Path(__file__).resolve().parents[2]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="which files are in use is read from /proc")
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{name}{number}" for name in ("COM", "LPT") for number in range(1, 10))}


def refused(path):
    """Whether Windows refuses a relative path: a character, a final dot or space, a device's name, its length."""
    bad = [
        part
        for part in path.split("/")
        if re.search(r'[<>:"\\|?*\x00-\x1f]|[. ]$', part) or part.split(".")[0].upper() in RESERVED
    ]
    return bool(bad) or len(path) > 150  # 260 with the folder above


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("windows")


@pytest.fixture(scope="module")
def session(folder):
    """What `windows.py` found in a fresh interpreter, run from elsewhere."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "UNLEARNING_RUNS": str(folder / "runs")}
    command = [sys.executable, "-X", "warn_default_encoding", ROOT / "tests/plumbing/windows.py", folder]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@on_linux
def test_notebooks_need_no_unix(session):
    """All that notebooks import, two methods, and the tables of five models."""
    assert session["rows"] > 100


@on_linux
def test_models_are_locked_and_replaced_without_unix(session):
    assert session["second lock meets"] == "a lock"
    assert session["in use"] == [[0, 1, 2], [0, 1, 2, 3]]


@on_linux
def test_written_files_are_the_same_on_all_systems(session, folder):
    """Names that Windows accepts; in what is read no line end of a system, no backslash and no folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert {".csv", ".png", ".safetensors"} <= {path.suffix for path in files}
    assert not [path for path in files if refused(path.relative_to(folder).as_posix())]
    for path in [path for path in files if path.suffix != ".png"]:
        text = path.read_bytes().decode() if path.suffix != ".safetensors" else json.dumps(store.read_record(path))
        assert "\r" not in text and "\\\\" not in text and str(folder) not in text


def test_names_in_the_repository_are_accepted_by_windows():
    """A clone holds every file there: none is refused, and no two differ in case only."""
    answer = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8")
    if answer.returncode:
        pytest.skip("no git here")
    names = answer.stdout.splitlines()
    assert len(names) > 100 and not [name for name in names if refused(name)]
    assert len({name.lower() for name in names}) == len(names)


@pytest.mark.parametrize("name", ["a:b", "runs/a.", "NUL.txt", "aux", "a b ", "x" * 200, "a\\b"])
def test_the_check_finds_what_windows_refuses(name):
    assert refused(name)


def test_a_folder_of_images_has_the_same_identity_on_all_systems(tmp_path, monkeypatch):
    """Its files count with slashes in their names and in the order of their letters, capitals first."""
    monkeypatch.setattr(paths, "RUNS", tmp_path.with_name("runs"))
    digest = hashlib.sha256(b"32")
    for label, grey in (("x", 0), ("y", 99)):
        (tmp_path / label).mkdir()
        for name in ("B.png", "D.png", "a.png", "c.png", "e.png"):
            Image.new("RGB", (32, 32), (grey, ord(name[0]), 0)).save(tmp_path / label / name)
            digest.update(f"{label}/{name}".encode() + (tmp_path / label / name).read_bytes())
    assert load_data(tmp_path).identity == digest.hexdigest()[:12]


def test_a_relative_path_is_written_with_slashes():
    """In `helpers/`: `relative_to` gives backslashes on Windows, `as_posix` and `parts` do not."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in ROOT.glob("helpers/**/*.py")}
    found = [call for text in sources.values() for call in re.findall(r"\.relative_to\([^()]*\)(\.?\w*)", text)]
    assert len(found) >= 3 and set(found) <= {".as_posix", ".parts"}


@on_linux
def test_mapped_tensors_are_copied_where_the_system_keeps_their_file(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "COPIES", True)
    path = tmp_path / "model.safetensors"
    store.save(path, {}, {"x": torch.arange(3)}, {"w": torch.arange(4)})
    outputs, weights = store.load(path, {})[1], store.load_weights(path)
    assert outputs["x"].tolist() == [0, 1, 2] and weights["w"].tolist() == [0, 1, 2, 3]
    assert str(path) not in Path("/proc/self/maps").read_text(encoding="utf-8")
