"""Files under `runs/`, and the digests by which they are found again."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from helpers import paths, store

SETTINGS = {"lr": 0.1, "layers": (1, 2), "name": "M1"}
OUTPUTS = {"w": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}
WEIGHTS = {"fc.weight": torch.arange(4.0).reshape(2, 2).T, "bn.count": torch.tensor(3)}


@pytest.fixture
def path(runs_folder):
    return runs_folder / "models" / "m1.safetensors"


@pytest.fixture
def saved(path):
    """A file of `OUTPUTS` and `WEIGHTS` at `path`."""
    store.save(path, SETTINGS, OUTPUTS, WEIGHTS, history=[{"loss": 0.1 + 0.2}])
    return path


def same(tensors, others):
    return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in others)


def test_key_ignores_order_and_depends_on_every_value():
    assert store.key({"a": 1, "b": 2}) == store.key({"b": 2, "a": 1})
    keys = [store.key({"lr": lr, "epochs": epochs}) for lr, epochs in ((0.1, 1), (0.2, 1), (0.1, 2))]
    assert len(set(keys)) == 3 and all(len(key) == 12 and int(key, 16) >= 0 for key in keys)


# --- one file per model -------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(saved):
    record, outputs = store.load(saved, SETTINGS)
    assert same(outputs, OUTPUTS) and record["history"] == [{"loss": 0.1 + 0.2}]
    assert same(store.load_weights(saved), WEIGHTS) and store.has_weights(saved)
    assert [file.name for file in saved.parent.iterdir()] == ["m1.safetensors"]
    assert store.read_record(saved)["settings"] == json.loads(json.dumps(SETTINGS))


def test_a_missing_file_prints_nothing(path, capsys):
    assert store.load(path, SETTINGS) is None and store.load_weights(path) is None
    assert capsys.readouterr().out == ""


def test_weights_that_were_not_kept_print_nothing(path, capsys):
    store.save(path, SETTINGS, OUTPUTS)
    assert store.load(path, SETTINGS) and store.load_weights(path) is None and not store.has_weights(path)
    assert capsys.readouterr().out == ""


def truncate(file):
    file.write_bytes(file.read_bytes()[:-4])


def empty(file):
    file.write_bytes(b"")


def no_metadata(file):
    save_file(OUTPUTS, file)


def record_is_a_list(file):
    save_file(OUTPUTS, file, metadata={"record": "[1, 2]", "sha256": store.checksum("[1, 2]", OUTPUTS)})


def text(file):
    file.write_text("{")


@pytest.mark.parametrize("damage", [truncate, empty, no_metadata, record_is_a_list, text])
def test_damage_is_reported_in_one_line_and_nothing_is_loaded(saved, capsys, damage):
    damage(saved)
    assert store.load(saved, SETTINGS) is None
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("m1 ")
    assert store.load_weights(saved) is None and not store.has_weights(saved)


def replace_bytes(file, old, new):
    content = file.read_bytes()
    assert content.count(old) == 1 and len(old) == len(new)
    file.write_bytes(content.replace(old, new))


@pytest.mark.parametrize(
    "old, new",
    [
        (torch.arange(6.0).numpy().tobytes(), torch.arange(6.0).flip(0).numpy().tobytes()),
        (b"0.30000000000000004", b"0.70000000000000004"),
    ],
    ids=["outputs", "record"],
)
def test_a_changed_byte_in_outputs_or_record_is_reported(saved, capsys, old, new):
    replace_bytes(saved, old, new)
    assert store.load(saved, SETTINGS) is None
    assert capsys.readouterr().out == "m1 does not match its checksum\n"


def test_a_changed_byte_in_the_weights_is_reported_by_those_who_read_them(saved, capsys):
    weights = WEIGHTS["fc.weight"].contiguous().numpy().tobytes()
    replace_bytes(saved, weights, weights[::-1])
    assert store.load(saved, SETTINGS) and capsys.readouterr().out == ""
    assert store.load_weights(saved) is None
    assert capsys.readouterr().out == "m1 has weights that do not match their checksum\n"


def test_other_settings_are_reported_and_nothing_is_loaded(saved, capsys):
    assert store.load(saved, {**SETTINGS, "lr": 0.2}) is None
    assert capsys.readouterr().out == "m1 was made with other settings\n"


def test_files_are_plain_safetensors(saved):
    with safe_open(saved, "pt") as file:
        assert torch.equal(file.get_tensor("w"), OUTPUTS["w"])
        assert torch.equal(file.get_tensor("weights.fc.weight"), WEIGHTS["fc.weight"])


def half_written(error):
    """A `save_file` that writes a few bytes, then fails."""

    def save(tensors, file, metadata):
        file.write_bytes(b"half")
        raise error

    return save


ERRORS = [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")]


@pytest.mark.parametrize("error", ERRORS, ids=["OSError", "SafetensorError"])
def test_a_full_disk_leaves_the_old_file_and_names_the_path(saved, monkeypatch, error):
    before = saved.read_bytes()
    monkeypatch.setattr(store, "save_file", half_written(error))
    with pytest.raises(OSError, match=r"runs/models/m1.safetensors: .*No space left"):
        store.save(saved, SETTINGS, {"w": torch.zeros(3)})
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


def test_an_interrupt_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr(store, "save_file", half_written(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        store.save(saved, SETTINGS, {"w": torch.zeros(3)})
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


# --- made once ----------------------------------------------------------------------------------------------------


def test_what_is_made_again_is_reported_once(saved, capsys):
    replace_bytes(saved, b"0.30000000000000004", b"0.70000000000000004")
    store.remember(saved, SETTINGS, lambda: OUTPUTS)
    assert capsys.readouterr().out == "m1 does not match its checksum: rebuilding it\n"


def test_remember_makes_a_thing_once(path):
    made = []

    def make():
        made.append(1)
        return {"w": torch.ones(2)}

    for _ in range(2):
        assert torch.equal(store.remember(path, SETTINGS, make)["w"], torch.ones(2))
    assert len(made) == 1
    store.remember(path, {"lr": 0.2}, make)
    assert len(made) == 2


def test_a_file_that_is_not_usable_is_made_again(path):
    store.save(path, SETTINGS, OUTPUTS)
    record, _ = store.get_or_make(path, SETTINGS, lambda: (OUTPUTS, WEIGHTS, {"again": True}), store.has_weights)
    assert record["again"] and same(store.load_weights(path), WEIGHTS)
    store.get_or_make(path, SETTINGS, lambda: pytest.fail("made again"), store.has_weights)


TWO = """
import sys, time
from pathlib import Path
import torch
from helpers import store

def make():
    with open("made", "a") as file:
        print("made", file=file)
    print("making", flush=True)
    while not Path("go").exists():
        time.sleep(0.01)
    return {"w": torch.ones(2)}

print(store.remember(Path("runs/m1.safetensors").absolute(), {"lr": 0.1}, make)["w"].tolist())
"""


@pytest.mark.parametrize("killed", [False, True])
def test_of_two_processes_one_makes_it_and_the_other_waits(tmp_path, killed):
    """If the first is killed meanwhile, the second makes it."""

    def start():
        command, environment = [sys.executable, "-c", TWO], {**os.environ, "PYTHONPATH": str(paths.ROOT)}
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


# --- the code that all models share -------------------------------------------------------------------------------


@pytest.fixture
def code(tmp_path, monkeypatch):
    """A copy of the package whose code is digested instead: `code(old, new)` edits its `training.py`."""
    for file in (paths.ROOT / "helpers").glob("*.py"):
        (tmp_path / "helpers").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "helpers")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(store, "RECIPES", tmp_path / "recipes.json")
    recipes = {part: {"number": 3, "code": store.code_of(part), "values": []} for part in store.PARTS}
    store.RECIPES.write_text(json.dumps(recipes))
    store.recipe.cache_clear()
    yield lambda old, new: edit(tmp_path / "helpers" / "training.py", old, new)
    store.recipe.cache_clear()


def edit(file, old, new):
    source = file.read_text()
    assert old in source
    file.write_text(source.replace(old, new))
    store.recipe.cache_clear()


@pytest.mark.parametrize(
    "old, new",
    [
        ('"""One gradient step down `loss`."""', '"""Take a step\n\n    downhill."""'),
        ("    loss.backward()\n", "    loss.backward()  # gradients of all parameters\n\n"),
        ("# --- the loop", "# a comment of its own\n# --- the loop"),
    ],
    ids=["docstring", "comment", "heading"],
)
def test_words_about_the_driver_change_no_key(code, old, new):
    assert store.recipe() == dict.fromkeys(store.PARTS, 3)
    code(old, new)
    assert store.recipe() == dict.fromkeys(store.PARTS, 3)


def test_a_changed_statement_of_the_driver_changes_the_key(code):
    code("    optimizer.zero_grad()\n", "    optimizer.zero_grad(set_to_none=False)\n")
    changed = store.recipe()
    assert changed["driver"] == store.code_of("driver") != 3
    assert {part for part, number in changed.items() if number != 3} == {"driver"}
    code("    optimizer.step()\n", "    optimizer.step(None)\n")
    assert store.recipe()["driver"] != changed["driver"], "two edits, two keys"


def test_a_raised_number_changes_the_key(code):
    before, recipes = store.recipe(), json.loads(store.RECIPES.read_text())
    recipes["networks"]["number"] += 1
    store.RECIPES.write_text(json.dumps(recipes))
    store.recipe.cache_clear()
    assert store.recipe() == {**before, "networks": 4}
