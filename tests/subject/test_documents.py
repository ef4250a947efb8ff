"""The documents' methods: what they yield, in which order, and what they leave unchanged."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from method_checks import order, same, state
from torch import nn
from torch.nn.functional import cross_entropy

from helpers import devices
from helpers.data import make_split
from helpers.methods import DOCUMENTS, METHODS, documents
from helpers.methods.common import alternate, train_last_layers
from helpers.methods.documents import contrast, exponential, kl_uniform, linear, quadratic
from helpers.metrics import losses, predict
from helpers.models import build_model, early_layers, evaluating, inputs_of, is_vit, last_linear, trained_layers
from helpers.training import EpochEnd, Phase, ascend, unlearn

pytestmark = pytest.mark.usefixtures("float32")

TINY = {  # display name: (settings, epochs in the history)
    "M1 Retain FT": ({"epochs": 2}, 2),
    "M2 Selective FT": ({"epochs": 2}, 2),
    "M3 Reversal": ({"epochs": 2}, 3),
    "M4 Per epoch": ({"epochs": 2}, 2),
    "M5 Per batch": ({"epochs": 2}, 2),
    "M6 Per batch + FT": ({"epochs": 2}, 7),
    "H1 Linear": ({"epochs": 2}, 2),
    "H2 Quadratic + FT": ({"epochs": 2, "final": 1}, 3),
    "H3 Periodic FT": ({"epochs": 2, "every": 2, "final": 1}, 3),
    "H4 Unfreezing": ({"epochs": 2, "every": 2, "final": 1}, 3),
    "Fine-tuning": ({}, 5),
    "Gradient ascent": ({"epochs": 2}, 2),
    "2-Stage": ({"epochs": 2}, 2),
    "2-Stage full": ({"rounds": 2}, 3),
}
SELECTIVE = ["M2 Selective FT", "M3 Reversal", "M4 Per epoch", "M5 Per batch", "M6 Per batch + FT"]


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
    result = unlearn(name, original, split, settings, batch_size=8)
    after = state(result.model)
    assert same(before, state(original)) and not same(before, after)
    assert all(value.isfinite().all() for value in after.values())
    assert len(result.history) == epochs and all(math.isfinite(entry["loss"]) for entry in result.history)
    assert result.cost["steps"] > 0 and result.cost["images"] > 0 and result.cost["seconds"] > 0


@pytest.mark.parametrize("name", ["M3 Reversal", "2-Stage"])
@pytest.mark.parametrize("real", ["resnet18", "vit_tiny_patch16_224"])
def test_the_real_networks_run(name, real, data):
    split = make_split(data, image_size=32)
    result = unlearn(name, build_model(real, classes=4), split, {"epochs": 1}, batch_size=20)
    assert all(parameter.isfinite().all() for parameter in result.model.parameters())


@pytest.mark.parametrize("name", ["M3 Reversal", "H4 Unfreezing", "2-Stage"])
def test_bfloat16_stays_near_float32(name, network, random_split, monkeypatch):
    run = partial(unlearn, name, network(), random_split, TINY[name][0], batch_size=8)
    single = state(run().model)
    monkeypatch.setattr(devices, "precision", lambda device, model=None: "bfloat16")
    mixed = state(run().model)
    assert all(torch.allclose(single[name], mixed[name], atol=0.05) for name in single if "num_batches" not in name)
    assert not same(single, mixed)


# --- relearn, ascend ----------------------------------------------------------------------------------------------


def mean_loss(model, batches):
    return losses(predict(model, batches)[0], batches.y).mean()


def test_finetuning_lowers_the_loss_on_the_retained_images(toy, random_split):
    result = unlearn("M1 Retain FT", toy(), random_split, {"epochs": 4, "lr": 0.05}, batch_size=8)
    before, after = (mean_loss(model, random_split.sets["retain"]) for model in (toy(), result.model))
    assert after < before / 2


@pytest.mark.parametrize(
    "name, weight", [("Gradient ascent", {}), ("M3 Reversal", {"s": 100.0}), ("M5 Per batch", {"s": 5.0})]
)
def test_ascent_raises_the_loss_on_the_forgotten_images(trained, random_split, name, weight):
    settings = {"epochs": 4, "lr": 0.03}
    result = unlearn(name, trained, random_split, settings | weight, batch_size=8)
    control = unlearn("M2 Selective FT", trained, random_split, settings, batch_size=8)
    after, without = (mean_loss(model, random_split.sets["forget"]) for model in (result.model, control.model))
    assert after > 2 * without


def test_retain_finetuning_in_full():
    events = list(documents.retain_finetuning(model := classifier(), split := listed(3, 1), epochs=2, lr=0.1))
    assert order(events) == "PRRR|RRR|"
    assert events[0] == Phase(0.1, weight_decay=5e-4, schedule="cosine", steps=6)
    for loss, (x, y) in zip(events[1:4], split.retain):
        assert torch.equal(loss, cross_entropy(model(x), y))


def test_gradient_ascent_in_full():
    events = list(documents.gradient_ascent(model := classifier(), split := listed(3, 2), epochs=2))
    assert order(events) == "PFF|FF|" and events[0] == Phase(1e-4)
    x, y = split.forget[0]
    assert torch.equal(events[1], -cross_entropy(model(x), y))


# --- the last layers alone: M2 to M6 ------------------------------------------------------------------------------


def selective(model, split, *, max_bytes, epochs=3, lr=0.05):
    """All kinds of steps that M2 to M6 take on the last layers, in training and in evaluation mode."""
    layers, split = train_last_layers(model, split, max_bytes)
    yield Phase(lr, weight_decay=5e-4)
    for _ in range(epochs):
        yield from alternate(layers, split, 0.3)
        yield EpochEnd()
    layers.eval()
    yield from ascend(layers, split.forget, 0.3)
    yield EpochEnd()


def backbone_names(model):
    """The names of the parameters and buffers outside the trained layers."""
    layers = trained_layers(model)
    inside = {id(value) for value in [*layers.parameters(), *layers.buffers()]}
    return [name for name, value in model.state_dict(keep_vars=True).items() if id(value) not in inside]


@pytest.mark.parametrize(
    "method, settings",
    [*((name, {"epochs": 2}) for name in SELECTIVE), (selective, {"max_bytes": 4e9}), (selective, {"max_bytes": 0})],
)
def test_the_backbone_stays_bit_for_bit(method, settings, network, random_split):
    original = network()
    before, backbone = state(original), backbone_names(original)
    after = state(unlearn(method, original, random_split, {"lr": 0.1, **settings}, batch_size=8).model)
    moved = [key for key in before if key not in backbone and "num_batches" not in key]
    assert backbone and same(before, after, backbone)
    assert moved and not any(torch.equal(before[key], after[key]) for key in moved)


@pytest.mark.parametrize("retain_limit", [None, 20])
def test_stored_backbone_outputs_change_no_result(retain_limit, network, random_split):
    run = partial(unlearn, selective, network(), random_split, batch_size=8, retain_limit=retain_limit)
    stored, whole = (run({"max_bytes": max_bytes}) for max_bytes in (4e9, 0))
    weights, others = state(stored.model), state(whole.model)
    assert all(torch.allclose(weights[name].float(), others[name].float(), atol=1e-5) for name in weights)
    assert stored.cost["steps"] == whole.cost["steps"]
    assert [h["loss"] for h in stored.history] == pytest.approx([h["loss"] for h in whole.history], abs=1e-4)


def test_the_trained_layers_get_the_backbones_outputs(toy, random_split):
    model = toy()
    layers, features = train_last_layers(model, random_split.reset(seed=0, batch_size=8))
    assert isinstance(layers, nn.Sequential) and layers[0] is model.layer4
    with inputs_of(model.layer4) as caught, evaluating(model):
        batches = [(model(x), y) for x, y in random_split.forget.reset(seed=2, batch_size=8)]
    served = list(features.forget)
    assert len(served) == 2 and served[0][0].shape == (8, 6, 8, 8)
    for (outputs, labels), expected, (_, y) in zip(served, caught, batches):
        assert torch.equal(labels, y) and torch.allclose(outputs, expected, atol=1e-6)


def test_the_backbone_computes_each_image_once_and_only_images_that_are_used(toy, random_split):
    model, computed = toy(), []
    model.layer3.register_forward_hook(lambda module, args, output: computed.append(len(output)))
    _, features = train_last_layers(model, random_split.reset(seed=0, batch_size=8, retain_limit=16))
    for _ in range(3):
        list(features.retain)
    images = features.retain.images
    used = int(images.computed.sum())
    assert sum(computed) == used and 16 < used <= 48 and features.retain.processed["images"] == 3 * 16
    assert not images.computed[features.forget.index].any()


def test_the_split_keeps_its_images_where_features_need_too_much_memory(toy, random_split):
    model, split = toy(), random_split.reset(seed=0)
    one_image = 6 * 8 * 8 * 4  # bytes
    layers, features = train_last_layers(model, split, max_bytes=64 * one_image)
    assert layers is not model and features is not split
    layers, features = train_last_layers(model, split, max_bytes=64 * one_image - 1)
    assert layers is model and features is split
    assert not model.layer3.training and model.layer4.training
    assert not model.layer3[0].weight.requires_grad and model.fc.weight.requires_grad


def test_images_processed_are_those_of_the_epochs(toy, random_split):
    cost = unlearn("M2 Selective FT", toy(), random_split, {"epochs": 2}, batch_size=8).cost
    assert cost["images"] == 2 * 48 and cost["steps"] == 12


def test_m3_is_m2_and_one_epoch_up_in_evaluation_mode(network, random_split):
    states = []
    original, settings = network(), {"epochs": 2, "lr": 0.05}
    m2 = unlearn("M2 Selective FT", original, random_split, settings, batch_size=8)
    track = lambda model: states.append(state(model)) or {}  # noqa: E731
    m3 = unlearn("M3 Reversal", original, random_split, settings, batch_size=8, track=track)
    _, _, descended, ascended = states
    assert same(state(m2.model), descended) and m3.cost["steps"] == m2.cost["steps"] + 2
    buffers = [name for name, _ in original.named_buffers()]
    assert same(descended, ascended, buffers) if buffers else is_vit(original)
    assert not same(descended, ascended)


def test_m3_starts_a_fresh_optimiser_for_the_reversal(toy, random_split):
    events = list(documents.gradient_reversal(toy().train(), random_split, epochs=2, lr=0.1))
    assert order(events) == "PRRRRRR|RRRRRR|PFF|"
    assert [event for event in events if isinstance(event, Phase)][1] == Phase(0.1, weight_decay=5e-4)


def test_m4_is_m2_for_half_its_epochs_then_alternates(toy, random_split):
    events = list(documents.alternate_epochs(toy().train(), random_split, epochs=4))
    assert order(events) == "P" + 2 * "RRRRRR|" + "P" + 2 * "RRRRRRFF|"
    assert events[0] == Phase(1e-3, 0.9, 5e-4, "sgd", "cosine", 12)
    assert [event.notes for event in events if isinstance(event, EpochEnd)][1:3] == [None, {"s": 0.3}]


def test_m4_of_one_epoch_only_alternates(toy, random_split):
    result = unlearn("M4 Per epoch", toy(), random_split, {"epochs": 1}, batch_size=8)
    assert result.cost["steps"] == 8 and len(result.history) == 1


def test_m5_alternates_batch_by_batch(toy, random_split):
    assert order(documents.alternate_batches(toy().train(), random_split, epochs=2)) == "PRFRF|RFRF|"


def test_m6_ends_with_retained_epochs(toy, random_split):
    events = documents.alternate_batches(toy().train(), random_split, epochs=1, final=2)
    assert order(events) == "PRFRF|RRRRRR|RRRRRR|"


@pytest.mark.parametrize(
    "method", [documents.alternate_batches, documents.alternate_epochs, documents.gradient_reversal]
)
def test_no_step_up_at_s_0(method, toy, random_split):
    assert "F" not in order(method(toy().train(), random_split, epochs=2, s=0.0))


# --- hybrids ------------------------------------------------------------------------------------------------------


def test_growth_by_hand():
    assert [linear(e, 4) for e in range(4)] == [0, 0.25, 0.5, 0.75]
    assert [quadratic(e, 4) for e in range(4)] == [0, 0.0625, 0.25, 0.5625]
    assert exponential(0, 4) == 0 and exponential(4, 4) == pytest.approx(1)
    assert exponential(2, 4, k=2.0) == pytest.approx((math.e - 1) / (math.e**2 - 1))


@pytest.mark.parametrize(
    "name, s, final",
    [("H1 Linear", [0, 0.12, 0.24, 0.36, 0.48], 0), ("H2 Quadratic + FT", [0, 0.032, 0.128, 0.288, 0.512], 10)],
)
def test_h1_and_h2_scale_the_step_up_as_documented(name, s, final):
    method, model, split = METHODS[name], classifier(), listed(3, 2)
    events = list(method.function(model, split, **method.check({"epochs": 5})))
    assert order(events) == "PRR|" + 4 * "RFRF|" + final * "RRR|"
    notes = [event.notes["s"] for event in events if isinstance(event, EpochEnd)]
    assert notes == pytest.approx([*s, *final * [0]])
    ups = [event.item() for event in events if isinstance(event, torch.Tensor) and event < 0]
    ce = [cross_entropy(model(x), y).item() for x, y in split.forget]
    assert ups == pytest.approx([-s_e * loss for s_e in s[1:] for loss in ce])


def test_alternation_begins_again_when_the_retained_batches_end():
    model, split = classifier(), listed(2, 3)
    events = list(alternate(model, split, 1.0))
    ce = [cross_entropy(model(x), y).item() for x, y in (split.retain * 2)[:3]]
    assert order(events) == "RFRFRF" and [event.item() for event in events[::2]] == pytest.approx(ce)


def test_h3_takes_up_to_two_steps_up_after_each_step_down():
    events = documents.periodic_finetuning(classifier(), listed(352, 40), epochs=2, every=2, final=1)
    down = 352 * "R"
    assert order(events) == "P" + down + "|" + 20 * "RFF" + 332 * "R" + down + "|" + down + "|"


@pytest.mark.parametrize("retain, forget, expected", [(3, 3, "RFFRFR"), (1, 5, "RFF"), (3, 6, "RFFRFFRFF")])
def test_h3_steps_up_while_the_forgotten_batches_last(retain, forget, expected):
    epochs = order(documents.periodic_finetuning(classifier(), listed(retain, forget), epochs=2, final=0)).split("|")
    assert epochs[1] == expected


def test_h3_goes_through_the_forgotten_batches_in_order():
    model, split = classifier(), listed(3, 5)
    events = list(documents.periodic_finetuning(model, split, epochs=2, final=0, s=2.0))
    ups = [event.item() for event in events if isinstance(event, torch.Tensor) and event < 0]
    assert ups == pytest.approx([-2.0 / 4 * cross_entropy(model(x), y).item() for x, y in split.forget])


def test_h3_relearns_every_tenth_epoch_and_ten_times_at_the_end():
    events = list(documents.periodic_finetuning(classifier(), listed(3, 1), epochs=20))
    downs = [epoch.count("R") for epoch in order(events).split("|")[:-1]]
    assert downs == 9 * [3] + [6] + 9 * [3] + [6] + 10 * [3]
    notes = [event.notes["s"] for event in events if isinstance(event, EpochEnd)]
    assert notes == pytest.approx([(e / 20) ** 2 for e in range(20)] + 10 * [0])


def test_h4_yields_what_h3_yields(toy, random_split):
    settings = {"epochs": 4, "every": 2, "final": 1}
    h3, h4 = (
        order(method(toy().train(), random_split, **settings))
        for method in (documents.periodic_finetuning, documents.unfreezing)
    )
    assert h3 == h4 and h3.count("|") == 5


@pytest.mark.parametrize("epochs, frozen", [(10, 3), (4, 2)])
def test_h4_freezes_the_early_layers_at_first(network, random_split, epochs, frozen):
    """Frozen for 30 % of the epochs, and to the end of the epoch in which that share ends; BatchNorm's buffers too."""
    history = []

    def parameters(model):
        first = [tensor.clone() for part in early_layers(model) for tensor in part.state_dict().values()]
        return first, last_linear(model).weight.clone()

    def track(model):
        history.append(parameters(model))
        return {}

    settings = {"epochs": epochs, "final": 0, "lr": 0.05}
    unlearn("H4 Unfreezing", network(), random_split, settings, batch_size=8, track=track)
    (start, head), *history = history
    moved = [not all(map(torch.equal, start, early)) for early, _ in history]
    assert moved == frozen * [False] + (epochs - frozen) * [True]
    assert not torch.equal(head, history[0][1]) and not any(map(torch.equal, start, history[-1][0]))


# --- two stages ---------------------------------------------------------------------------------------------------


def numpy_contrast(z_f, z_r, tau):
    """mean_i [logsumexp_j S_ij - mean_j S_ij] in float64."""
    s = z_f.double().numpy() @ z_r.double().numpy().T / tau
    return (scipy.special.logsumexp(s, 1) - s.mean(1)).mean()


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


def test_contrast_sends_no_gradient_to_the_retained_images(pair):
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
    events = list(documents.two_stage(model, split, epochs=2))
    kinds = "".join(type(event).__name__[0] for event in events)
    assert kinds == "PTTTTETTTE" and events[0] == Phase(1e-4)
    assert events[1].item() == pytest.approx(kl_uniform(model(split.forget[0][0])).item())
    for loss, (x_f, _), (x_r, y_r) in zip(events[2:5], split.forget, split.retain * 2):
        z_f, z_r = model(x_f).detach(), model(x_r).detach()
        by_hand = numpy_contrast(z_f, z_r, 1.15) + cross_entropy(z_r, y_r).item()
        assert loss.item() == pytest.approx(by_hand, rel=1e-4)


def test_two_stage_cuts_the_retained_batch_to_the_forgotten_one(toy, random_split):
    model, sizes = toy(), []
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    list(documents.two_stage(model.train(), random_split.reset(seed=0, batch_size=6), epochs=1))
    assert sizes == [6, 6, 6, 6, 6, 4, 4]


def test_two_stage_full_in_full(trained, random_split):
    """48 retained images are one batch of up to 256; the two optimisers of the rounds go on from round to round."""
    model = trained.eval()
    forget, retain = (list(replace(batches, epoch=0)) for batches in (random_split.forget, random_split.retain))
    events = list(documents.two_stage_full(model, random_split))
    assert "".join(type(event).__name__[0] for event in events) == "PTTE" + 8 * "PTTPTE"
    uniform, *phases = [event for event in events if isinstance(event, Phase)]
    contrasting, retaining = phases[:2]
    assert all(phase is contrasting for phase in phases[::2]) and all(phase is retaining for phase in phases[1::2])
    assert uniform == Phase(5e-3) and retaining == Phase(4e-3, weight_decay=1e-2)
    assert contrasting == Phase(3e-4, schedule="cosine", steps=16, lr_end=1e-6)
    by_hand = [kl_uniform(model(x)).item() for x, _ in forget]
    assert [event.item() for event in events[1:3]] == pytest.approx(by_hand, rel=1e-4)
    forget = list(replace(random_split.forget, epoch=1))
    by_hand = [numpy_contrast(model(x).detach(), model(r).detach(), 1.15) for (x, _), (r, _) in zip(forget, retain)]
    assert [event.item() for event in events[5:7]] == pytest.approx(by_hand, rel=1e-4)
    x, y = (torch.cat(parts) for parts in zip(*retain))
    assert events[8].item() == pytest.approx(cross_entropy(model(x), y).item(), rel=1e-4)


def test_two_stage_full_has_a_batch_size_of_its_own(toy, random_split):
    sizes = {
        size: unlearn("2-Stage full", toy(), random_split, {"batch_size": size}, batch_size=8) for size in (12, 24)
    }
    assert {size: result.cost["steps"] for size, result in sizes.items()} == {12: 2 + 8 * (2 + 4), 24: 2 + 8 * (2 + 2)}


def test_two_stage_spreads_the_predictions_on_the_forgotten_images(trained, random_split):
    result = unlearn("2-Stage", trained, random_split, {"lr": 0.02, "epochs": 10}, batch_size=8)
    before, after = (kl_uniform(predict(model, random_split.sets["forget"])[0]) for model in (trained, result.model))
    assert after < before / 2
