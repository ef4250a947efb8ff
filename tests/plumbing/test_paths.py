"""Names of folders, and files that are replaced completely or not at all."""

import errno
import os
import subprocess
import sys

import pytest

from helpers import messages, parameters, paths


def full(file):
    file.write_text("half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    file = tmp_path / "figures" / "1.png"
    paths.replace_text(file, "old")
    with pytest.raises(OSError, match=r"could not write figures/1.png: No space left on device"):
        paths.replace_file(file, full)
    assert file.read_text() == "old" and list(file.parent.iterdir()) == [file]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"could not write .*file/inside/1.txt: "):
        paths.replace_text(tmp_path / "file" / "inside" / "1.txt", "text")


def test_replaced_files_are_utf8_and_readable_by_all(tmp_path):
    paths.replace_text(tmp_path / "a.txt", "ö")
    assert (tmp_path / "a.txt").read_bytes() == "ö".encode()
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "values, name",
    [
        ({}, "clean-digits-quick"),
        ({"seed": 3, "data": "elsewhere"}, "clean-digits-quick"),
        ({"preset": "short"}, "clean-digits-short"),
        ({"scenarios": ["class"]}, "clean-digits-quick-scenarios-class"),
        ({"start": "chain", "forget_fraction": 0.2}, "clean-digits-quick-forget_fraction-0.2-start-chain"),
        ({"forget_class": ["a b", "c/d"]}, "clean-digits-quick-forget_class-a-b-d"),
        ({"forget_class": ["a:b."]}, "clean-digits-quick-forget_class-a-b-"),
        ({"forget_list": "some/where/list.txt"}, "clean-digits-quick-forget_list-list.txt"),
    ],
)
def test_a_run_is_named_by_what_is_not_default(values, name):
    assert paths.run_name(parameters.checked(values), "clean-digits") == name


def test_folders_are_moved_by_the_environment(tmp_path):
    code = "from helpers import paths; print(paths.RUNS, paths.FIGURES, sep='|')"
    environment = {**os.environ, "UNLEARNING_RUNS": str(tmp_path), "UNLEARNING_FIGURES": "elsewhere"}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=paths.ROOT, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == f"{tmp_path}|{paths.ROOT / 'elsewhere'}"


def test_options_and_names_need_no_torch():
    """The command line answers before torch would be imported."""
    names = "fingerprint, messages, parameters, paths, presets, scenario"
    code = f"import sys; from helpers import {names}; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize(
    "seconds, words", [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599.9, "1 h 0 min"), (7265, "2 h 1 min")]
)
def test_durations(seconds, words):
    assert messages.duration(seconds) == words


def test_a_misspelt_word_is_answered_with_the_nearest():
    assert messages.unknown("quik", ["quick", "short"]) == "'quik' is unknown: one of quick, short; did you mean quick?"
    assert messages.unknown("zzz", ["quick", "short"]) == "'zzz' is unknown: one of quick, short"
