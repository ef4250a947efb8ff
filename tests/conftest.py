"""Tiny images, networks and splits that the test files share."""

import pytest
import timm
import torch
from toys import Toy, seeded

from helpers import devices, paths
from helpers.data import make_split
from helpers.datasets import Data


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
    monkeypatch.setattr(devices, "precision", lambda device, model=None: "float32")


@pytest.fixture
def runs_folder(tmp_path, monkeypatch):
    """A `runs/` folder of the test's own; progress goes to a file beside it."""
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("UNLEARNING_PROGRESS", str(tmp_path / "progress"))
    return tmp_path / "runs"


@pytest.fixture
def flip_byte():
    """`flip_byte(path)` changes one bit in the middle of a file."""

    def flip(path):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))

    return flip
