"""Training, the driver of the unlearning methods, the checks of their settings, interruptions."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from toys import equal

from helpers import devices, training
from helpers.data import Batches
from helpers.training import Checkpoint, Diverged, EpochEnd, Phase, train, unlearn

pytestmark = pytest.mark.usefixtures("float32")
SGD = {"lr": 0.05, "weight_decay": 5e-4, "schedule": "cosine", "batch_size": 8}
ADAMW = {"lr": 1e-3, "weight_decay": 0.05, "optimizer": "adamw", "schedule": "onecycle", "batch_size": 8}


class Clock:
    """A clock that only `pass_time` moves."""

    now = 0.0

    def perf_counter(self):
        return self.now

    monotonic = perf_counter

    def pass_time(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """The clock of all measurements and of checkpoints."""
    stopped = Clock()
    for module in (devices, training):
        monkeypatch.setattr(module, "time", stopped)
    return stopped


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
    history = train(model, random_split.train, epochs=2, augment=False, seed=3, **SGD).history
    batches = random_split.train.reset(batch_size=8, seed=3)
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
    history = train(model, random_split.train, epochs=6, **SGD).history
    assert history[-1]["loss"] < history[0]["loss"] / 2 and not model.training


def test_history_starts_before_the_first_step(toy, random_split):
    lines, seen = [], []
    track = lambda model: {"tracked": seen.append(deepcopy(model.state_dict())) or len(seen)}  # noqa: E731
    trained = train(toy(), random_split.train, epochs=2, track=track, progress=lines.append, **SGD)
    first, *epochs = trained.history
    assert first == {"epoch": 0, "tracked": 1} and torch.equal(seen[0]["fc.weight"], toy().fc.weight)
    found = [(h["epoch"], h["images"], h["steps"], h["tracked"]) for h in epochs]
    assert found == [(1, 64, 8, 2), (2, 128, 16, 3)]
    assert (trained.cost["steps"], trained.cost["images"]) == (16, 128)
    assert len(lines) == 2 and lines[1].startswith("epoch 2, loss ")
    assert train(toy(), random_split.train, epochs=1, **SGD).history[0]["epoch"] == 1, "nothing is tracked"


def test_same_seed_same_training(toy, random_split):
    first, again, other = toy(), toy(), toy()
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        train(model, random_split.train, epochs=1, seed=seed, **SGD)
    assert equal(first, again) and not equal(first, other)


def test_the_last_plain_epochs_are_not_augmented(toy, random_split):
    images = []
    model = toy()
    model.register_forward_pre_hook(lambda _, args: images.append(args[0]))
    train(model, random_split.train, epochs=3, plain_epochs=1, **SGD)
    plain = random_split.train.prepare(random_split.train.images)
    is_plain = [all((x == plain).flatten(1).all(1).any() for x in batch) for batch in images]
    assert is_plain == [False] * 16 + [True] * 8


def test_seconds_leave_tracking_out(toy, random_split, clock):
    def track(model):
        clock.pass_time(100)
        return {}

    model = toy()
    model.register_forward_hook(lambda *args: clock.pass_time(1))
    history = train(model, random_split.train, epochs=2, track=track, **SGD).history
    assert [entry["seconds"] for entry in history[1:]] == [8, 16]


def test_diverging_training_stops_and_names_the_epoch(toy, random_split):
    with pytest.raises(Diverged, match="training diverged in epoch 1"):
        train(toy(), random_split.train, epochs=3, **{**SGD, "lr": 1e30})


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
    plain, split = deepcopy(original).train(), random_split.reset(seed=4, batch_size=8)
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
    assert [(h["epoch"], h.get("s"), h["tracked"]) for h in result.history] == [(0, None, 1), (1, 0.5, 1)]
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
    assert [entry["loss"] for entry in result.history] == [2.5, 3.0] and lines[0] == "epoch 1, loss 2.500"


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


def test_frozen_parameters_stay_and_move_once_unfrozen(toy, random_split):
    def unfreeze_later(model, split):
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
    unlearn(unfreeze_later, original, random_split, track=track)
    assert torch.equal(weights[1], original.layer1[0].weight) and not torch.equal(weights[1], weights[2])


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


def test_unlearning_seconds_leave_tracking_out(toy, random_split, clock):
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


@pytest.mark.parametrize("steps", [1, 4, 9, 17, 100])
def test_one_cycle_never_exceeds_its_rate(steps):
    factors = [Phase(0.1, schedule="onecycle", steps=steps).factor(step) for step in range(steps)]
    assert min(factors) > 0 and max(factors) <= 1 and factors[-1] == min(factors[steps // 2 :])


def test_training_has_no_small_last_batch(toy, random_split, monkeypatch):
    """A last batch of less than a quarter of the others joins the one before it: on few images training breaks."""
    sizes, prepare = [], Batches.prepare
    monkeypatch.setattr(Batches, "prepare", lambda self, x, *a: sizes.append(len(x)) or prepare(self, x, *a))
    for count, expected in ((35, [16, 19]), (36, [16, 16, 4])):
        sizes.clear()
        few = random_split.train.reset(index=random_split.train.index[:count])
        train(toy(), few, epochs=1, batch_size=16, lr=0.01)
        assert sizes == expected


def test_same_seed_same_unlearning(toy, random_split):
    results = [unlearn(one_of_each, toy(), random_split, seed=seed, batch_size=8) for seed in (1, 1, 2)]
    first, again, other = (result.model for result in results)
    assert equal(first, again) and not equal(first, other)


def test_a_method_of_your_own_runs(toy, random_split):
    def forget_by_noise(model, split, *, sigma=0.1):
        yield Phase(lr=0.01)
        for x, y in split.forget:
            yield cross_entropy(model(x + sigma * torch.randn_like(x)), y.flip(0))
        yield EpochEnd({"sigma": sigma})

    first, again = (
        unlearn(forget_by_noise, toy(), random_split, {"sigma": 0.2}, seed=1, batch_size=8) for _ in range(2)
    )
    assert first.history[0]["sigma"] == 0.2 and first.cost["steps"] == 2 and equal(first.model, again.model)


def test_a_diverging_method_stops_and_names_the_epoch(toy, random_split):
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


# --- settings -----------------------------------------------------------------------------------------------------


def test_settings_reach_the_method(toy, random_split):
    steps = [
        (toy().fc.bias - unlearn("Gradient ascent", toy(), random_split, {"epochs": 1, "lr": lr}).model.fc.bias)
        for lr in (0.01, 0.02)
    ]
    assert not torch.equal(*steps)


@pytest.mark.parametrize(
    "settings, line",
    [
        ({"epochs": -1}, "epochs must be a whole number of at least 1, not -1"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, not 0"),
        ({"epochs": "5"}, "epochs must be a whole number of at least 1, not '5'"),
        ({"epochs": 2.5}, "epochs must be a whole number of at least 1, not 2.5"),
        ({"epochs": True}, "epochs must be a whole number of at least 1, not True"),
        ({"lr": math.nan}, "lr must be a number above 0, not nan"),
        ({"lr": math.inf}, "lr must be a number above 0, not inf"),
        ({"lr": 0.0}, "lr must be a number above 0, not 0.0"),
        ({"lr": None}, "lr must be a number above 0, not None"),
        ({"learning_rate": 0.1}, "setting 'learning_rate' is unknown: one of epochs, lr, weight_decay"),
    ],
)
def test_bad_settings_are_refused_before_the_first_step(toy, random_split, settings, line):
    tracked = []
    with pytest.raises(ValueError) as refused:
        unlearn("Gradient ascent", toy(), random_split, settings, track=tracked.append)
    assert str(refused.value) == f"Gradient ascent: {line}" and not tracked


def test_settings_of_an_own_method_are_checked_too(toy, random_split):
    with pytest.raises(ValueError, match="one_of_each: lr must be a number"):
        unlearn(one_of_each, toy(), random_split, {"lr": "fast"})
    with pytest.raises(ValueError, match="'rate' is unknown"):
        unlearn(one_of_each, toy(), random_split, {"rate": 0.1})


def test_numpys_numbers_are_numbers(toy, random_split):
    settings = {"epochs": np.int64(2), "lr": np.float64(0.01)}
    numpys, pythons = (
        unlearn("Gradient ascent", toy(), random_split, chosen).model
        for chosen in (settings, {"epochs": 2, "lr": 0.01})
    )
    assert equal(numpys, pythons)


def test_a_methods_batch_size_is_not_the_drivers(toy, random_split):
    """2-Stage full has a setting `batch_size`, of its steps on retained images alone."""
    sizes = {}
    for own in (4, 16):
        seen = []
        model = toy()
        model.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(len(args[0])))
        unlearn("2-Stage full", model, random_split, {"batch_size": own, "rounds": 1}, batch_size=8)
        sizes[own] = seen
    start = 2 + 2 * 2  # stage 1 on two forgotten batches; contrast on two pairs of batches
    assert sizes[4] == [8] * start + [4] * 12 and sizes[16] == [8] * start + [16] * 3


# --- interruptions ------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    """Ends a training from outside."""


def interrupt_after(calls):
    """A `progress` or `track` that raises at that call."""
    made = []

    def callback(_):
        made.append(1)
        if len(made) == calls:
            raise Interrupted
        return {}

    return callback


def without_seconds(history):
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in history]


@pytest.fixture
def checkpoint(tmp_path):
    """`checkpoint(**changes)`: in one file, with the same settings, after every epoch unless `changes` differ."""
    return lambda **changes: Checkpoint(
        **{"path": tmp_path / "m.partial", "settings": {"lr": 0.05}, "every": 0, **changes}
    )


@pytest.mark.parametrize("where", ["progress", "track"])
@pytest.mark.parametrize("settings", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_resumed_training_is_bitwise_the_uninterrupted_one(toy, random_split, checkpoint, settings, where):
    settings = {**settings, "epochs": 4, "plain_epochs": 1}
    whole = train(toy(), random_split.train, **settings)
    with pytest.raises(Interrupted):
        train(toy(), random_split.train, checkpoint=checkpoint(), **{where: interrupt_after(3)}, **settings)
    lines = []
    resumed = train(toy(seed=7), random_split.train, checkpoint=checkpoint(), progress=lines.append, **settings)
    assert equal(whole.model, resumed.model) and resumed.cost["steps"] == whole.cost["steps"] == 32
    first = 1 if where == "track" else 0  # that training tracked nothing, but has an entry for epoch 0
    assert without_seconds(whole.history) == without_seconds(resumed.history[first:])
    assert len(lines) == (1 if where == "progress" else 3)


def test_checkpoints_are_stored_by_elapsed_time(toy, random_split, checkpoint, clock):
    """Epochs of 8 s: after 60 s, at the end of epoch 8, and not again until 120 s have passed."""
    stored, settings = [], {**SGD, "epochs": 17}
    file = checkpoint(every=60.0, stored=0.0)
    model = toy()
    model.register_forward_hook(lambda *args: clock.pass_time(1))
    watch = lambda line: stored.append(file.path.stat().st_mtime_ns if file.path.exists() else None)  # noqa: E731
    whole = train(model, random_split.train, checkpoint=file, progress=watch, **settings)
    first, second = stored[7], stored[15]
    assert stored == [None] * 7 + [first] * 8 + [second] * 2 and first != second
    lines = []
    resumed = train(toy(seed=7), random_split.train, checkpoint=file, progress=lines.append, **settings)
    assert len(lines) == 1 and equal(whole.model, resumed.model)
    assert resumed.history[-2]["seconds"] == 16 * 8, "the time before the interruption counts"


def test_a_damaged_checkpoint_is_reported_and_not_used(toy, random_split, checkpoint, flip_byte, capsys):
    settings, lines = {**SGD, "epochs": 3}, []
    whole = train(toy(), random_split.train, checkpoint=checkpoint(), **settings)
    flip_byte(checkpoint().path)
    resumed = train(toy(), random_split.train, checkpoint=checkpoint(), progress=lines.append, **settings)
    assert "do not match their checksum" in capsys.readouterr().out
    assert len(lines) == 3 and equal(whole.model, resumed.model)


def test_a_checkpoint_of_other_settings_is_not_used(toy, random_split, checkpoint, capsys):
    train(toy(), random_split.train, epochs=1, checkpoint=checkpoint(), **SGD)
    lines, other = [], checkpoint(settings={"lr": 0.06})
    train(toy(), random_split.train, epochs=1, checkpoint=other, progress=lines.append, **SGD)
    assert len(lines) == 1 and "other settings" in capsys.readouterr().out


def test_a_run_ends_where_stop_ends_it(toy, random_split):
    model = toy()
    steps = []
    model.register_forward_hook(lambda *args: steps.append(1))
    result = unlearn("M1 Retain FT", model, random_split, {"epochs": 5}, batch_size=8, stop=lambda: len(steps) > 3)
    assert result.cost["steps"] == 3 and not result.model.training


def test_a_network_that_a_method_trains_learns_as_it_does_outside(toy, random_split, monkeypatch):
    """In bfloat16, autocast keeps its copies of the weights until the outermost context ends."""
    monkeypatch.setattr(devices, "precision", lambda *_: "bfloat16")
    settings = {"batch_size": 8, "epochs": 3, "lr": 0.05}
    outside, inside = toy(1), toy(1)
    train(outside, random_split.retain, **settings)

    def with_teacher(model, split):
        train(inside, split.retain, **settings)
        yield Phase(0.0)

    unlearn(with_teacher, toy(2), random_split)
    assert equal(outside, inside)
