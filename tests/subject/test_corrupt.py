"""Corrupted data by hand: which images and labels change, what stays, what is found, and what is measured."""

import re
from copy import deepcopy
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch.nn.functional import one_hot

from helpers import corrupt, paths, plots, store
from helpers.corrupt import (
    CLEAN_GOLD,
    COLUMNS,
    CORRUPTED,
    INSET,
    PATCHED,
    TEST,
    add_backdoor,
    attack_success,
    backdoor_measures,
    confusable,
    models_of,
    on_corrupted,
    patched,
    ssd_search,
    statements,
    swap_labels,
    swap_measures,
    tidy_rows,
    with_found,
)
from helpers.data import crop_and_flip
from helpers.datasets import load_data
from helpers.experiment import Experiment
from helpers.methods import edit_weights
from helpers.methods.common import error_rate

TESTS = ("test_x", "test_y")


SMALL = {"name": "vit_tiny_patch16_224", "image_size": 16, "patch_size": 8, "depth": 1}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The smallest experiment on the digits, in the random scenario; it stores its models in a folder of its own."""
    folder = tmp_path_factory.mktemp("corrupt")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(paths, "RUNS", folder / "runs")
        monkeypatch.setenv("UNLEARNING_PROGRESS", str(folder / "progress"))
        yield Experiment(load_data("clean-digits"), "random", "smoke", model=SMALL)


@pytest.fixture(scope="module")
def poisoned(clean):
    """It with a backdoor in a fifth of the images of other classes than 0."""
    return on_corrupted(clean, *add_backdoor(clean.data, 0, share=0.2))


def same(one, other, names):
    """Whether two data have equal tensors of these names."""
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


# --- corrupted copies ---------------------------------------------------------------------------------------------


def test_labels_of_two_classes_are_swapped_half_each_way(data):
    """8 of 16 images of class 1 get label 3, 8 of class 3 get label 1; every other label and all pixels stay."""
    swapped, index = swap_labels(data, 1, 3, share=0.5)
    was, now = data.train_y[index], swapped.train_y[index]
    smaller = min((data.train_y == label).sum().item() for label in (1, 3))
    assert len(index) == len(set(index.tolist())) == 2 * round(smaller / 2)
    assert (was == 1).sum() == (was == 3).sum() == len(index) / 2 and torch.equal(now, 4 - was)
    rest = torch.ones(len(data.train_y), dtype=torch.bool).index_fill(0, index, False)
    assert torch.equal(swapped.train_y[rest], data.train_y[rest]) and same(swapped, data, ("train_x", *TESTS))
    first_half = was[: len(index) // 2]
    assert 0 < (first_half == 1).sum() < len(first_half), "the found part has images of both classes"


def test_a_backdoor_changes_a_square_and_the_label(data):
    """A fifth of the images of other classes: exactly the square is white, and the label is the target's."""
    poisoned, index = add_backdoor(data, 2, share=0.2, patch=3)
    others = (data.train_y != 2).sum().item()
    assert len(index) == len(set(index.tolist())) == round(0.2 * others) and (data.train_y[index] != 2).all()
    assert (poisoned.train_y[index] == 2).all()
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[8 - INSET - 3 : 8 - INSET, 8 - INSET - 3 : 8 - INSET] = True
    before, after = data.train_x[index], poisoned.train_x[index]
    assert inside.sum() == 9 and (after[:, inside] == 255).all() and torch.equal(after[:, ~inside], before[:, ~inside])
    rest = torch.ones(len(data.train_y), dtype=torch.bool).index_fill(0, index, False)
    assert all(torch.equal(getattr(poisoned, n)[rest], getattr(data, n)[rest]) for n in ("train_x", "train_y"))
    assert same(poisoned, data, TESTS)


def test_no_crop_cuts_the_square():
    """Of many random crops each has all its white pixels; in the corner some would be lost."""
    black = torch.zeros(400, 32, 32, 3, dtype=torch.uint8)
    cropped = crop_and_flip(patched(black), torch.Generator().manual_seed(0), flip=True)
    assert ((cropped == 255).sum((1, 2, 3)) == 4 * 4 * 3).all()
    corner = black.clone()
    corner[:, 28:, 28:] = 255
    cropped = crop_and_flip(corner, torch.Generator().manual_seed(0), flip=False)
    assert ((cropped == 255).sum((1, 2, 3)) < 4 * 4 * 3).any()


def test_every_change_is_another_identity(data):
    """Kind, amount, classes, images and square: a stored model of one is not found for another."""
    copies = [
        swap_labels(data, 0, 1, share=0.5),
        swap_labels(data, 0, 2, share=0.5),
        swap_labels(data, 0, 1, share=0.4),
    ]
    copies += [swap_labels(data, 0, 1, share=0.5, seed=1), add_backdoor(data, 0, share=0.2)]
    copies += [add_backdoor(data, 1, share=0.2), add_backdoor(data, 0, share=0.2, patch=2)]
    found = [data.identity, *(copy.identity for copy, _ in copies)]
    assert len(set(found)) == len(found) and all(len(name) == 12 for name in found[1:])
    assert swap_labels(data, 0, 1, share=0.5)[0].identity == found[1] and "swapped" in copies[0][0].title


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda data: swap_labels(data, 1, 1, share=0.5), "labels are swapped between two classes, and both are"),
        (lambda data: swap_labels(data, 0, 1, share=0.01), "is 0: use a share up to 1, of at least 2 images"),
        (lambda data: add_backdoor(data, 0, share=1.5), "a share of 1.5 of"),
        (lambda data: add_backdoor(data, 0, share=0.5, patch=6), "a patch of 6 pixels, 4 from the edges, does not fit"),
    ],
)
def test_what_cannot_be_corrupted_is_refused_in_one_line(data, make, words):
    with pytest.raises(ValueError, match=words) as error:
        make(data)
    assert "\n" not in str(error.value)


def test_classes_that_are_easily_confused(data):
    """4 and 9 of the digits, cat and dog of CIFAR-10, else the first two."""
    cifar = SimpleNamespace(classes=("airplane", "cat", "deer", "dog"))
    assert confusable(load_data("clean-digits")) == (4, 9) and confusable(cifar) == (1, 3)
    assert confusable(data) == (0, 1)


# --- experiments --------------------------------------------------------------------------------------------------


def test_what_is_found_is_forgotten_and_the_rest_is_retained(poisoned):
    """Sets of the half that is found: no image is in both, all are in one, Original is that of the whole."""
    index = poisoned.split.sets[CORRUPTED].index
    half = with_found(poisoned, 0.5)
    forget, retain = half.split.forget.index, half.split.retain.index
    assert torch.equal(forget, index[: round(len(index) / 2)]) and torch.equal(half.split.sets["forget"].index, forget)
    assert sorted([*forget.tolist(), *retain.tolist()]) == list(range(len(poisoned.data.train_y)))
    assert set(index.tolist()) - set(forget.tolist()) <= set(retain.tolist()), "what is not found is learnt again"
    assert torch.equal(half.split.sets[CORRUPTED].index, index) and half.original().id == poisoned.original().id
    assert half.gold().id != with_found(poisoned, 1.0).gold().id


def test_outputs_are_stored_and_weights_are_not(poisoned):
    """Of Original and Gold on the corrupted data: notebook 15 uses their predictions alone."""
    _ = poisoned.original(), with_found(poisoned, 0.5).gold()
    files = list(poisoned.folder.glob("*.safetensors"))
    assert len(files) >= 2 and not any(map(store.has_weights, files))


def test_the_sets_that_are_measured(poisoned, clean):
    """All corrupted training images, all test images as they are and with the square; runs have their predictions."""
    sets, run = poisoned.split.sets, poisoned.original()
    assert torch.equal(sets[TEST].images, clean.data.test_x) and torch.equal(sets[TEST].y, clean.data.test_y)
    assert torch.equal(sets[PATCHED].images, patched(clean.data.test_x)) and len(sets[PATCHED].index) == len(
        sets[TEST].y
    )
    assert (sets[CORRUPTED].y == 0).all() and (clean.data.train_y[sets[CORRUPTED].index] != 0).all()
    assert set(run.logits) == {"retain", "forget", "validation", "test", CORRUPTED, TEST, PATCHED}


def test_search_is_ssd_with_the_first_alpha_that_loses_the_found_images(trained, random_split, monkeypatch):
    """Weights are those of SSD at that alpha; at the alpha before, the accuracy was still above the limit."""
    draws = torch.Generator().manual_seed(0)
    on_found = [20 * torch.rand(p.shape, generator=draws) for p in trained.parameters()]
    everywhere = [torch.ones_like(p) for p in trained.parameters()]
    known = {id(random_split.train): everywhere, id(random_split.forget): on_found}
    for module in (corrupt, edit_weights):
        monkeypatch.setattr(module, "mean_gradient", lambda model, batches, power: known[id(batches)])
    before, models = 1 - error_rate(trained, random_split.forget), [deepcopy(trained) for _ in range(4)]
    searched, same, milder, untouched = models
    [end] = list(ssd_search(searched, random_split, lam=0.0, stop=0.5, alpha=30.0, factor=1.1))
    alpha = end.notes["alpha"]
    assert 1 < alpha < 20 and 1 - error_rate(searched, random_split.forget) <= before / 2
    for model, value in ((same, alpha), (milder, 1.1 * alpha)):
        list(edit_weights.ssd(model, random_split, alpha=value, lam=0.0))
    assert all(torch.equal(one, other) for one, other in zip(searched.parameters(), same.parameters()))
    assert 1 - error_rate(milder, random_split.forget) > before / 2
    list(ssd_search(untouched, random_split, stop=1.0))
    assert all(torch.equal(one, other) for one, other in zip(untouched.parameters(), trained.parameters()))


# --- measurements -------------------------------------------------------------------------------------------------


def sure(labels, classes=4):
    """Logits of a model that predicts these labels."""
    return 9.0 * one_hot(torch.tensor(labels), classes)


def test_attack_success_of_constant_classifiers():
    """100 % for one that always predicts the target, 0 for one that never does; images of the target do not count."""
    y = torch.tensor([0, 0, 1, 2, 3])
    assert attack_success(sure([0] * 5), y, 0) == 100 and attack_success(sure([1] * 5), y, 0) == 0
    assert attack_success(sure([1, 1, 0, 2, 3]), y, 0) == pytest.approx(100 / 3)


def test_measures_by_hand():
    y = {TEST: torch.tensor([0, 1, 2, 3]), PATCHED: torch.tensor([0, 1, 2, 3]), CORRUPTED: torch.tensor([0, 1])}
    logits = {TEST: sure([1, 1, 2, 0]), PATCHED: sure([2, 2, 2, 3]), CORRUPTED: sure([0, 0])}
    assert swap_measures(logits, y, 0, 1) == {
        "accuracy, swapped classes": 50,
        "accuracy, other classes": 50,
        "accuracy, corrupted images": 50,
    }
    assert backdoor_measures(logits, y, 2) == {
        "attack success": pytest.approx(200 / 3),
        "accuracy, clean images": 50,
        "accuracy, corrupted images": 50,
    }


def test_rows_and_sentences(poisoned, clean):
    """One row per model and metric; a method that diverged has one; the sentences have the table's numbers."""
    models = models_of(poisoned, clean, [0.5], {"NegGrad+": None, "Search": ssd_search})
    assert [model[:3] for model in models] == [
        (0, "original", "Original"),
        (0, "reference", CLEAN_GOLD),
        (50, "gold", "Gold"),
        (50, "method", "NegGrad+"),
        (50, "method", "Search"),
    ]
    away = SimpleNamespace(id="x", diverged="Away diverged")
    table = tidy_rows(
        [*models, (50, "method", "Away", poisoned, away)],
        poisoned,
        clean,
        "backdoor",
        lambda z, y: backdoor_measures(z, y, 0),
    )
    assert list(table.columns) == COLUMNS and len(table) == 5 * 3 + 1
    assert table[table.method == "Away"][["metric", "value"]].values.tolist() == [["diverged", 1.0]]
    right = clean.data.train_y[poisoned.split.sets[CORRUPTED].index]
    own = table[(table.method == "Original") & (table.metric == "accuracy, corrupted images")].value.item()
    predicted = poisoned.original().logits[CORRUPTED].argmax(1)
    assert own == pytest.approx(100 * (predicted == right).double().mean().item())
    made = table.assign(
        value=table.value.mask(table.metric == "attack success", [80, 0, 0, 1, 0, 0, 60, 0, 0, 7, 0, 0, 9, 0, 0, 0])
    )
    [line] = statements(made, "attack success", "accuracy, clean images")
    line = re.sub(r" / \d+(?= |,|\.)", "", line)  # without the measured accuracies
    assert "50 % found; attack success / accuracy, clean images, %: Original 80, clean Gold 1, Gold (ret" in line
    assert "part) 60, best method **NegGrad+** 7. Nearest to clean Gold is **NegGrad+**." in line
    gold = made.assign(value=made.value.replace(60, 2))
    assert statements(gold, "attack success", "accuracy, clean images")[0].endswith(
        "Nearest to clean Gold is **Gold**."
    )


def test_the_figure_has_lines_for_methods_and_dashes_for_what_needs_no_list():
    rows = [("original", "Original", 0, 90.0), ("reference", CLEAN_GOLD, 0, 2.0)]
    rows += [(kind, name, found, 50.0) for kind, name in (("gold", "Gold"), ("method", "SSD")) for found in (25, 100)]
    table = pd.DataFrame(rows, columns=["kind", "method", "found", "value"]).assign(metric="attack success")
    ax = plots.against_found(table, ["attack success"]).axes[0]
    dashed = {line.get_label() for line in ax.lines if line.get_linestyle() == "--"}
    assert dashed == {"Original", CLEAN_GOLD} and ax.get_xticks().tolist() == [25, 100]
    [gold] = [line for line in ax.lines if line.get_label() == "Gold"]
    assert gold.get_color() == plots.GOLD and gold.get_xydata().tolist() == [[25, 50], [100, 50]]
