"""Training, and the driver of the unlearning methods."""

import math
from copy import deepcopy

import pytest
import torch
from torch.nn.functional import cross_entropy

from helpers import data as data_module
from helpers import training
from helpers.training import Diverged, EpochEnd, Phase, train
from helpers.unlearning import find_method, unlearn

real_precision = training.precision
pytestmark = pytest.mark.usefixtures("float32", "runs_folder")
SGD = {"lr": 0.05, "weight_decay": 5e-4, "schedule": "cosine", "batch_size": 8}
ADAMW = {"lr": 1e-3, "weight_decay": 0.05, "optimizer": "adamw", "schedule": "onecycle", "batch_size": 8}


def equal(model, other):
    """Whether two models have bitwise the same parameters and buffers."""
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


class Clock:
    """A clock that only `pass_time` moves."""

    now = 0.0

    def __call__(self):
        return self.now

    perf_counter = __call__

    def pass_time(self, seconds):
        self.now += seconds


# --- phases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step, factor", [(0, 1), (2, (1 + math.sqrt(0.5)) / 2), (4, 0.5), (8, 0), (9, 0)])
def test_cosine_falls_to_zero(step, factor):
    assert Phase(0.1, schedule="cosine", steps=8).factor(step) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("step, lr", [(0, 3e-4), (4, (3e-4 + 1e-6) / 2), (8, 1e-6)])
def test_cosine_falls_to_lr_end(step, lr):
    assert 3e-4 * Phase(3e-4, schedule="cosine", steps=8, lr_end=1e-6).factor(step) == pytest.approx(lr)


@pytest.mark.parametrize("step, factor", [(0, 0.5), (1, 1), (2, 1), (6, 0.5), (9, 0.125), (10, 0)])
def test_onecycle_rises_for_a_fifth_and_falls_to_zero(step, factor):
    assert Phase(0.1, schedule="onecycle", steps=10).factor(step) == pytest.approx(factor)


def test_constant_needs_no_steps():
    assert [Phase(0.1).factor(step) for step in (0, 1, 10**6)] == [1, 1, 1]


def test_unknown_schedule_and_optimizer_are_refused(toy):
    with pytest.raises(ValueError, match="'linear' is unknown: constant, cosine or onecycle"):
        Phase(0.1, schedule="linear", steps=5).start(toy())
    with pytest.raises(ValueError, match="'adam' is unknown: sgd or adamw"):
        Phase(0.1, optimizer="adam").start(toy())


def test_optimizers_get_the_phases_settings(toy):
    sgd, _ = Phase(0.1, momentum=0.8, weight_decay=0.01).start(toy())
    adamw, _ = Phase(0.2, weight_decay=0.03, optimizer="adamw").start(toy())
    assert [sgd.defaults[name] for name in ("lr", "momentum", "weight_decay")] == [0.1, 0.8, 0.01]
    assert isinstance(adamw, torch.optim.AdamW) and adamw.defaults["lr"] == 0.2
    assert adamw.defaults["weight_decay"] == 0.03


# --- train --------------------------------------------------------------------------------------------------------


def test_train_equals_a_plain_loop(toy, random_split):
    model, plain = toy(), toy().train()
    history = train(model, random_split.train, epochs=2, augment=False, seed=3, **SGD)
    batches = random_split.train.fresh(batch_size=8, seed=3)
    velocity = {name: torch.zeros_like(p) for name, p in plain.named_parameters()}
    step, means = 0, []
    for _ in range(2):
        losses = []
        for x, y in batches:
            loss = cross_entropy(plain(x), y)
            gradients = torch.autograd.grad(loss, list(plain.parameters()))
            lr = 0.05 * (1 + math.cos(math.pi * step / 16)) / 2
            with torch.no_grad():
                for (name, p), gradient in zip(plain.named_parameters(), gradients):
                    velocity[name] = 0.9 * velocity[name] + gradient + 5e-4 * p
                    p -= lr * velocity[name]
            losses.append(loss.item())
            step += 1
        means.append(sum(losses) / 8)
    for ours, theirs in zip(model.state_dict().values(), plain.state_dict().values()):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert [entry["loss"] for entry in history] == pytest.approx(means, abs=1e-5)


def test_training_learns_and_ends_in_evaluation_mode(toy, random_split):
    model = toy()
    history = train(model, random_split.train, epochs=6, **SGD)
    assert history[-1]["loss"] < history[0]["loss"] / 2 and not model.training


def test_history_counts_epochs_images_and_steps(toy, random_split):
    lines, track = [], lambda model: {"tracked": 5}
    history = train(toy(), random_split.train, epochs=2, track=track, progress=lines.append, **SGD)
    found = [(h["epoch"], h["images"], h["steps"], h["tracked"]) for h in history]
    assert found == [(1, 64, 8, 5), (2, 128, 16, 5)]
    assert len(lines) == 2 and lines[1].startswith("epoch 2/2  loss ")


def test_same_seed_same_training(toy, random_split):
    first, again, other = toy(), toy(), toy()
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        train(model, random_split.train, epochs=1, seed=seed, **SGD)
    assert equal(first, again) and not equal(first, other)


def test_the_last_plain_epochs_are_not_augmented(toy, random_split, monkeypatch):
    augmented, track = [], []
    augment = data_module.crop_and_flip
    monkeypatch.setattr(data_module, "crop_and_flip", lambda *a, **k: augmented.append(len(track)) or augment(*a, **k))
    train(toy(), random_split.train, epochs=3, plain_epochs=1, track=lambda m: track.append(1) or {}, **SGD)
    assert augmented == [0] * 8 + [1] * 8


def test_seconds_leave_tracking_out(toy, random_split):
    clock = Clock()

    def track(model):
        clock.pass_time(100)
        return {}

    model = toy()
    model.register_forward_hook(lambda *args: clock.pass_time(1))
    history = train(model, random_split.train, epochs=2, track=track, clock=clock, **SGD)
    assert [entry["seconds"] for entry in history] == [8, 8]


class Interrupted(Exception):
    pass


def interrupt_after(epochs):
    """A `progress` or `track` that raises when it is called for that epoch."""
    calls = []

    def callback(_):
        calls.append(1)
        if len(calls) == epochs:
            raise Interrupted
        return {}

    return callback


def without_seconds(history):
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in history]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("where", ["progress", "track"])
@pytest.mark.parametrize("settings", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_resumed_training_is_bitwise_the_uninterrupted_one(toy, random_split, runs_folder, settings, where):
    settings = {**settings, "epochs": 4, "plain_epochs": 1}
    whole, cut, resumed = toy(), toy(), toy(seed=7)
    history = train(whole, random_split.train, **settings)
    with pytest.raises(Interrupted):
        train(cut, random_split.train, checkpoint=runs_folder / "c", **{where: interrupt_after(2)}, **settings)
    trained = []
    again = train(resumed, random_split.train, checkpoint=runs_folder / "c", progress=trained.append, **settings)
    assert equal(whole, resumed) and without_seconds(history) == without_seconds(again)
    assert len(trained) == (2 if where == "progress" else 3)


def test_a_damaged_checkpoint_is_told_and_not_used(toy, random_split, runs_folder, flip_byte, capsys):
    settings = {**SGD, "epochs": 3}
    whole, resumed, trained = toy(), toy(), []
    train(whole, random_split.train, checkpoint=runs_folder / "c", **settings)
    flip_byte(runs_folder / "c.safetensors")
    train(resumed, random_split.train, checkpoint=runs_folder / "c", progress=trained.append, **settings)
    assert "c does not match its checksum" in capsys.readouterr().out
    assert len(trained) == 3 and equal(whole, resumed)


def test_a_checkpoint_of_other_settings_is_not_used(toy, random_split, runs_folder, capsys):
    train(toy(), random_split.train, epochs=1, checkpoint=runs_folder / "c", **SGD)
    trained = []
    settings = {**SGD, "lr": 0.06}
    train(toy(), random_split.train, epochs=1, checkpoint=runs_folder / "c", progress=trained.append, **settings)
    assert len(trained) == 1 and "other settings" in capsys.readouterr().out


def test_diverging_training_stops_and_says_when(toy, random_split):
    with pytest.raises(Diverged, match="epoch 1 of 3"):
        train(toy(), random_split.train, epochs=3, **{**SGD, "lr": 1e30})


@pytest.mark.parametrize("hardware, expected", [(True, "bfloat16"), (False, "float32")])
def test_precision_follows_the_hardware(monkeypatch, hardware, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: hardware)
    monkeypatch.setattr(training, "precision", real_precision)
    assert real_precision("cpu") == expected and real_precision("mps") == "float32"
    with training.autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, expected)


# --- unlearn ------------------------------------------------------------------------------------------------------


def one_of_each(model, split, *, lr=0.1):
    """A retained epoch, then one forgotten batch without an end of epoch."""
    yield Phase(lr)
    for x, y in split.retain:
        yield cross_entropy(model(x), y)
    yield EpochEnd({"s": 0.5})
    x, y = next(iter(split.forget))
    yield -cross_entropy(model(x), y)


def test_unlearn_leaves_the_original_alone(toy, random_split):
    original = toy().eval()
    original.layer2.train()
    original.layer3.requires_grad_(False)
    copy, modes = deepcopy(original), [module.training for module in original.modules()]
    result = unlearn(one_of_each, original, random_split, batch_size=8)
    assert equal(original, copy) and not equal(original, result.model)
    assert [module.training for module in original.modules()] == modes
    assert [p.requires_grad for p in original.parameters()] == [p.requires_grad for p in copy.parameters()]
    assert all(p.grad is None for p in original.parameters())


def test_unlearn_equals_a_plain_loop(toy, random_split):
    original = toy()
    ours = unlearn(one_of_each, original, random_split, seed=4, batch_size=8).model
    plain, split = deepcopy(original).train(), random_split.fresh(seed=4, batch_size=8)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
    for sign, (x, y) in [*((1, batch) for batch in split.retain), (-1, next(iter(split.forget)))]:
        optimizer.zero_grad()
        (sign * cross_entropy(plain(x), y)).backward()
        optimizer.step()
    for name, value in plain.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, atol=1e-5), name


def test_unlearn_counts_steps_and_images(toy, random_split):
    result = unlearn(one_of_each, toy(), random_split, batch_size=8, track=lambda m: {"tracked": 1})
    assert result.cost["steps"] == 7 and result.cost["images"] == 56
    assert [(h["epoch"], h["s"], h["tracked"]) for h in result.history] == [(1, 0.5, 1)]
    limited = unlearn(one_of_each, toy(), random_split, batch_size=8, retain_limit=20)
    assert limited.cost["steps"] == 4 and limited.cost["images"] == 28


def test_history_has_the_mean_loss_of_each_epoch(toy, random_split):
    def three_losses(model, split):
        for losses in ((1.0, 4.0), (3.0,)):
            for loss in losses:
                yield model.fc.bias.sum() * 0 + loss
            yield EpochEnd()

    lines = []
    result = unlearn(three_losses, toy(), random_split, progress=lines.append)
    assert [entry["loss"] for entry in result.history] == [2.5, 3.0] and lines[0] == "epoch 1  loss 2.500"


def pulls(*phases):
    """A method that starts each phase in turn and takes one step of gradient 1 on the bias after it."""

    def method(model, split):
        for phase in phases:
            yield phase
            yield model.fc.bias.sum()

    return method


def test_a_phase_yielded_again_continues_its_momentum(toy, random_split):
    original = toy()
    one, same = Phase(lr=0.1), Phase(lr=0.1)
    assert one == same
    continued, afresh = (unlearn(pulls(one, then), original, random_split).model.fc.bias for then in (one, same))
    assert torch.allclose(original.fc.bias - continued, torch.tensor(0.1 + 0.19))
    assert torch.allclose(original.fc.bias - afresh, torch.tensor(0.1 + 0.1))


def test_a_phase_continues_after_another_one(toy, random_split):
    original = toy()
    one, other = Phase(lr=0.1, schedule="cosine", steps=2), Phase(lr=0.01)
    model = unlearn(pulls(one, other, one), original, random_split).model
    assert torch.allclose(original.fc.bias - model.fc.bias, torch.tensor(0.1 + 0.01 + 0.05 * 1.9))


def test_frozen_parameters_stay_and_move_once_thawed(toy, random_split):
    def thaw_later(model, split):
        model.layer1.requires_grad_(False)
        yield Phase(0.1, weight_decay=0.1)
        for x, y in split.retain:
            yield cross_entropy(model(x), y)
        yield EpochEnd()
        model.requires_grad_(True)
        for x, y in split.retain:
            yield cross_entropy(model(x), y)
        yield EpochEnd()

    original, weights = toy(), []
    track = lambda model: weights.append(model.layer1[0].weight.detach().clone()) or {}  # noqa: E731
    unlearn(thaw_later, original, random_split, track=track)
    assert torch.equal(weights[0], original.layer1[0].weight) and not torch.equal(weights[0], weights[1])


def test_the_unlearned_model_is_whole_again(toy, random_split):
    def freeze(model, split):
        model.requires_grad_(False)
        model.fc.requires_grad_(True)
        yield model.fc.bias.sum()

    model = unlearn(freeze, toy(), random_split).model
    assert all(p.requires_grad for p in model.parameters()) and not any(m.training for m in model.modules())


def test_methods_start_in_training_mode(toy, random_split):
    modes = []

    def look(model, split):
        modes.append(model.training)
        yield EpochEnd()

    unlearn(look, toy().eval(), random_split)
    assert modes == [True]


def test_unlearning_seconds_leave_tracking_out(toy, random_split, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(training, "time", clock)

    def slow(model, split):
        for _ in range(3):
            clock.pass_time(2)
            yield model.fc.bias.sum()
            yield EpochEnd()
        clock.pass_time(1)

    def track(model):
        clock.pass_time(100)
        return {}

    assert unlearn(slow, toy(), random_split, track=track).cost["seconds"] == 7


def test_the_clock_waits_for_a_gpu(monkeypatch):
    """Kernels that were only queued are work that is not done yet."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    training.now("cpu")
    assert not waited
    training.now(torch.device("cuda", 0))
    assert waited == [torch.device("cuda", 0)]


@pytest.mark.parametrize("steps", [1, 4, 9, 17, 100])
def test_one_cycle_never_exceeds_its_rate(steps):
    factors = [Phase(0.1, schedule="onecycle", steps=steps).factor(step) for step in range(steps)]
    assert min(factors) > 0 and max(factors) <= 1 and factors[-1] == min(factors[steps // 2 :])


def test_training_has_no_small_last_batch(toy, random_split, monkeypatch):
    """A last batch of less than a quarter of the others joins the one before it: on few images training breaks."""
    sizes, prepare = [], data_module.Batches.prepare
    monkeypatch.setattr(
        data_module.Batches, "prepare", lambda self, x, *a: sizes.append(len(x)) or prepare(self, x, *a)
    )
    for count, expected in ((35, [16, 19]), (36, [16, 16, 4])):
        sizes.clear()
        few = random_split.train.fresh(index=random_split.train.index[:count])
        train(toy(), few, epochs=1, batch_size=16, lr=0.01)
        assert sizes == expected


def test_same_seed_same_unlearning(toy, random_split):
    results = [unlearn(one_of_each, toy(), random_split, seed=seed, batch_size=8) for seed in (1, 1, 2)]
    first, again, other = (result.model for result in results)
    assert equal(first, again) and not equal(first, other)


def test_settings_go_to_the_method(toy, random_split):
    still = unlearn(one_of_each, toy(), random_split, lr=0.0).model
    assert torch.equal(still.fc.weight, toy().fc.weight)
    with pytest.raises(TypeError, match="learning_rate"):
        unlearn(one_of_each, toy(), random_split, learning_rate=0.1)


def test_a_method_of_your_own_runs(toy, random_split):
    def forget_by_noise(model, split, *, sigma=0.1):
        yield Phase(lr=0.01)
        for x, y in split.forget:
            yield cross_entropy(model(x + sigma * torch.randn_like(x)), y.flip(0))
        yield EpochEnd({"sigma": sigma})

    first, again = (unlearn(forget_by_noise, toy(), random_split, seed=1, batch_size=8, sigma=0.2) for _ in range(2))
    assert first.history[0]["sigma"] == 0.2 and first.cost["steps"] == 2 and equal(first.model, again.model)


def test_a_diverging_method_stops_and_says_when(toy, random_split):
    def explode(model, split):
        yield model.fc.bias.sum()
        yield EpochEnd()
        yield model.fc.bias.sum() * float("nan")
        yield EpochEnd()

    with pytest.raises(Diverged, match="explode diverged in epoch 2"):
        unlearn(explode, toy(), random_split)


def test_weights_that_are_not_finite_are_noticed_without_an_epochs_end(toy, random_split):
    def explode(model, split):
        model.fc.bias.data.fill_(float("inf"))
        yield from ()

    with pytest.raises(Diverged, match=r"explode.*not finite"):
        unlearn(explode, toy(), random_split)


@pytest.mark.parametrize(
    "wrong, near", [("H1 linear", "H1 Linear"), ("2-stage", "2-Stage"), ("fine tuning", "Fine-tuning")]
)
def test_a_misspelt_method_suggests_the_nearest(wrong, near):
    with pytest.raises(ValueError, match=f"did you mean '{near}'"):
        find_method(wrong)


def test_an_unknown_method_lists_those_there_are():
    with pytest.raises(ValueError, match=r"'zzz' is unknown: there are M1 Retain FT, .*2-Stage full"):
        find_method("zzz")
