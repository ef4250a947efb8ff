"""What a user may bring: a folder of images, a network and methods, each as small as can be."""

import numpy as np
from PIL import Image

COLOURS = {"leaf": (40, 180, 60), "rose": (200, 40, 40), "sky": (60, 90, 220)}
NETWORK = '''
from torch import nn


def small(classes):
    """A convolution and a linear layer."""
    first = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))
'''
METHODS = '''
from torch.nn.functional import cross_entropy

from helpers.methods import Method, Search
from helpers.training import EpochEnd, Phase

WEIGHT = 1.0


def soften(model, split, *, epochs=1, lr=1e-3, s=0.5):
    """Down on retained images, towards uniform predictions on forgotten ones."""
    yield Phase(lr)
    for _ in range(epochs):
        for (x_f, _), (x_r, y_r) in zip(split.forget, split.retain):
            yield cross_entropy(model(x_r), y_r) - WEIGHT * s * model(x_f).log_softmax(1).mean()
        yield EpochEnd()


METHODS = [Method("Soften", soften, settings={"lr": 0.01}, search={"s": Search(0.1, 1.0)}), soften]
'''


def write_photos(folder, count=40, size=16):
    """A folder of three classes, a colour each under noise; `count` images per class."""
    rng = np.random.default_rng(3)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.array(colour) + rng.integers(-60, 60, (size, size, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{number:02d}.png")
    return folder
