"""Tiny images, networks and splits that the test files share."""

import pytest
import timm
import torch
from torch import nn

from helpers import runs, training
from helpers.data import Data, make_split


class Toy(nn.Module):
    """ResNet-18's stages by name, with batch normalisation in each, in a thousand parameters."""

    def __init__(self, classes=4):
        super().__init__()
        stages = [
            nn.Sequential(nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            for before, width in ((3, 4), (4, 4), (4, 6), (6, 8))
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def seeded(build, seed):
    """What `build` returns under that seed, the global generator left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


@pytest.fixture
def toy():
    """`toy(seed)` builds a convolutional network with ResNet-18's part names."""
    return lambda seed=0: seeded(Toy, seed)


@pytest.fixture
def slim_vit():
    """`slim_vit(seed)` builds timm's vision transformer with 4 blocks of width 12 for 8x8 images."""
    slim = {"num_classes": 4, "img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 4, "num_heads": 3}
    return lambda seed=0: seeded(lambda: timm.create_model("vit_tiny_patch16_224", **slim), seed)


@pytest.fixture
def data():
    """64 training and 40 test images of 8x8 pixels in 4 classes: a colour each, under noise."""
    generator = torch.Generator().manual_seed(5)
    colours = torch.tensor([[200, 60, 60], [60, 200, 60], [60, 60, 200], [180, 180, 60]])

    def images(y):
        noise = torch.randint(-55, 56, (len(y), 8, 8, 3), generator=generator)
        return (colours[y][:, None, None] + noise).to(torch.uint8)

    train_y, test_y = torch.arange(64) % 4, torch.arange(40) % 4
    tensors = images(train_y), train_y, images(test_y), test_y
    return Data("toy", "toy colours", ("a", "b", "c", "d"), *tensors, identity="0" * 12, flip=True)


@pytest.fixture
def random_split(data):
    """48 retained and 16 forgotten images: 6 and 2 batches of 8."""
    return make_split(data, "random", forget_fraction=0.25, image_size=8, batch_size=8)


@pytest.fixture
def class_split(data):
    """Class `a` forgotten: again 48 and 16 images, 6 and 2 batches of 8."""
    return make_split(data, "class", forget_class="a", image_size=8, batch_size=8)


@pytest.fixture
def float32(monkeypatch):
    """Compute in float32 even where the hardware has bfloat16."""
    monkeypatch.setattr(training, "precision", lambda device: "float32")


@pytest.fixture
def runs_folder(tmp_path, monkeypatch):
    """A `runs/` folder of the test's own."""
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def flip_byte():
    """`flip_byte(path)` changes one bit in the middle of a file."""

    def flip(path):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))

    return flip
