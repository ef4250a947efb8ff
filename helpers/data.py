"""Images split into what is retained and what is forgotten, and served in batches on the device."""

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from .messages import unknown
from .scenario import SCENARIOS, Scenario

SPLIT_SEED = 42  # document A's


@dataclass
class Batches:
    """Minibatches `(x, y)` of the images that `index` names; one iteration is one epoch.

    `x` is float `(B, 3, image_size, image_size)`, channels last in memory, normalised, augmented if `augment`; `y` is
    int64 `(B,)`. The order and the augmentation of an epoch depend on `seed` and its number alone, on any device. A
    last batch of one image, or of less than the share `least` of the others, joins the one before it: where feature
    maps are one pixel, batch normalisation cannot train on one image, and on a few of them training breaks.
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
    least: float = 1 / 16  # the documents' last batch of forgotten images is that small
    limit: int | None = None  # a shuffled epoch draws at most this many images, anew each time
    seed: int = 0
    epoch: int = field(default=0, compare=False)  # how many have begun
    processed: Counter = field(default_factory=Counter, compare=False)  # processed["images"]: images served so far

    @property
    def samples_per_epoch(self):
        return min(len(self.index), self.limit or len(self.index))

    @property
    def y(self):
        """Labels in the order of `index`."""
        return self.labels[self.index]

    def __len__(self):
        full, rest = divmod(self.samples_per_epoch, self.batch_size)
        return max(full + (rest >= max(2, self.least * self.batch_size)), 1)

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        self.epoch += 1
        order = torch.randperm(len(self.index), generator=generator) if self.shuffle else torch.arange(len(self.index))
        order = order[: self.samples_per_epoch].to(self.index.device)
        starts = [i * self.batch_size for i in range(len(self))]
        for start, stop in zip(starts, [*starts[1:], self.samples_per_epoch]):
            chosen = self.index[order[start:stop]]
            self.processed["images"] += len(chosen)
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

    def reset(self, **changes):
        """The same images, from the first epoch again, with `changes`."""
        return replace(self, **{"epoch": 0, "processed": Counter(), **changes})


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
    """What is retained and what is forgotten, and the sets on which models are measured.

    `train` is retain and forget together. `validation` is held out from training, for methods that choose or distil by
    unseen images: in both scenarios document A's half of the test images. In the class scenario the measured test sets
    are document B's and contain these images too. `sets` maps the scenario's sets to their batches, unshuffled.
    """

    scenario: Scenario
    classes: tuple[str, ...]
    forget_classes: tuple[int, ...]  # empty in the random scenario
    train: Batches
    retain: Batches
    forget: Batches
    validation: Batches
    sets: dict[str, Batches]
    processed: Counter = field(default_factory=Counter, compare=False)

    def reset(self, *, seed, retain_limit=None, **changes):
        """The same split with batches that start from their first epoch, shuffled by `seed`."""
        processed = Counter()
        changes["processed"] = processed
        return replace(
            self,
            train=self.train.reset(seed=seed, **changes),
            retain=self.retain.reset(seed=seed + 1, limit=retain_limit, **changes),
            forget=self.forget.reset(seed=seed + 2, **changes),
            validation=self.validation.reset(seed=seed + 3, **changes),
            processed=processed,
        )

    def is_forgotten_class(self, y):
        """Which labels are of a forgotten class, bool like `y`."""
        return torch.isin(y, torch.tensor(self.forget_classes, dtype=y.dtype, device=y.device))


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


def class_indices(train_y, test_y, classes):
    """Document B's split: whole classes (numbers) are forgotten, in the training and in the test set."""
    classes = torch.as_tensor(classes)
    return {
        prefix + name: torch.where(torch.isin(y.cpu(), classes) == is_forgotten)[0]
        for prefix, y in (("", train_y), ("test ", test_y))
        for name, is_forgotten in (("retain", False), ("forget", True))
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
    mean=None,
    std=None,
    **batches,
):
    """Split `data` for a scenario: `random` forgets a fraction of the training images, `class` whole classes.

    Args:
        forget_class: name or index of the class to forget, or a list of them; the first class by default.
        forget_index: instead of a random fraction, these training images, int64 `(n,)`.
        evaluate_at_most: measure the retained training set on this many images, always the same ones.
        device: where the images are stored.
        mean, std: per channel, for pixels in [0, 1]; if None, those of the data or, if it has none, those of the
            retained images.
        batches: further settings of the `Batches`: image_size, batch_size, flip.

    Raises:
        ValueError: an unknown scenario or class, or a forget set that is empty or everything.
    """
    if scenario not in SCENARIOS:
        raise ValueError(f"scenario {unknown(scenario, SCENARIOS)}")
    classes = class_numbers(data, forget_class) if scenario == "class" else ()
    indices = forgotten_and_retained(data, classes, forget_fraction, forget_index, seed)
    if mean is None:
        mean, std = data.statistics or channel_statistics(data.train_x[indices["retain"]])
    batches = {"flip": data.flip, "mean": mean, "std": std, **batches}
    train_x, train_y, test_x, test_y = (
        tensor.to(device) for tensor in (data.train_x, data.train_y, data.test_x, data.test_y)
    )

    def training(index, x=train_x, y=train_y):
        return Batches(x, y, index.to(device), **batches)

    def measured(name):
        index, part = indices[name], (train_x, train_y) if name in ("retain", "forget") else (test_x, test_y)
        if name == "retain" and evaluate_at_most:
            index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))[:evaluate_at_most]]
        return Batches(*part, index.to(device), **{**batches, "shuffle": False, "batch_size": 500})

    held_out = random_indices(len(data.train_y), len(data.test_y), seed=seed)["validation"]
    return Split(
        scenario=SCENARIOS[scenario],
        classes=data.classes,
        forget_classes=classes,
        train=training(torch.cat([indices["retain"], indices["forget"]])),
        retain=training(indices["retain"]),
        forget=training(indices["forget"]),
        validation=training(held_out, test_x, test_y),
        sets={name: measured(name) for name in SCENARIOS[scenario].sets},
    )


def channel_statistics(images):
    """Mean and standard deviation of each channel of uint8 images `(n, size, size, 3)`, in [0, 1], to four digits."""
    pixels = images.double() / 255
    return tuple(tuple(round(value, 4) for value in f((0, 1, 2)).tolist()) for f in (pixels.mean, pixels.std))


def forgotten_and_retained(data, classes, fraction, forget_index, seed):
    """The indices of each set: of the class scenario if there are `classes`, else of the random one.

    Raises:
        ValueError: a fraction outside 0 to 1, or fewer than 2 images to forget or to retain.
    """
    if classes:
        indices = class_indices(data.train_y, data.test_y, classes)
    else:
        if not 0 < fraction < 1:
            raise ValueError(f"forget_fraction {fraction} must lie between 0 and 1, both excluded")
        indices = random_indices(len(data.train_y), len(data.test_y), fraction, seed)
        if forget_index is not None:
            is_retained = torch.ones(len(data.train_y), dtype=torch.bool)
            is_retained[forget_index] = False
            indices |= {"retain": is_retained.nonzero().flatten(), "forget": forget_index}
    forget, retain = len(indices["forget"]), len(indices["retain"])
    if min(forget, retain) < 2:
        raise ValueError(
            f"images to forget: {forget}, to retain: {retain}; each side needs at least 2: change the list or the share"
        )
    return indices


def class_numbers(data, names):
    """The indices of classes given by name or index, alone or in a list, sorted; the first class for None.

    Raises:
        ValueError: an unknown class, or all classes.
    """
    names = [0] if names is None else names if isinstance(names, list | tuple) else [names]
    numbers = {class_number(data, name) for name in names}
    if len(numbers) == len(data.classes):
        raise ValueError("forget_class names every class: nothing is left to retain")
    return tuple(sorted(numbers))


def class_number(data, name):
    """The index of a class given by its name or its index."""
    if str(name) in data.classes:
        return data.classes.index(str(name))
    if str(name).isascii() and str(name).isdigit() and int(name) < len(data.classes):
        return int(name)
    raise ValueError(f"forget_class {unknown(name, data.classes)} ({data.title})")
