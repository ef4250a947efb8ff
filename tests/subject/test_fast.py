"""What makes the suite fast changes no result and keeps memory flat."""

import gc
import weakref
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from helpers import plots
from helpers.data import Batches, make_split, scale
from helpers.methods import documents
from helpers.methods.common import train_last_layers
from helpers.metrics import predict
from helpers.models import OnePixelConv2d, build_model
from helpers.training import step, train, unlearn

pytestmark = pytest.mark.usefixtures("float32")
NETWORKS = {
    "resnet18": {"name": "resnet18", "image_size": 32, "patch_size": 16},
    "vit": {"name": "vit_tiny_patch16_224", "image_size": 16, "patch_size": 4},
}


def plain_model(model, name, image_size, patch_size):
    """The same weights in a network as its library builds it: contiguous, fused attention, no taps left out."""
    if name == "resnet18":
        plain = torchvision.models.resnet18(num_classes=10)
    else:
        plain = timm.create_model(name, num_classes=10, img_size=image_size, patch_size=patch_size)
    plain.load_state_dict({key: value.contiguous() for key, value in model.state_dict().items()})
    return plain


@pytest.fixture(params=NETWORKS)
def networks(request):
    """Our network and the libraries' own with the same weights, both for 10 classes."""
    model = build_model(**NETWORKS[request.param]).cpu()
    return model, plain_model(model, **NETWORKS[request.param]), NETWORKS[request.param]["image_size"]


@pytest.fixture
def float64():
    """Everything in float64: with batch normalisation over 16 single pixels, float32 drifts in 4 steps."""
    torch.set_default_dtype(torch.float64)
    scale.cache_clear()
    yield
    torch.set_default_dtype(torch.float32)
    scale.cache_clear()


def assert_close(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], atol=1e-6), name


# --- the same results ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, kernel, stride, padding, pixels",
    [
        (1, 3, 1, 1, 1),
        (2, 3, 2, 1, 1),
        (1, 3, 2, 1, 1),
        (2, 1, 2, 0, 1),
        (1, 1, 1, 0, 1),
        (2, 3, 1, 1, 2),
        (3, 3, 2, 1, 2),
    ],
)
def test_one_pixel_convolutions_are_convolutions(size, kernel, stride, padding, pixels):
    ours, whole = (kind(3, 5, kernel, stride, padding).double() for kind in (OnePixelConv2d, nn.Conv2d))
    ours.load_state_dict(whole.state_dict())
    x = torch.randn(4, 3, size, size, dtype=torch.double)
    x_ours, x_whole = (x.clone().requires_grad_() for _ in range(2))
    y_ours, y_whole = ours(x_ours), whole(x_whole)
    assert y_ours.shape == (4, 5, pixels, pixels) and torch.allclose(y_ours, y_whole)
    for y in (y_ours, y_whole):
        y.square().sum().backward()
    assert torch.allclose(x_ours.grad, x_whole.grad)
    assert all(torch.allclose(p.grad, q.grad) for p, q in zip(ours.parameters(), whole.parameters()))


def test_layer4_multiplies_by_no_padding():
    model, x = build_model(), torch.zeros(2, 256, 2, 2)
    with FlopCounterMode(display=False) as counter:
        model.layer4(x)
    assert counter.get_total_flops() == 2 * 2 * (4 * 256 * 512 + 3 * 512 * 512 + 256 * 512)
    assert model.layer4[0].conv1.weight.shape == (512, 256, 3, 3)


def plain_step(model, x, y, optimizer):
    """One gradient step, as everybody writes it."""
    loss = cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("settings", [{"lr": 0.02, "weight_decay": 0.1}, {"lr": 1e-4, "optimizer": "adamw"}])
def test_training_equals_the_plain_loop(float64, networks, data, settings):
    model, plain, image_size = networks
    batches = make_split(data, image_size=image_size).train
    history = train(model, batches, epochs=2, batch_size=16, plain_epochs=1, seed=3, **settings).history
    kind = torch.optim.AdamW if "optimizer" in settings else partial(torch.optim.SGD, momentum=0.9)
    optimizer = kind(plain.train().parameters(), settings["lr"], weight_decay=settings.get("weight_decay", 0.0))
    plain_batches, losses = batches.reset(batch_size=16, seed=3), []
    for plain_batches.augment in (True, False):
        losses.append(np.mean([plain_step(plain, x.contiguous(), y, optimizer) for x, y in plain_batches]))
    assert [entry["loss"] for entry in history] == pytest.approx(losses, abs=1e-6)
    assert_close(model, plain)


@pytest.mark.parametrize(
    "name", ["M2 Selective FT", "M3 Reversal", "M4 Per epoch", "M5 Per batch", "M6 Per batch + FT"]
)
def test_frozen_methods_equal_the_whole_computation(name, float64, networks, data, monkeypatch):
    model, plain, image_size = networks
    split = make_split(data, forget_fraction=0.25, image_size=image_size)
    settings = {"epochs": 2, "lr": 0.01, "weight_decay": 0.1}
    run = partial(unlearn, name, split=split, settings=settings, batch_size=16)
    fast = run(original=model)
    monkeypatch.setattr(documents, "train_last_layers", partial(train_last_layers, max_bytes=0))
    whole = run(original=plain)
    assert_close(fast.model, whole.model)
    assert fast.cost["steps"] == whole.cost["steps"]
    assert [h["loss"] for h in fast.history] == pytest.approx([h["loss"] for h in whole.history], abs=1e-6)


def test_evaluation_equals_the_plain_one(networks, data):
    model, plain, image_size = networks
    sets = make_split(data, image_size=image_size).sets
    with torch.no_grad():
        for batches in sets.values():
            x = batches.prepare(batches.images[batches.index]).contiguous()
            one_by_one = torch.cat([plain.eval()(image[None]) for image in x])
            assert torch.allclose(predict(model, batches)[0], one_by_one, atol=1e-4)


# --- memory -------------------------------------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """The size in bytes of the largest tensor that any operation makes."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.size = max(self.size, tensor.nbytes)
        return made


def test_images_are_enlarged_a_batch_at_a_time(data, monkeypatch):
    alive, most, prepare = weakref.WeakSet(), [], Batches.prepare

    def watched(self, x, generator=None):
        most.append(len(alive))
        x = prepare(self, x, generator)
        alive.add(x)
        return x

    monkeypatch.setattr(Batches, "prepare", watched)
    split = make_split(data, image_size=224)
    model = nn.Sequential(nn.AvgPool2d(224), nn.Flatten(), nn.Linear(3, 4))
    with LargestTensor() as largest:
        train(model, split.train, epochs=1, batch_size=8, lr=0.01)
        unlearn("H3 Periodic FT", model, split, {"epochs": 2, "every": 2, "final": 1, "lr": 0.01}, batch_size=8)
        predict(model, split.sets["retain"].reset(batch_size=8))
    assert len(most) > 20 and max(most) <= 3  # of 8 batches: a retained one, a forgotten one and the one before
    assert largest.size == 8 * 3 * 224 * 224 * 4
    assert split.train.images.shape == (64, 8, 8, 3) and split.train.images.dtype == torch.uint8


def tensors_alive():
    gc.collect()
    return sum(torch.is_tensor(thing) for thing in gc.get_objects())


@pytest.mark.parametrize("name", ["training", "M2 Selective FT", "M5 Per batch", "H1 Linear", "2-Stage"])
def test_nothing_grows_with_epochs(name, toy, random_split):
    counts, track = [], lambda model: counts.append(tensors_alive()) or {}
    gc.freeze()  # what is there already need not be looked through
    if name == "training":
        train(toy(), random_split.train, epochs=6, batch_size=8, lr=0.01, track=track)
    else:
        unlearn(name, toy(), random_split, {"epochs": 6, "lr": 0.01}, batch_size=8, track=track)
    gc.unfreeze()
    assert len(counts) == 7 and len(set(counts[3:])) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_step_does_not_wait_for_the_gpu(data):
    model, batches = build_model().cuda(), make_split(data, image_size=32, device="cuda").train
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    served = iter(batches.reset(batch_size=8, augment=True))
    for number in range(6):
        if number == 2:  # caches are filled
            torch.cuda.set_sync_debug_mode("error")
        try:
            x, y = next(served)
            step(cross_entropy(model(x), y), optimizer, scheduler)
        finally:
            if number == 5:
                torch.cuda.set_sync_debug_mode("default")


# --- t-SNE --------------------------------------------------------------------------------------------------------


def test_tsne_repeats_bit_for_bit_and_keeps_neighbours():
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(centre, 1, (40, 64)) for centre in (0, 4)]).astype(np.float32)
    points = plots.embed(features)
    assert np.array_equal(points, plots.embed(features)) and points.shape == (80, 2)
    apart = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag([np.inf] * 80)
    assert ((apart.argmin(1) < 40) == (np.arange(80) < 40)).all()
