"""The battery on made-up models whose forgetting is known: perfect, none at all, and too much."""

from copy import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import one_hot

from helpers import audit, battery, runs
from helpers.battery import COLUMNS, ENSEMBLE, Battery, heat, leaderboard, points, replicates
from helpers.budgets import BUDGETS
from helpers.data import load_data
from helpers.experiment import Experiment
from helpers.shadows import TARGETS, is_member, joined, target_index

SHADOWS = 8
SETTINGS = {"Perfect": {}, "Nothing": {}, "Too much": {"lr": 1.0}, "Away": {}}


def made_up(experiment, seed, margins, diverged=""):
    """A run whose logits have margins N(`margins[set]`, 1), 6 by default on retained and 2 on unseen images."""
    rng = torch.Generator().manual_seed(seed)
    logits = {}
    for name, batches in experiment.split.sets.items():
        y = batches.y
        mean = margins.get(name, 6.0 if "retain" in name and "test" not in name else 2.0)
        noise = torch.randn(len(y), 10, generator=rng)
        logits[name] = noise + torch.as_tensor(mean).reshape(-1, 1) * one_hot(y, 10)
    return SimpleNamespace(logits=logits, diverged=diverged, cost={"images": 10, "seconds": 2.0})


@pytest.fixture(scope="module", params=["random", "class"])
def audited(request, tmp_path_factory):
    """The battery over a scenario of the digits, whose 8 shadows and 4 Golds were made up."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield audit_of_made_up_models(request.param, tmp_path_factory.mktemp("runs"), monkeypatch)


def audit_of_made_up_models(scenario, folder, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", folder)
    monkeypatch.setitem(BUDGETS["quick"][scenario], "audit", {"shadows": SHADOWS})
    experiment = Experiment(load_data("digits"), scenario, "quick")
    experiment.golds = [made_up(experiment, i, {}) for i in range(4)]
    for gold in experiment.golds:
        gold.cost = {"images": 100, "seconds": 10.0}
    members, others = TARGETS[scenario]

    def double(_, number):
        mine = torch.from_numpy(is_member(experiment, number))
        count = len(experiment.split.sets[members].index)

        def left(target_margin):
            """Margins of the targets that shadow `number` was trained on, in their two sets."""
            margin = torch.where(mine, float(target_margin), 2.0)
            rest = torch.full((len(experiment.split.sets[others].index) - len(mine[count:]),), 2.0)
            return {members: margin[:count], others: torch.cat([margin[count:], rest])}

        margins = {"Perfect": 2, "Nothing": 6, "Too much": -4, "Away": 2}

        def unlearned(name, **settings):
            assert settings == SETTINGS[name], "other settings than asked for"
            seed = 1000 * (1 + list(margins).index(name)) + number
            return made_up(experiment, seed, left(margins[name]), "away" * (name == "Away" and number == 3))

        return SimpleNamespace(original=made_up(experiment, 100 + number, left(6)), unlearned=unlearned)

    monkeypatch.setattr(battery, "shadow", double)
    return Battery(experiment, SETTINGS)


@pytest.fixture(scope="module")
def table(audited):
    """Its table."""
    return audited.table()


def test_verdicts_on_known_forgetting(table):
    """Perfect is at chance and near the floor; nothing forgotten and too much forgotten are both found out."""
    scenario = table.scenario[0]
    found = battery.of(table, scenario)["mean"]
    assert found["Perfect", "RMIA AUC"] == pytest.approx(0.5, abs=0.06)
    assert found["Perfect", "U-LiRA AUC"] == pytest.approx(0.5, abs=0.06)
    assert found["Gold", "U-LiRA AUC"] == pytest.approx(0.5, abs=0.06)
    assert found["Gold", "RMIA AUC"] == pytest.approx(0.5, abs=0.06)
    assert found["Nothing", "U-LiRA AUC"] > 0.95 and found["Too much", "U-LiRA AUC"] > 0.95
    assert found["Original", "RMIA AUC"] > 0.8 and found["Too much", "RMIA AUC"] < 0.2
    assert found["Nothing", "Streisand KS"] < -0.5 and found["Too much", "Streisand KS"] > 0.5
    assert found["Too much", "Streisand AUC"] > 0.8
    assert found["Perfect", "forgetting quality"] > 3 * found["Nothing", "forgetting quality"]
    assert found["Perfect", "KLOM, P95"] < found["Nothing", "KLOM, P95"]
    assert found["Perfect", "UA"] == pytest.approx(found["Gold", "UA"], abs=4)
    assert found["Nothing", "UA"] < found["Gold", "UA"] - 10
    assert found["floor", "average gap"] < found["Nothing", "average gap"]


def test_gaps_are_means_over_the_golds(audited, table):
    """By hand for one replicate, from the attacks on it and on each Gold; the floor over all pairs of Golds."""
    members = audited.is_member[2]
    own = audited.attack(audited.runs("Nothing")[2], members, audited.experiment.golds)
    golds = audited.golds(members)
    row = table[(table.shadow == 2) & (table.metric == "average gap")].set_index("method").value
    assert row["Nothing"] == pytest.approx(np.mean([audit.average_gap(own, gold) for gold in golds]))
    pairs = [audit.average_gap(golds[i], golds[j]) for i in range(4) for j in range(i)]
    assert row["floor"] == pytest.approx(np.mean(pairs))
    ua = table[(table.shadow == 2) & (table.metric == "UA")].set_index("method").value
    differences = [abs(golds[i]["UA"] - golds[j]["UA"]) for i in range(4) for j in range(i)]
    assert ua["floor"] == pytest.approx(np.mean(differences))
    cost = table[(table.method == "Perfect") & (table.metric == "images, % of retraining")].value
    assert len(cost) == SHADOWS and (cost == 10.0).all()


def test_a_method_that_diverged_on_a_shadow_is_no_row_of_numbers(table):
    """It says so in the table and on the board, and is in no picture."""
    scenario = table.scenario[0]
    away = table[table.method == "Away"]
    assert list(away.metric) == ["diverged"] and away.value.item() == 1
    board = leaderboard(table, scenario)
    assert board.UA["Away"] == "diverged" and list(board.index[:2]) == ["Original", "Gold"]
    assert "Away" not in heat(table, scenario)[0].index and "Away" not in set(points(table).method)


def test_what_the_pictures_take(table):
    """Columns, order and content of the tables behind heat map, decision and paired tests."""
    scenario = table.scenario[0]
    assert list(table.columns) == COLUMNS
    means, floors = heat(table, scenario)
    assert list(means.index[:2]) == ["Original", "Gold"] and "floor" not in means.index and floors.notna().all()
    decision = points(table).set_index("method")
    gaps = replicates(table, scenario, "average gap")
    assert decision.gap["Perfect"] == pytest.approx(gaps["Perfect"].mean())
    assert decision.low["Perfect"] < decision.gap["Perfect"] < decision.high["Perfect"]
    assert decision.gap["Gold 2"] == pytest.approx(battery.of(table, scenario)["mean"]["floor", "average gap"])
    assert list(gaps.index) == list(range(SHADOWS)) and "floor" not in gaps
    text = leaderboard(table, scenario)["average gap"]["Perfect"]
    assert text == f"{decision.gap['Perfect']:.2f} ± {decision.high['Perfect'] - decision.gap['Perfect']:.2f}"


def test_targets_come_in_the_order_of_their_index(audited):
    """Labels and logits of the targets belong to the images of `target_index`."""
    split = audited.experiment.split
    position = {name: torch.arange(len(batches.index)).float() for name, batches in split.sets.items()}
    members, others = TARGETS[split.scenario]
    both = torch.cat([split.train.labels, split.sets[others].labels])
    assert torch.equal(audited.y, both[target_index(split)])
    assert len(joined(position[members], position[others])) == len(audited.y) == audited.is_member.shape[1]


def test_too_few_models_are_refused(audited):
    """One line that says how many there are and how many it takes."""
    one = copy(audited.experiment)
    one.golds = one.golds[:1]
    with pytest.raises(ValueError, match="an audit needs 6 shadows and 2 Golds; there are 8 and 1"):
        Battery(one, {})


def test_without_three_models_a_side_there_is_no_ensemble(table, audited):
    """Two Golds cannot stand for an ensemble: no row claims it."""
    two = np.zeros((2, 5))
    assert battery.compare(two, two) == {}
    assert set(table[table.shadow == ENSEMBLE].method) == {"Gold", "Original", *SETTINGS}
    assert isinstance(audited.sizes(), dict) and pd.Series(audited.sizes())["Golds"] == 4
