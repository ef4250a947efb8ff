"""What the code that all models share computes, in a few numbers: `python tests/recipes.py`.

`helpers/recipes.json` holds for each part of `store.PARTS` a number that is part of every model's key, the digest of
the code that is known to give its results, and the values of a small probe of that code. After an edit this command
computes the values again. Where they are equal, only the digest is updated, and all stored models stay valid; where
they differ, the number is raised, and all models are made anew.
"""

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from toys import Toy, seeded

from helpers import devices, paths, store
from helpers.data import Batches, make_split
from helpers.datasets import Data
from helpers.metrics import accuracy, predict
from helpers.models import build_model
from helpers.training import EpochEnd, Phase, descend, train, unlearn

TOLERANCE = 1e-4  # of the largest value: more than another machine's rounding gives, less than a changed result
COMMAND = "python tests/recipes.py"
TRUNCATED = (1.540996, -0.293429, -1.398595)  # what `nn.init.trunc_normal_` drew when the values were stored


def toy_data():
    """64 training and 40 test images of 8x8 pixels in 4 classes, of arithmetic alone."""

    def images(count):
        pixel = torch.arange(count * 8 * 8 * 3).reshape(count, 8, 8, 3)
        label = torch.arange(count) % 4
        return ((pixel * 37 + pixel // 7 * 11) % 151 + 30 * label[:, None, None, None]).to(torch.uint8), label

    (train_x, train_y), (test_x, test_y) = images(64), images(40)
    return Data("toy", "toy", ("a", "b", "c", "d"), train_x, train_y, test_x, test_y, "0" * 12, flip=True)


def toy_split():
    """48 retained and 16 forgotten images, in batches of 8."""
    return make_split(toy_data(), "random", forget_fraction=0.25, image_size=8, batch_size=8)


def reduced(tensors, count=16):
    """`count` sums of all entries with fixed random weights of variance 1 / entries: any change changes them."""
    flat = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    weights = torch.randn(count, len(flat), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (weights @ flat / len(flat) ** 0.5).tolist()


def two_phases(model, split):
    """Up on forgotten, then down on retained images."""
    yield Phase(lr=0.01)
    for loss in descend(model, split.forget):
        yield -loss
    yield EpochEnd()
    yield Phase(lr=0.02, weight_decay=0.01, schedule="cosine", steps=len(split.retain))
    yield from descend(model, split.retain)
    yield EpochEnd()


def driver():
    """A network after 2 epochs of training and 2 of unlearning, and their losses."""
    split = toy_split()
    trained = train(
        seeded(Toy, 0), split.train, epochs=2, plain_epochs=1, batch_size=16, lr=0.02, schedule="onecycle", seed=3
    )
    unlearned = unlearn(two_phases, trained.model, split, seed=4, batch_size=8)
    losses = [entry["loss"] for entry in (*trained.history, *unlearned.history)]
    weights = [value for result in (trained, unlearned) for value in result.model.state_dict().values()]
    return [*losses, *reduced(weights, 12)]


def batches():
    """An augmented epoch of batches, in its order."""
    data = toy_data()
    served = Batches(
        data.train_x, data.train_y, torch.arange(64), image_size=12, batch_size=24, augment=True, flip=True
    )
    return reduced([part for batch in served for part in batch])


def networks():
    """Initial weights and outputs of the two networks on fixed images."""
    x, values = torch.linspace(-1, 1, 4 * 3 * 32 * 32).sin().reshape(4, 3, 32, 32), []
    for settings in ({"name": "resnet18"}, {"name": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 16}):
        model = build_model(**settings, seed=1).eval()
        with torch.no_grad():
            logits = model(x)
        values += [*reduced(model.parameters(), 4), *reduced([logits], 4)]
    return values


def measurement():
    """Predictions, features and accuracy of a network."""
    held = toy_split().sets["retain"]
    logits, features = predict(seeded(Toy, 0), held)
    return [accuracy(logits, held.y), *reduced([logits], 8), *reduced([features], 7)]


@contextmanager
def reproducible():
    """One thread and float32, whatever this machine has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with patch.object(devices, "precision", lambda device, model=None: "float32"):
            yield
    finally:
        torch.set_num_threads(threads)


def values_of(part):
    """What the probe of a part of `store.PARTS` computes now."""
    with reproducible():
        return {"driver": driver, "batches": batches, "networks": networks, "measurement": measurement}[part]()


def comparable(part, values):
    """Of a probe's values those that this version of torch can repeat.

    A ViT's initial weights are from a truncated normal distribution, which torch 2.6 samples in another way.
    """
    drawn = torch.nn.init.trunc_normal_(torch.empty(3), generator=torch.Generator().manual_seed(0))
    same = torch.allclose(drawn, torch.tensor(TRUNCATED), atol=1e-5)
    return values if same or part != "networks" else values[:8]  # ResNet-18's


def are_equal(values, others):
    """Whether two lists of values are equal up to `TOLERANCE` of the largest value."""
    if len(values) != len(others):
        return False
    ours, theirs = (torch.tensor(found, dtype=torch.float64) for found in (values, others))
    return bool(((ours - theirs).abs() <= TOLERANCE * theirs.abs().max()).all())


def updated(part, known):
    """The new entry of a part, and one line that states what changed."""
    code, values = store.code_of(part), values_of(part)
    if not known.get("values"):
        return {"number": known["number"], "code": code, "values": values}, "first values stored"
    if not are_equal(comparable(part, values), comparable(part, known["values"])):
        number = known["number"] + 1
        return {"number": number, "code": code, "values": values}, f"values differ: number raised to {number}"
    if code != known["code"]:
        return {**known, "code": code}, "values equal: digest of the code updated"
    return known, "unchanged"


def main():
    """Update `helpers/recipes.json`."""
    recipes = json.loads(store.RECIPES.read_text(encoding="utf-8"))
    for part in store.PARTS:
        recipes[part], line = updated(part, recipes[part])
        print(f"{part}: {line}")
    paths.replace_text(store.RECIPES, json.dumps(recipes, indent=1) + "\n")


if __name__ == "__main__":
    main()
