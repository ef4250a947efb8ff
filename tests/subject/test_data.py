"""Images, splits and batches."""

import hashlib
import os
import pickle
import shutil
import sys
import tarfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.datasets import CIFAR10
from torchvision.transforms.v2.functional import normalize

from helpers import paths
from helpers.data import Batches, class_numbers, crop_and_flip, make_split, random_indices
from helpers.datasets import find_folder, load_data, read_forget_list, subset
from helpers.scenario import SCENARIOS

pytestmark = pytest.mark.usefixtures("runs_folder")
ARCHIVE = paths.ROOT.parent / "shared" / "data" / "cifar10-jpeg.tar.gz"


# --- digits -------------------------------------------------------------------------------------------------------


def test_digits_are_uint8_images_with_their_labels():
    digits = load_data("clean-digits")
    assert digits.train_x.shape == (1437, 32, 32, 3) and digits.test_x.shape == (360, 32, 32, 3)
    assert digits.train_x.dtype == torch.uint8 and digits.train_y.dtype == torch.int64
    assert digits.train_x.min() == 0 and digits.train_x.max() == 255
    assert (digits.train_x[..., 0] == digits.train_x[..., 2]).all()
    assert digits.classes == tuple("0123456789") and not digits.flip


def test_digits_keep_the_classes_in_proportion():
    digits = load_data("clean-digits")
    train, test = (torch.bincount(y, minlength=10) for y in (digits.train_y, digits.test_y))
    assert ((test - (train + test) / 5).abs() < 1).all()


def test_digits_are_always_the_same():
    first, second = load_data("clean-digits"), load_data("clean-digits")
    assert first.identity == second.identity and len(first.identity) == 12
    assert torch.equal(first.train_x, second.train_x) and torch.equal(first.test_y, second.test_y)


def test_a_subset_has_its_own_identity_and_images_of_the_whole():
    digits = load_data("clean-digits")
    cut = subset(digits, 50)
    assert len(cut.train_y) == len(cut.test_y) == 50 and cut.identity != digits.identity
    for part in ("train", "test"):
        whole, some = (
            [(x.numpy().tobytes(), int(y)) for x, y in zip(getattr(d, f"{part}_x"), getattr(d, f"{part}_y"))]
            for d in (digits, cut)
        )
        assert set(some) <= set(whole) and some != whole[:50]
    assert subset(digits, None) is digits and subset(digits, 1437) is digits


# --- splits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, first, digest",
    [
        ("validation", [7542, 8214, 3698], "aa94b44a16f62710"),
        ("test", [6706, 5069, 5862], "ed5e5f477c946081"),
        ("forget", [11492, 29443, 25305], "4437de65b7c653e8"),
    ],
)
def test_random_split_is_document_as(name, first, digest):
    index = random_indices(50_000, 10_000)[name]
    assert index[:3].tolist() == first
    assert hashlib.sha256(index.sort().values.numpy().astype("<i8").tobytes()).hexdigest().startswith(digest)


def test_random_split_has_document_as_sizes():
    sizes = {name: len(index) for name, index in random_indices(50_000, 10_000).items()}
    assert sizes == {"retain": 45_000, "forget": 5_000, "validation": 5_000, "test": 5_000}


def test_random_sets_are_disjoint_and_complete(random_split):
    sets = {name: batches.index for name, batches in random_split.sets.items()}
    assert sorted(torch.cat([sets["retain"], sets["forget"]]).tolist()) == list(range(64))
    assert sorted(torch.cat([sets["validation"], sets["test"]]).tolist()) == list(range(40))
    assert len(sets["forget"]) == 16 and len(sets["validation"]) == 20


def test_class_sets_hold_one_class_or_all_others(data, class_split):
    for part, y in (("", data.train_y), ("test ", data.test_y)):
        retain, forget = class_split.sets[f"{part}retain"], class_split.sets[f"{part}forget"]
        assert set(forget.y.tolist()) == {0} and set(retain.y.tolist()) == {1, 2, 3}
        assert sorted(torch.cat([retain.index, forget.index]).tolist()) == list(range(len(y)))


@pytest.mark.parametrize("scenario", ["random_split", "class_split"])
def test_training_batches_are_the_sets_of_the_same_name(scenario, request):
    split = request.getfixturevalue(scenario)
    for name, batches in (("retain", split.retain), ("forget", split.forget)):
        assert sorted(batches.index.tolist()) == sorted(split.sets[name].index.tolist())
    assert sorted(split.train.index.tolist()) == list(range(64))


@pytest.mark.parametrize("scenario", ["random_split", "class_split"])
def test_validation_is_held_out_and_the_same_in_both_scenarios(scenario, data, request):
    split = request.getfixturevalue(scenario)
    assert torch.equal(split.validation.index, random_indices(64, 40)["validation"]) and len(split.validation.y) == 20
    assert torch.equal(split.validation.images, data.test_x) and torch.equal(split.validation.labels, data.test_y)
    fresh = split.reset(seed=0, batch_size=8)
    assert sum(len(y) for _, y in fresh.validation) == fresh.processed["images"] == 20


def test_sets_are_measured_on_their_own_images(data, class_split):
    batches = class_split.sets["test forget"]
    assert torch.equal(batches.images[batches.index], data.test_x[data.test_y == 0])
    assert not batches.shuffle and not batches.augment


def test_evaluate_at_most_cuts_only_the_retained_training_set(data):
    class_sets = make_split(data, "class", evaluate_at_most=5).sets
    sizes = {name: len(batches.index) for name, batches in class_sets.items()}
    assert sizes == {"retain": 5, "forget": 16, "test retain": 30, "test forget": 10}
    random_sets = make_split(data, "random", forget_fraction=0.25, evaluate_at_most=5).sets
    assert [len(batches.index) for batches in random_sets.values()] == [5, 16, 20, 20]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_roles_of_a_scenario_are_sets_that_it_measures(data, scenario):
    split = make_split(data, scenario)
    record = split.scenario
    roles = {*record.tracked, *record.gap, record.test, record.compared, record.unseen, record.held_out}
    assert record.name == scenario and tuple(split.sets) == record.sets and roles <= set(record.sets)
    assert all(split.sets[name].images is data.test_x for name in (record.test, record.unseen, record.held_out))


def test_class_is_found_by_name_or_index(data):
    assert [class_numbers(data, name) for name in (None, "c", 2, "2")] == [(0,), (2,), (2,), (2,)]


def test_several_classes_are_forgotten_together(data):
    split = make_split(data, "class", forget_class=["c", 0, "a"])
    assert split.forget_classes == (0, 2)
    assert set(split.forget.y.tolist()) == set(split.sets["test forget"].y.tolist()) == {0, 2}
    assert set(split.retain.y.tolist()) == set(split.sets["test retain"].y.tolist()) == {1, 3}
    assert split.is_forgotten_class(torch.tensor([0, 1, 2, 3])).tolist() == [True, False, True, False]


def test_forgetting_every_class_is_refused(data):
    with pytest.raises(ValueError, match="every class"):
        make_split(data, "class", forget_class=["a", "b", "c", "d"])


@pytest.mark.parametrize("name", ["airplane", 4, -1, True, "²"])
def test_unknown_class_is_refused_with_those_there_are(data, name):
    with pytest.raises(ValueError, match="a, b, c, d"):
        make_split(data, "class", forget_class=name)


@pytest.mark.parametrize("fraction", [0, 1, 1.5, -0.1, float("nan")])
def test_impossible_forget_fraction_is_refused(data, fraction):
    with pytest.raises(ValueError, match="between 0 and 1"):
        make_split(data, "random", forget_fraction=fraction)


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_empty_forget_or_retain_set_is_refused(data, fraction):
    with pytest.raises(ValueError, match="at least 2"):
        make_split(data, "random", forget_fraction=fraction)


def test_unknown_scenario_is_refused(data):
    with pytest.raises(ValueError, match="random, class"):
        make_split(data, "clas")


def test_a_reset_split_shuffles_by_its_seed_and_counts_together(random_split):
    first, again, other = (random_split.reset(seed=seed, retain_limit=10) for seed in (1, 1, 2))
    assert torch.equal(labels_of(first.retain), labels_of(again.retain))
    assert not torch.equal(labels_of(first.train), labels_of(other.train))
    labels_of(first.forget)
    assert first.processed["images"] == 10 + 64 + 16
    assert random_split.processed["images"] == 0 and random_split.retain.epoch == 0


# --- image folders ------------------------------------------------------------------------------------------------


def paint(path, value, mode="RGB", size=(8, 8)):
    """Save one image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.fixture
def one_level(tmp_path):
    """Classes `cat` and `dog` with 10 images each."""
    for label, name in enumerate(("cat", "dog")):
        for i in range(10):
            paint(tmp_path / "pets" / name / f"{i}.png", (100 * label + i, 0, 50))
    return tmp_path / "pets"


@pytest.fixture
def two_level(tmp_path):
    """`train/` with 6 and `test/` with 5 images of `cat` and of `dog`."""
    for part, count, green in (("train", 6, 0), ("test", 5, 255)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                paint(tmp_path / "pets" / part / name / f"{i}.png", (100 * label + i, green, 50))
    return tmp_path / "pets"


def test_folder_with_train_and_test_keeps_them_apart(two_level):
    pets = load_data(two_level, size=8)
    assert pets.classes == ("cat", "dog") and pets.title == "folder pets"
    assert pets.train_x.shape == (12, 8, 8, 3) and pets.test_x.shape == (10, 8, 8, 3)
    assert (pets.train_x[..., 1] == 0).all() and (pets.test_x[..., 1] == 255).all()
    assert torch.equal(pets.train_x[:, 0, 0, 0] >= 100, pets.train_y == 1)


def test_folder_of_classes_gives_a_fifth_of_each_to_the_test_set(one_level):
    pets = load_data(one_level, size=8)
    assert torch.bincount(pets.train_y).tolist() == [8, 8] and torch.bincount(pets.test_y).tolist() == [2, 2]
    everything = torch.cat([pets.train_x, pets.test_x])[:, 0, 0, 0]
    assert sorted(everything.tolist()) == [*range(10), *range(100, 110)]


def test_hidden_folders_are_no_classes(one_level):
    """JupyterLab leaves `.ipynb_checkpoints` where it was."""
    (one_level / ".ipynb_checkpoints").mkdir()
    assert load_data(one_level, size=8).classes == ("cat", "dog")


def test_a_forget_list_may_name_a_class_that_begins_like_a_comment(one_level, tmp_path):
    (one_level / "cat").rename(one_level / "#cat")
    pets = load_data(one_level, size=8)
    named = [file for file in pets.files if file.startswith("#cat")][:2]
    (tmp_path / "forget.txt").write_text("\n".join(["# requests of this week", *named, "0"]))
    index = read_forget_list(tmp_path / "forget.txt", pets).tolist()
    assert index == sorted({0, *map(pets.files.index, named)})


def test_folder_of_classes_is_split_the_same_way_twice(one_level, runs_folder, tmp_path, monkeypatch):
    first = load_data(one_level, size=8)
    monkeypatch.setattr(paths, "RUNS", tmp_path / "elsewhere")
    second = load_data(str(one_level), size=8)
    assert torch.equal(first.test_x, second.test_x) and first.identity == second.identity


def test_a_class_named_test_is_a_class(one_level):
    (one_level / "cat").rename(one_level / "test")
    pets = load_data(one_level, size=8)
    assert pets.classes == ("dog", "test") and torch.bincount(pets.test_y).tolist() == [2, 2]


def test_folder_is_decoded_once_and_again_when_a_file_changes(one_level, monkeypatch):
    decoded, open_image = [], Image.open
    monkeypatch.setattr(Image, "open", lambda file, *a, **k: decoded.append(file) or open_image(file, *a, **k))
    first = load_data(one_level, size=8)
    load_data(one_level, size=8)
    assert len(decoded) == 20
    paint(one_level / "cat" / "3.png", (255, 255, 255))
    changed = load_data(one_level, size=8)
    assert len(decoded) == 40 and changed.identity != first.identity
    assert load_data(one_level, size=4).train_x.shape[1:] == (4, 4, 3)


def test_identity_changes_with_one_label(one_level):
    before = load_data(one_level, size=8).identity
    (one_level / "cat" / "0.png").rename(one_level / "dog" / "0a.png")
    assert load_data(one_level, size=8).identity != before


def decoded(save, tmp_path, size=8):
    """The pixels of one image among others of a folder, `(size, size, 3)`; `save(path)` writes it."""
    for i in range(5):
        for folder in ("train/b", "test/a", "test/b"):
            paint(tmp_path / "x" / folder / f"{i}.png", (1, 2, 3))
        (tmp_path / "x" / "train" / "a").mkdir(exist_ok=True)
        save(tmp_path / "x" / "train" / "a" / f"{i}.tif")
    return load_data(tmp_path / "x", size=size).train_x[0]


@pytest.mark.parametrize(
    "mode, value, expected",
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 128 * 257, (128, 128, 128)),
        ("RGBA", (10, 20, 30, 40), (10, 20, 30)),
        ("LA", (90, 10), (90, 90, 90)),
    ],
)
def test_any_mode_becomes_rgb(tmp_path, mode, value, expected):
    pixels = decoded(lambda file: Image.new(mode, (8, 8), value).save(file), tmp_path)
    assert pixels.dtype == torch.uint8 and pixels.shape == (8, 8, 3)
    assert (pixels == torch.tensor(expected)).all()


def test_grey_levels_of_more_than_16_bits_are_white(tmp_path):
    assert (decoded(lambda file: Image.new("I", (8, 8), 70000).save(file), tmp_path) == 255).all()


def test_palette_becomes_rgb(tmp_path):
    image = Image.new("RGB", (8, 8), (200, 100, 0)).convert("P", palette=Image.Palette.ADAPTIVE)
    assert (decoded(image.save, tmp_path) == torch.tensor([200, 100, 0])).all()


def test_wide_image_is_scaled_and_cropped_to_its_centre(tmp_path):
    pixels = np.zeros((16, 48, 3), np.uint8)
    pixels[:, 12:36] = 255
    assert (decoded(Image.fromarray(pixels).save, tmp_path) == 255).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (33, 7), (500, 3)])
def test_odd_sizes_become_the_wanted_square(tmp_path, size):
    pixels = decoded(Image.new("RGB", size, (9, 8, 7)).save, tmp_path)
    assert (pixels == torch.tensor([9, 8, 7])).all()


@pytest.mark.parametrize("keep", [0, 40])
def test_broken_image_is_named(one_level, keep):
    file = one_level / "dog" / "4.png"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"dog/4.png.*not a readable image"):
        load_data(one_level, size=8)


def test_an_image_too_large_to_decode_is_named(one_level, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(ValueError, match=r"cat/0.png.*not a readable image: Image size \(64 pixels\)"):
        load_data(one_level, size=8)


def test_a_file_name_that_is_not_utf8_is_accepted(one_level):
    before = load_data(one_level, size=8).identity
    os.rename(one_level / "cat" / "3.png", os.fsencode(one_level / "cat") + b"/3\xff.png")
    pets = load_data(one_level, size=8)
    assert len(pets.train_y) + len(pets.test_y) == 20 and pets.identity != before


def test_a_link_to_a_folder_keeps_its_own_name(one_level, tmp_path):
    (tmp_path / "linked").symlink_to(one_level)
    assert load_data(tmp_path / "linked", size=8).name == "linked"
    assert find_folder(tmp_path / "linked") == tmp_path / "linked"


def test_too_few_images_in_a_class_are_refused(one_level):
    for i in range(3, 10):
        (one_level / "dog" / f"{i}.png").unlink()
    with pytest.raises(ValueError, match="pets/dog' has 3 images; it needs at least 5"):
        load_data(one_level)


def test_empty_class_folder_is_named(one_level):
    (one_level / "fish").mkdir()
    with pytest.raises(ValueError, match="pets/fish' has 0 images"):
        load_data(one_level)


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "Test"), ("train",)])
def test_parts_of_other_names_do_not_become_classes(two_level, names):
    """A folder `train` beside other classes is a class, for example of vehicles."""
    for old, new in zip(("train", "test"), names):
        (two_level / old).rename(two_level / f"{new}.new")
        (two_level / f"{new}.new").rename(two_level / new)
    if len(names) == 1:
        shutil.rmtree(two_level / "test")
    with pytest.raises(ValueError, match="name its two parts train/ and test/"):
        load_data(two_level)
    (two_level / names[0] / "cat").rename(two_level / "bus")
    if len(names) > 1:
        shutil.rmtree(two_level / names[1])
    assert load_data(two_level).classes == tuple(sorted(("bus", names[0])))


def test_hidden_files_are_no_images(one_level):
    (one_level / "cat/._0.png").write_bytes(b"what macOS stores beside a copied file")
    assert len(load_data(one_level).train_y) == 16


def test_single_class_is_refused(one_level):
    (one_level / "dog").rename(one_level.parent / "dog")
    with pytest.raises(ValueError, match=r"at least two.*only 'cat'"):
        load_data(one_level)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS accepts no such names")
@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines"])
def test_a_class_folder_whose_name_does_not_print_is_refused(one_level, name):
    """Figures, tables and records could not hold it. A picture's own name may be anything."""
    (one_level / "cat/0.png").rename(one_level / "cat" / os.fsdecode(b"\xff.png"))
    assert load_data(one_level, size=8).classes == ("cat", "dog")
    (one_level / "cat").rename(one_level / os.fsdecode(name))
    with pytest.raises(ValueError, match=r"rename the class folder '(caf\\udce9|two\\nlines)'"):
        load_data(one_level)


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"'nothing' needs at least two.*none"):
        load_data(tmp_path / "nothing")


def test_train_and_test_with_other_classes_are_refused(two_level):
    (two_level / "test" / "dog").rename(two_level / "test" / "fox")
    with pytest.raises(ValueError, match=r"train/ has classes.*dog.*test/ has.*fox"):
        load_data(two_level)


@pytest.mark.parametrize("name", ["cifar", ""])
def test_unknown_data_name_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=f"'{name}' is unknown: use noisy-digits, clean-digits, cifar10 or"):
        load_data(name)


def test_folder_of_jpeg_files_from_cifar10(tmp_path):
    if not ARCHIVE.exists():
        pytest.skip("the JPEG copy of CIFAR-10 is not here")
    taken = Counter()
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            if member.name.endswith(".jpg") and taken[folder := member.name.rsplit("/", 1)[0]] < 5:
                taken[folder] += 1
                target = tmp_path / "cifar" / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.extractfile(member).read())
            if len(taken) == 20 and min(taken.values()) == 5:
                break
    cifar = load_data(tmp_path / "cifar")
    assert cifar.train_x.shape == cifar.test_x.shape == (50, 32, 32, 3)
    assert cifar.classes[0] == "airplane" and torch.bincount(cifar.test_y).tolist() == [5] * 10
    assert cifar.train_x.float().std() > 40 and cifar.title == "folder cifar"


# --- official CIFAR-10 --------------------------------------------------------------------------------------------


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A root with CIFAR-10's files in small: one training and one test file of 4 images."""
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    contents = {
        "data_batch_1": {"data": rng.integers(0, 256, (4, 3072), np.uint8), "labels": [1, 0, 1, 0]},
        "test_batch": {"data": rng.integers(0, 256, (4, 3072), np.uint8), "labels": [0, 0, 1, 1]},
        "batches.meta": {"label_names": ["airplane", "automobile"]},
    }
    md5 = {}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        md5[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", md5["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    return tmp_path, contents


def test_official_cifar10_is_read_as_images(official):
    root, contents = official
    cifar = load_data("cifar10", root=root)
    planes = contents["data_batch_1"]["data"].reshape(4, 3, 32, 32)  # colour planes, one after the other
    assert np.array_equal(cifar.train_x.numpy(), planes.transpose(0, 2, 3, 1))
    assert cifar.train_y.tolist() == [1, 0, 1, 0] and cifar.test_y.tolist() == [0, 0, 1, 1]
    assert cifar.classes == ("airplane", "automobile") and cifar.title == "CIFAR-10 (official)" and cifar.flip


@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("File not found or corrupted.")])
def test_damaged_cifar10_without_network_says_what_to_do(official, flip_byte, monkeypatch, error):
    root, _ = official
    flip_byte(root / CIFAR10.base_folder / "test_batch")

    def unreachable(*args, **kwargs):
        raise error

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", unreachable)
    with pytest.raises(ConnectionError, match=f"{error}.*cifar-10-python.tar.gz"):
        load_data("cifar10", root=root)


# --- batches ------------------------------------------------------------------------------------------------------


def labels_of(batches):
    """The labels of one pass, in the order in which they are served."""
    return torch.cat([y for _, y in batches])


@pytest.fixture
def numbered():
    """Batches of 12 images whose label is their number and whose every pixel is ten times that."""
    images = (10 * torch.arange(12, dtype=torch.uint8))[:, None, None, None].expand(12, 4, 4, 3).contiguous()
    return Batches(images, torch.arange(12), torch.arange(1, 12), image_size=4, batch_size=4)


def test_each_image_comes_once_a_pass_with_its_label(numbered):
    for x, y in numbered:
        assert torch.allclose(x[:, 0, 0, 0], (10 * y / 255 - 0.5) / 0.5)
    assert sorted(labels_of(numbered).tolist()) == list(range(1, 12))


@pytest.mark.parametrize("count, sizes", [(11, [4, 4, 3]), (9, [4, 5]), (8, [4, 4]), (3, [3]), (1, [1])])
def test_a_last_batch_of_one_joins_the_one_before(numbered, count, sizes):
    batches = numbered.reset(index=torch.arange(count))
    assert [len(y) for _, y in batches] == sizes and len(batches) == len(sizes)


@pytest.mark.parametrize("count, sizes", [(66, [66]), (67, [67]), (68, [64, 4]), (130, [64, 66]), (192, [64, 64, 64])])
def test_a_small_last_batch_joins_the_one_before(numbered, count, sizes):
    """Fewer than a sixteenth of a batch: two images are no batch for batch normalisation where maps are a pixel."""
    batches = numbered.reset(index=torch.arange(count) % 12, batch_size=64)
    assert [len(y) for _, y in batches] == sizes and len(batches) == len(sizes)


def test_limit_draws_other_images_each_epoch(numbered):
    batches = numbered.reset(limit=5)
    drawn = [labels_of(batches).tolist() for _ in range(8)]
    assert all(len(set(labels)) == 5 for labels in drawn) and batches.samples_per_epoch == 5
    assert len(set(map(tuple, drawn))) > 1 and set().union(*drawn) == set(range(1, 12))


def test_order_depends_on_seed_and_epoch_alone(numbered):
    first, again, other = (numbered.reset(seed=seed) for seed in (3, 3, 4))
    epochs = [labels_of(first).tolist() for _ in range(3)]
    assert epochs == [labels_of(again).tolist() for _ in range(3)]
    assert epochs[0] != epochs[1] and epochs[0] != labels_of(other).tolist()
    assert labels_of(replace(first.reset(), epoch=2)).tolist() == epochs[2]


def test_unshuffled_batches_keep_the_order_of_the_index(numbered):
    batches = numbered.reset(shuffle=False, index=torch.tensor([5, 2, 9]))
    assert labels_of(batches).tolist() == batches.y.tolist() == [5, 2, 9]


def test_processed_counts_the_images_served(numbered):
    list(numbered)
    next(iter(numbered))
    assert numbered.processed["images"] == 11 + 4
    assert numbered.reset().processed["images"] == 0


def test_global_random_state_is_left_alone(numbered):
    before = torch.get_rng_state()
    list(numbered.reset(augment=True, flip=True))
    assert torch.equal(before, torch.get_rng_state())


def slow_crop_and_flip(images, tops, lefts, mirrored):
    """Pad by 4, cut out, mirror: one image after the other."""
    out = []
    for image, top, left, mirror in zip(images.numpy(), tops, lefts, mirrored):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
        crop = padded[top : top + image.shape[0], left : left + image.shape[1]]
        out.append(crop[:, ::-1] if mirror else crop)
    return torch.from_numpy(np.stack(out))


@pytest.mark.parametrize("flip", [True, False])
def test_augmentation_matches_a_slow_reference(flip):
    images = torch.randint(0, 256, (50, 6, 6, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    draws = torch.Generator().manual_seed(2)
    tops, lefts = (torch.randint(9, (50, 1), generator=draws)[:, 0].tolist() for _ in range(2))
    mirrored = (torch.rand(50, 1, generator=draws) < 0.5)[:, 0].tolist() if flip else [False] * 50
    augmented = crop_and_flip(images, torch.Generator().manual_seed(2), flip=flip)
    assert torch.equal(augmented, slow_crop_and_flip(images, tops, lefts, mirrored))
    assert {0, 8} <= set(tops) and (not flip or 10 < sum(mirrored) < 40)


def test_augmentation_differs_between_images_and_epochs():
    image = torch.randint(0, 256, (1, 6, 6, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    same = Batches(image, torch.zeros(1).long(), torch.zeros(30).long(), image_size=6, augment=True, flip=True)
    (first, _), (second, _) = next(iter(same)), next(iter(same))
    assert len(first.unique(dim=0)) > 15 and not torch.equal(first, second)


def test_only_augmenting_batches_augment(data):
    plain, augmented = (Batches(data.train_x, data.train_y, torch.arange(8), shuffle=False, augment=a) for a in (0, 1))
    (x, _), (x_augmented, _), (again, _) = next(iter(plain)), next(iter(augmented)), next(iter(plain))
    assert torch.equal(x, again) and not torch.equal(x, x_augmented)


def test_prepare_normalises_each_channel(numbered):
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    x = torch.tensor([[[[255, 0, 51]]]], dtype=torch.uint8)  # (1, 1, 1, 3)
    prepared = numbered.reset(mean=mean, std=std, image_size=1).prepare(x)
    by_hand = torch.tensor([(1 - 0.4914) / 0.2023, -0.4822 / 0.1994, (0.2 - 0.4465) / 0.2010])
    assert torch.allclose(prepared.flatten(), by_hand, atol=1e-6)


def test_prepare_equals_torchvisions_normalize(data):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    prepared = make_split(data, image_size=8, mean=mean, std=std).train.prepare(data.train_x)
    by_torchvision = normalize(data.train_x.permute(0, 3, 1, 2).float() / 255, mean, std)
    assert torch.allclose(prepared, by_torchvision, atol=1e-6)


def test_images_without_statistics_are_normalised_by_those_of_the_retained_images(data, class_split):
    kept = data.train_x[data.train_y != 0].numpy() / 255
    for batches in (class_split.train, class_split.forget, *class_split.sets.values()):
        assert np.allclose(batches.mean, kept.mean((0, 1, 2)), atol=1e-4)
        assert np.allclose(batches.std, kept.std((0, 1, 2)), atol=1e-3)


def test_statistics_of_the_data_are_used(data):
    known = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    split = make_split(replace(data, statistics=known), image_size=8)
    assert (split.train.mean, split.train.std) == known == (split.sets["test"].mean, split.sets["test"].std)


def test_prepare_resizes_to_image_size(data, random_split):
    batches = random_split.train.reset(image_size=16)
    x = batches.prepare(data.train_x[:4])
    small = random_split.train.prepare(data.train_x[:4])
    assert x.shape == (4, 3, 16, 16) and torch.equal(x, interpolate(small, size=16, mode="bilinear"))
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_features_pass_through_unprepared():
    features = torch.rand(6, 5)
    batches = Batches(features, torch.arange(6), torch.arange(6), shuffle=False, augment=True)
    assert torch.equal(next(iter(batches))[0], features)
