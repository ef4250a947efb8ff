"""What makes the suite fast changes no result, keeps memory flat, and is timed by a benchmark that runs."""

import gc
import weakref
from functools import partial

import bench
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import methods, plots
from helpers.data import Batches, make_split, scale
from helpers.methods import tail_only
from helpers.metrics import predict
from helpers.models import OnePixelConv2d, build_model
from helpers.training import descend, pick_device, precision, train
from helpers.unlearning import unlearn

pytestmark = pytest.mark.usefixtures("float32")
NETWORKS = {
    "resnet18": {"name": "resnet18", "image_size": 32, "patch_size": 16},
    "vit": {"name": "vit_tiny_patch16_224", "image_size": 16, "patch_size": 4},
}


@pytest.fixture(params=NETWORKS)
def networks(request):
    """Our network and the libraries' own with the same weights, both for 10 classes."""
    model = build_model(**NETWORKS[request.param]).cpu()
    return model, bench.plain_model(model, **NETWORKS[request.param]).cpu(), NETWORKS[request.param]["image_size"]


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
    counted = bench.flops(lambda lap: (lap(), model.layer4(x), lap()))
    assert counted == 2 * 2 * (4 * 256 * 512 + 3 * 512 * 512 + 256 * 512)
    assert model.layer4[0].conv1.weight.shape == (512, 256, 3, 3)


@pytest.mark.parametrize("settings", [{"lr": 0.02, "weight_decay": 0.1}, {"lr": 1e-4, "optimizer": "adamw"}])
def test_training_equals_the_plain_loop(float64, networks, data, settings):
    model, plain, image_size = networks
    batches = make_split(data, image_size=image_size).train
    history = train(model, batches, epochs=2, batch_size=16, plain_epochs=1, seed=3, **settings)
    kind = torch.optim.AdamW if "optimizer" in settings else partial(torch.optim.SGD, momentum=0.9)
    optimizer = kind(plain.train().parameters(), settings["lr"], weight_decay=settings.get("weight_decay", 0.0))
    plain_batches, losses = batches.fresh(batch_size=16, seed=3), []
    for plain_batches.augment in (True, False):
        losses.append(np.mean([bench.step(plain, (x.contiguous(), y), optimizer) for x, y in plain_batches]))
    assert [entry["loss"] for entry in history] == pytest.approx(losses, abs=1e-6)
    assert_close(model, plain)


@pytest.mark.parametrize(
    "name", ["M2 Selective FT", "M3 Reversal", "M4 Per epoch", "M5 Per batch", "M6 Per batch + FT"]
)
def test_frozen_methods_equal_the_whole_computation(name, float64, networks, data, monkeypatch):
    model, plain, image_size = networks
    split = make_split(data, forget_fraction=0.25, image_size=image_size)
    run = partial(unlearn, name, split=split, batch_size=16, epochs=2, lr=0.01, weight_decay=0.1)
    fast = run(original=model)
    monkeypatch.setattr(methods, "tail_only", partial(tail_only, at_most=0))
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


def test_attention_is_fused_where_it_is_faster():
    fused = pick_device().type != "cpu" or precision(pick_device()) == "float32"
    assert {block.attn.fused_attn for block in build_model("vit_tiny_patch16_224").blocks} == {fused}


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
        unlearn("H3 Periodic FT", model, split, batch_size=8, epochs=2, every=2, final=1, lr=0.01)
        predict(model, split.sets["retain"].fresh(batch_size=8))
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
        unlearn(name, toy(), random_split, epochs=6, batch_size=8, lr=0.01, track=track)
    gc.unfreeze()
    assert len(counts) == 6 and len(set(counts[2:])) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_step_does_not_wait_for_the_gpu(data):
    model, batches = build_model().cuda(), make_split(data, image_size=32, device="cuda").train
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    served = iter(batches.fresh(batch_size=8, augment=True))
    for number in range(6):
        if number == 2:  # caches are filled
            torch.cuda.set_sync_debug_mode("error")
        try:
            x, y = next(served)
            descend(cross_entropy(model(x), y), optimizer, scheduler)
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


# --- the benchmark ------------------------------------------------------------------------------------------------


def test_the_benchmark_prints_its_tables(capsys):
    bench.main(["--tiny", "--rounds", "1", "--markdown", "--cases", "vit32", "M5", "evaluation", "growth"])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("| ")]
    heading, _, *cases = rows[:5]
    assert heading[:4] == ["case", "reference, images/s", "ours, images/s", "ratio (lowest to highest)"]
    assert [row[0] for row in cases] == [
        "ViT-Tiny 32/4, training steps", "M5, epoch", "ResNet-18, evaluation of all sets"
    ]  # fmt: skip
    for row in cases:
        assert len(row) == len(heading) == 6 and all(float(cell.replace(",", "")) > 0 for cell in row[1:3])
        assert float(row[3].split()[0]) > 0 and row[5].count(" v. ") == 1
    assert [row[0] for row in rows[7:]] == ["1", "2", "4"] and all(
        float(cell) > 0 for row in rows[7:] for cell in row[1:]
    )
    assert any(line.startswith("M5, epoch: ") for line in lines)


def test_the_benchmarks_two_sides_do_the_same_work():
    """As many multiplications for a ViT, but for a second head in float32; fewer where a frozen part is left out."""
    case = bench.CASES["vit32evaluation"](0)
    assert bench.flops(case.ours) == bench.flops(case.reference) + case.images * 2 * 192 * 10
    case = bench.CASES["M5"](0)
    assert 0 < bench.flops(case.ours, case.set_up) < bench.flops(case.reference) / 2


def test_images_of_a_budget_by_hand():
    """50,000 images: 10 % forgotten, 2 epochs of Original and of one Gold, M1 for 3 epochs, M2 for 4."""
    table = {
        "golds": 1, "training": {"epochs": 2}, "unlearning": {}, "evaluation": {"final": 1000, "tracked": 100},
        "methods": {"M1 Retain FT": {"epochs": 3}, "M2 Selective FT": {"epochs": 4}},
    }  # fmt: skip
    seen = bench.images_of("random", table, 50_000)
    assert seen["trained"] == 2 * 50_000 + 2 * 45_000 + 3 * 45_000 and seen["tail"] == 4 * 45_000
    assert seen["evaluated"] == 50_000 + 4 * (1000 + 5000 + 10_000) + (2 + 2 + 3 + 4) * 300


def test_a_study_is_the_suites_graph():
    """Two seeds of `smoke` at a second an image: what waits for what, the longest chain; more devices, less time."""
    placed = {name for names in bench.IN_NOTEBOOK.values() for name in names}
    assert all(table["methods"].keys() <= placed for table in bench.BUDGETS["smoke"].values())
    graph = bench.study_graph("smoke", 2, 500, lambda scenario, job: job.get("trained", 0) + job.get("tail", 0))
    models = 2 * (1 + 2 + 6)  # both scenarios: Original, Golds, shadows
    assert len(graph) == 2 * (models + len(bench.IN_NOTEBOOK) + 2)
    assert graph[0, "random", "Original"] == (500, []) and graph[1, "class", "Gold 2"][0] == 450
    assert graph[1, "random", "shadow 5"][0] > 450
    took, needs = graph[1, "notebook", "04"]
    assert set(needs) == {(1, s, name) for s in ("random", "class") for name in ("Original", "Gold 1", "Gold 2")}
    assert took == sum(bench.jobs_of(s, bench.BUDGETS["smoke"][s], 500, ["M2 Selective FT"])["M2 Selective FT"]["tail"]
                       for s in ("random", "class"))  # fmt: skip
    assert len(graph[0, "notebook", "12"][1]) == models
    total, chain = sum(seconds for seconds, _ in graph.values()), bench.longest_chain(graph)
    assert bench.simulate(graph, 1) == pytest.approx(total) and bench.simulate(graph, 1000) == pytest.approx(chain)
    assert chain < bench.simulate(graph, 4) < total


def test_a_simulated_graph_by_hand():
    """Two devices, longest first: b and a, then c, which waited for a, beside the rest of b."""
    graph = {"a": (2.0, []), "b": (5.0, []), "c": (4.0, ["a"]), "d": (1.0, ["a", "b"])}
    assert bench.simulate(graph, 2) == 6 and bench.longest_chain(graph) == 6 and bench.simulate(graph, 1) == 12
