"""Lists of images to forget, in all the forms in which they come, and folders that change while they are read."""

import os
import re
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from brought import write_photos

from helpers import datasets, paths
from helpers.datasets import load_data, named_images, read_forget_list


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of three classes."""
    return write_photos(tmp_path_factory.mktemp("lists") / "photos")


@pytest.fixture(scope="module")
def data(photos):
    """Its 96 training and 24 test images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "RUNS", photos.parent / "runs")
        return load_data(str(photos))


# --- lists --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, message",
    [
        ("rose/00.pgn", "line 1: 'rose/00.pgn' is no training image"),
        ("# a\n\n99999", "line 3: '99999' is no training image"),
        ("-1", "line 1: '-1'"),
        ("# nothing", "names no image"),
        ("3\n\t4, x/1.png", "line 2: 'x/1.png' is no training image"),
        ("12,345", "line 1: '12,345' is ambiguous: write one index per line"),
        ("007", "line 1: '007' is no training image"),
        (b"\xe9\xff", "is not text in UTF-8"),
        (None, "the list of images 'forget.txt' does not exist"),
    ],
)
def test_bad_forget_list_is_refused(data, tmp_path, text, message):
    file = tmp_path / "forget.txt"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=re.escape(message)):
        read_forget_list(file, data)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_forget_list_may_begin_with_a_byte_order_mark(encoding, data, tmp_path):
    """As Windows' editors write it."""
    (tmp_path / "forget.txt").write_text(f"{data.files[3]}\n", encoding=encoding)
    assert read_forget_list(tmp_path / "forget.txt", data).tolist() == [3]


def test_a_test_image_in_a_list_is_named(data, tmp_path):
    assert len(data.test_files) == len(data.test_y) and not {*data.files} & {*data.test_files}
    (tmp_path / "forget.txt").write_text(f"{data.files[0]}\n{data.test_files[2]}\n")
    with pytest.raises(ValueError, match=re.escape(f"line 2: '{data.test_files[2]}' is a test image of folder photos")):
        read_forget_list(tmp_path / "forget.txt", data)


def test_other_separators_are_accepted_and_repetitions_kept(data, tmp_path):
    """Commas, semicolons, tabs, backslashes, quotes and a leading ./; the file's order, and each entry that repeats."""
    file = tmp_path / "forget.txt"
    a, b, c = data.files[5], data.files[2].replace("/", "\\"), data.files[9]
    file.write_text(f'{a}, {b};7\t0\n"{c}"\n./{a}\n')
    assert named_images(file, data) == [5, 2, 7, 0, 9, 5]
    assert read_forget_list(file, data).tolist() == [0, 2, 5, 7, 9]


def test_a_folder_in_a_list_is_all_its_training_images(photos, tmp_path, monkeypatch):
    """A sub-class in a folder of its own, with either slash; its test images are no part of it."""
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    shutil.copytree(photos, tmp_path / "photos")
    label = sorted(path.name for path in photos.iterdir())[0]
    for file in sorted((tmp_path / "photos" / label).iterdir())[:20]:
        (tmp_path / "photos" / label / "wild").mkdir(exist_ok=True)
        file.rename(tmp_path / "photos" / label / "wild" / file.name)
    data = load_data(str(tmp_path / "photos"))
    inside = [i for i, name in enumerate(data.files) if name.startswith(f"{label}/wild/")]
    assert 0 < len(inside) < 20 and len(data.files) == 96 and len(data.test_files) == 24
    for line in (f"{label}/wild", f"{label}/wild/", f".\\{label}\\wild\\"):
        (tmp_path / "forget.txt").write_text(line)
        assert read_forget_list(tmp_path / "forget.txt", data).tolist() == inside
    (tmp_path / "forget.txt").write_text(f"{label}/wil/")
    with pytest.raises(ValueError, match=f"line 1: '{label}/wil/' is no training image"):
        read_forget_list(tmp_path / "forget.txt", data)


def test_a_folder_within_a_class_that_cannot_be_read_is_refused(photos, tmp_path, monkeypatch):
    """Else its images would be missing without a word."""
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    shutil.copytree(photos, tmp_path / "photos")
    label = sorted(path.name for path in photos.iterdir())[0]
    (tmp_path / "photos" / label / "locked").mkdir()
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match="locked' cannot be read: Permission denied"):
        load_data(str(tmp_path / "photos"))


def test_a_name_with_a_comma_is_one_image(data, tmp_path):
    data = replace(data, files=("3, 4", *data.files[1:]))
    (tmp_path / "forget.txt").write_text("3, 4\n")
    assert named_images(tmp_path / "forget.txt", data) == [0]


def test_a_hundred_thousand_lines_take_seconds(tmp_path):
    names = tuple(f"train/class {i % 7}/image {i}.png" for i in range(100_000))
    data = SimpleNamespace(files=names, test_files=(), train_y=torch.zeros(100_000), title="many images")
    (tmp_path / "forget.txt").write_text("\n".join(reversed(names)))
    started = time.process_time()
    assert read_forget_list(tmp_path / "forget.txt", data).equal(torch.arange(100_000))
    assert time.process_time() - started < 5


# --- a folder that changes while it is read -----------------------------------------------------------------------


def touch(folder):
    os.utime(folder / "rose/00.png", (1, 1))


def add(folder):
    shutil.copy(folder / "rose/00.png", folder / "rose/000.png")


def remove(folder):
    (folder / "leaf/39.png").unlink()


@pytest.mark.parametrize("change", [touch, add, remove])
@pytest.mark.parametrize("step", ["_decode", "_identity_of_files"])
def test_a_folder_that_changes_while_it_is_read_is_refused(change, step, photos, tmp_path, runs_folder, monkeypatch):
    """Whether it is being hashed or decoded, and nothing of it is kept."""
    folder = shutil.copytree(photos, tmp_path / "photos")
    original = getattr(datasets, step)
    done = []

    def changing(*arguments):
        if not done:
            done.append(change(folder))
        return original(*arguments)

    monkeypatch.setattr(datasets, step, changing)
    with pytest.raises(ValueError, match="'photos' changed while it was read .*run the command again"):
        load_data(str(folder))
    assert not list(runs_folder.glob("images/*.safetensors"))
    assert len(load_data(str(folder)).classes) == 3, "the next call reads the folder as it is now"
