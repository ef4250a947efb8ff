"""Files under `runs/`."""

import errno
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from helpers import runs

SETTINGS = {"lr": 0.1, "layers": (1, 2), "name": "M1"}


@pytest.fixture
def path(runs_folder):
    return runs_folder / "models" / "m1"


@pytest.fixture
def saved(path):
    """What a first call has saved at `path`."""
    tensors = {"w": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}
    runs.save(path, SETTINGS, tensors, history=[{"loss": 0.1 + 0.2}])
    return tensors


def files(path):
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


def test_key_ignores_order_and_sees_every_value():
    assert runs.key({"a": 1, "b": 2}) == runs.key({"b": 2, "a": 1})
    keys = [runs.key({"lr": lr, "epochs": epochs}) for lr, epochs in ((0.1, 1), (0.2, 1), (0.1, 2))]
    assert len(set(keys)) == 3 and all(len(key) == 12 and int(key, 16) >= 0 for key in keys)


def test_what_is_saved_is_loaded(path, saved):
    tensors, record = runs.load(path, SETTINGS)
    assert tensors.keys() == saved.keys() and all(torch.equal(tensors[name], saved[name]) for name in saved)
    assert record["history"] == [{"loss": 0.1 + 0.2}]
    assert files(path).keys() == {"m1.json", "m1.safetensors"}


def test_nothing_there_is_no_complaint(path, capsys):
    assert runs.load(path, SETTINGS) is None and capsys.readouterr().out == ""


def test_transposed_tensors_are_saved(path):
    weight = torch.arange(6.0).reshape(2, 3).T
    runs.save(path, SETTINGS, {"w": weight})
    assert torch.equal(runs.load(path, SETTINGS)[0]["w"], weight)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-4])


def empty(file):
    file.write_bytes(b"")


def missing(file):
    file.unlink()


def not_json(file):
    file.write_text("{")


def other_json(file):
    file.write_text("[1, 2]")


def not_text(file):
    file.write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    "file, damage",
    [("m1.safetensors", damage) for damage in (truncate, empty, missing)]
    + [("m1.json", damage) for damage in (empty, not_json, other_json, not_text)],
)
def test_damage_is_told_in_one_line_and_nothing_loaded(path, saved, capsys, file, damage):
    damage(path.parent / file)
    assert runs.load(path, SETTINGS) is None
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and lines[0].startswith("m1 ")


def test_a_flipped_bit_is_told_and_nothing_loaded(path, saved, capsys, flip_byte):
    flip_byte(path.parent / "m1.safetensors")
    assert runs.load(path, SETTINGS) is None
    assert capsys.readouterr().out == "m1 does not match its checksum\n"


def test_a_changed_number_in_the_record_is_told_and_nothing_loaded(path, saved, capsys):
    record = path.with_name("m1.json")
    record.write_text(record.read_text().replace("0.30000000000000004", "0.70000000000000004"))
    assert runs.load(path, SETTINGS) is None
    assert capsys.readouterr().out == "m1 has a record that does not match its checksum\n"


def test_a_record_of_an_older_version_has_no_checksum_and_is_taken(path, saved):
    record = json.loads(path.with_name("m1.json").read_text())
    del record["own sha256"]
    path.with_name("m1.json").write_text(json.dumps(record))
    assert runs.load(path, SETTINGS)


def test_other_settings_are_told_and_nothing_loaded(path, saved, capsys):
    assert runs.load(path, {**SETTINGS, "lr": 0.2}) is None
    assert capsys.readouterr().out == "m1 was made with other settings\n"


def half_written(error):
    """A `save_file` that writes a few bytes, then fails."""

    def save(tensors, file):
        file.write_bytes(b"half")
        raise error

    return save


ERRORS = [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")]


@pytest.mark.parametrize("error", ERRORS, ids=["OSError", "SafetensorError"])
def test_a_full_disk_leaves_the_old_file_and_names_the_path(path, saved, monkeypatch, error):
    before = files(path)
    monkeypatch.setattr(runs, "save_file", half_written(error))
    with pytest.raises(OSError, match=r"runs/models/m1.draft.safetensors: .*No space left"):
        runs.save(path, SETTINGS, {"w": torch.zeros(3)})
    assert files(path) == before and runs.load(path, SETTINGS)


def test_an_interrupt_leaves_the_old_file(path, saved, monkeypatch):
    before = files(path)
    monkeypatch.setattr(runs, "save_file", half_written(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        runs.save(path, SETTINGS, {"w": torch.zeros(3)})
    assert files(path) == before


def test_a_save_cut_between_its_two_files_leaves_the_old_pair(path, saved, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(value, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", killed)
        with pytest.raises(Killed):
            runs.save(path, SETTINGS, {"w": torch.zeros(3)})
    tensors, _ = runs.load(path, SETTINGS)
    assert torch.equal(tensors["w"], saved["w"])


@pytest.fixture
def cut(path, saved, monkeypatch):
    """A save that was cut between its record and the move of its draft; returns the draft and its goal."""
    with monkeypatch.context() as patch:
        replace = os.replace
        patch.setattr(os, "replace", lambda old, new: Path(new).name == "m1.safetensors" or replace(old, new))
        runs.save(path, SETTINGS, {"w": torch.zeros(3)})
    draft = path.with_name("m1.draft.safetensors")
    assert draft.exists()
    return draft, path.with_name("m1.safetensors")


def test_a_save_cut_before_its_draft_was_moved_leaves_the_new_pair(path, cut, capsys):
    assert torch.equal(runs.load(path, SETTINGS)[0]["w"], torch.zeros(3)) and not cut[0].exists()
    assert capsys.readouterr().out == ""


def test_a_reader_leaves_the_draft_to_who_has_the_lock(path, cut, monkeypatch, capsys):
    """The writer moves it while the reader waits for the lock."""
    waited = []

    @contextmanager
    def alone(locked):
        waited.append(locked)
        os.replace(*cut)
        yield

    monkeypatch.setattr(runs, "alone", alone)
    assert torch.equal(runs.load(path, SETTINGS)[0]["w"], torch.zeros(3)) and capsys.readouterr().out == ""
    assert waited == [path]


def test_a_draft_that_goes_while_a_reader_looks_is_no_damage(path, cut, monkeypatch, capsys):
    sha256 = runs.sha256

    def late(file):
        if file == cut[0]:
            os.replace(*cut)
        return sha256(file)

    monkeypatch.setattr(runs, "sha256", late)
    assert runs.load_record(path, SETTINGS) and capsys.readouterr().out == ""


def test_a_draft_that_another_process_has_moved_is_no_failed_save(path, saved, monkeypatch):
    replace = os.replace

    def twice(old, new):
        replace(old, new)
        if new.name == "m1.safetensors":
            replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda old, new: twice(Path(old), Path(new)))
        runs.save(path, SETTINGS, {"w": torch.zeros(3)})
    assert torch.equal(runs.load(path, SETTINGS)[0]["w"], torch.zeros(3))


def test_what_is_made_again_is_told_once(path, saved, capsys, flip_byte):
    flip_byte(path.parent / "m1.safetensors")
    runs.remember(path, SETTINGS, lambda: saved)
    assert capsys.readouterr().out == "m1 does not match its checksum: making it again\n"


def test_a_path_outside_runs_can_be_named_too(runs_folder, tmp_path):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"figures/1.png: No space left"):
        runs.replace_file(tmp_path.parent / "figures" / "1.png", full)


def test_remember_makes_a_thing_once(path):
    made = []

    def make():
        made.append(1)
        return {"w": torch.ones(2)}

    for _ in range(2):
        assert torch.equal(runs.remember(path, SETTINGS, make)["w"], torch.ones(2))
    assert len(made) == 1
    runs.remember(path, {"lr": 0.2}, make)
    assert len(made) == 2


TWO = """
import sys, time
from pathlib import Path
import torch
from helpers import runs

def make():
    with open("made", "a") as file:
        print("made", file=file)
    print("making", flush=True)
    while not Path("go").exists():
        time.sleep(0.01)
    return {"w": torch.ones(2)}

print(runs.remember(Path("runs/m1").absolute(), {"lr": 0.1}, make)["w"].tolist())
"""


@pytest.mark.parametrize("killed", [False, True])
def test_of_two_processes_one_makes_it_and_the_other_waits(tmp_path, killed):
    """If the first is killed at it, the second takes over."""

    def start():
        command, environment = [sys.executable, "-c", TWO], {**os.environ, "PYTHONPATH": str(runs.ROOT)}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)

    with start() as first:
        assert first.stdout.readline() == "making\n"
        with start() as second:
            assert second.stdout.readline() == "m1 is being made by another process: waiting for it\n"
            if killed:
                first.kill()
            (tmp_path / "go").touch()
            assert first.communicate()[0] == ("" if killed else "[1.0, 1.0]\n")
            assert second.communicate()[0] == ("making\n" * killed) + "[1.0, 1.0]\n"
            assert second.returncode == 0
    assert (tmp_path / "made").read_text() == "made\n" * (1 + killed)


def test_tensors_are_plain_safetensors(path, saved):
    save_file(saved, path.parent / "again.safetensors")
    assert (path.parent / "again.safetensors").read_bytes() == (path.parent / "m1.safetensors").read_bytes()
