"""Labelled image collections: noisy and clean digits, CIFAR-10 and image folders, and lists of images to forget."""

import hashlib
import json
import os
import re
from collections import defaultdict
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import interpolate

from . import paths, store
from .data import SPLIT_SEED
from .messages import suggestion

DIGITS = {"noisy-digits": 70, "clean-digits": 0}  # standard deviation of the noise in grey levels of 0 to 255
NAMES = (*DIGITS, "cifar10")
CIFAR10_STATISTICS = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # document A
PARTS = {"train", "test", "val", "valid", "validation", "dev"}  # names, in any case, of parts of a folder
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Data:
    """A labelled image collection. Images are uint8 `(N, size, size, 3)`, labels int64 `(N,)`."""

    name: str  # short, for folders: "noisy-digits"
    title: str  # for people: "noisy digits (scikit-learn)"
    classes: tuple[str, ...]
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    identity: str  # 12 hex digits that change whenever an image or a label changes
    flip: bool  # whether a mirrored image keeps its label
    statistics: tuple | None = None  # (mean, std) per channel of pixels in [0, 1]; None: those of the retained images
    files: tuple[str, ...] = ()  # of a folder: the path of each training image in it, "train/cat/7.png"
    test_files: tuple[str, ...] = ()  # of a folder: the same of its test images


def load_data(source="noisy-digits", *, size=32, root=None):
    """Load the embedded digits, CIFAR-10 (downloaded, md5-checked by torchvision) or an image folder.

    Args:
        source: `noisy-digits`, `clean-digits`, `cifar10` or the path of an `ImageFolder` tree: `train/<class>/` and
            `test/<class>/`, or one level of classes, a fifth of which becomes the test set. A class may have folders
            within it.
        size: side in pixels at which folder images are kept; others are scaled to it and cropped to their centre.
        root: the folder of `cifar10`, downloaded there if it is missing; `data/` beside this package by default.

    Raises:
        ValueError: an unknown name, or a folder that cannot be used, with the reason.
        ConnectionError: CIFAR-10 is neither here nor downloadable.
    """
    if source in DIGITS:
        return _digits(source)
    if source == "cifar10":
        return _cifar10(Path(root or paths.ROOT / "data"))
    return _folder(find_folder(source), size)


def find_folder(source):
    """The absolute path of a folder of images, relative to here or to the repository; a link keeps its own name."""
    folder = Path(source).expanduser()
    folder = folder if folder.is_absolute() or folder.is_dir() else paths.ROOT / folder
    if not str(source) or not folder.is_dir():
        raise ValueError(f"data '{source}' is unknown: use {', '.join(NAMES)} or an existing folder of images")
    return Path(os.path.abspath(folder))  # a name, not `..`


def _identity(*arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]


def _digits(name):
    """scikit-learn's 1,797 handwritten digits (8x8, 16 grey levels), enlarged to 32x32 RGB; a fifth is the test set.

    The noisy ones have fixed Gaussian noise, drawn with a seed and added on the 8x8 grid, so that a network has to
    memorise images that it cannot generalise to, as on photographs.
    """
    bunch, noise = load_digits(), DIGITS[name]
    x = torch.from_numpy(bunch.images).float()[:, None] * 255 / 16
    if noise:
        x = (x + noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(SPLIT_SEED))).clamp(0, 255)
    x = interpolate(x, size=32, mode="bilinear").round().to(torch.uint8)
    x = x.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    train, test = train_test_split(np.arange(len(x)), test_size=0.2, random_state=SPLIT_SEED, stratify=bunch.target)
    y = torch.from_numpy(bunch.target).long()
    return Data(
        name,
        f"{'noisy' if noise else 'clean'} digits (scikit-learn)",
        tuple(str(label) for label in bunch.target_names),
        *(x[train], y[train], x[test], y[test]),
        _identity(x, y, train),
        flip=False,
    )


def _cifar10(root):
    from torchvision.datasets import CIFAR10

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
        statistics=CIFAR10_STATISTICS,
    )


def _folder(folder, size):
    """An image folder, decoded once and kept as tensors under `runs/`, keyed by the bytes of its files.

    Raises:
        ValueError: also for a folder that changes while it is read; nothing of it is kept then.
    """
    two_levels = _has_two_levels(folder)
    classes, files = _images_of(folder)
    states = _states(folder, files)
    identity = _identity_of_files(folder, states, size)

    def decode():
        with _unchanged(folder, states):
            x = torch.stack([_decode(file, size) for file, _ in files])
        y = torch.tensor([label for _, label in files])
        parts = [file.relative_to(folder).parts[0] for file, _ in files]
        is_test = torch.tensor([two_levels and part == "test" for part in parts])
        if not two_levels:
            _, test = train_test_split(np.arange(len(y)), test_size=0.2, random_state=SPLIT_SEED, stratify=y)
            is_test[test] = True
        return {"x": x, "y": y, "is_test": is_test}

    path = paths.RUNS / "images" / f"{folder.name}-{identity}.safetensors"
    tensors = store.remember(path, {"identity": identity}, decode)
    x, y, is_test = tensors["x"], tensors["y"], tensors["is_test"]
    names = np.array([name for name, *_ in states], dtype=object)
    return Data(
        f"folder-{folder.name}" if folder.name in NAMES else folder.name,
        f"folder {folder.name}",
        classes,
        *(x[~is_test], y[~is_test], x[is_test], y[is_test]),
        identity,
        flip=True,
        files=tuple(names[~is_test.numpy()]),
        test_files=tuple(names[is_test.numpy()]),
    )


def _has_two_levels(folder):
    """Whether a folder has `train/` and `test/`.

    Raises:
        ValueError: other names of such parts, which must not become classes.
    """
    inner = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    if {"train", "test"} <= set(inner):
        return True
    if "train" in {name.lower() for name in inner} and {name.lower() for name in inner} <= PARTS:
        raise ValueError(f"'{folder.name}' has {'/, '.join(sorted(inner))}/: name its two parts train/ and test/")
    return False


def _images_of(folder):
    """The classes of a folder, and each image with its label: training images first, by class and name."""
    two_levels = _has_two_levels(folder)
    classes = _classes(folder / "train" if two_levels else folder)
    if two_levels and (test_classes := _classes(folder / "test")) != classes:
        raise ValueError(f"'{folder.name}': train/ has classes {classes}, test/ has {test_classes}")
    return classes, [
        (file, label)
        for part in (["train", "test"] if two_levels else ["."])
        for label, name in enumerate(classes)
        for file in _images(folder / part / name)
    ]


def _states(folder, files):
    """Path in the folder, size and time of each image, in order."""
    found = []
    for file, _ in files:
        status = file.stat()
        found.append((file.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns))
    return found


@contextmanager
def _unchanged(folder, states):
    """Refuse what was read of a folder whose images are no longer in these states, whatever error that led to.

    Raises:
        ValueError: with the first image that was changed, added or removed.
    """
    try:
        yield
    finally:
        if changed := set(states) ^ set(_states(folder, _images_of(folder)[1])):
            raise ValueError(
                f"'{folder.name}' changed while it was read ({min(changed)[0]}): run the command again when nothing "
                "writes there"
            )


def _identity_of_files(folder, states, size):
    """Twelve hex digits of names and bytes; files of the same size and time as at the last call are not read again."""
    known = paths.RUNS / "images" / f"{folder.name}-{store.key([str(folder), size, states])}.json"
    with suppress(OSError, ValueError):  # ValueError: damaged, so computed anew
        return json.loads(known.read_text(encoding="utf-8"))
    digest = hashlib.sha256(f"{size}".encode())
    with _unchanged(folder, states):
        for name, *_ in states:
            digest.update(os.fsencode(name) + (folder / name).read_bytes())
    identity = digest.hexdigest()[:12]
    paths.replace_text(known, json.dumps(identity))
    return identity


def _classes(folder):
    classes = tuple(sorted(e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")))
    if len(classes) < 2:
        found = f"only '{classes[0]}'" if classes else "none"
        raise ValueError(f"'{folder.name}' needs at least two folders of images, one per class; found {found}")
    if strange := [name for name in classes if not name.isprintable()]:
        raise ValueError(f"'{folder.name}': rename the class folder {strange[0]!a}: it is not printable UTF-8")
    return classes


def _refuse(error):
    """`os.walk` would leave out a folder that cannot be read."""
    raise ValueError(f"'{error.filename}' cannot be read: {error.strerror}") from error


def _images(folder):
    """The images of a class, also those in folders within it (sub-classes), unless a folder or a file is hidden."""
    files = []
    for place, inner, names in os.walk(folder, onerror=_refuse):
        inner[:] = [name for name in inner if not name.startswith(".")]
        visible = [name for name in names if not name.startswith(".")]  # macOS writes ._photo.jpg
        files += [Path(place) / name for name in visible if Path(name).suffix.lower() in EXTENSIONS]
    files.sort(key=lambda file: file.relative_to(folder).as_posix())  # paths compare differently on Windows
    if len(files) < 5:
        raise ValueError(
            f"class folder '{folder.parent.name}/{folder.name}' has {len(files)} images; it needs at least 5 "
            f"({', '.join(EXTENSIONS)})"
        )
    return files


def _decode(file, size):
    """One image as uint8 `(size, size, 3)`: upright, any mode to RGB, the shorter side scaled to `size`, its centre."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith("I"):  # 16-bit grey levels: PIL's own conversion clips them to white
                image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
            image = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"'{file.parent.name}/{file.name}' is not a readable image: {error}") from error
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image))


def write_images(data, folder, per_class):
    """Write the first `per_class` training images of each class and half as many test images as a folder of PNG files.

    Files that exist are kept. The folder is then one that `load_data` accepts: `train/<class>/000.png` and so on.
    """
    parts = (("train", data.train_x, data.train_y, per_class), ("test", data.test_x, data.test_y, per_class // 2))
    for part, x, y, most in parts:
        for label, name in enumerate(data.classes):
            for number, image in enumerate(x[y == label][:most].numpy()):
                file = Path(folder) / part / name / f"{number:03d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                if not file.exists():
                    Image.fromarray(image).save(file)


def read_forget_list(path, data):
    """The training images that a text file names, as sorted int64 indices `(n,)`; see `named_images`."""
    return torch.tensor(sorted(set(named_images(path, data))))


def named_images(path, data):
    """The indices of the training images that a text file names, in its order and with repetitions.

    A line is an index into the training images or, for a folder of images, a path in it: of a file, or of a folder,
    which stands for all its images (a sub-class; `3/` where its name is a number). Backslashes and double quotes are
    accepted. Several in a line are separated by commas, semicolons or tabs. Blank lines and lines that begin with # are
    skipped.

    Raises:
        ValueError: in one line, a file that is missing or no text; a line that names no training image, with its
            number; an empty list.
    """
    path = Path(path).expanduser()
    place, inside = {name: i for i, name in enumerate(data.files)}, defaultdict(list)
    for name, i in place.items():
        for folder in accumulate(name.split("/")[:-1], "{}/{}".format):
            inside[folder].append(i)

    def find(word):
        word = word.strip().strip('"')
        if word in place:
            return [place[word]]
        if word.isascii() and word.isdigit() and str(int(word)) == word:
            return [int(word)] if int(word) < len(data.train_y) else []
        word = word.replace("\\", "/").removeprefix("./")
        return [place[word]] if word in place else inside.get(word.removesuffix("/"), [])

    chosen = []
    for number, line in enumerate(_lines(path), 1):
        line = line.strip()
        if not line or (line.startswith("#") and line not in place):
            continue
        words = [line] if find(line) else [word for word in re.split(r"[,;\t]", line) if word.strip()]
        if re.fullmatch(r"\d{1,3}(,\d{3})+", line):  # 12,345 may be one number
            raise ValueError(f"{path.name}, line {number}: '{line}' is ambiguous: write one index per line")
        for word in words:
            if not (found := find(word)):
                raise ValueError(f"{path.name}, line {number}: {_not_found(word.strip(), data)}")
            chosen += found
    if not chosen:
        raise ValueError(f"{path.name} names no image")
    return chosen


def _lines(path):
    """The lines of a text file in UTF-8, or in UTF-16 with its byte-order mark, as Windows writes it."""
    try:
        content = path.read_bytes()
        is_utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        return content.decode("utf-16" if is_utf16 else "utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ValueError(f"the list of images '{path.name}' does not exist") from None
    except OSError as error:
        raise ValueError(f"the list of images '{path.name}' cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"the list of images '{path.name}' is not text in UTF-8") from None


def _not_found(word, data):
    """Why `word` is no training image, with what is valid."""
    if word.replace("\\", "/") in data.test_files:
        return f"'{word}' is a test image of {data.title}: no model was trained on it: leave it out of the list"
    example = f" or a path like {data.files[0]}" if data.files else ""
    return (
        f"'{word}' is no training image of {data.title}: use an index from 0 to {len(data.train_y) - 1}{example}"
        f"{suggestion(word, data.files)}"
    )


def subset(data, images):
    """`data` cut to a random `images` training and test images; all of them for None, or where there are no more."""
    if images is None or max(len(data.train_y), len(data.test_y)) <= images:
        return data
    rng = np.random.default_rng(SPLIT_SEED)
    train, test = (torch.from_numpy(rng.permutation(len(y))[:images]) for y in (data.train_y, data.test_y))
    cut = {"train_x": data.train_x[train], "train_y": data.train_y[train]}
    cut |= {"test_x": data.test_x[test], "test_y": data.test_y[test]}
    return replace(data, **cut, identity=f"{data.identity}-{images}")
