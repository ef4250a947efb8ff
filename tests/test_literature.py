"""The published methods: each one's invariant, and the mistakes that public implementations make."""

import inspect
import math
import re
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from helpers import literature, methods
from helpers.data import make_split
from helpers.literature import ABLATIONS, IDEAS, LITERATURE, METHODS, kl
from helpers.methods import DOCUMENTS
from helpers.metrics import predict
from helpers.models import build_model
from helpers.training import EpochEnd, Phase, train
from helpers.unlearning import unlearn

pytestmark = pytest.mark.usefixtures("float32")

TINY = {  # display name: settings
    "SFR-on": {"steps": 12},
    "UNSIR": {"steps": 3},
    "AMUN": {"eps": 1.0, "steps": 4, "epochs": 1},
    "Influence": {"images": 16, "iterations": 2},
    "CoUn": {"epochs": 1, "lr": 0.01},
    "NoT+CL": {"epochs": 1, "lr": 0.01},
    "SSD": {"alpha": 1.0},
    "NoT": {"epochs": 2, "lr": 0.01},
    "EU-k": {"epochs": 2, "lr": 0.01},
}
ONE_SCENARIO = {"UNSIR": "class", "DELETE": "class", "ReGUn": "random"}


@pytest.fixture(params=["toy", "slim_vit"])
def network(request):
    """`network(seed)` builds the toy convolutional network, then the slim vision transformer."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def trained(toy, random_split):
    """A toy network that has learnt the training images."""
    model = toy()
    train(model, random_split.train, epochs=8, batch_size=8, lr=0.05)
    return model


@pytest.fixture
def taught(monkeypatch):
    """The teachers that a method makes, in order."""
    teachers, frozen = [], literature.frozen
    monkeypatch.setattr(literature, "frozen", lambda model: teachers.append(frozen(model)) or teachers[-1])
    return teachers


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(state, other, names=None):
    return all(torch.equal(state[name], other[name]) for name in names or state)


def story(happenings):
    """What a method yields as one word: P a phase, R a positive loss, F a negative one, | an epoch's end."""
    letter = {Phase: lambda phase: "P", EpochEnd: lambda end: "|", torch.Tensor: lambda loss: "R" if loss > 0 else "F"}
    return "".join(letter[type(happening)](happening) for happening in happenings)


def divergence(q, p):
    """Mean D_KL(q || p) of rows of probabilities, in float64 by scipy."""
    return scipy.stats.entropy(q.double().numpy(), p.detach().double().numpy(), axis=1).mean()


# --- every method -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["random", "class"])
@pytest.mark.parametrize("name", LITERATURE)
def test_every_published_method_runs_or_refuses(name, network, scenario, request):
    split = request.getfixturevalue(f"{scenario}_split")
    original = network()
    before, buffers = state(original), dict(original.named_buffers())
    run = partial(unlearn, name, original, split, batch_size=8, **TINY.get(name, {}))
    if ONE_SCENARIO.get(name, scenario) != scenario:
        with pytest.raises(ValueError, match=f"not for the {scenario} scenario: .*{name}"):
            run()
        return
    result = run()
    after = state(result.model)
    assert same(before, state(original)) and not same(before, after, [name for name in before if name not in buffers])
    assert all(value.isfinite().all() for value in after.values())
    assert result.history and result.cost["images"] > 0 and result.cost["seconds"] > 0
    assert (result.cost["steps"] > 0) == (name not in ("SSD", "Fisher", "Influence"))
    assert all(parameter.requires_grad and not parameter._backward_hooks for parameter in result.model.parameters())
    assert same(after, state(run().model))


@pytest.mark.parametrize("name", ["MSG", "NoT+CL", "Influence"])
@pytest.mark.parametrize("real", ["resnet18", "vit_tiny_patch16_224"])
def test_the_real_networks_run_published_methods(name, real, data):
    split = make_split(data, image_size=32)
    settings = {"epochs": 1} if name != "Influence" else {"images": 20, "iterations": 1}
    result = unlearn(name, build_model(real, classes=4), split, batch_size=32, **settings)
    assert all(parameter.isfinite().all() for parameter in result.model.parameters())


SGD = {"lr": 0.01, "weight_decay": 5e-4}
AUTHORS = {
    "l1-sparse": {**SGD, "alpha": 5e-4, "epochs": 10},
    "CF-k": {**SGD, "k": 2, "reset": False, "epochs": 10, "schedule": "constant"},
    "EU-k": {**SGD, "k": 2, "reset": True, "epochs": 182, "lr": 0.1, "schedule": "cosine"},
    "CoUn": {**SGD, "lam": 1.0, "tau": 0.1, "negate": False, "epochs": 50, "lr": 0.05, "lr_end": 1e-4},
    "NegGrad+": {**SGD, "alpha": 0.95, "epochs": 5},
    "SFR-on": {**SGD, "steps": 1500, "every": 5, "alpha": 25.0, "lam": 0.5, "gamma": 1.0, "clip": 7.0},
    "Random labels": {"epochs": 3, "lr": 1e-4},
    "SalUn": {**SGD, "share": 0.5, "epochs": 10, "lr": 0.013},
    "UNSIR": {"steps": 40, "noise_lr": 0.1, "penalty": 0.1, "lr_impair": 0.02, "lr_repair": 0.01},
    "AMUN": {**SGD, "eps": 0.04, "steps": 50, "epochs": 10},
    "Bad Teacher": {"share": 0.3, "epochs": 1, "lr": 1e-4},
    "SCRUB": {**SGD, "gamma": 0.99, "alpha": 0.001, "T": 4.0, "msteps": 2, "epochs": 3, "lr": 5e-4},
    "SCRUB+R": {"gamma": 1.0, "alpha": 0.5, "msteps": 3, "epochs": 5},
    "ReGUn": {"l_f": 0.5, "l_r": 0.5, "epochs": 10, "lr": 0.01},
    "DELETE": {"epochs": 20, "lr": 1e-4, "weight_decay": 0.0},
    "Margin matching": {**SGD, "ranked": True, "share": 1.0, "epochs": 5, "lr": 0.02},
    "NoT": {**SGD, "epochs": 50, "lr": 0.05, "lr_end": 1e-4},
    "NoT+CL": {**SGD, "lam": 1.0, "tau": 0.1, "negate": True, "epochs": 50, "lr": 0.05, "lr_end": 1e-4},
    "CT": {"epochs": 3, "lr": 1e-3, "weight_decay": 5e-4},
    "MSG": {"share": 0.3, "slow": 0.1, "epochs": 5, "lr": 1e-3, "weight_decay": 5e-4},
    "SSD": {"alpha": 10.0, "lam": 1.0},
    "Fisher": {"alpha": 1e-6, "most": 1e3},
    "Influence": {"alpha": 1.0, "damping": 1e-3, "images": 1000, "iterations": 10},
}


@pytest.mark.parametrize("name", LITERATURE)
def test_defaults_are_the_authors(name):
    function, settings = LITERATURE[name]
    parameters = inspect.signature(function).parameters.values()
    assert {**{p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}, **settings} == AUTHORS[name]


def test_all_methods_are_known_by_name_and_have_an_idea():
    assert {**DOCUMENTS, **LITERATURE, **ABLATIONS} == METHODS and set(IDEAS) == set(METHODS)
    assert len(METHODS) == len(DOCUMENTS) + len(LITERATURE) + len(ABLATIONS)
    assert set(IDEAS.values()) == {"relearn", "push away", "relabel", "distil", "edit weights"}


@pytest.mark.parametrize(
    "name, images",
    [("SSD", 64 + 16), ("SalUn", 16 + 64), ("Fisher", 48), ("Margin matching", 16 + 20 + 64), ("SFR-on", 64 + 8 + 16)],
)
def test_images_of_masks_and_fisher_information_count(name, images, toy, random_split):
    settings = {"SalUn": {"epochs": 1}, "Margin matching": {"epochs": 1}, "SFR-on": {"steps": 2}}.get(name, {})
    assert unlearn(name, toy(), random_split, batch_size=8, **settings).cost["images"] == images


# --- mistakes in public implementations ---------------------------------------------------------------------------


def test_mistake_2_masked_weights_do_not_drift_through_momentum_and_weight_decay(trained, random_split):
    after = unlearn("SalUn", trained, random_split, batch_size=8, epochs=3, lr=0.05, weight_decay=0.1).model
    gradient = full_gradient(trained, random_split.forget)
    every = torch.cat([g[g != 0].abs() for g in gradient])
    still = [p == q for p, q in zip(trained.parameters(), after.parameters())]
    threshold = every.median()
    for g, unmoved in zip(gradient, still):
        clearly = (g.abs() - threshold).abs() > 1e-4 * threshold
        assert torch.equal(unmoved[clearly], (g.abs() < threshold)[clearly])
    moved = sum((~entry).sum() for entry in still)
    assert moved == pytest.approx(len(every) / 2, rel=0.01)


@pytest.fixture
def wide(data):
    """ResNet-18 on images of 32 pixels, where most of layer4's kernels only ever see padding, and its split."""
    return build_model("resnet18", classes=4), make_split(data, image_size=32, batch_size=16)


def test_salun_frees_its_share_of_the_weights_that_can_move(wide):
    """Weights without a gradient are more than half here; counted, they would leave every other weight free."""
    model, split = wide
    live = [g != 0 for g in full_gradient(model, split.forget)]
    assert sum(part.sum() for part in live) < 0.5 * sum(part.numel() for part in live)
    for share in (0.2, 0.5, 0.9, 1.0):
        after = unlearn("SalUn", model, split, batch_size=16, epochs=1, share=share).model
        moved = [p != q for p, q in zip(model.parameters(), after.parameters())]
        free = sum((part & alive).sum() for part, alive in zip(moved, live)) / sum(part.sum() for part in live)
        assert free == pytest.approx(share, abs=0.03)


def test_msg_redraws_its_share_of_the_weights_that_can_move(wide):
    """In each kernel; those that only see padding stay as they were."""
    model, split = wide
    weight = model.layer4[1].conv2.weight
    before = weight.detach().clone()
    batches = split.fresh(seed=0, batch_size=16)
    subset = replace(batches.retain, limit=len(split.forget.index))
    g = [literature.mean_gradient(model, part) for part in (subset, batches.forget)]
    alive = next(r != f for p, r, f in zip(model.parameters(), *g) if p is weight)
    next(literature.small_gradients(model.train(), split.fresh(seed=0, batch_size=16), share=0.3))
    redrawn = weight != before
    assert alive.float().mean() < 1 / 9 + 1e-6, "maps are a pixel there: a kernel's centre alone can move"
    assert not redrawn[~alive].any() and redrawn[alive].float().mean() == pytest.approx(0.3, abs=0.01)


def full_gradient(model, batches):
    """The gradient of the mean cross-entropy of all images at once, evaluation mode."""
    model = deepcopy(model).eval()
    x, y = (torch.cat(parts) for parts in zip(*replace(batches, shuffle=False)))
    return torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))


@pytest.mark.parametrize("scenario", ["random", "class"])
def test_mistake_3_random_labels_are_never_the_true_ones(scenario, request):
    split = request.getfixturevalue(f"{scenario}_split")
    true, seen = split.train.labels, set()
    for seed in range(50):
        torch.manual_seed(seed)
        labels = literature.wrong_labels(split)
        changed = labels != true
        assert torch.equal(changed.nonzero().flatten(), split.forget.index.sort().values)
        seen |= {(t, w) for t, w in zip(true[changed].tolist(), labels[changed].tolist())}
    assert labels.min() >= 0 and labels.max() < 4
    assert len(seen) == 3 * len(set(split.forget.y.tolist()))  # every wrong class of each
    assert torch.equal(true, split.train.labels)


@pytest.mark.parametrize("name", ["Random labels", "SalUn"])
def test_wrong_labels_are_drawn_once(name, toy, random_split, monkeypatch):
    given = {}

    def recording(model, batches):
        for x, y in batches:
            for image, label in zip(x, y.tolist()):
                given.setdefault(image.numpy().tobytes(), []).append(label)
            yield cross_entropy(model(x), y)

    monkeypatch.setattr(literature, "learn", recording)
    unlearn(name, toy(), random_split, batch_size=8, epochs=4)
    assert len(given) == 64 and all(len(labels) == 4 and len(set(labels)) == 1 for labels in given.values())
    for part, wanted in ((random_split.retain, True), (random_split.forget, False)):
        for x, y in part.fresh(shuffle=False):
            assert all((given[i.numpy().tobytes()][0] == label) == wanted for i, label in zip(x, y.tolist()))


@pytest.mark.parametrize("real", ["resnet18", "vit_tiny_patch16_224"])
def test_mistake_4_reinitialising_reaches_every_depth(real):
    model = build_model(real, classes=4)
    before = state(model)
    literature.reinitialise(model)
    for name, value in model.named_parameters():
        constant = value.unique().numel() == 1  # a norm's weights and the biases of some layers
        assert constant or (value != before[name]).float().mean() > 0.99, name


def test_mistake_6_the_divergence_is_a_mean_over_images_not_over_entries():
    generator = torch.Generator().manual_seed(0)
    q, p = (3 * torch.randn(6, 10, generator=generator) for _ in range(2))
    assert kl(q, p).item() == pytest.approx(divergence(q.softmax(1), p.softmax(1)), rel=1e-5)
    assert kl(q, p, 4.0).item() == pytest.approx(
        16 * divergence((q / 4).softmax(1), (p / 4).softmax(1)), rel=1e-5
    )  # fmt: skip
    assert kl(q, q).item() == pytest.approx(0, abs=1e-6)


def test_mistake_7_noise_is_labelled_as_the_forgotten_class(toy, data, monkeypatch):
    split = make_split(data, "class", forget_class="c", image_size=8)
    labels = []
    monkeypatch.setattr(literature, "cross_entropy", lambda z, y: labels.append(y) or cross_entropy(z, y))
    unlearn("UNSIR", toy(), split, batch_size=8, steps=5)
    learning, impairing = labels[:5], labels[5:11]
    assert len(labels) == 5 + 6 and all((y == 2).all() and len(y) == 8 for y in learning)
    assert all((y[:8] == 2).all() and (y[8:] != 2).all() and len(y) == 16 for y in impairing)


def test_unsirs_noise_raises_the_loss_of_its_class(trained, class_split):
    x, c = next(iter(class_split.forget))
    torch.manual_seed(0)
    before = torch.randn_like(x)
    torch.manual_seed(0)
    noise = literature.confusing_noise(literature.frozen(trained), x, c, {"images": 0}, steps=40, lr=0.1, penalty=0.0)
    teacher = deepcopy(trained).eval()
    assert cross_entropy(teacher(noise), c) > 2 * cross_entropy(teacher(before), c)


@pytest.mark.parametrize("name", ["SCRUB", "SCRUB+R", "Bad Teacher", "DELETE"])
def test_mistake_8_the_student_moves_and_the_teacher_does_not(name, network, random_split, class_split, taught):
    original, split = network(), class_split if name == "DELETE" else random_split
    student = unlearn(name, original, split, batch_size=8).model
    teacher = taught[0]
    assert same(state(teacher), state(original)) and not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not all(map(torch.equal, student.parameters(), teacher.parameters()))


def test_mistake_11_no_device_is_hard_coded():
    """Only what picks the device, and what names the machine, knows of one."""
    for file in Path(literature.__file__).parent.glob("*.py"):
        if file.name not in ("training.py", "experiment.py"):
            assert not re.search(r"\.cuda\(|[\"']cuda", file.read_text()), file.name


@pytest.mark.parametrize("error", [RuntimeError, KeyError, AttributeError])
def test_mistake_12_an_error_in_a_method_is_not_swallowed(error, toy, random_split):
    def broken(model, split):
        yield Phase(0.1)
        raise error("broken")

    with pytest.raises(error, match="broken"):
        unlearn(broken, toy(), random_split)


def test_mistake_14_scrub_r_restores_a_copy_of_the_chosen_epoch(toy, random_split, monkeypatch):
    states, errors = [], iter([0.1, 0.4, 0.9, 0.45])  # of three epochs; the reference
    monkeypatch.setattr(literature, "error", lambda model, batches: next(errors))
    track = lambda model: states.append(state(model)) or {}  # noqa: E731
    result = unlearn("SCRUB+R", toy(), random_split, batch_size=8, epochs=3, lr=0.05, track=track)
    assert not same(states[0], states[1]) and not same(states[1], states[2])
    assert same(state(result.model), states[1]) and result.history[-1]["rewound to"] == 2


@pytest.mark.parametrize("scenario", ["random", "class"])
def test_scrub_r_compares_forgotten_images_with_unseen_ones_of_their_distribution(scenario, toy, request, monkeypatch):
    split, measured = request.getfixturevalue(f"{scenario}_split"), []
    monkeypatch.setattr(literature, "error", lambda model, batches: measured.append(batches) or 0.0)
    unlearn("SCRUB+R", toy(), split, batch_size=8, epochs=2)
    forgotten, held_out = measured[:2], measured[2]
    assert all(torch.equal(batches.index, split.forget.index) for batches in forgotten) and len(measured) == 3
    assert held_out.images is split.validation.images
    assert set(held_out.y.tolist()) == ({0, 1, 2, 3} if scenario == "random" else {0})


# --- relearn ------------------------------------------------------------------------------------------------------


def test_l1_sparse_adds_a_penalty_that_fades(toy, random_split):
    model = toy().train()
    losses = [h for h in literature.l1_sparse(model, random_split, alpha=0.1, epochs=4) if isinstance(h, torch.Tensor)]
    size = sum(p.detach().double().abs().sum() for p in model.parameters()).item()
    plain = [cross_entropy(model(x), y).item() for _ in range(4) for x, y in replace(random_split.retain, passes=0)]
    penalty = np.mean(np.reshape([a.item() for a in losses], (4, 6)) - np.mean(plain), 1)
    assert penalty == pytest.approx([0.1 * (1 - t / 4) * size for t in range(4)], rel=0.02)


def last(model, k):
    """The names of the parameters and buffers of the last k blocks."""
    stages = ["layer1", "layer2", "layer3", "layer4", "fc"]
    if hasattr(model, "blocks"):
        stages = [*(f"blocks.{i}" for i in range(len(model.blocks))), ("norm", "head")]
    chosen = tuple(f"{part}." for stage in stages[-k:] for part in ([stage] if isinstance(stage, str) else stage))
    return [name for name in model.state_dict() if name.startswith(chosen)]


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("name", ["CF-k", "EU-k"])
def test_cf_k_and_eu_k_leave_all_but_the_last_blocks_bit_for_bit(name, k, network, random_split):
    original = network()
    inside, before = last(original, k), state(original)
    outside = [name for name in before if name not in inside]
    after = state(unlearn(name, original, random_split, batch_size=8, k=k, epochs=2, lr=0.1).model)
    assert outside and same(before, after, outside)
    assert not any(torch.equal(before[name], after[name]) for name in inside if "num_batches" not in name)


def test_eu_k_starts_from_new_weights_and_cf_k_from_the_old_ones(network, random_split):
    original = network()
    weights = [name for name in last(original, 2) if original.state_dict()[name].ndim > 1]
    kept, new = (state(unlearn(n, original, random_split, k=2, epochs=0).model) for n in ("CF-k", "EU-k"))
    assert same(kept, state(original)) and weights
    assert not any(torch.equal(new[name], kept[name]) for name in weights)


def test_info_nce_agrees_with_numpy():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 7, generator=generator) for _ in range(2))
    u, v = (z.double().numpy() / np.linalg.norm(z.double().numpy(), axis=1, keepdims=True) for z in (a, b))
    s = u @ v.T / 0.2
    rows, columns = (np.log(np.exp(s).sum(axis)) - np.diag(s) for axis in (1, 0))
    assert literature.info_nce(a, b, 0.2).item() == pytest.approx((rows.mean() + columns.mean()) / 2, rel=1e-5)
    assert literature.info_nce(a, a, 0.2) < literature.info_nce(a, a.roll(1, 0), 0.2)


@pytest.mark.parametrize("name", ["CoUn", "NoT+CL"])
def test_coun_adds_its_contrast(name, toy, random_split, monkeypatch):
    """`lam` times InfoNCE of the features of two views of the same images."""
    given = []
    monkeypatch.setattr(literature, "info_nce", lambda a, b, tau: given.append((a, b, tau)) or torch.tensor(100.0))
    settings = {"batch_size": 8, "epochs": 1, "lr": 1e-9, "lr_end": 0.0}
    plain, added = (unlearn(name, toy(), random_split, lam=lam, **settings).history[0]["loss"] for lam in (0.0, 0.5))
    assert added - plain == pytest.approx(50, rel=1e-3)
    a, b, tau = given[0]
    assert a.shape == b.shape == (8, 8) and not torch.equal(a, b) and tau == 0.1


def test_coun_sees_two_views_of_each_retained_image(toy, random_split):
    model, seen = toy(), []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    happenings = literature.contrastive_finetuning(model.train(), random_split, epochs=1)
    assert story(happenings) == "PRRRRRR|"
    handle.remove()
    assert len(seen) == 12 and not any(torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2]))
    cost = unlearn("CoUn", toy(), random_split, batch_size=8, epochs=1).cost
    assert cost["images"] == 2 * 48 and cost["steps"] == 6


# --- push away ----------------------------------------------------------------------------------------------------


def test_neggrad_plus_weighs_down_and_up(toy, random_split):
    model = toy().eval()  # so that a batch's loss does not depend on the batches before
    forget, retain = (list(replace(batches, passes=0)) for batches in (random_split.forget, random_split.retain))
    happenings = list(literature.neggrad_plus(model, random_split, alpha=0.9, epochs=1))
    assert happenings[0] == Phase(0.01, weight_decay=5e-4) and len(happenings) == 1 + 6 + 1
    (x_r, y_r), (x_f, y_f) = retain[1], forget[1]
    by_hand = 0.9 * cross_entropy(model(x_r), y_r) - 0.1 * cross_entropy(model(x_f), y_f)
    assert happenings[2].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_a_loss_with_a_given_gradient():
    model = nn.Linear(3, 2)
    parameters = list(model.parameters())
    given = [torch.randn_like(p) for p in parameters]
    loss = literature.with_gradient(torch.tensor(7.0), parameters, given)
    assert loss.item() == 7 and all(map(torch.equal, torch.autograd.grad(loss, parameters), given))


def test_sfr_on_steps_up_before_every_fifth_step_down(toy, random_split):
    happenings = list(literature.sfr_on(toy().train(), random_split, steps=12))
    assert story(happenings) == "PFRRRRRFR|RRRRFRR|"
    assert happenings[0] == Phase(0.01, 0.9, 5e-4, "sgd", "cosine", 15)


def test_sfr_on_masks_and_clips_the_step_up(trained, random_split):
    model = deepcopy(trained).train()
    split = random_split.fresh(seed=0, batch_size=8)
    squares = [literature.mean_gradient(model, batches, 2) for batches in (split.forget, split.retain)]
    happenings = literature.sfr_on(model, split.fresh(seed=0), steps=10, clip=1e-3, gamma=1.5)
    next(happenings)
    gradient = torch.autograd.grad(next(happenings), list(model.parameters()))
    assert torch.cat([g.flatten() for g in gradient]).norm().item() == pytest.approx(1e-3, rel=1e-3)
    blocked = [f < 1.49 * r for f, r in zip(*squares)]
    assert any(mask.any() for mask in blocked)
    assert all((g[mask] == 0).all() for g, mask in zip(gradient, blocked))


def test_sfr_on_climbs_by_its_formula(trained, random_split):
    """Up alpha_t sum_i w_i l_i, w_i proportional to l_i^-1/2, alpha_t half way down after half of the steps."""
    model, inputs, labels = deepcopy(trained).train(), [], {}
    for x, y in random_split.forget:
        labels |= {image.numpy().tobytes(): label for image, label in zip(x, y)}
    parameters, split = list(model.parameters()), random_split.fresh(seed=0, batch_size=8)
    happenings = literature.sfr_on(model, split, steps=10, clip=1e9, gamma=0.0, alpha=3.0)
    next(happenings)
    model.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for share in (1.0, 0.5):
        inputs.clear()
        gradient = torch.autograd.grad(next(happenings), parameters)
        x = inputs[0]
        losses = cross_entropy(model(x), torch.stack([labels[i.numpy().tobytes()] for i in x]), reduction="none")
        w = losses.detach() ** -0.5 / (losses.detach() ** -0.5).sum()
        expected = torch.autograd.grad(-3 * share * (w * losses).sum(), parameters)
        assert all(torch.allclose(g, e, atol=1e-5) for g, e in zip(gradient, expected))
        for _ in range(5):
            next(happenings)


def test_mean_gradient_is_that_of_all_images(trained, random_split):
    expected = full_gradient(trained, random_split.forget)
    found = literature.mean_gradient(trained.train(), random_split.forget)
    assert trained.training
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected))


# --- relabel ------------------------------------------------------------------------------------------------------


def test_together_shuffles_the_forgotten_images_among_part_of_the_retained(random_split):
    split = random_split.fresh(seed=0, batch_size=8, retain_limit=40)
    first, second = literature.together(split, split.train.labels, 2, share=0.5)
    for batches in (first, second):
        assert set(split.forget.index.tolist()) < set(batches.index.tolist()) and len(batches.index) == 16 + 20
    labels = [y for _, y in first]
    assert sum(map(len, labels)) == 36 and split.seen["images"] == 36
    assert not torch.equal(torch.cat(labels), torch.cat([y for _, y in second]))


@pytest.mark.parametrize("shown", ["kept", "whitened"])
def test_amuns_images_are_misclassified_and_near(shown, data):
    """Whatever the normalisation, radii are of pixels in 0 to 1."""
    mean, std = ((0.5,) * 3, (0.5,) * 3) if shown == "kept" else ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    split = make_split(data, "random", forget_fraction=0.25, image_size=8, batch_size=8, mean=mean, std=std)
    teacher = literature.frozen(fitted(split.train, 0.1))  # its gradient is never 0
    x, y, radius = literature.nearest_adversaries(teacher, replace(split.forget, shuffle=False), eps=0.1, steps=10)
    original, true = (torch.cat(parts) for parts in zip(*replace(split.forget, shuffle=False)))
    assert len(x) == len(true)
    assert (y != true).all() and torch.equal(teacher(x).argmax(1), y)
    scale = torch.tensor(std)[:, None, None]
    distance = ((x - original) * scale).flatten(1).norm(dim=1)
    assert (distance <= radius + 1e-5).all() and distance.max() > 0
    assert all(any(math.isclose(r, 0.1 * 2**j, rel_tol=1e-5) for j in range(13)) for r in radius.tolist())
    pixels = x * scale + torch.tensor(mean)[:, None, None]
    assert pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6
    needed = distance[radius > 0.11]
    assert (needed > radius[radius > 0.11] / 2 - 1e-4).all()  # half the radius did not do


def test_amun_teaches_the_labels_of_its_attack(toy, random_split, monkeypatch):
    """Beside each batch under its own labels go the adversarial images under theirs."""
    found, given = (torch.zeros(4, 3, 8, 8), torch.arange(4), torch.ones(4)), []
    monkeypatch.setattr(literature, "nearest_adversaries", lambda *a, **k: found)
    monkeypatch.setattr(literature, "cross_entropy", lambda z, y: given.append(y) or cross_entropy(z, y))
    unlearn("AMUN", toy(), random_split, batch_size=8, epochs=1)
    assert sorted(y[-1].item() for y in given) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert torch.equal(torch.cat([y[:-1] for y in given]).bincount(), random_split.train.y.bincount())


def test_amun_counts_its_attack(toy, random_split):
    settings = {"eps": 0.5, "steps": 5, "epochs": 1}
    split = random_split.fresh(seed=0, batch_size=8)
    found, _, _ = literature.nearest_adversaries(literature.frozen(toy()), split.forget, eps=0.5, steps=5)
    attack = split.seen["images"]
    cost = unlearn("AMUN", toy(), random_split, batch_size=8, **settings).cost
    assert attack > 16 and cost["steps"] == 8
    assert cost["images"] >= attack + 64 + min(len(found), 8)


# --- distil -------------------------------------------------------------------------------------------------------


def test_scrub_ascends_in_its_first_msteps_epochs_alone(trained, random_split):
    happenings = literature.scrub(trained.train(), random_split, msteps=2, epochs=3)
    assert story(happenings) == "P" + 2 * "FFRRRRRR|" + "RRRRRR|"


def test_scrub_in_full(trained, random_split):
    model = trained.train()
    teacher = literature.frozen(model)
    forget, retain = (list(replace(batches, passes=0)) for batches in (random_split.forget, random_split.retain))
    happenings = list(literature.scrub(model, random_split, msteps=1, epochs=1, gamma=0.7, alpha=0.3, T=2.0))
    (x_f, _), (x_r, y_r) = forget[0], retain[0]
    q, p = ((network(x_f) / 2).softmax(1) for network in (teacher, model))
    assert happenings[1].item() == pytest.approx(-4 * divergence(q, p), rel=1e-3)
    q, p = ((network(x_r) / 2).softmax(1) for network in (teacher, model))
    by_hand = 0.7 * cross_entropy(model(x_r), y_r).item() + 0.3 * 4 * divergence(q, p)
    assert happenings[3].item() == pytest.approx(by_hand, rel=1e-3)


def test_bad_teacher_teaches_each_image_by_the_right_teacher(trained, random_split, taught, monkeypatch):
    targets = []
    monkeypatch.setattr(literature, "kl", lambda q, p: targets.append(q) or kl(q, p))
    inputs, forgotten = [], {x.numpy().tobytes() for batch, _ in random_split.forget for x in batch}
    happenings = literature.bad_teacher(trained.train(), random_split, share=1.0)
    next(happenings)
    trained.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    list(happenings)
    good, bad = taught
    rows = [(x, row) for x, row in zip(torch.cat(inputs), torch.cat(targets))]
    assert len(rows) == 64 and len(forgotten) == 16
    for x, row in rows:
        teacher = bad if x.numpy().tobytes() in forgotten else good
        assert torch.allclose(teacher(x[None])[0], row, atol=1e-5)
    assert not any(torch.allclose(good(x[None]), bad(x[None]), atol=1e-3) for x, _ in rows)


def test_delete_aims_at_zero_for_the_forgotten_class(trained, class_split, monkeypatch):
    targets = []
    monkeypatch.setattr(literature, "kl", lambda q, p: targets.append(q) or kl(q, p))
    teacher = literature.frozen(trained)
    batches = list(replace(class_split.forget, passes=0))
    happenings = list(literature.delete(trained.eval(), class_split, epochs=1))
    assert len(targets) == 2 and happenings[0] == Phase(1e-4)
    for (x, _), q, loss in zip(batches, targets, happenings[1:]):
        p = teacher(x).softmax(1)
        others = p.clone()
        others[:, 0] = 0
        assert torch.allclose(q.softmax(1), others / others.sum(1, keepdim=True), atol=1e-6)
        assert loss.item() == pytest.approx(divergence(q.softmax(1), p), rel=1e-4)


def test_regun_refers_to_held_out_images_of_the_batchs_classes(trained, random_split):
    model = trained.eval()
    y = random_split.validation.y
    one_a_class = torch.tensor([(y == c).nonzero()[0].item() for c in range(4)])
    held_out = literature.only(random_split.validation, one_a_class)
    split = replace(random_split, validation=held_out)
    (x_f, y_f), (x_r, y_r) = (next(iter(replace(b, passes=0))) for b in (split.forget, split.retain))
    loss = list(literature.regun(model, split, epochs=1))[1]
    p0 = predict(model, replace(held_out, shuffle=False))[0].softmax(1)
    q = p0[y_f].mean(0).expand(len(y_f), -1)
    by_hand = 0.5 * divergence(q, model(x_f).softmax(1)) + 0.5 * cross_entropy(model(x_r), y_r).item()
    assert loss.item() == pytest.approx(by_hand, rel=1e-4)


def numpy_margin(logits, y):
    z = logits.double().numpy()
    return np.array([row[c] - np.log(np.exp(np.delete(row, c)).sum()) for row, c in zip(z, y.tolist())])


def test_margin_matching_gives_forgotten_images_the_margins_of_unseen_ones(trained, random_split):
    forget, held_out = (replace(b, shuffle=False) for b in (random_split.forget, random_split.validation))
    before, after = predict(trained, forget)[0], literature.unseen_logits(trained, random_split)
    old, new = (numpy_margin(logits, forget.y) for logits in (before, after))
    unseen = numpy_margin(predict(trained, held_out)[0], held_out.y)
    for c in range(4):
        mine, theirs = (forget.y == c).numpy(), (held_out.y == c).numpy()
        levels = (np.arange(mine.sum()) + 0.5) / mine.sum()
        assert np.sort(new[mine]) == pytest.approx(np.quantile(unseen[theirs], levels), abs=1e-4)
        assert (old[mine].argsort() == new[mine].argsort()).all()
    rest = torch.ones_like(before).scatter(1, forget.y[:, None], 0).bool()
    assert torch.equal(before[rest], after[rest])


def test_margin_matching_without_ranks_gives_each_class_the_same_margins_to_other_images(trained, random_split):
    forget = replace(random_split.forget, shuffle=False)
    torch.manual_seed(0)
    ranked, drawn = (
        numpy_margin(literature.unseen_logits(trained, random_split, order), forget.y) for order in (True, False)
    )
    for c in range(4):
        mine = (forget.y == c).numpy()
        assert np.sort(drawn[mine]) == pytest.approx(np.sort(ranked[mine]), abs=1e-4)
    assert not np.allclose(drawn, ranked)


def test_margin_matching_without_retained_images_sees_the_forgotten_ones_alone(trained, random_split):
    whole, alone = (
        unlearn(name, trained, random_split, batch_size=8, epochs=2) for name in ("Margin matching", "MM, no retained")
    )
    forgotten = len(random_split.forget.index)
    targets = whole.cost["images"] - 2 * (forgotten + random_split.retain.images_per_pass)
    assert alone.cost["images"] - targets == 2 * forgotten


def test_margin_matching_knows_nothing_of_a_forgotten_class(trained, class_split):
    q = literature.unseen_logits(trained, class_split).softmax(1)
    p = predict(trained, replace(class_split.forget, shuffle=False))[0].softmax(1)
    assert (q[:, 0] == 0).all()
    assert torch.allclose(q[:, 1:], p[:, 1:] / p[:, 1:].sum(1, keepdim=True), atol=1e-5)


def test_margin_matching_teaches_these_predictions_and_the_retained_labels(trained, random_split, monkeypatch):
    given, target = {}, literature.unseen_logits(trained, random_split).softmax(1)

    def recording(model, batches):
        for x, q in batches:
            given.update(zip((image.numpy().tobytes() for image in x), q))
            yield cross_entropy(model(x), q)

    monkeypatch.setattr(literature, "learn", recording)
    unlearn("Margin matching", trained, random_split, batch_size=8, epochs=1)
    wanted = dict(zip(random_split.forget.index.tolist(), target))
    images = replace(random_split.train, shuffle=False)
    x, labels = (torch.cat(parts) for parts in zip(*images))
    for i, image, y in zip(images.index.tolist(), x, labels):
        assert torch.allclose(given[image.numpy().tobytes()], wanted.get(i, torch.eye(4)[y]), atol=1e-5)


def test_products_of_features_are_float32_inside_autocast():
    """bfloat16 would keep two or three digits of a similarity that is divided by a small temperature."""
    a, b = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    expected = [literature.info_nce(a, b, 0.1), methods.contrast(a, b, 1.15)]
    with torch.autocast("cpu", torch.bfloat16):
        assert [literature.info_nce(a, b, 0.1), methods.contrast(a, b, 1.15)] == expected


def test_a_class_without_held_out_images(toy, trained, random_split, class_split):
    """Nothing is known of it: Margin matching leaves it out, ReGUn and SCRUB+R say what is missing."""
    few = replace(random_split, validation=literature.only(random_split.validation, random_split.validation.y != 2))
    z, y = literature.unseen_logits(trained, few), few.forget.y
    own = z.gather(1, y[:, None]).flatten()
    assert (own[y == 2] == -torch.inf).all() and own[y != 2].isfinite().all() and (y == 2).any()
    with pytest.raises(ValueError, match="ReGUn needs a validation image of each class"):
        unlearn("ReGUn", toy(), few, batch_size=8, epochs=1)
    validation = literature.only(class_split.validation, class_split.validation.y != class_split.forget_class)
    with pytest.raises(ValueError, match="no validation image is of the forgotten class"):
        unlearn("SCRUB+R", toy(), replace(class_split, validation=validation), batch_size=8, epochs=1)


def test_outputs_in_float32_inside_autocast(trained, random_split):
    with torch.autocast("cpu", torch.bfloat16):
        assert predict(trained, random_split.sets["forget"])[0].dtype == torch.float32


# --- edit weights -------------------------------------------------------------------------------------------------


def untrained(name, model, split):
    """What a method leaves when it takes no step."""
    return state(unlearn(name, model, split, batch_size=8, epochs=0).model)


@pytest.mark.parametrize("name", ["NoT", "NoT+CL"])
def test_not_negates_the_first_layer_alone(name, network, random_split):
    original = network()
    first = "patch_embed.proj.weight" if hasattr(original, "blocks") else "layer1.0.weight"
    before, after = state(original), untrained(name, original, random_split)
    assert torch.equal(after[first], -before[first])
    assert same(before, after, [name for name in before if name != first])


def test_ct_transposes_each_kernel(network, random_split):
    original = network()
    before, after = state(original), untrained("CT", original, random_split)
    kernels = [name for name, value in before.items() if value.ndim == 4]
    assert len(kernels) == (1 if hasattr(original, "blocks") else 4)
    for name in kernels:
        assert np.array_equal(after[name].numpy(), np.swapaxes(before[name].numpy(), 2, 3))
        assert not torch.equal(after[name], before[name])
    assert same(before, after, [name for name in before if name not in kernels])


def test_msg_redraws_the_weights_with_small_gradients(trained, random_split):
    before, after = state(trained), untrained("MSG", trained, random_split)
    split = random_split.fresh(seed=0, batch_size=8)
    subset = replace(split.retain, limit=16)
    g = [r - f for r, f in zip(literature.mean_gradient(trained, subset), full_gradient(trained, split.forget))]
    for (name, value), gradient in zip(trained.named_parameters(), g):
        moved = before[name] != after[name]
        if value.ndim < 4:
            assert not moved.any()
        else:
            alive = gradient != 0
            assert moved.sum() == round(0.3 * alive.sum().item()) and not moved[~alive].any()
            assert gradient.abs()[moved].max() <= gradient.abs()[alive & ~moved].min() * 1.001
            assert after[name][moved].std().item() == pytest.approx((2 / (9 * len(value))) ** 0.5, rel=0.35)


def test_msg_slows_the_other_weights_and_takes_its_hooks_away(trained, random_split):
    model = trained.train()
    model.zero_grad()
    before = state(model)
    happenings = literature.small_gradients(model, random_split, epochs=1)
    next(happenings)
    plain = deepcopy(model)
    for parameter in plain.parameters():
        parameter._backward_hooks = None
    loss = next(happenings)
    loss.backward()
    x, y = next(iter(replace(random_split.retain, passes=random_split.retain.passes - 1)))
    cross_entropy(plain(x), y).backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters()):
        factor = torch.where((before[name] != p) | (p.ndim < 4), 1.0, 0.1)
        assert torch.allclose(p.grad, factor * q.grad, atol=1e-6)
    list(happenings)
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_msg_redraws_linear_weights_of_a_vit(slim_vit, random_split):
    original = slim_vit()
    before, after = state(original), untrained("MSG", original, random_split)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    linear = {f"{n}.weight" for n, m in original.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    assert moved == linear


def test_ssd_dampens_selected_weights_and_leaves_the_others_bit_for_bit(trained, random_split):
    result = unlearn("SSD", trained, random_split, batch_size=64, alpha=1.2, lam=0.5)
    i_d, i_f = ([g.double() ** 2 for g in full_gradient(trained, b)] for b in (random_split.train, random_split.forget))
    share = 0
    for p, q, d, f in zip(trained.parameters(), result.model.parameters(), i_d, i_f):
        selected, clearly = f > 1.2 * d, ((f / d) / 1.2 - 1).abs() > 1e-2
        expected = torch.where(selected, (0.5 * d / f).clamp(max=1) * p, p)
        assert torch.allclose(q[clearly].double(), expected[clearly], rtol=1e-2, atol=1e-7)
        assert torch.equal(q[clearly & ~selected], p[clearly & ~selected])
        share += selected.sum().item() / sum(p.numel() for p in trained.parameters())
    assert 0.05 < share < 1


class Softmax(nn.Module):
    """Linear softmax regression on 8x8 images."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(192, 4)

    def forward(self, x):
        return self.fc(x.flatten(1))


def fitted(batches, damping):
    """Softmax regression at the minimum of CE + damping / 2 |theta|^2."""
    x, y = (torch.cat(parts) for parts in zip(*batches))
    model = Softmax().double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(model(x.double()), y) + damping / 2 * sum(p.square().sum() for p in model.parameters())
        loss.backward()
        return loss

    optimizer.step(closure)
    return model.float()


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_influence_lands_near_the_retrained_model_of_a_convex_problem(random_split):
    original, gold = (fitted(batches, 0.1) for batches in (random_split.train, random_split.retain))
    model = unlearn("Influence", original, random_split, batch_size=48, damping=0.1, iterations=100).model
    away, left = ((flat(gold) - flat(other)).norm() for other in (original, model))
    assert left < away / 5


def test_gauss_newton_is_the_hessian_of_softmax_regression(random_split):
    torch.manual_seed(0)
    model, batches = Softmax(), list(random_split.retain)
    x, y = (torch.cat(parts).double() for parts in zip(*batches))

    def loss(theta):
        return cross_entropy(x.flatten(1) @ theta[:768].view(4, 192).T + theta[768:], y.long())

    hessian = torch.autograd.functional.hessian(loss, flat(model).double())
    v = torch.randn(772)
    assert torch.allclose(literature.gauss_newton(model, batches, v).double(), hessian @ v.double(), atol=1e-5)


def test_fisher_forgetting_adds_the_noise_of_its_formula(random_split, monkeypatch):
    """With unit noise the step is alpha^(1/2) F^(-1/4), F the mean over many draws of the exact Fisher information."""
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    torch.manual_seed(0)
    model = Softmax()
    x, _ = (torch.cat(parts).double() for parts in zip(*random_split.retain))
    p = (x.flatten(1) @ model.fc.weight.double().T + model.fc.bias).softmax(1)
    exact = torch.einsum("ik,ij->kj", p * (1 - p), x.flatten(1) ** 2) / len(x)
    found = torch.zeros_like(exact)
    for seed in range(100):
        moved = unlearn("Fisher", model, random_split, seed=seed, batch_size=8, alpha=1e-2, most=1e9).model
        found += ((moved.fc.weight - model.fc.weight).double() / 0.1) ** -4 / 100
    assert found.mean().item() == pytest.approx(exact.mean().item(), rel=0.1)
    cut = unlearn("Fisher", model, random_split, batch_size=8, alpha=1e-2, most=16.0).model
    assert (cut.fc.weight - model.fc.weight).max().item() == pytest.approx(0.1 * 2, rel=1e-4)
