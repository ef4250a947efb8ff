"""The unlearning methods: what they yield, in which order, and what they leave untouched."""

import inspect
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from helpers import methods, training, unlearning
from helpers.data import make_split
from helpers.methods import DOCUMENTS, contrast, exponential, kl_uniform, linear, square, tail_only
from helpers.metrics import losses, predict
from helpers.models import build_model, early, evaluating, inputs_of, is_vit, last_linear, tail
from helpers.training import EpochEnd, Phase, train
from helpers.unlearning import source_of, unlearn

pytestmark = pytest.mark.usefixtures("float32")

TINY = {  # display name: (settings, epochs in the history)
    "M1 Retain FT": ({"epochs": 2}, 2),
    "M2 Selective FT": ({"epochs": 2}, 2),
    "M3 Reversal": ({"epochs": 2}, 3),
    "M4 Per epoch": ({"epochs": 2}, 2),
    "M5 Per batch": ({"epochs": 2}, 2),
    "M6 Per batch + FT": ({"epochs": 2}, 7),
    "H1 Linear": ({"epochs": 2}, 2),
    "H2 Square + FT": ({"epochs": 2, "final": 1}, 3),
    "H3 Periodic FT": ({"epochs": 2, "every": 2, "final": 1}, 3),
    "H4 Thawing": ({"epochs": 2, "every": 2, "final": 1}, 3),
    "Fine-tuning": ({}, 5),
    "Gradient ascent": ({"epochs": 2}, 2),
    "2-Stage": ({"epochs": 2}, 2),
    "2-Stage full": ({"rounds": 2}, 3),
}
SELECTIVE = ["M2 Selective FT", "M3 Reversal", "M4 Per epoch", "M5 Per batch", "M6 Per batch + FT"]


@pytest.fixture(params=["toy", "slim_vit"])
def network(request):
    """`network(seed)` builds the toy convolutional network, then the slim vision transformer."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["random_split", "class_split"])
def split(request):
    """The split of each scenario."""
    return request.getfixturevalue(request.param)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(state, other, names=None):
    return all(torch.equal(state[name], other[name]) for name in names or state)


def close(state, other):
    return all(torch.allclose(state[name].float(), other[name].float(), atol=1e-5) for name in state)


def story(happenings):
    """What a method yields as one word: P a phase, R a step down, F a step up a cross-entropy, | an epoch's end."""
    letter = {Phase: lambda phase: "P", EpochEnd: lambda end: "|", torch.Tensor: lambda loss: "R" if loss > 0 else "F"}
    return "".join(letter[type(happening)](happening) for happening in happenings)


def listed(retain, forget, seed=0):
    """A split of that many batches of 2 as plain lists, of 3 features and 4 classes."""
    generator = torch.Generator().manual_seed(seed)

    def batches(count):
        x = torch.randn(count, 2, 3, generator=generator)
        return list(zip(x, torch.randint(4, (count, 2), generator=generator)))

    return SimpleNamespace(retain=batches(retain), forget=batches(forget))


def classifier():
    """A linear model for `listed` splits."""
    layer = nn.Linear(3, 4)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    return layer


# --- every method -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_method_runs(name, network, split):
    settings, epochs = TINY[name]
    original = network()
    before = state(original)
    result = unlearn(name, original, split, batch_size=8, track=lambda model: {"mode": model.training}, **settings)
    after = state(result.model)
    assert same(before, state(original)) and not same(before, after)
    assert all(value.isfinite().all() for value in after.values())
    assert len(result.history) == epochs and all(math.isfinite(entry["loss"]) for entry in result.history)
    assert result.cost["steps"] > 0 and result.cost["images"] > 0 and result.cost["seconds"] > 0


@pytest.mark.parametrize("name", ["M3 Reversal", "2-Stage"])
@pytest.mark.parametrize("real", ["resnet18", "vit_tiny_patch16_224"])
def test_the_real_networks_run(name, real, data):
    split = make_split(data, image_size=32)
    result = unlearn(name, build_model(real, classes=4), split, batch_size=20, epochs=1)
    assert all(parameter.isfinite().all() for parameter in result.model.parameters())


@pytest.mark.parametrize("name", ["M3 Reversal", "H4 Thawing", "2-Stage"])
def test_bfloat16_stays_near_float32(name, network, random_split, monkeypatch):
    run = partial(unlearn, name, network(), random_split, batch_size=8, **TINY[name][0])
    single = state(run().model)
    monkeypatch.setattr(training, "precision", lambda device: "bfloat16")
    mixed = state(run().model)
    assert all(torch.allclose(single[name], mixed[name], atol=0.05) for name in single if "num_batches" not in name)
    assert not same(single, mixed)


A = {"lr": 1e-3, "weight_decay": 5e-4}
B = {"lr": 1e-4, "weight_decay": 0.0}
DOCUMENTED = {
    "M1 Retain FT": {**A, "epochs": 100, "schedule": "cosine"},
    "M2 Selective FT": {**A, "epochs": 100},
    "M3 Reversal": {**A, "epochs": 60, "s": 1.0},
    "M4 Per epoch": {**A, "epochs": 100, "s": 0.3},
    "M5 Per batch": {**A, "epochs": 100, "s": 0.4, "final": 0},
    "M6 Per batch + FT": {**A, "epochs": 100, "s": 0.5, "final": 5},
    "H1 Linear": {**A, "epochs": 50, "s": 0.6, "growth": "linear", "final": 0},
    "H2 Square + FT": {**A, "epochs": 50, "s": 0.8, "growth": "square", "final": 10},
    "H3 Periodic FT": {**A, "epochs": 50, "s": 1.0, "every": 10, "final": 10},
    "H4 Thawing": {"epochs": 50, "thaw": 0.3},
    "Fine-tuning": {**B, "epochs": 5, "schedule": "constant"},
    "Gradient ascent": {**B, "epochs": 5},
    "2-Stage": {**B, "epochs": 5, "tau": 1.15},
    "2-Stage full": {
        **{"rounds": 8, "tau": 1.15, "batch_size": 256},
        **{"lr_uniform": 5e-3, "lr_contrast": 3e-4, "lr_retain": 0.001 * 256 / 64},
    },
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_defaults_are_the_documents(name):
    function, settings = DOCUMENTS[name]
    signature = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}
    assert {**defaults, **settings} == DOCUMENTED[name]
    assert Phase(1e-3).momentum == 0.9


# --- relearn, push away -------------------------------------------------------------------------------------------


@pytest.fixture
def trained(toy, random_split):
    """A toy network that has learnt the training images, though not by heart."""
    model = toy()
    train(model, random_split.train, epochs=6, batch_size=8, lr=0.05)
    return model


def mean_loss(model, batches):
    return losses(predict(model, batches)[0], batches.y).mean()


def test_finetuning_lowers_the_loss_on_what_is_retained(toy, random_split):
    result = unlearn("M1 Retain FT", toy(), random_split, batch_size=8, epochs=4, lr=0.05)
    before, after = (mean_loss(model, random_split.sets["retain"]) for model in (toy(), result.model))
    assert after < before / 2


@pytest.mark.parametrize(
    "name, strength", [("Gradient ascent", {}), ("M3 Reversal", {"s": 100.0}), ("M5 Per batch", {"s": 5.0})]
)
def test_ascent_raises_the_loss_on_what_is_forgotten(trained, random_split, name, strength):
    result = unlearn(name, trained, random_split, batch_size=8, epochs=4, lr=0.03, **strength)
    control = unlearn("M2 Selective FT", trained, random_split, batch_size=8, epochs=4, lr=0.03)
    after, without = (mean_loss(model, random_split.sets["forget"]) for model in (result.model, control.model))
    assert after > 2 * without


def test_retain_finetuning_in_full():
    happenings = list(methods.retain_finetuning(model := classifier(), split := listed(3, 1), epochs=2, lr=0.1))
    assert story(happenings) == "PRRR|RRR|"
    assert happenings[0] == Phase(0.1, weight_decay=5e-4, schedule="cosine", steps=6)
    for loss, (x, y) in zip(happenings[1:4], split.retain):
        assert torch.equal(loss, cross_entropy(model(x), y))


def test_gradient_ascent_in_full():
    happenings = list(methods.gradient_ascent(model := classifier(), split := listed(3, 2), epochs=2))
    assert story(happenings) == "PFF|FF|" and happenings[0] == Phase(1e-4)
    x, y = split.forget[0]
    assert torch.equal(happenings[1], -cross_entropy(model(x), y))


# --- the tail alone: M2 to M6 -------------------------------------------------------------------------------------


def trunk_names(model):
    """The names of the parameters and buffers outside the tail."""
    inside = {id(value) for value in [*tail(model).parameters(), *tail(model).buffers()]}
    return [name for name, value in model.state_dict(keep_vars=True).items() if id(value) not in inside]


@pytest.mark.parametrize("name", SELECTIVE)
@pytest.mark.parametrize("at_most", [4e9, 0], ids=["cached", "uncached"])
def test_the_trunk_stays_bit_for_bit(name, at_most, network, random_split, monkeypatch):
    monkeypatch.setattr(methods, "tail_only", partial(tail_only, at_most=at_most))
    original = network()
    before, trunk = state(original), trunk_names(original)
    after = state(unlearn(name, original, random_split, batch_size=8, lr=0.1, epochs=2).model)
    moved = [key for key in before if key not in trunk and "num_batches" not in key]
    assert trunk and same(before, after, trunk)
    assert moved and not any(torch.equal(before[key], after[key]) for key in moved)


@pytest.mark.parametrize("name", SELECTIVE)
@pytest.mark.parametrize("retain_limit", [None, 20])
def test_cached_features_change_no_result(name, retain_limit, network, random_split, monkeypatch):
    run = partial(unlearn, name, network(), random_split, batch_size=8, retain_limit=retain_limit, lr=0.05, epochs=3)
    cached = run()
    monkeypatch.setattr(methods, "tail_only", partial(tail_only, at_most=0))
    whole = run()
    assert close(state(cached.model), state(whole.model)) and cached.cost["steps"] == whole.cost["steps"]
    assert [h["loss"] for h in cached.history] == pytest.approx([h["loss"] for h in whole.history], abs=1e-4)


def test_tail_only_serves_the_trunks_outputs(toy, random_split):
    model = toy()
    network, features = tail_only(model, random_split.fresh(seed=0, batch_size=8))
    assert isinstance(network, nn.Sequential) and network[0] is model.layer4
    with inputs_of(model.layer4) as caught, evaluating(model):
        batches = [(model(x), y) for x, y in random_split.forget.fresh(seed=2, batch_size=8)]
    served = list(features.forget)
    assert len(served) == 2 and served[0][0].shape == (8, 6, 8, 8)
    for (outputs, labels), expected, (_, y) in zip(served, caught, batches):
        assert torch.equal(labels, y) and torch.allclose(outputs, expected, atol=1e-6)


def test_the_trunk_computes_each_image_once_and_none_that_is_not_served(toy, random_split):
    model, computed = toy(), []
    model.layer3.register_forward_hook(lambda module, args, output: computed.append(len(output)))
    _, features = tail_only(model, random_split.fresh(seed=0, batch_size=8, retain_limit=16))
    for _ in range(3):
        list(features.retain)
    images = features.retain.images
    served = int(images.there.sum())
    assert sum(computed) == served and 16 < served <= 48 and features.retain.seen["images"] == 3 * 16
    assert not images.there[features.forget.index].any()


def test_tail_only_works_on_images_where_features_would_be_too_large(toy, random_split):
    model, split = toy(), random_split.fresh(seed=0)
    one_image = 6 * 8 * 8 * 4  # bytes
    network, features = tail_only(model, split, at_most=64 * one_image)
    assert network is not model and features is not split
    network, features = tail_only(model, split, at_most=64 * one_image - 1)
    assert network is model and features is split
    assert not model.layer3.training and model.layer4.training
    assert not model.layer3[0].weight.requires_grad and model.fc.weight.requires_grad


def test_images_seen_are_those_of_the_passes(toy, random_split):
    cost = unlearn("M2 Selective FT", toy(), random_split, batch_size=8, epochs=2).cost
    assert cost["images"] == 2 * 48 and cost["steps"] == 12


def test_m3_is_m2_and_one_pass_up_in_evaluation_mode(network, random_split):
    states = []
    original, settings = network(), {"batch_size": 8, "epochs": 2, "lr": 0.05}
    m2 = unlearn("M2 Selective FT", original, random_split, **settings)
    track = lambda model: states.append(state(model)) or {}  # noqa: E731
    m3 = unlearn("M3 Reversal", original, random_split, track=track, **settings)
    assert same(state(m2.model), states[1]) and m3.cost["steps"] == m2.cost["steps"] + 2
    buffers = [name for name, _ in original.named_buffers()]
    assert same(states[1], states[2], buffers) if buffers else is_vit(original)
    assert not same(states[1], states[2])


def test_m3_starts_a_fresh_optimiser_for_the_reversal(toy, random_split):
    happenings = list(methods.gradient_reversal(toy().train(), random_split, epochs=2, lr=0.1))
    assert story(happenings) == "PRRRRRR|RRRRRR|PFF|"
    assert [h for h in happenings if isinstance(h, Phase)][1] == Phase(0.1, weight_decay=5e-4)


def test_m4_is_m2_for_half_its_epochs_then_alternates(toy, random_split):
    happenings = list(methods.alternate_epochs(toy().train(), random_split, epochs=4))
    assert story(happenings) == "P" + 2 * "RRRRRR|" + "P" + 2 * "RRRRRRFF|"
    assert happenings[0] == Phase(1e-3, 0.9, 5e-4, "sgd", "cosine", 12)
    assert [h.notes for h in happenings if isinstance(h, EpochEnd)][1:3] == [None, {"s": 0.3}]


def test_m4_of_one_epoch_only_alternates(toy, random_split):
    result = unlearn("M4 Per epoch", toy(), random_split, batch_size=8, epochs=1)
    assert result.cost["steps"] == 8 and len(result.history) == 1


def test_m5_alternates_batch_by_batch(toy, random_split):
    assert story(methods.alternate_batches(toy().train(), random_split, epochs=2)) == "PRFRF|RFRF|"


def test_m6_ends_with_retained_epochs(toy, random_split):
    assert story(methods.alternate_batches(toy().train(), random_split, epochs=1, final=2)) == "PRFRF|RRRRRR|RRRRRR|"


@pytest.mark.parametrize("method", [methods.alternate_batches, methods.alternate_epochs, methods.gradient_reversal])
def test_no_step_up_at_s_0(method, toy, random_split):
    assert "F" not in story(method(toy().train(), random_split, epochs=2, s=0.0))


# --- hybrids ------------------------------------------------------------------------------------------------------


def test_growth_by_hand():
    assert [linear(e, 4) for e in range(4)] == [0, 0.25, 0.5, 0.75]
    assert [square(e, 4) for e in range(4)] == [0, 0.0625, 0.25, 0.5625]
    assert exponential(0, 4) == 0 and exponential(4, 4) == pytest.approx(1)
    assert exponential(2, 4, k=2.0) == pytest.approx((math.e - 1) / (math.e**2 - 1))


@pytest.mark.parametrize(
    "name, s, final",
    [("H1 Linear", [0, 0.12, 0.24, 0.36, 0.48], 0), ("H2 Square + FT", [0, 0.032, 0.128, 0.288, 0.512], 10)],
)
def test_h1_and_h2_scale_the_step_up_as_documented(name, s, final):
    function, settings = DOCUMENTS[name]
    model, split = classifier(), listed(3, 2)
    happenings = list(function(model, split, **{**settings, "epochs": 5}))
    assert story(happenings) == "PRR|" + 4 * "RFRF|" + final * "RRR|"
    notes = [h.notes["s"] for h in happenings if isinstance(h, EpochEnd)]
    assert notes == pytest.approx([*s, *final * [0]])
    ups = [h.item() for h in happenings if isinstance(h, torch.Tensor) and h < 0]
    ce = [cross_entropy(model(x), y).item() for x, y in split.forget]
    assert ups == pytest.approx([-s_e * loss for s_e in s[1:] for loss in ce])


def test_alternation_draws_on_when_the_retained_batches_end():
    model, split = classifier(), listed(2, 3)
    happenings = list(methods.alternate(model, split, 1.0))
    ce = [cross_entropy(model(x), y).item() for x, y in (split.retain * 2)[:3]]
    assert story(happenings) == "RFRFRF" and [h.item() for h in happenings[::2]] == pytest.approx(ce)


def test_h3_takes_up_to_two_steps_up_after_each_step_down():
    happenings = methods.periodic_finetuning(classifier(), listed(352, 40), epochs=2, every=2, final=1)
    pass_down = 352 * "R"
    assert story(happenings) == "P" + pass_down + "|" + 20 * "RFF" + 332 * "R" + pass_down + "|" + pass_down + "|"


@pytest.mark.parametrize("retain, forget, expected", [(3, 3, "RFFRFR"), (1, 5, "RFF"), (3, 6, "RFFRFFRFF")])
def test_h3_steps_up_while_the_forgotten_batches_last(retain, forget, expected):
    epochs = story(methods.periodic_finetuning(classifier(), listed(retain, forget), epochs=2, final=0)).split("|")
    assert epochs[1] == expected


def test_h3_goes_through_the_forgotten_batches_in_order():
    model, split = classifier(), listed(3, 5)
    happenings = list(methods.periodic_finetuning(model, split, epochs=2, final=0, s=2.0))
    ups = [h.item() for h in happenings if isinstance(h, torch.Tensor) and h < 0]
    assert ups == pytest.approx([-2.0 / 4 * cross_entropy(model(x), y).item() for x, y in split.forget])


def test_h3_relearns_every_tenth_epoch_and_ten_times_at_the_end():
    happenings = list(methods.periodic_finetuning(classifier(), listed(3, 1), epochs=20))
    downs = [epoch.count("R") for epoch in story(happenings).split("|")[:-1]]
    assert downs == 9 * [3] + [6] + 9 * [3] + [6] + 10 * [3]
    notes = [h.notes["s"] for h in happenings if isinstance(h, EpochEnd)]
    assert notes == pytest.approx([(e / 20) ** 2 for e in range(20)] + 10 * [0])


def test_h4_tells_h3s_story(toy, random_split):
    settings = {"epochs": 4, "every": 2, "final": 1}
    h3, h4 = (story(f(toy().train(), random_split, **settings)) for f in (methods.periodic_finetuning, methods.thawing))
    assert h3 == h4 and h3.count("|") == 5


@pytest.mark.parametrize("epochs, frozen", [(10, 3), (4, 2)])
def test_h4_freezes_the_early_part_at_first(network, random_split, epochs, frozen):
    """Frozen for 30 % of the epochs, and to the end of the epoch in which that share ends; BatchNorm's buffers too."""
    history = []

    def parameters(model):
        first = [tensor.clone() for part in early(model) for tensor in part.state_dict().values()]
        return first, last_linear(model).weight.clone()

    def track(model):
        history.append(parameters(model))
        return {}

    original, settings = network(), {"batch_size": 8, "epochs": epochs, "final": 0, "lr": 0.05}
    unlearn("H4 Thawing", original, random_split, track=track, **settings)
    start, head = parameters(original)
    moved = [not all(map(torch.equal, start, early_part)) for early_part, _ in history]
    assert moved == frozen * [False] + (epochs - frozen) * [True]
    assert not torch.equal(head, history[0][1]) and not any(map(torch.equal, start, history[-1][0]))


# --- two stages ---------------------------------------------------------------------------------------------------


def numpy_contrast(z_f, z_r, tau):
    """mean_i [logsumexp_j S_ij - mean_j S_ij] in float64."""
    s = z_f.double().numpy() @ z_r.double().numpy().T / tau
    return (np.log(np.exp(s).sum(1)) - s.mean(1)).mean()


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 10, generator=generator), torch.randn(5, 10, generator=generator)


@pytest.mark.parametrize("tau", [0.5, 1.15])
def test_contrast_equals_its_formula(pair, tau):
    z_f, z_r = pair
    assert contrast(z_f, z_r, tau).item() == pytest.approx(numpy_contrast(z_f, z_r, tau), rel=1e-5)


def test_contrast_is_at_least_log_b_where_rows_are_constant(pair):
    z_f, z_r = pair
    assert contrast(z_f, z_r, 1.15) > math.log(5)
    constant = torch.ones(5, 1) * z_r[:1]  # every retained image alike, so S has constant rows
    assert contrast(z_f, constant, 1.15).item() == pytest.approx(math.log(5), abs=1e-5)


def test_contrast_sends_no_gradient_to_what_is_retained(pair):
    z_f, z_r = (z.clone().requires_grad_() for z in pair)
    contrast(z_f, z_r, 1.15).backward()
    assert z_r.grad is None and z_f.grad.abs().sum() > 0


def test_kl_uniform_agrees_with_scipy(pair):
    p = pair[0].double().softmax(1).numpy()
    expected = scipy.stats.entropy(np.full_like(p, 0.1), p, axis=1).mean()
    assert kl_uniform(pair[0]).item() == pytest.approx(expected, rel=1e-5)


def test_kl_uniform_of_uniform_predictions_is_zero():
    assert kl_uniform(torch.full((3, 7), 2.0)).item() == pytest.approx(0, abs=1e-6)


def test_two_stage_in_full():
    model, split = classifier(), listed(2, 3)
    happenings = list(methods.two_stage(model, split, epochs=2))
    kinds = "".join(type(happening).__name__[0] for happening in happenings)
    assert kinds == "PTTTTETTTE" and happenings[0] == Phase(1e-4)
    assert happenings[1].item() == pytest.approx(kl_uniform(model(split.forget[0][0])).item())
    for loss, (x_f, _), (x_r, y_r) in zip(happenings[2:5], split.forget, split.retain * 2):
        z_f, z_r = model(x_f).detach(), model(x_r).detach()
        by_hand = numpy_contrast(z_f, z_r, 1.15) + cross_entropy(z_r, y_r).item()
        assert loss.item() == pytest.approx(by_hand, rel=1e-4)


def test_two_stage_cuts_the_retained_batch_to_the_forgotten_one(toy, random_split):
    model, sizes = toy(), []
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    list(methods.two_stage(model.train(), random_split.fresh(seed=0, batch_size=6), epochs=1))
    assert sizes == [6, 6, 6, 6, 6, 4, 4]


@pytest.fixture
def steps(monkeypatch):
    """What each gradient step of `unlearn` used: the optimiser, its learning rate and weight decay."""
    taken, descend = [], training.descend

    def recording(loss, optimizer, scheduler):
        group = optimizer.param_groups[0]
        momentum = any("momentum_buffer" in entry for entry in optimizer.state.values())
        lr, decay = group["lr"], group["weight_decay"]
        taken.append(SimpleNamespace(optimizer=optimizer, lr=lr, decay=decay, momentum=momentum))
        descend(loss, optimizer, scheduler)

    monkeypatch.setattr(unlearning, "descend", recording)
    return taken


def test_two_stage_full_continues_its_phases_over_the_rounds(toy, random_split, steps):
    unlearn("2-Stage full", toy(), random_split, batch_size=8)
    assert len(steps) == 2 + 8 * (2 + 1)  # 48 retained images are one batch of up to 256
    uniform, rounds = steps[:2], [steps[i : i + 3] for i in range(2, len(steps), 3)]
    pushing, retaining = [step for group in rounds for step in group[:2]], [group[2] for group in rounds]
    for phase, decay in ((uniform, 0), (pushing, 0), (retaining, 1e-2)):
        assert len({id(step.optimizer) for step in phase}) == 1 and {step.decay for step in phase} == {decay}
        assert [step.momentum for step in phase] == [False] + [True] * (len(phase) - 1)
    assert len({id(step.optimizer) for step in steps}) == 3
    assert {step.lr for step in uniform} == {5e-3} and {step.lr for step in retaining} == {4e-3}


def test_two_stage_full_lets_the_contrastive_rate_fall_over_all_rounds(toy, random_split, steps):
    unlearn("2-Stage full", toy(), random_split, batch_size=8)
    rates = [steps[i].lr for i in range(2, len(steps)) if (i - 2) % 3 < 2]
    cosine = [1e-6 + (3e-4 - 1e-6) * (1 + math.cos(math.pi * i / 16)) / 2 for i in range(16)]
    assert rates == pytest.approx(cosine) and rates[0] == pytest.approx(3e-4) and rates[-1] < 5e-6


def test_two_stage_full_retains_by_cross_entropy_and_contrasts_without(toy, random_split, monkeypatch):
    labels = []
    monkeypatch.setattr(methods, "cross_entropy", lambda z, y: labels.append(len(y)) or cross_entropy(z, y))
    unlearn("2-Stage full", toy(), random_split, batch_size=8, rounds=3)
    assert labels == [48, 48, 48]


def test_two_stage_spreads_the_predictions_on_what_is_forgotten(trained, random_split):
    result = unlearn("2-Stage", trained, random_split, batch_size=8, lr=0.02, epochs=10)
    before, after = (kl_uniform(predict(model, random_split.sets["forget"])[0]) for model in (trained, result.model))
    assert after < before / 2


# --- what determines a result -------------------------------------------------------------------------------------

RATE = 0.1


def mended(loss):
    """What `example` reaches."""
    return 2 * loss


def example(model, split, *, epochs=1, lr=RATE):
    """A method."""
    growths = {"double": mended}
    yield Phase(lr)
    yield growths["double"](model(next(iter(split.retain))[0]).sum() * RATE)


def test_the_source_of_a_method_is_all_that_it_reaches(monkeypatch):
    """Its own code, its module's functions, its constants and the suite's methods; not comments and docstrings."""
    source = source_of(example)
    assert "return 2 * loss" in source and "RATE = 0.1" in source and "What `example`" not in source
    monkeypatch.setitem(globals(), "RATE", 0.2)
    assert source_of(example) != source
    assert "def ascend" in source_of(methods.scaled_ascent) and "def square" in source_of(methods.scaled_ascent)
    assert "def square" not in source_of(methods.gradient_ascent)
    selective = source_of(methods.selective_finetuning)
    assert "def __getitem__(self, index)" in selective and "each is computed when asked for" not in selective
