"""The published methods: each one's invariant, and the mistakes that public implementations make."""

import math
from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from method_checks import Lookup, divergence, images_of, order, same, state, step_by_step
from torch import nn
from torch.nn.functional import cross_entropy

from helpers.data import make_split
from helpers.methods import METHODS, PUBLISHED
from helpers.methods.common import (
    error_rate,
    frozen,
    held_out_images,
    kl,
    mean_gradient,
    mixed_batches,
    only,
    reinitialise,
    with_gradient,
    wrong_labels,
)
from helpers.methods.distil import bad_teacher, delete, margin_matching, regun, scrub, similarities, trew, unseen_logits
from helpers.methods.documents import contrast
from helpers.methods.edit_weights import gauss_newton, small_gradients
from helpers.methods.push_away import neggrad_plus, sfr_on, smoothed_cross_entropy, ugradsl_plus
from helpers.methods.relabel import (
    amun,
    bisector,
    confusing_noise,
    munba,
    nearest_adversaries,
    random_labels,
    salun,
    unsir,
)
from helpers.methods.relearn import contrastive_finetuning, info_nce, l1_sparse
from helpers.metrics import predict
from helpers.models import build_model, inputs_of
from helpers.training import Phase, unlearn

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


@pytest.fixture
def two_classes(data):
    """Classes b and d forgotten: 32 images each side."""
    return make_split(data, "class", forget_class=["b", "d"], image_size=8, batch_size=8)


# --- every method -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random_split", "class_split", "two_classes"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_method_runs_or_refuses(name, network, kind, request):
    split = request.getfixturevalue(kind)
    scenario = split.scenario.name
    original = network()
    before, buffers = state(original), dict(original.named_buffers())
    run = partial(unlearn, name, original, split, TINY.get(name), batch_size=8)
    if scenario not in METHODS[name].scenarios:
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
    result = unlearn(name, build_model(real, classes=4), split, settings, batch_size=32)
    assert all(parameter.isfinite().all() for parameter in result.model.parameters())


@pytest.mark.parametrize(
    "name, images",
    [("SSD", 64 + 16), ("SalUn", 16 + 64), ("Fisher", 48), ("Margin matching", 16 + 20 + 64), ("SFR-on", 64 + 8 + 16)],
)
def test_images_of_masks_and_fisher_information_count(name, images, toy, random_split):
    settings = {"SalUn": {"epochs": 1}, "Margin matching": {"epochs": 1}, "SFR-on": {"steps": 2}}.get(name)
    assert unlearn(name, toy(), random_split, settings, batch_size=8).cost["images"] == images


# --- mistakes in public implementations ---------------------------------------------------------------------------


def full_gradient(model, batches):
    """The gradient of the mean cross-entropy of all images at once, evaluation mode."""
    x, y = images_of(batches)
    model = deepcopy(model).eval()
    return torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))


def test_mistake_2_masked_weights_do_not_drift_through_momentum_and_weight_decay(trained, random_split):
    settings = {"epochs": 3, "lr": 0.05, "weight_decay": 0.1}
    after = unlearn("SalUn", trained, random_split, settings, batch_size=8).model
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
        after = unlearn("SalUn", model, split, {"epochs": 1, "share": share}, batch_size=16).model
        moved = [p != q for p, q in zip(model.parameters(), after.parameters())]
        free = sum((part & alive).sum() for part, alive in zip(moved, live)) / sum(part.sum() for part in live)
        assert free == pytest.approx(share, abs=0.03)


def test_msg_redraws_its_share_of_the_weights_that_can_move(wide):
    """In each kernel; those that only see padding stay as they were."""
    model, split = wide
    weight = model.layer4[1].conv2.weight
    before = weight.detach().clone()
    batches = split.reset(seed=0, batch_size=16)
    subset = replace(batches.retain, limit=len(split.forget.index))
    g = [mean_gradient(model, part) for part in (subset, batches.forget)]
    alive = next(r != f for p, r, f in zip(model.parameters(), *g) if p is weight)
    next(small_gradients(model.train(), split.reset(seed=0, batch_size=16), share=0.3))
    redrawn = weight != before
    assert alive.float().mean() < 1 / 9 + 1e-6, "maps are a pixel there: a kernel's centre alone can move"
    assert not redrawn[~alive].any() and redrawn[alive].float().mean() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("kind, wrong", [("random_split", 3), ("class_split", 3), ("two_classes", 2)])
def test_mistake_3_wrong_labels_are_never_the_true_ones_nor_a_forgotten_class(kind, wrong, request):
    split = request.getfixturevalue(kind)
    true, seen = split.train.labels.clone(), set()
    for seed in range(50):
        torch.manual_seed(seed)
        labels = wrong_labels(split)
        changed = labels != true
        assert torch.equal(changed.nonzero().flatten(), split.forget.index.sort().values)
        seen |= {(t, w) for t, w in zip(true[changed].tolist(), labels[changed].tolist())}
    assert len(seen) == wrong * len(set(split.forget.y.tolist()))  # every wrong class of each
    assert {w for _, w in seen} <= set(range(4)) - set(split.forget_classes)
    assert torch.equal(true, split.train.labels)


@pytest.mark.parametrize("method", [random_labels, salun])
def test_wrong_labels_are_drawn_once(method, toy, random_split):
    """In every epoch the loss is that of the same wrong labels of D_f and the true labels of D_r."""
    model = toy().eval()
    torch.manual_seed(7)
    labels = Lookup(images_of(random_split.train)[0], wrong_labels(random_split)[random_split.train.index])
    torch.manual_seed(7)
    steps = list(step_by_step(method, model, random_split, lr=0, epochs=4))
    assert len(steps) == 4 * 8
    for loss, x in steps:
        assert loss == pytest.approx(cross_entropy(model(x), labels.of(x)).item(), rel=1e-4)


@pytest.mark.parametrize("real", ["resnet18", "vit_tiny_patch16_224"])
def test_mistake_4_reinitialising_reaches_every_depth(real):
    model = build_model(real, classes=4)
    before = state(model)
    reinitialise(model)
    for name, value in model.named_parameters():
        constant = value.unique().numel() == 1  # a norm's weights and the biases of some layers
        assert constant or (value != before[name]).float().mean() > 0.99, name


def test_mistake_6_the_divergence_is_a_mean_over_images_not_over_entries():
    generator = torch.Generator().manual_seed(0)
    q, p = (3 * torch.randn(6, 10, generator=generator) for _ in range(2))
    assert kl(q, p).item() == pytest.approx(divergence(q.softmax(1), p.softmax(1)), rel=1e-5)
    expected = 16 * divergence((q / 4).softmax(1), (p / 4).softmax(1))
    assert kl(q, p, 4.0).item() == pytest.approx(expected, rel=1e-5)
    assert kl(q, q).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("classes", [["c"], ["b", "c"]])
def test_mistake_7_noise_is_labelled_as_the_forgotten_classes(classes, toy, data):
    """Noise comes first in each batch; with the retained labels of the others it gives the loss."""
    split = make_split(data, "class", forget_class=classes, image_size=8, batch_size=8)
    labels, model = Lookup(*images_of(split.retain)), toy().eval()
    noise = torch.tensor([2] * 8 if classes == ["c"] else [1, 2] * 4)
    steps = list(step_by_step(unsir, model, split, lr=0, steps=5))
    impair, repair = (steps[: len(steps) // 2], steps[len(steps) // 2 :])
    assert len(impair) == len(split.retain) == len(repair)
    for loss, x in impair:
        expected = cross_entropy(model(x), torch.cat([noise, labels.of(x[8:])])).item()
        assert len(x) == 16 and torch.equal(x[:8], impair[0][1][:8]) and loss == pytest.approx(expected, rel=1e-4)
    for loss, x in repair:
        assert loss == pytest.approx(cross_entropy(model(x), labels.of(x)).item(), rel=1e-4)


def test_unsirs_noise_raises_the_loss_of_its_class(trained, class_split):
    x, c = next(iter(class_split.forget))
    torch.manual_seed(0)
    before = torch.randn_like(x)
    torch.manual_seed(0)
    noise = confusing_noise(frozen(trained), x, c, {"images": 0}, steps=40, lr=0.1, penalty=0.0)
    teacher = deepcopy(trained).eval()
    assert cross_entropy(teacher(noise), c) > 2 * cross_entropy(teacher(before), c)


def test_mistake_8_the_student_moves_and_the_teacher_does_not(network, random_split):
    """A teacher that moved along with the student would have divergence 0 all the time."""
    model, T = network(), 4.0
    teacher = deepcopy(model).eval()
    pushes = 0
    for loss, x in step_by_step(scrub, model.eval(), random_split, lr=0.1, msteps=2, epochs=2, T=T):
        if loss < 0:
            q, p = ((network(x) / T).softmax(1) for network in (teacher, model))
            assert loss == pytest.approx(-(T**2) * divergence(q, p), rel=1e-3, abs=1e-5)
            pushes += loss < -1e-4
    assert pushes >= 2
    assert not frozen(model).training and not any(p.requires_grad for p in frozen(model).parameters())


@pytest.mark.parametrize("error", [RuntimeError, KeyError, AttributeError])
def test_mistake_12_an_error_in_a_method_is_not_swallowed(error, toy, random_split):
    def broken(model, split):
        yield Phase(0.1)
        raise error("broken")

    with pytest.raises(error, match="broken"):
        unlearn(broken, toy(), random_split)


@pytest.mark.parametrize("kind", ["random_split", "class_split"])
def test_mistake_14_scrub_r_restores_a_copy_of_the_epoch_nearest_the_reference(kind, trained, request):
    split, models = request.getfixturevalue(kind), []
    track = lambda model: models.append(deepcopy(model)) or {}  # noqa: E731
    settings = {"epochs": 6, "lr": 0.1, "msteps": 2}
    result = unlearn("SCRUB+R", trained, split, settings, batch_size=8, track=track)
    epochs = models[1:7]  # after epoch 0, before the rewound one
    reference = error_rate(epochs[-1], held_out_images(split))
    distances = [abs(error_rate(model, split.forget) - reference) for model in epochs]
    best = int(np.argmin(distances))
    assert len(models) == 8 and result.history[-1]["rewound to"] == best + 1 < 6
    assert same(state(result.model), state(epochs[best])) and not same(state(result.model), state(epochs[-1]))


@pytest.mark.parametrize(
    "kind, classes", [("random_split", {0, 1, 2, 3}), ("class_split", {0}), ("two_classes", {1, 3})]
)
def test_held_out_images_are_of_the_distribution_of_the_forgotten_ones(kind, classes, request):
    split = request.getfixturevalue(kind)
    held_out = held_out_images(split)
    assert held_out.images is split.validation.images and set(held_out.y.tolist()) == classes
    assert set(held_out.index.tolist()) <= set(split.validation.index.tolist())


# --- relearn ------------------------------------------------------------------------------------------------------


def test_l1_sparse_adds_a_penalty_that_fades(toy, random_split):
    model = toy().train()
    losses = [event for event in l1_sparse(model, random_split, alpha=0.1, epochs=4) if isinstance(event, torch.Tensor)]
    size = sum(p.detach().double().abs().sum() for p in model.parameters()).item()
    plain = [cross_entropy(model(x), y).item() for _ in range(4) for x, y in replace(random_split.retain, epoch=0)]
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
    after = state(unlearn(name, original, random_split, {"k": k, "epochs": 2, "lr": 0.1}, batch_size=8).model)
    assert outside and same(before, after, outside)
    assert not any(torch.equal(before[name], after[name]) for name in inside if "num_batches" not in name)


def edited(name, model, split):
    """What a method leaves before its first gradient step."""
    method, model = METHODS[name], deepcopy(model).train()
    torch.manual_seed(0)
    next(method.function(model, split.reset(seed=0, batch_size=8), **method.defaults))
    return state(model)


def test_eu_k_starts_from_new_weights_and_cf_k_from_the_old_ones(network, random_split):
    original = network()
    weights = [name for name in last(original, 2) if original.state_dict()[name].ndim > 1]
    kept, new = (edited(name, original, random_split) for name in ("CF-k", "EU-k"))
    assert same(kept, state(original)) and weights
    assert not any(torch.equal(new[name], kept[name]) for name in weights)


def test_info_nce_agrees_with_numpy():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, 7, generator=generator) for _ in range(2))
    u, v = (z.double().numpy() / np.linalg.norm(z.double().numpy(), axis=1, keepdims=True) for z in (a, b))
    s = u @ v.T / 0.2
    rows, columns = (np.log(np.exp(s).sum(axis)) - np.diag(s) for axis in (1, 0))
    assert info_nce(a, b, 0.2).item() == pytest.approx((rows.mean() + columns.mean()) / 2, rel=1e-5)
    assert info_nce(a, a, 0.2) < info_nce(a, a.roll(1, 0), 0.2)


@pytest.mark.parametrize("negate", [False, True])
def test_coun_adds_lam_times_the_contrast_of_two_views(negate, toy, random_split):
    losses = {}
    for lam in (0.0, 0.5):
        model = toy().eval()
        torch.manual_seed(0)
        events = contrastive_finetuning(model, random_split.reset(seed=0), lam=lam, negate=negate)
        next(events)
        with inputs_of(model.fc) as features:
            losses[lam] = next(events).item()
    a, b = features
    assert a.shape == b.shape == (8, 8) and not torch.equal(a, b)
    assert losses[0.5] - losses[0.0] == pytest.approx(0.5 * info_nce(a, b, 0.1).item(), rel=1e-3)


def test_coun_sees_two_views_of_each_retained_image(toy, random_split):
    model, seen = toy(), []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    events = contrastive_finetuning(model.train(), random_split, epochs=1)
    assert order(events) == "PRRRRRR|"
    handle.remove()
    assert len(seen) == 12 and not any(torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2]))
    cost = unlearn("CoUn", toy(), random_split, {"epochs": 1}, batch_size=8).cost
    assert cost["images"] == 2 * 48 and cost["steps"] == 6


# --- push away ----------------------------------------------------------------------------------------------------


def test_neggrad_plus_weighs_down_and_up(toy, random_split):
    model = toy().eval()  # so that a batch's loss does not depend on the batches before
    forget, retain = (list(replace(batches, epoch=0)) for batches in (random_split.forget, random_split.retain))
    events = list(neggrad_plus(model, random_split, alpha=0.9, epochs=1))
    assert events[0] == Phase(0.01, weight_decay=5e-4) and len(events) == 1 + 6 + 1
    (x_r, y_r), (x_f, y_f) = retain[1], forget[1]
    by_hand = 0.9 * cross_entropy(model(x_r), y_r) - 0.1 * cross_entropy(model(x_f), y_f)
    assert events[2].item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_ugradsl_plus_is_neggrad_plus_with_a_stronger_step_up_and_a_pull_to_uniform(toy, random_split):
    """-(1 + 0.3) CE_y + 0.3 mean_k CE_k on forgotten images, by hand; without smoothing NegGrad+ itself."""
    model = toy().eval()
    forget, retain = (list(replace(batches, epoch=0)) for batches in (random_split.forget, random_split.retain))
    events = list(ugradsl_plus(model, random_split, p=0.9, alpha=-0.3, epochs=1))
    assert order(events[:1]) == "P" and len(events) == 1 + 6 + 1
    (x_r, y_r), (x_f, y_f) = retain[1], forget[1]
    log_p = model(x_f).double().log_softmax(1)
    up = 1.3 * log_p.gather(1, y_f[:, None]).mean() - 0.3 * log_p.mean()
    assert events[2].item() == pytest.approx(0.9 * cross_entropy(model(x_r), y_r).item() + 0.1 * up.item(), rel=1e-5)
    plain, same = (
        [
            e.item()
            for e in method(model, random_split.reset(seed=0, batch_size=8), **settings, epochs=1)
            if torch.is_tensor(e)
        ]
        for method, settings in ((neggrad_plus, {"alpha": 0.9}), (ugradsl_plus, {"p": 0.9, "alpha": 0.0}))
    )
    assert same == pytest.approx(plain, rel=1e-6)


def test_smoothing_with_a_positive_rate_is_that_of_torch():
    logits, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4
    expected = cross_entropy(logits, y, label_smoothing=0.3)
    assert smoothed_cross_entropy(logits, y, 0.3).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_loss_with_a_given_gradient():
    model = nn.Linear(3, 2)
    parameters = list(model.parameters())
    given = [torch.randn_like(p) for p in parameters]
    loss = with_gradient(torch.tensor(7.0), parameters, given)
    assert loss.item() == 7 and all(map(torch.equal, torch.autograd.grad(loss, parameters), given))


def test_sfr_on_steps_up_before_every_fifth_step_down(toy, random_split):
    events = list(sfr_on(toy().train(), random_split, steps=12))
    assert order(events) == "PFRRRRRFR|RRRRFRR|"
    assert events[0] == Phase(0.01, 0.9, 5e-4, "sgd", "cosine", 15)


def test_sfr_on_masks_and_clips_the_step_up(trained, random_split):
    model = deepcopy(trained).train()
    split = random_split.reset(seed=0, batch_size=8)
    squares = [mean_gradient(model, batches, 2) for batches in (split.forget, split.retain)]
    events = sfr_on(model, split.reset(seed=0), steps=10, clip=1e-3, gamma=1.5)
    next(events)
    gradient = torch.autograd.grad(next(events), list(model.parameters()))
    assert torch.cat([g.flatten() for g in gradient]).norm().item() == pytest.approx(1e-3, rel=1e-3)
    blocked = [f < 1.49 * r for f, r in zip(*squares)]
    assert any(mask.any() for mask in blocked)
    assert all((g[mask] == 0).all() for g, mask in zip(gradient, blocked))


def test_sfr_on_climbs_by_its_formula(trained, random_split):
    """Up alpha_t sum_i w_i l_i, w_i proportional to l_i^-1/2, alpha_t half way down after half of the steps."""
    model, inputs, labels = deepcopy(trained).train(), [], Lookup(*images_of(random_split.forget))
    parameters, split = list(model.parameters()), random_split.reset(seed=0, batch_size=8)
    events = sfr_on(model, split, steps=10, clip=1e9, gamma=0.0, alpha=3.0)
    next(events)
    model.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for share in (1.0, 0.5):
        inputs.clear()
        gradient = torch.autograd.grad(next(events), parameters)
        x = inputs[0]
        losses = cross_entropy(model(x), labels.of(x), reduction="none")
        w = losses.detach() ** -0.5 / (losses.detach() ** -0.5).sum()
        expected = torch.autograd.grad(-3 * share * (w * losses).sum(), parameters)
        assert all(torch.allclose(g, e, atol=1e-5) for g, e in zip(gradient, expected))
        for _ in range(5):
            next(events)


def test_mean_gradient_is_that_of_all_images(trained, random_split):
    expected = full_gradient(trained, random_split.forget)
    found = mean_gradient(trained.train(), random_split.forget)
    assert trained.training
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected))


# --- relabel ------------------------------------------------------------------------------------------------------


def test_mixed_batches_shuffle_the_forgotten_images_among_part_of_the_retained(random_split):
    split = random_split.reset(seed=0, batch_size=8, retain_limit=40)
    first, second = mixed_batches(split, split.train.labels, 2, share=0.5)
    for batches in (first, second):
        assert set(split.forget.index.tolist()) < set(batches.index.tolist()) and len(batches.index) == 16 + 20
    labels = [y for _, y in first]
    assert sum(map(len, labels)) == 36 and split.processed["images"] == 36
    assert not torch.equal(torch.cat(labels), torch.cat([y for _, y in second]))


def unit(vector):
    """A list of tensors as one vector of norm 1."""
    whole = torch.cat([part.flatten() for part in vector]).double()
    return whole / whole.norm()


def test_the_bisector_favours_neither_gradient_whatever_their_sizes():
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-6, 1.0, 1e6):
        g_r, g_f = ([s * torch.randn(n, generator=generator) for n in (7, 3)] for s in (1.0, scale))
        found = bisector(g_r, g_f)
        assert torch.cat(found).norm().item() == pytest.approx(1, rel=1e-5)
        towards = [(unit(found) * unit(g)).sum().item() for g in (g_r, g_f)]
        assert towards[0] == pytest.approx(towards[1], rel=1e-3) and towards[0] > 0
        halves = math.sqrt((1 + (unit(g_r) * unit(g_f)).sum().item()) / 2)  # the cosine of half the angle between them
        assert towards[0] == pytest.approx(halves, rel=1e-3)


def test_the_bisector_of_opposite_gradients_is_the_retained_one_with_a_tenth_of_the_other():
    small, large = [torch.tensor([0.3, 0.4])], [torch.tensor([30.0, 40.0])]
    assert torch.allclose(bisector(small, [-small[0]])[0], 0.9 * small[0])
    assert torch.allclose(bisector(large, [-large[0]])[0], torch.tensor([0.6, 0.8])), "cut to norm 1"
    found = bisector([torch.zeros(2)], small)
    assert torch.allclose(found[0], torch.tensor([0.6, 0.8])), "a gradient of zero does not take part"


def test_munba_steps_along_the_bisector_while_forgotten_batches_last(trained, random_split):
    """Then down the retained loss; the forgotten images have wrong labels, drawn once."""
    model, split = trained.eval(), random_split.reset(seed=0, batch_size=8)
    torch.manual_seed(3)
    wrong = Lookup(images_of(split.train)[0], wrong_labels(split)[split.train.index])
    true = Lookup(*images_of(split.retain))
    torch.manual_seed(3)
    events, seen = munba(model, split, epochs=2), []
    next(events)
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    parameters, steps = list(model.parameters()), 0
    for event in events:
        if torch.is_tensor(event):
            batches = list(seen)
            gradient = torch.autograd.grad(event, parameters)
            assert len(batches) == (2 if steps % 6 < 2 else 1)
            losses = [cross_entropy(model(x), y.of(x)) for x, y in zip(batches, (true, wrong))]
            expected = [torch.autograd.grad(loss, parameters) for loss in losses]
            expected = bisector(*expected) if len(expected) == 2 else expected[0]
            assert all(torch.allclose(g, e, atol=1e-5) for g, e in zip(gradient, expected))
            assert event.item() == pytest.approx(sum(losses).item(), rel=1e-4)
            steps += 1
        seen.clear()
    assert steps == 12 and split.processed["images"] == 2 * (48 + 16)


@pytest.mark.parametrize("shown", ["kept", "whitened"])
def test_amuns_images_are_misclassified_and_near(shown, data):
    """Whatever the normalisation, radii are of pixels in 0 to 1."""
    mean, std = ((0.5,) * 3, (0.5,) * 3) if shown == "kept" else ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    split = make_split(data, "random", forget_fraction=0.25, image_size=8, batch_size=8, mean=mean, std=std)
    teacher = frozen(fitted(split.train, 0.1))  # its gradient is never 0
    x, y, radius = nearest_adversaries(teacher, replace(split.forget, shuffle=False), eps=0.1, steps=10)
    original, true = images_of(split.forget)
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


def test_amun_trains_on_the_labels_of_its_attack(toy, random_split):
    """Beside each batch under its own labels go the adversarial images under theirs."""
    model, attack = toy().eval(), {"eps": 1.0, "steps": 4}
    adversaries = Lookup(*nearest_adversaries(frozen(model), replace(random_split.forget, epoch=0), **attack)[:2])
    labels = Lookup(*images_of(random_split.train))
    steps = list(step_by_step(amun, model, random_split, lr=0, epochs=1, **attack))
    added = set()
    assert adversaries and len(steps) == 8
    for loss, x in steps:
        y_a = adversaries.of(x[8:])
        added |= {image.numpy().tobytes() for image in x[8:]}
        assert len(y_a) and loss == pytest.approx(
            cross_entropy(model(x), torch.cat([labels.of(x[:8]), y_a])).item(), rel=1e-4
        )
    assert added == set(adversaries)


def test_amun_counts_its_attack(toy, random_split):
    settings = {"eps": 0.5, "steps": 5}
    split = random_split.reset(seed=0, batch_size=8)
    found, _, _ = nearest_adversaries(frozen(toy()), split.forget, **settings)
    attack = split.processed["images"]
    cost = unlearn("AMUN", toy(), random_split, settings | {"epochs": 1}, batch_size=8).cost
    assert attack > 16 and cost["steps"] == 8
    assert cost["images"] >= attack + 64 + min(len(found), 8)


# --- distil -------------------------------------------------------------------------------------------------------


def test_scrub_ascends_in_its_first_msteps_epochs_alone(trained, random_split):
    events = scrub(trained.train(), random_split, msteps=2, epochs=3)
    assert order(events) == "P" + 2 * "FFRRRRRR|" + "RRRRRR|"


def test_scrub_in_full(trained, random_split):
    model = trained.train()
    teacher = frozen(model)
    forget, retain = (list(replace(batches, epoch=0)) for batches in (random_split.forget, random_split.retain))
    events = list(scrub(model, random_split, msteps=1, epochs=1, gamma=0.7, alpha=0.3, T=2.0))
    (x_f, _), (x_r, y_r) = forget[0], retain[0]
    q, p = ((network(x_f) / 2).softmax(1) for network in (teacher, model))
    assert events[1].item() == pytest.approx(-4 * divergence(q, p), rel=1e-3)
    q, p = ((network(x_r) / 2).softmax(1) for network in (teacher, model))
    by_hand = 0.7 * cross_entropy(model(x_r), y_r).item() + 0.3 * 4 * divergence(q, p)
    assert events[3].item() == pytest.approx(by_hand, rel=1e-3)


def test_bad_teacher_uses_the_right_teacher_for_each_image(trained, random_split):
    """Original for retained images, a network with new weights for forgotten ones; neither moves with the student."""
    model = trained.eval()
    good = deepcopy(model)
    torch.manual_seed(0)
    bad = reinitialise(deepcopy(model))
    is_forgotten = Lookup(
        images_of(random_split.train)[0], torch.isin(random_split.train.index, random_split.forget.index)
    )
    torch.manual_seed(0)
    count = 0
    for loss, x in step_by_step(bad_teacher, model, random_split, share=1.0):
        q = torch.where(is_forgotten.of(x)[:, None], bad(x), good(x)).softmax(1)
        assert loss == pytest.approx(divergence(q, model(x).softmax(1)), rel=1e-3, abs=1e-6)
        count += is_forgotten.of(x).sum().item()
    assert count == 16 and not torch.allclose(good(x), bad(x), atol=1e-3) and not torch.allclose(good(x), model(x))


@pytest.mark.parametrize("kind, forgotten", [("class_split", [0]), ("two_classes", [1, 3])])
def test_delete_aims_at_zero_for_the_forgotten_classes(kind, forgotten, trained, request):
    split, model = request.getfixturevalue(kind), trained.eval()
    teacher, steps = deepcopy(model), 0
    for loss, x in step_by_step(delete, model, split, epochs=2, lr=0.01):
        rest = [c for c in range(4) if c not in forgotten]
        log_q = teacher(x).double()[:, rest].log_softmax(1)
        log_p = model(x).double().log_softmax(1)[:, rest]
        assert loss == pytest.approx((log_q.exp() * (log_q - log_p)).sum(1).mean().item(), rel=1e-3)
        steps += 1
    assert steps == 2 * len(split.forget)


@pytest.mark.parametrize("kind, forgotten", [("class_split", [0]), ("two_classes", [1, 3])])
@pytest.mark.parametrize("beta", [0.0, 4.0])
def test_trew_is_delete_with_a_tilt_beside_the_retained_images(beta, kind, forgotten, trained, request):
    """q is proportional to p0 exp(beta s) over the kept classes; with beta = 0 it is DELETE's target."""
    split, model = request.getfixturevalue(kind), trained.eval()
    teacher, rest = deepcopy(model), [c for c in range(4) if c not in forgotten]
    w = teacher.fc.weight.detach().double().numpy()
    w = w - w.mean(0)
    cosine = w @ w.T / np.outer(np.linalg.norm(w, axis=1), np.linalg.norm(w, axis=1))
    forget, retain = (Lookup(*images_of(batches)) for batches in (split.forget, split.retain))
    for event, (x_r, x_f) in two_inputs(trew, model, split, beta=beta, T=0.5, epochs=1):
        s = torch.tensor(cosine)[forget.of(x_f)][:, rest].div(0.5).softmax(1)
        log_q = (teacher(x_f).double()[:, rest] + beta * s).log_softmax(1)
        log_p = model(x_f).double().log_softmax(1)[:, rest]
        expected = (log_q.exp() * (log_q - log_p)).sum(1).mean() + cross_entropy(model(x_r), retain.of(x_r))
        assert event == pytest.approx(expected.item(), rel=1e-3)


def two_inputs(method, model, split, **settings):
    """Each loss of a method and the retained and the forgotten images that the model had; no step is taken.

    The model has the forgotten images first.
    """
    inputs, events = [], method(model, split, **settings)
    next(events)  # copies of the model exist by now, and do not get the hook
    model.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    for event in events:
        if torch.is_tensor(event):
            x_f, x_r = inputs
            model._forward_pre_hooks.clear()
            yield event.item(), (x_r, x_f)
            inputs.clear()
            model.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))


def test_similar_classes_have_similar_rows_and_forgotten_ones_none():
    """Adding a vector to all rows changes no prediction, and no similarity."""
    weight = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    s = similarities(weight, [0], 0.1)
    assert s.argmax(1)[0] == 1 and (s[:, 0] == 0).all() and torch.allclose(s.sum(1), torch.ones(4))
    assert torch.allclose(similarities(weight + torch.tensor([5.0, -3.0, 2.0]), [0], 0.1), s, atol=1e-4)


def test_regun_refers_to_held_out_images_of_the_batchs_classes(trained, random_split):
    model = trained.eval()
    y = random_split.validation.y
    one_per_class = torch.tensor([(y == c).nonzero()[0].item() for c in range(4)])
    held_out = only(random_split.validation, one_per_class)
    split = replace(random_split, validation=held_out)
    (x_f, y_f), (x_r, y_r) = (next(iter(replace(b, epoch=0))) for b in (split.forget, split.retain))
    loss = list(regun(model, split, epochs=1))[1]
    p0 = predict(model, replace(held_out, shuffle=False))[0].softmax(1)
    q = p0[y_f].mean(0).expand(len(y_f), -1)
    by_hand = 0.5 * divergence(q, model(x_f).softmax(1)) + 0.5 * cross_entropy(model(x_r), y_r).item()
    assert loss.item() == pytest.approx(by_hand, rel=1e-4)


def numpy_margin(logits, y):
    z = logits.double().numpy()
    return np.array([row[c] - np.log(np.exp(np.delete(row, c)).sum()) for row, c in zip(z, y.tolist())])


def test_margin_matching_gives_forgotten_images_the_margins_of_unseen_ones(trained, random_split):
    forget, held_out = (replace(b, shuffle=False) for b in (random_split.forget, random_split.validation))
    before, after = predict(trained, forget)[0], unseen_logits(trained, random_split)
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
    ranked, drawn = (numpy_margin(unseen_logits(trained, random_split, ranked), forget.y) for ranked in (True, False))
    for c in range(4):
        mine = (forget.y == c).numpy()
        assert np.sort(drawn[mine]) == pytest.approx(np.sort(ranked[mine]), abs=1e-4)
    assert not np.allclose(drawn, ranked)


def test_margin_matching_without_retained_images_uses_the_forgotten_ones_alone(trained, random_split):
    whole, alone = (
        unlearn("Margin matching", trained, random_split, {"epochs": 2, "share": share}, batch_size=8)
        for share in (1.0, 0.0)
    )
    forgotten = len(random_split.forget.index)
    targets = whole.cost["images"] - 2 * (forgotten + random_split.retain.samples_per_epoch)
    assert alone.cost["images"] - targets == 2 * forgotten


@pytest.mark.parametrize("kind, forgotten", [("class_split", [0]), ("two_classes", [1, 3])])
def test_margin_matching_gives_forgotten_classes_no_probability(kind, forgotten, trained, request):
    split = request.getfixturevalue(kind)
    q = unseen_logits(trained, split).softmax(1)
    logits = predict(trained, replace(split.forget, shuffle=False))[0]
    rest = [c for c in range(4) if c not in forgotten]
    assert (q[:, forgotten] == 0).all()
    assert torch.allclose(q[:, rest], logits[:, rest].softmax(1), atol=1e-5)


def test_margin_matching_trains_on_these_predictions_and_the_retained_labels(trained, random_split):
    model, targets = trained.eval(), torch.eye(4)[random_split.train.labels]
    targets[random_split.forget.index] = unseen_logits(model, random_split).softmax(1)
    targets = Lookup(images_of(random_split.train)[0], targets[random_split.train.index])
    steps = list(step_by_step(margin_matching, model, random_split, lr=0, epochs=1))
    assert len(steps) == 8
    for loss, x in steps:
        by_hand = -(targets.of(x) * model(x).log_softmax(1)).sum(1).mean().item()
        assert loss == pytest.approx(by_hand, rel=1e-4)


def test_products_of_features_are_float32_inside_autocast():
    """bfloat16 would keep two or three digits of a similarity that is divided by a small temperature."""
    a, b = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    expected = [info_nce(a, b, 0.1), contrast(a, b, 1.15)]
    with torch.autocast("cpu", torch.bfloat16):
        assert [info_nce(a, b, 0.1), contrast(a, b, 1.15)] == expected


def test_a_class_without_held_out_images(toy, trained, random_split, class_split):
    """Margin matching gives it no probability; ReGUn and SCRUB+R report what is missing."""
    few = replace(random_split, validation=only(random_split.validation, random_split.validation.y != 2))
    z, y = unseen_logits(trained, few), few.forget.y
    own = z.gather(1, y[:, None]).flatten()
    assert (own[y == 2] == -torch.inf).all() and own[y != 2].isfinite().all() and (y == 2).any()
    with pytest.raises(ValueError, match="ReGUn needs a validation image of each class"):
        unlearn("ReGUn", toy(), few, {"epochs": 1}, batch_size=8)
    validation = only(class_split.validation, ~class_split.is_forgotten_class(class_split.validation.y))
    with pytest.raises(ValueError, match="no validation image is of a forgotten class"):
        unlearn("SCRUB+R", toy(), replace(class_split, validation=validation), {"epochs": 1}, batch_size=8)


# --- edit weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["NoT", "NoT+CL"])
def test_not_negates_the_first_layer_alone(name, network, random_split):
    original = network()
    first = "patch_embed.proj.weight" if hasattr(original, "blocks") else "layer1.0.weight"
    before, after = state(original), edited(name, original, random_split)
    assert torch.equal(after[first], -before[first])
    assert same(before, after, [name for name in before if name != first])


def test_ct_transposes_each_kernel(network, random_split):
    original = network()
    before, after = state(original), edited("CT", original, random_split)
    kernels = [name for name, value in before.items() if value.ndim == 4]
    assert len(kernels) == (1 if hasattr(original, "blocks") else 4)
    for name in kernels:
        assert np.array_equal(after[name].numpy(), np.swapaxes(before[name].numpy(), 2, 3))
        assert not torch.equal(after[name], before[name])
    assert same(before, after, [name for name in before if name not in kernels])


def test_msg_redraws_the_weights_with_small_gradients(trained, random_split):
    before, after = state(trained), edited("MSG", trained, random_split)
    split = random_split.reset(seed=0, batch_size=8)
    subset = replace(split.retain, limit=16)
    g = [r - f for r, f in zip(mean_gradient(trained, subset), full_gradient(trained, split.forget))]
    for (name, value), gradient in zip(trained.named_parameters(), g):
        moved = before[name] != after[name]
        if value.ndim < 4:
            assert not moved.any()
        else:
            alive = gradient != 0
            assert moved.sum() == round(0.3 * alive.sum().item()) and not moved[~alive].any()
            assert gradient.abs()[moved].max() <= gradient.abs()[alive & ~moved].min() * 1.001
            assert after[name][moved].std().item() == pytest.approx((2 / (9 * len(value))) ** 0.5, rel=0.35)


def test_msg_slows_the_other_weights_and_removes_its_hooks(trained, random_split):
    model = trained.train()
    model.zero_grad()
    before = state(model)
    events = small_gradients(model, random_split, epochs=1)
    next(events)
    plain = deepcopy(model)
    for parameter in plain.parameters():
        parameter._backward_hooks = None
    loss = next(events)
    loss.backward()
    x, y = next(iter(replace(random_split.retain, epoch=random_split.retain.epoch - 1)))
    cross_entropy(plain(x), y).backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters()):
        factor = torch.where((before[name] != p) | (p.ndim < 4), 1.0, 0.1)
        assert torch.allclose(p.grad, factor * q.grad, atol=1e-6)
    list(events)
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_msg_redraws_linear_weights_of_a_vit(slim_vit, random_split):
    original = slim_vit()
    before, after = state(original), edited("MSG", original, random_split)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    linear = {f"{n}.weight" for n, m in original.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    assert moved == linear


def test_ssd_dampens_selected_weights_and_leaves_the_others_bit_for_bit(trained, random_split):
    result = unlearn("SSD", trained, random_split, {"alpha": 1.2, "lam": 0.5}, batch_size=64)
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
    x, y = images_of(batches)
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
    model = unlearn("Influence", original, random_split, {"damping": 0.1, "iterations": 100}, batch_size=48).model
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
    assert torch.allclose(gauss_newton(model, batches, v).double(), hessian @ v.double(), atol=1e-5)


def test_fisher_forgetting_adds_the_noise_of_its_formula(random_split, monkeypatch):
    """With unit noise the step is alpha^(1/2) F^(-1/4), F the mean over many draws of the exact Fisher information."""
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    torch.manual_seed(0)
    model = Softmax()
    x = images_of(random_split.retain)[0].double()
    p = (x.flatten(1) @ model.fc.weight.double().T + model.fc.bias).softmax(1)
    exact = torch.einsum("ik,ij->kj", p * (1 - p), x.flatten(1) ** 2) / len(x)
    found = torch.zeros_like(exact)
    for seed in range(100):
        moved = unlearn("Fisher", model, random_split, {"alpha": 1e-2, "most": 1e9}, seed=seed, batch_size=8).model
        found += ((moved.fc.weight - model.fc.weight).double() / 0.1) ** -4 / 100
    assert found.mean().item() == pytest.approx(exact.mean().item(), rel=0.1)
    cut = unlearn("Fisher", model, random_split, {"alpha": 1e-2, "most": 16.0}, batch_size=8).model
    assert (cut.fc.weight - model.fc.weight).max().item() == pytest.approx(0.1 * 2, rel=1e-4)
