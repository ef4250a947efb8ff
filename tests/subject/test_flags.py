"""Flags of results: nothing to forget, no measurable change, collapsed, Original no better than on unseen images."""

import pandas as pd
import pytest

from helpers.results.flags import (
    COLLAPSED,
    NEVER_LEARNT,
    NOT_KNOWN_BETTER,
    NOTHING_TO_FORGET,
    UNCHANGED,
    is_collapsed,
    method_flags,
    scenario_flags,
)
from helpers.results.tables import run_lines, table

MODELS = {  # accuracies on retain, forget and test images
    "Original": (99.0, 99.0, 80.0),
    "Gold": (99.0, 81.0, 80.0),
    "Gold 2": (98.8, 82.0, 79.5),
    "Nothing": (99.0, 98.2, 80.3),
    "Something": (98.0, 90.0, 78.0),
    "Wreck": (11.0, 9.0, 10.0),
}


def results(**changes):
    """Tidy results of the random scenario with these models, `changes` over them."""
    rows = []
    for method, values in {**MODELS, **changes}.items():
        kind = {"O": "original", "G": "gold"}.get(method[0], "method")
        accuracies = dict(zip(("retain", "forget", "test"), values))
        rows += [(kind, method, name, "accuracy", value) for name, value in accuracies.items()]
        gold = dict(zip(("retain", "forget", "test"), {**MODELS, **changes}["Gold"]))
        rows += [(kind, method, name, "gap to Gold", abs(value - gold[name])) for name, value in accuracies.items()]
        rows.append((kind, method, "", "images, % of retraining", 10.0))
    rows.append(("method", "Wreck", "", COLLAPSED, 1.0))
    table = pd.DataFrame(rows, columns=["kind", "method", "set", "metric", "value"])
    return table.assign(run="", scenario="random", seed=0, epoch=1)


def test_a_method_within_the_floor_of_original_has_changed_nothing_measurable():
    """Forget accuracy has moved by 0.8 points where two Golds differ by 1; the others by less than half a point."""
    assert method_flags(results()) == {"Nothing": UNCHANGED, "Wreck": COLLAPSED}
    assert "Nothing" not in method_flags(results(Nothing=(99.0, 97.9, 80.3)))
    assert "Nothing" not in method_flags(results(Nothing=(98.4, 98.2, 80.3)))


def over_seeds(**changes):
    """Two seeds: Gold 2 is 2 points above Gold on forgotten images, then 2 below, so that their means are equal."""
    golds = [(99.0, 83.0, 80.0), (99.0, 79.0, 80.0)]
    made = [results(**changes, **{"Gold 2": gold}).assign(seed=seed) for seed, gold in enumerate(golds)]
    return pd.concat(made, ignore_index=True)


def test_the_floor_is_the_distance_of_two_golds_of_the_same_seed():
    """A forget accuracy that moved by 1.7 points, and an Original 1.9 points from Gold, are within 2 points."""
    moved, near = {"Nothing": (99.0, 97.3, 80.0)}, {"Original": (99.0, 82.9, 80.0)}
    assert "Nothing" not in method_flags(results(**moved))
    assert method_flags(over_seeds(**moved))["Nothing"] == UNCHANGED
    assert scenario_flags(results(**near), "random") == []
    assert scenario_flags(over_seeds(**near), "random") == [NOTHING_TO_FORGET]
    assert scenario_flags(over_seeds(), "random") == []


@pytest.mark.parametrize(
    ("largest", "retain", "classes", "expected"),
    [
        (90.0, 99.0, 10, False),
        (90.1, 99.0, 10, True),
        (40.0, 19.9, 10, True),
        (40.0, 20.0, 10, False),
        (40.0, 1.9, 100, True),
        (40.0, 2.1, 100, False),
        (60.0, 55.0, 2, True),
        (60.0, 75.0, 2, False),
        (60.0, 40.0, 3, True),
    ],
)
def test_one_class_for_nearly_everything_or_chance_is_a_collapse(largest, retain, classes, expected):
    assert is_collapsed(largest, 100 / classes, retain, classes) == expected


@pytest.mark.parametrize(
    ("largest", "true", "expected"), [(100.0, 100.0, False), (96.6, 95.0, False), (96.6, 91.0, True)]
)
def test_a_model_that_is_right_about_images_of_mostly_one_class_has_not_collapsed(largest, true, expected):
    assert is_collapsed(largest, true, 99.0, 2) == expected


def test_a_run_in_which_there_is_nothing_to_forget_says_so():
    assert scenario_flags(results(), "random") == []
    assert scenario_flags(results(Original=(99.0, 81.5, 80.0)), "random") == [NOTHING_TO_FORGET]
    memory = results(Original=(99.0, 79.0, 80.0))
    assert NOT_KNOWN_BETTER in scenario_flags(memory, "random")


def test_an_original_that_never_learnt_is_named_first():
    found = results()
    wreck = found[found.metric == COLLAPSED].assign(kind="original", method="Original")
    assert scenario_flags(pd.concat([found, wreck]), "random") == [NEVER_LEARNT]
    memory = results(Original=(99.0, 79.0, 80.0))
    assert scenario_flags(pd.concat([memory, wreck]), "random")[0] == NEVER_LEARNT


def test_without_gold_flags_rest_on_original_alone():
    found = results(Original=(99.0, 79.0, 80.0))
    found = found[(found.kind != "gold") & (found.metric != "gap to Gold")]
    assert scenario_flags(found, "random") == [NOT_KNOWN_BETTER]
    assert method_flags(results().query("kind != 'gold'"))["Wreck"] == COLLAPSED


def test_flags_stand_in_table_and_lines():
    """A wreck's low forget accuracy is no success anywhere."""
    assert table(results(), "random").flag.to_dict() == {
        **dict.fromkeys(MODELS, ""),
        "Nothing": UNCHANGED,
        "Wreck": COLLAPSED,
    }
    [wreck] = [line for line in run_lines(results()) if "Wreck" in line]
    assert f"**{COLLAPSED}**" in wreck
    assert run_lines(results(Original=(99.0, 81.5, 80.0)))[0] == f"- random: **{NOTHING_TO_FORGET}**"
