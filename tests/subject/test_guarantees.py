"""SISA is exact to the bit, a rewind ends at Gold and at Original, a removal leaves no more than its bound."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from method_checks import same, state
from sklearn.linear_model import LogisticRegression
from toys import equal

from helpers import plots
from helpers.methods.common import only
from helpers.methods.guarantees import (
    Tape,
    fit_head,
    head_data,
    head_gradient,
    outcome,
    removal_budget,
    remove_from_head,
    remove_in_turn,
    rewind,
    share_of_shards_hit,
    sisa,
    sisa_forget,
    sisa_predict,
    small_network,
)
from helpers.metrics import predict
from helpers.results import gap_points, table
from helpers.results.rows import COLUMNS, measured_rows, melted
from helpers.training import train

pytestmark = pytest.mark.usefixtures("float32")
SGD = {"epochs": 2, "lr": 0.05, "schedule": "onecycle", "batch_size": 8}


def build(seed):
    return small_network(4, seed, width=4, size=8)


# --- SISA ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deleted", [1, 3])
def test_after_a_deletion_sisa_is_bit_for_bit_the_one_that_never_saw_the_images(deleted, random_split):
    ensemble = sisa(build, random_split.train, 4, seed=3, **SGD)
    index = random_split.forget.index[:deleted]
    after = sisa_forget(ensemble, index, build, seed=3, **SGD)
    never = only(random_split.train, ~torch.isin(random_split.train.index, index))
    assert all(map(equal, after.models, sisa(build, never, 4, seed=3, **SGD).models))
    kept = [new is old for new, old in zip(after.models, ensemble.models)]
    assert [k for k in range(4) if not kept[k]] == list(after.trained) and 0 < len(after.trained) <= deleted
    assert not any(equal(after.models[k], ensemble.models[k]) for k in after.trained)
    again = sisa_forget(after, index, build, seed=3, **SGD)
    assert again.trained == () and again.cost["images"] == 0, "they are gone already"


def test_a_deletion_costs_the_shards_that_it_hits(random_split):
    ensemble = sisa(build, random_split.train, 4, **SGD)
    sizes = [len(part.index) for part in ensemble.parts]
    assert sorted(torch.cat([part.index for part in ensemble.parts]).tolist()) == list(range(64)) and set(sizes) == {16}
    assert ensemble.cost["images"] == 2 * 64 and ensemble.trained == (0, 1, 2, 3)
    after = sisa_forget(ensemble, random_split.forget.index[:1], build, **SGD)
    assert after.cost["images"] == 2 * 15 and len(after.trained) == 1
    everything = sisa_forget(ensemble, random_split.forget.index, build, **SGD)
    assert everything.cost["images"] == 2 * 48 and len(everything.trained) == 4


def test_the_shards_of_a_person_are_hit_alone(random_split):
    shard = torch.arange(64) % 3 + 1
    shard[random_split.forget.index] = 0
    ensemble = sisa(build, random_split.train, 4, shard=shard, **SGD)
    few = random_split.forget.index[2:]  # two images of the person stay
    assert sisa_forget(ensemble, few, build, **SGD).trained == (0,)
    with pytest.raises(ValueError, match="shard 0 has fewer than 2 images: use fewer shards"):
        sisa_forget(ensemble, random_split.forget.index, build, **SGD)


@pytest.mark.parametrize("shards, removed, expected", [(20, 1, 0.05), (20, 20, 0.6415), (5, 144, 1.0), (7, 0, 0.0)])
def test_the_share_of_shards_that_a_request_hits(shards, removed, expected):
    assert share_of_shards_hit(shards, removed) == pytest.approx(expected, abs=1e-4)
    drawn = np.random.default_rng(0).integers(shards, size=(2000, removed))
    hit = np.mean([len(set(row)) for row in drawn]) / shards
    assert hit == pytest.approx(expected, abs=0.01)


def test_sisa_predicts_the_mean_of_the_probabilities(random_split):
    ensemble = sisa(build, random_split.train, 2, **SGD)
    batches = random_split.sets["test"]
    mean = sum(predict(model, batches)[0].softmax(1) for model in ensemble.models) / 2
    assert torch.allclose(sisa_predict(ensemble, batches).exp(), mean, atol=1e-6)


def test_the_small_network_has_the_same_weights_for_a_seed_and_draws_none_from_others():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, again, other = build(0), build(0), build(1)
    assert equal(first, again) and not equal(first, other) and torch.equal(torch.rand(1), expected)


# --- rewinding ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["sgd", "adamw"])
def recorded(request, random_split):
    """Training settings, Original, and the tape of its training."""
    training = {"epochs": 4, "lr": 0.02, "schedule": "onecycle", "batch_size": 8, "plain_epochs": 2}
    training["optimizer"] = request.param
    tape, model = Tape(epochs=(1, 2, 4)), build(3)
    train(model, random_split.train, seed=3, checkpoint=tape, **training)
    return training, model, tape


def test_a_rewind_to_the_start_is_gold_and_one_to_the_end_is_original(recorded, random_split):
    training, original, tape = recorded
    gold = build(3)
    train(gold, random_split.retain, seed=3, **training)
    first, last = (rewind(build, tape, epoch, random_split.retain, seed=3, **training) for epoch in (0, 4))
    assert equal(first.model, gold) and first.cost["images"] == 4 * 48
    assert equal(last.model, original) and last.cost["images"] == 0


def test_a_rewind_resumes_weights_momentum_and_schedule(recorded, random_split):
    """With the same images again it ends at Original, bit for bit; without momentum or schedule it would not."""
    training, original, tape = recorded
    for epoch in (1, 2):
        resumed = rewind(build, tape, epoch, random_split.train, seed=3, **training)
        assert equal(resumed.model, original) and resumed.cost["images"] == (4 - epoch) * 64
    forgotten = rewind(build, tape, 2, random_split.retain, seed=3, **training)
    assert not equal(forgotten.model, original) and forgotten.cost["images"] == 2 * 48
    bare = replace(tape.states[2], buffers={})
    assert not equal(rewind(build, Tape(states={2: bare}), 2, random_split.train, seed=3, **training).model, original)


def test_a_tape_keeps_copies_of_the_epochs_that_it_was_given(recorded):
    _, original, tape = recorded
    assert sorted(tape.states) == [1, 2, 4]
    assert same(tape.states[4].weights, state(original)) and not same(tape.states[2].weights, state(original))


# --- a certified head ---------------------------------------------------------------------------------------------


@pytest.fixture
def head(random_split):
    """Features and labels of the training images, and which are forgotten."""
    x, y = head_data(build(0), random_split.train, 4)
    return x, y, torch.isin(random_split.train.index, random_split.forget.index)


def noise(x, y, sigma=3.0):
    return sigma * torch.randn(x.shape[1], y.shape[1], dtype=x.dtype, generator=torch.Generator().manual_seed(0))


def test_features_have_norm_1_and_stay_in_order(head, random_split):
    x, y, _ = head
    assert x.dtype == torch.float64 and torch.allclose(x.norm(dim=1), torch.ones(64, dtype=x.dtype))
    assert torch.equal(y.argmax(1), random_split.train.y) and (y.sum(1) == -2).all()


def test_the_head_is_logistic_regression(head):
    x, y, _ = head
    w = fit_head(x, y, 0.01)
    assert head_gradient(w, x, y, 0.01).norm() < 1e-9
    for k in range(4):
        theirs = LogisticRegression(C=1 / (0.01 * len(x)), fit_intercept=False, tol=1e-10, max_iter=10_000)
        assert w[:, k].numpy() == pytest.approx(theirs.fit(x, y[:, k]).coef_[0], abs=1e-4)


def test_the_gradient_is_that_of_the_loss(head):
    x, y, _ = head
    w, b = noise(x, y).requires_grad_(), noise(x, y, 2.0)
    loss = torch.nn.functional.softplus(-y * (x @ w)).sum() + 0.1 * len(x) / 2 * w.square().sum() + (b * w).sum()
    (expected,) = torch.autograd.grad(loss, w)
    assert torch.allclose(head_gradient(w.detach(), x, y, 0.1, b), expected)


def test_one_newton_step_is_retraining_where_the_loss_is_quadratic(head):
    """With strong regularisation the weights are tiny, and the loss is a parabola to many digits."""
    x, y, removed = head
    w = fit_head(x, y, 1e4, tolerance=1e-12)
    retrained = fit_head(x[~removed], y[~removed], 1e4, tolerance=1e-12)
    found, bound = remove_from_head(w, x, y, 1e4, removed)
    assert (found - retrained).norm() < 1e-9 * (w - retrained).norm() and bound < 1e-9


@pytest.mark.parametrize("lam", [1e-3, 1e-2, 1.0])
@pytest.mark.parametrize("which", ["one", "forgotten", "a class"])
def test_what_a_removal_leaves_is_below_its_bound(which, lam, head):
    x, y, removed = head
    removed = {"one": torch.arange(64) == 5, "forgotten": removed, "a class": y.argmax(1) == 2}[which]
    b = noise(x, y)
    start = fit_head(x, y, lam, b)
    w, bound = remove_from_head(start, x, y, lam, removed)
    left = head_gradient(w, x[~removed], y[~removed], lam, b)
    before = head_gradient(start, x[~removed], y[~removed], lam, b)
    assert 0 < left.norm() <= bound and left.norm() < before.norm()
    retrained = fit_head(x[~removed], y[~removed], lam, b)
    assert (w - retrained).norm() < (start - retrained).norm()
    assert torch.allclose(fit_head(x[~removed], y[~removed], lam, b - left), w, atol=1e-7), "exact under other noise"


def test_bounds_of_removals_in_turn_add_up(head):
    x, y, removed = head
    b = noise(x, y)
    start = fit_head(x, y, 0.01, b)
    w, total = start, 0.0
    kept = torch.ones(64, dtype=torch.bool)
    for i in removed.nonzero().flatten():
        w, bound = remove_from_head(w, x[kept], y[kept], 0.01, (torch.arange(64) == i)[kept])
        kept[i], total = False, total + bound
    found, summed = remove_in_turn(start, x, y, 0.01, removed)
    assert torch.allclose(found, w) and summed == pytest.approx(total)
    assert head_gradient(w, x[~removed], y[~removed], 0.01, b).norm() <= total
    at_once, bound = remove_in_turn(start, x, y, 0.01, removed, steps=1)
    assert torch.equal(at_once, remove_from_head(start, x, y, 0.01, removed)[0]) and bound > total


def test_the_budget_by_hand():
    assert removal_budget(10.0, 1.0, 1e-4) == pytest.approx(10 / math.sqrt(2 * math.log(15000)))
    assert removal_budget(10.0, 2.0, 1e-4) == pytest.approx(2 * removal_budget(10.0)) == pytest.approx(4.5606, abs=1e-3)


def test_a_head_that_does_not_converge_is_reported(head):
    x, y, _ = head
    with pytest.raises(ArithmeticError, match="the head did not converge.*raise lam"):
        fit_head(x, y, 0.01, tolerance=0.0)


# --- what the notebook makes of them ------------------------------------------------------------------------------


def test_models_that_are_no_runs_get_the_rows_of_runs(random_split):
    network, e = build(0), SimpleNamespace(split=random_split, scenario=random_split.scenario, seed=4)
    scores = lambda batches: predict(network, batches)[0]  # noqa: E731
    half = {"seconds": 9.0, "steps": 5, "images": 50}
    models = [
        outcome(random_split, "Original", scores, half, "original"),
        outcome(random_split, "Gold", lambda batches: scores(batches).flip(1), {"steps": 10, "images": 100}, "gold"),
        outcome(random_split, "SISA", scores, half),
    ]
    results = measured_rows(e, models)
    assert list(results.columns) == COLUMNS and set(results.seed) == {4}
    points = gap_points(results).set_index("method")
    assert points.loc["SISA", "cost"] == 50 and points.loc["Gold", "gap"] == 0 < points.loc["SISA", "gap"]
    assert list(table(results, "random").index) == ["Original", "Gold", "SISA"]
    assert not results.metric.str.startswith("seconds").any()
    more = melted(e, "certificate", pd.DataFrame({"bound": {"in turn": 1.5, "all at once": np.nan}, "certified": True}))
    assert list(more.columns) == COLUMNS and len(more) == 3
    assert more[more.metric == "bound"].value.tolist() == [1.5] and set(more.kind) == {"certificate"}


def test_the_figure_shows_what_is_guaranteed_by_the_fill_of_a_marker():
    rows = [
        ("Original", "", 0, 95, "none"),
        ("Gold", "", 100, 90, "exact"),
        ("SISA, 5 shards", "1", 20, 80, "exact"),
        ("SISA, 5 shards", "all", 100, 79, "exact"),
        ("Certified head", "", 12, 88, "last layer only"),
    ]
    columns = ["technique", "label", "cost", "accuracy", "guarantee"]
    figure = plots.guarantee_costs(pd.DataFrame(rows, columns=columns).assign(scenario="random"))
    [ax] = figure.axes
    marked = {
        (*line.get_xydata()[0],): line
        for line in ax.lines
        if line.get_marker() not in ("", "None") and len(line.get_xdata())
    }
    assert [marked[place].get_fillstyle() for place in ((0, 95), (20, 80), (12, 88))] == ["none", "full", "bottom"]
    assert marked[20, 80].get_xdata().tolist() == [20, 100]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:4] == ["Original", "Gold", "SISA, 5 shards", "Certified head"]
    assert {text.get_text() for text in ax.texts} == {"1", "all"}
