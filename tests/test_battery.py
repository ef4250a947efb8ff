"""The battery on made-up models whose forgetting is known: perfect, none at all, and too much."""

from copy import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch.nn.functional import one_hot

from helpers import audit, battery, runs
from helpers.battery import COLUMNS, ENSEMBLE, JSD, Battery, heat, leaderboard, points, replicates
from helpers.budgets import BUDGETS
from helpers.data import load_data
from helpers.experiment import Experiment
from helpers.shadows import TARGETS, is_member, joined, target_images, target_index

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

        def unlearned(name, seed=0, **settings):
            assert settings == SETTINGS[name], "other settings than asked for"
            seed = 1000 * (1 + list(margins).index(name)) + number + 100 * seed
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
    if scenario == "random":
        assert found["Gold", "U-LiRA AUC"] == pytest.approx(0.5, abs=0.06)
    else:  # real shadows know the class from its other images: no yardstick
        assert ("Gold", "U-LiRA AUC") not in found
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
    run, golds = audited.runs("Nothing")[2], audited.golds(members)
    own = audited.attack(run, members, audited.experiment.golds)
    sets = (*audited.seen_and_not(run), (audited.targets(run)[members], audited.y[members]))
    drawn = [audit.mia_efficacy(*sets, seed=seed, at_most=battery.FITTED_ON) for seed in range(battery.DRAWS)]
    assert own["MIA"] == pytest.approx(np.mean([found["confidence"] for found in drawn]))
    assert own["MIA, entropy"] == pytest.approx(np.mean([found["entropy"] for found in drawn]))
    row = table[(table.shadow == 2) & (table.metric == "average gap")].set_index("method").value
    assert row["Nothing"] == pytest.approx(np.mean([audit.average_gap(own, gold) for gold in golds]))
    every = [audited.golds(members) for members in audited.is_member]
    for metric, apart in (("average gap", audit.average_gap), ("UA", lambda one, other: abs(one["UA"] - other["UA"]))):
        row = table[(table.shadow == ENSEMBLE) & (table.metric == metric)].set_index("method").value
        pairs = [f"Gold {i + 1} v. Gold {j + 1}" for i in range(4) for j in range(i + 1, 4)]
        assert [name for name in row.index if " v. " in name] == pairs
        assert row["Gold 2 v. Gold 4"] == pytest.approx(np.mean([apart(golds[1], golds[3]) for golds in every]))
        floor = battery.of(table, table.scenario[0]).loc[("floor", metric)]
        expected = audit.pair_interval(row[pairs])
        assert floor["mean"] == pytest.approx(expected["mean"]) and floor.half > 0
        assert floor["mean"] + floor.half == pytest.approx(expected["high"])
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
    assert list(means.index[:2]) == ["Original", "Gold"] and "floor" not in means.index
    floor = battery.of(table, scenario)["mean"]["floor"]
    assert floors["UA"] == max(floor["UA"], 0.5) and floors["RMIA AUC"] == max(floor["RMIA AUC"], 0.005)
    assert floors.min() >= 0.005, "two Golds that agree are no unit"
    decision = points(table).set_index("method")
    gaps = replicates(table, scenario, "average gap")
    assert decision.gap["Perfect"] == pytest.approx(gaps["Perfect"].mean())
    assert decision.low["Perfect"] < decision.gap["Perfect"] < decision.high["Perfect"]
    assert decision.gap["Gold 2"] == pytest.approx(battery.of(table, scenario)["mean"]["floor", "average gap"])
    assert list(gaps.index) == list(range(SHADOWS)) and not any("Gold " in name for name in gaps)
    assert battery.floors(table)[scenario]["mean"] == pytest.approx(decision.gap["Gold 2"])
    text = leaderboard(table, scenario)["average gap"]["Perfect"]
    assert text == f"{decision.gap['Perfect']:.2f} ± {decision.high['Perfect'] - decision.gap['Perfect']:.2f}"


def test_predictions_are_compared_with_the_golds(audited, table):
    """The Jensen-Shannon distance of one replicate by scipy, image by image; the uniform prediction's likewise."""
    members, golds = audited.is_member[3], audited.experiment.golds
    p, *q = (audited.targets(run)[members].double().softmax(1).numpy() for run in (audited.runs("Too much")[3], *golds))
    found = table[(table.shadow == 3) & (table.metric == JSD)].set_index("method").value
    assert found["Too much"] == pytest.approx(np.mean([jensenshannon(p, gold, axis=1).mean() for gold in q]))
    flat = np.full_like(p, 0.1)
    assert found["uniform"] == pytest.approx(np.mean([jensenshannon(flat, gold, axis=1).mean() for gold in q]))
    stats = battery.of(table, table.scenario[0])["mean"]
    assert stats["Perfect", JSD] < stats["Too much", JSD] and "uniform" not in heat(table, table.scenario[0])[0].index


def test_luck_is_told_apart_by_its_source(audited, table):
    """Three draws of each kind alone; every replicate of the table; other draws are other numbers."""
    luck = audited.luck(table, "Perfect")
    spread = luck["standard deviation, points"]
    assert list(luck.draws) == [3, 3, SHADOWS] and (spread > 0).all() and spread.nunique() == 3
    gaps = replicates(table, table.scenario[0], "average gap")["Perfect"]
    assert spread["training and forget set"] == pytest.approx(gaps.std())
    members, first, single = audited.is_member[0], audited.runs("Perfect")[0], []
    for seed in (1, 2, 3):
        own, *others = (audited.headline(run, members, seed) for run in (first, *audited.experiment.golds))
        single.append(np.mean([audit.average_gap(own, gold) for gold in others]))
    assert spread["evaluation, one draw"] == pytest.approx(np.std(single, ddof=1))


def test_conclusions_say_what_the_table_has(table):
    """The best, its cost, whether it is within the floor; nobody is called best without who cannot be told from it."""
    gap, jsd, lira = battery.conclusions(table).splitlines()
    assert ("Golds" in lira) == (table.scenario[0] == "random")
    alone = table[(table.method != "Gold") | (table.metric != "U-LiRA AUC")]
    assert "Golds" not in battery.conclusions(alone), "two are no ensemble"
    blind = table.assign(value=table.value.mask((table.method == "Original") & (table.metric == "U-LiRA AUC"), 0.52))
    found = table.assign(value=table.value.mask((table.method == "Original") & (table.metric == "U-LiRA AUC"), 0.8))
    assert "proves nothing" in battery.conclusions(blind) and "proves nothing" not in battery.conclusions(found)
    assert "average gap: the smallest has **Perfect**" in gap and "at 10.0 % of retraining" in gap
    assert JSD in jsd and "a uniform prediction" in jsd and "Original" in lira
    tests = battery.paired(table, table.scenario[0]).set_index("first")
    named = gap.split("paired tests:")[1]
    assert all((f"**{name}**" in named) == (p >= 0.05) for name, p in tests["p (Holm)"].items())


def test_conclusions_doubt_a_measure_that_original_passes(table):
    """Where Original lies as near to Gold as a Gold may, nearness by that measure says nothing."""
    is_gap = (table.method == "Original") & (table.metric == "average gap")
    gap, jsd, _ = battery.conclusions(table.assign(value=table.value.mask(is_gap, 0.0))).splitlines()
    assert "Original, untouched, lies within it too" in gap and "lies within it too" not in jsd


def test_what_was_tuned_on_gold_is_labelled_so(table):
    """In the board and in words, on those data and no others."""
    renamed = table.replace("Perfect", "Margin matching")
    for data, label in (("cifar10", "Margin matching (tuned on Gold)"), ("digits", "Margin matching")):
        assert label in leaderboard(renamed, table.scenario[0], data).index
        said = battery.conclusions(renamed, data)
        assert f"**{label}**" in said and ("**Margin matching**" in said) == (label == "Margin matching")


def test_conclusions_name_the_best_that_is_not_dear(table):
    """Where the nearest to Gold costs more than asked, the nearest of the others is named too."""
    scenario = table.scenario[0]
    dear = (table.method == "Perfect") & (table.metric == "images, % of retraining")
    gap = battery.conclusions(table.assign(value=table.value.mask(dear, 50.0))).splitlines()[0]
    gaps = battery.of(table, scenario)["mean"].xs("average gap", level="metric")
    assert "**Perfect**" in gap and "at 50.0 % of retraining" in gap
    assert f"At no more than 10 %: **{gaps[['Nothing', 'Too much']].idxmin()}**" in gap


def test_targets_come_in_the_order_of_their_index(audited):
    """Labels and logits of the targets belong to the images of `target_index`."""
    split = audited.experiment.split
    position = {name: torch.arange(len(batches.index)).float() for name, batches in split.sets.items()}
    members, others = TARGETS[split.scenario]
    both = torch.cat([split.train.labels, split.sets[others].labels])
    assert torch.equal(audited.y, both[target_index(split)])
    pictures = torch.cat([split.train.images, split.sets[others].images])[target_index(split)]
    assert torch.equal(target_images(split), pictures)
    assert len(joined(position[members], position[others])) == len(audited.y) == audited.is_member.shape[1]


def test_too_few_models_are_refused(audited):
    """One line that says how many there are and how many it takes."""
    one = copy(audited.experiment)
    one.golds = one.golds[:1]
    with pytest.raises(ValueError, match="an audit needs 6 shadows and 2 Golds; there are 8 and 1"):
        Battery(one, {})


def test_likeness_is_to_retrained_models_and_as_many_of_each_side(table, audited):
    """Forgetting quality and KLOM compare with Golds, too few of them with shadows that never saw the image."""
    ensemble = table[(table.shadow == ENSEMBLE) & ~table.method.str.contains(" v. ") & (table.method != "Away")]
    at_random = audited.scenario == "random"
    assert set(ensemble.method) == {"Original", *SETTINGS, *["Gold"] * at_random} - {"Away"}
    found = ensemble.set_index(["method", "metric"]).value
    members, never = audit.by_membership(audited.margins(audited.runs("Nothing")), audited.is_member)
    golds = audited.margins(audited.experiment.golds)
    assert found["Nothing", "forgetting quality"] == audit.forgetting_quality(members, golds)["F"]
    assert found["Nothing", "KLOM, P95"] == np.percentile(audit.klom(members, golds), 95)
    assert found["Nothing", "U-LiRA AUC"] == audit.u_lira(members, never, shared=True)["AUC"]
    _, untouched = audit.by_membership(audited.margins(audited.runs("Original")), audited.is_member)
    if at_random:
        assert found["Gold", "KLOM, P95"] == np.percentile(audit.klom(untouched, golds), 95)
        assert found["Gold", "U-LiRA AUC"] == audit.u_lira(golds, untouched, shared=True)["AUC"]
    score = found["Nothing", "forgetting quality"]
    for metric in ("RA", "TA"):
        rows = table[(table.metric == metric) & (table.shadow != ENSEMBLE)]
        own, gold = (rows[rows.method.str.match(name)].value.mean() for name in ("Nothing", "Gold"))
        score *= own / gold
    assert found["Nothing", "final score"] == pytest.approx(score)
    uneven = battery.likeness(np.random.default_rng(0).normal(size=(8, 5)), golds[:3, :5])
    assert uneven["models a side"] == 3 and found["Nothing", "models a side"] == 4
    few = Battery(copy(audited.experiment), SETTINGS)
    few.experiment.golds = few.experiment.golds[:2]
    assert few.golds_as_ensemble() == {}
    if at_random:
        assert np.array_equal(few.retrained, untouched)
    else:  # those know the class from its other images
        assert all(metric.startswith("U-LiRA") for metric in few.ensemble(few.runs("Nothing")))
        assert few.sizes()["models a side in forgetting quality and KLOM"] == 0
        said = few.table()
        assert "final score" not in set(said.metric) and "KLOM, P95" not in leaderboard(said, "class")
        assert "Golds" not in battery.conclusions(said)
    assert pd.Series(audited.sizes())["Golds"] == 4


def test_a_gold_is_not_its_own_reference(audited):
    """RMIA compares it with the other Golds alone."""
    members, golds = audited.is_member[0], audited.experiment.golds
    expected = audited.attack(golds[1], members, [golds[0], *golds[2:]])
    assert audited.golds(members)[1] == expected
    assert expected["RMIA AUC"] != audited.attack(golds[1], members, golds)["RMIA AUC"]


def test_golds_interval_is_over_golds(table, audited):
    """A Gold says the same of test images whichever shadow it is compared with: that repeats nothing."""
    scenario = table.scenario[0]
    every = [[gold["TA"] for gold in audited.golds(members)] for members in audited.is_member]
    expected, low, _ = audit.interval(np.mean(every, axis=0))
    stats = battery.of(table, scenario).loc[("Gold", "TA")]
    assert stats["mean"] == pytest.approx(expected) and stats.half == pytest.approx(expected - low) and stats.half > 0


def test_the_best_is_compared_at_the_price_of_having_been_chosen(table):
    """p-values are adjusted for all pairs, not only for those with the best."""
    scenario = table.scenario[0]
    values = replicates(table, scenario, "average gap")[["Perfect", "Nothing", "Too much"]]
    tests = battery.paired(table, scenario).set_index("first")
    every = audit.paired_tests(values[["Nothing", "Too much", "Perfect"]])
    assert list(tests.second) == ["Perfect"] * 2 and len(every) == 3
    for name in tests.index:
        assert (
            tests["p (Holm)"][name] == every[(every["first"] == name) & (every.second == "Perfect")]["p (Holm)"].item()
        )
        assert (
            tests.difference[name] == pytest.approx((values[name] - values["Perfect"]).mean())
            and tests.difference[name] > 0
        )
