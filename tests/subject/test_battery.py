"""The battery on made-up models whose forgetting is known: perfect, none at all, and too much; its leaderboard."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch.nn.functional import one_hot

from helpers.audit import attacks, battery
from helpers.audit.battery import Battery
from helpers.audit.shadows import is_member, target_index
from helpers.datasets import load_data
from helpers.experiment import Experiment
from helpers.presets import PRESETS
from helpers.results import leaderboard as board
from helpers.results.leaderboard import COLUMNS, ENSEMBLE, JSD, board_points, heatmap_data, leaderboard, replicates
from helpers.results.statistics import interval, pair_interval, paired_tests

SHADOWS = 8
SETTINGS = {"Perfect": {}, "Nothing": {}, "Too much": {"lr": 1.0}, "Away": {}}


def made_up(experiment, name, seed, margins, diverged=""):
    """A run whose logits have margins N(`margins[set]`, 1), 6 by default on retained and 2 on unseen images."""
    rng = torch.Generator().manual_seed(seed)
    logits = {}
    for part, batches in experiment.split.sets.items():
        y = batches.y
        mean = margins.get(part, 6.0 if part == "retain" else 2.0)
        noise = torch.randn(len(y), 10, generator=rng)
        logits[part] = noise + torch.as_tensor(mean).reshape(-1, 1) * one_hot(y, 10)
    where = dict.fromkeys(("device", "threads", "precision", "torch", "torchvision", "timm", "python"), "made up")
    cost, known = {"images": 10, "seconds": 2.0}, {"settings": {}, "settings_origin": "", "environment": where}
    known |= {"id": f"{name}-{seed}", "scenario": experiment.scenario.name, "seed": experiment.seed, "kind": "method"}
    return SimpleNamespace(name=name, logits=logits, diverged=diverged, cost=cost, **known)


class MadeUp(Experiment):
    """An experiment of the digits whose Golds are made up."""

    def golds(self):
        golds = [made_up(self, f"Gold {i + 1}" if i else "Gold", i, {}) for i in range(self.preset["golds"])]
        for gold in golds:
            gold.cost = {"images": 100, "seconds": 10.0}
        return golds


class MadeUpShadow:
    """Shadow `number` of `experiment`: Original remembers its members, and each method leaves its own margins."""

    def __init__(self, experiment, number):
        self.experiment, self.number = experiment, number

    def __getattr__(self, name):
        return getattr(self.experiment, name)

    def left(self, margin):
        """`{set: margins}` if the members have `margin` and all others 2."""
        members, held_out = ("forget", self.experiment.scenario.held_out)
        sets, own = self.experiment.split.sets, torch.from_numpy(is_member(self.experiment, self.number))
        margins, count = torch.where(own, float(margin), 2.0), len(sets[members].index)
        rest = torch.full((len(sets[held_out].index) - len(own[count:]),), 2.0)
        return {members: margins[:count], held_out: torch.cat([margins[count:], rest])}

    def original(self):
        return made_up(self.experiment, "Original", 100 + self.number, self.left(6))

    def unlearn(self, name, function=None, *, unlearning_seed=None, **settings):
        assert settings == SETTINGS[name], "not the requested settings"
        margins = {"Perfect": 2, "Nothing": 6, "Too much": -4, "Away": 2}
        seed = 1000 * (1 + list(margins).index(name)) + self.number + 100 * (unlearning_seed or 0)
        away = "away" * (name == "Away" and self.number == 3)
        return made_up(self.experiment, name, seed, self.left(margins[name]), away)


def audit_of(scenario, golds, monkeypatch):
    """The battery of made-up models over a scenario of the digits."""
    changes = {"audit": {"shadows": SHADOWS, "methods": []}, "golds": golds}
    monkeypatch.setitem(PRESETS["quick"], scenario, {**PRESETS["quick"][scenario], **changes})
    monkeypatch.setattr(battery, "shadow", MadeUpShadow)
    return Battery(MadeUp(load_data("clean-digits"), scenario, "quick"), SETTINGS)


@pytest.fixture(scope="module", params=["random", "class"])
def audited(request):
    """8 shadows and 4 Golds."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield audit_of(request.param, 4, monkeypatch)


@pytest.fixture(scope="module")
def table(audited):
    """Its table."""
    return audited.table()


def test_verdicts_on_known_forgetting(table):
    """Perfect is at chance and near the floor; nothing forgotten and too much forgotten are both detected."""
    scenario = table.scenario[0]
    found = board.aggregate(table, scenario)["mean"]
    assert found["Perfect", "RMIA AUC"] == pytest.approx(0.5, abs=0.06)
    assert found["Perfect", "U-LiRA AUC"] == pytest.approx(0.5, abs=0.06)
    if scenario == "random":
        assert found["Gold", "U-LiRA AUC"] == pytest.approx(0.5, abs=0.06)
    else:  # real shadows have learnt the class from its other images: no reference
        assert ("Gold", "U-LiRA AUC") not in found
    assert found["Gold", "RMIA AUC"] == pytest.approx(0.5, abs=0.06)
    assert found["Nothing", "U-LiRA AUC"] > 0.95 and found["Too much", "U-LiRA AUC"] > 0.95
    assert found["Original", "RMIA AUC"] > 0.8 and found["Too much", "RMIA AUC"] < 0.2
    assert found["Nothing", "Streisand KS"] < -0.5 and found["Too much", "Streisand KS"] > 0.5
    assert found["Too much", "Streisand AUC"] > 0.8
    assert found["Perfect", "forgetting quality"] > 3 * found["Nothing", "forgetting quality"]
    assert found["Perfect", "UA"] == pytest.approx(found["Gold", "UA"], abs=4)
    assert found["Nothing", "UA"] < found["Gold", "UA"] - 10
    assert found["floor", "average gap"] < found["Nothing", "average gap"]


def test_gaps_are_means_over_the_golds(audited, table):
    """By hand for one replicate, from the attacks on it and on each Gold; the floor over all pairs of Golds."""
    members = audited.is_member[2]
    run, golds = audited.runs("Nothing")[2], audited.attacked_golds(members)
    own = audited.attack(run, members, audited.golds)
    sets = (*audited.retain_and_test(run), (audited.targets(run)[members], audited.y[members]))
    drawn = [attacks.mia_efficacy(*sets, seed=seed, at_most=attacks.FITTED_ON) for seed in range(attacks.DRAWS)]
    assert own["MIA"] == pytest.approx(np.mean([found["confidence"] for found in drawn]))
    assert own["MIA, entropy"] == pytest.approx(np.mean([found["entropy"] for found in drawn]))
    row = table[(table.shadow == 2) & (table.metric == "average gap")].set_index("method").value
    assert row["Nothing"] == pytest.approx(np.mean([attacks.average_gap(own, gold) for gold in golds]))
    every = [audited.attacked_golds(members) for members in audited.is_member]
    gap_in = {"average gap": attacks.average_gap, "UA": lambda one, other: abs(one["UA"] - other["UA"])}
    for metric, apart in gap_in.items():
        row = table[(table.shadow == ENSEMBLE) & (table.metric == metric)].set_index("method").value
        pairs = [f"Gold {i + 1} v. Gold {j + 1}" for i in range(4) for j in range(i + 1, 4)]
        assert list(table[table.kind == "pair"].method.unique()) == pairs
        assert row["Gold 2 v. Gold 4"] == pytest.approx(np.mean([apart(golds[1], golds[3]) for golds in every]))
        floor = board.aggregate(table, table.scenario[0]).loc[("floor", metric)]
        expected = pair_interval(row[pairs])
        assert floor["mean"] == pytest.approx(expected["mean"]) and floor.half > 0
        assert floor["mean"] + floor.half == pytest.approx(expected["high"])
    cost = table[(table.method == "Perfect") & (table.metric == "images, % of retraining")].value
    assert len(cost) == SHADOWS and (cost == 10.0).all()


def test_a_method_that_diverged_on_a_shadow_is_no_row_of_numbers(table):
    """One row in the table, one word on the leaderboard, and no point or cell in a figure."""
    scenario = table.scenario[0]
    away = table[table.method == "Away"]
    assert list(away.metric) == ["diverged"] and away.value.item() == 1
    ranked = leaderboard(table, scenario)
    assert ranked["average gap"]["Away"] == "diverged" and list(ranked.index[:2]) == ["Original", "Gold"]
    assert "Away" not in heatmap_data(table, scenario)[0].index and "Away" not in set(board_points(table).method)


def test_a_row_about_one_model_refers_to_the_table_of_runs(monkeypatch):
    """Those about several models, and a uniform prediction, refer to none."""
    audit = audit_of("random", 3, monkeypatch)
    table, runs = audit.table(), audit.run_table()
    of_one = (table.shadow != ENSEMBLE) & (table.kind != "reference")
    assert (table.run != "").equals(of_one) and runs.run.is_unique
    attacked = table[of_one].groupby("run").method.unique()
    assert set(attacked.index) <= set(runs.run) and attacked.map(len).eq(1).all()
    assert set(runs.run) - set(attacked.index) == {f"Away-{4000 + k}" for k in range(SHADOWS)}, "what diverged on one"


def test_the_arguments_of_the_figures(table):
    """Columns, order and content of the tables behind heat map, decision and paired tests."""
    scenario = table.scenario[0]
    assert list(table.columns) == COLUMNS
    means, floors = heatmap_data(table, scenario)
    assert list(means.index[:2]) == ["Original", "Gold"] and "floor" not in means.index
    floor = board.aggregate(table, scenario)["mean"]["floor"]
    assert floors["UA"] == max(floor["UA"], 0.5) and floors["RMIA AUC"] == max(floor["RMIA AUC"], 0.005)
    assert floors.min() >= 0.005, "two Golds that agree are no unit"
    decision = board_points(table).set_index("method")
    gaps = replicates(table, scenario, "average gap")
    assert decision.gap["Perfect"] == pytest.approx(gaps["Perfect"].mean())
    assert decision.low["Perfect"] < decision.gap["Perfect"] < decision.high["Perfect"]
    assert decision.gap["Gold 2"] == pytest.approx(board.aggregate(table, scenario)["mean"]["floor", "average gap"])
    assert list(gaps.index) == list(range(SHADOWS)) and set(gaps) == {"Original", *SETTINGS} - {"Away"}
    assert board.floors(table)[scenario]["mean"] == pytest.approx(decision.gap["Gold 2"])
    text = leaderboard(table, scenario)["average gap"]["Perfect"]
    assert text == f"{decision.gap['Perfect']:.2f} ± {decision.high['Perfect'] - decision.gap['Perfect']:.2f}"


def test_predictions_are_compared_with_the_golds(audited, table):
    """The Jensen-Shannon distance of one replicate by scipy, image by image; the uniform prediction's likewise."""
    members, golds = audited.is_member[3], audited.golds
    p, *q = (audited.targets(run)[members].double().softmax(1).numpy() for run in (audited.runs("Too much")[3], *golds))
    found = table[(table.shadow == 3) & (table.metric == JSD)].set_index("method").value
    assert found["Too much"] == pytest.approx(np.mean([jensenshannon(p, gold, axis=1).mean() for gold in q]))
    flat = np.full_like(p, 0.1)
    assert found["uniform"] == pytest.approx(np.mean([jensenshannon(flat, gold, axis=1).mean() for gold in q]))
    stats = board.aggregate(table, table.scenario[0])["mean"]
    assert (
        stats["Perfect", JSD] < stats["Too much", JSD]
        and "uniform" not in heatmap_data(table, table.scenario[0])[0].index
    )


def test_gaps_by_memorisation_are_over_thirds_that_other_shadows_choose(audited, table):
    """By hand for replicate 5, whose pair is 4: the members in order of memorisation, in three equal parts."""
    k, others = 5, [0, 1, 2, 3, 6, 7]
    margins = audited.margins([audited.runs("Original")[n] for n in others])
    trained = audited.is_member[others]
    gained = [m[t].mean() - m[~t].mean() for m, t in zip(margins.T, trained.T)]
    members = sorted(np.flatnonzero(audited.is_member[k]), key=lambda i: gained[i])
    run, gold = audited.runs("Nothing")[k], audited.golds[1]
    found = table[table.shadow == k].set_index(["method", "metric"]).value
    sizes = []
    for name, part in zip(("low", "medium", "high"), np.array_split(members, 3)):
        wrong = [(audited.targets(r).argmax(1) != audited.y)[part].double().mean().item() for r in (run, gold)]
        assert found["Nothing", f"UA, {name} memorisation"] == pytest.approx(100 * wrong[0])
        assert found["Gold 2", f"UA, {name} memorisation"] == pytest.approx(100 * wrong[1])
        every = [found[f"Gold {n}", f"UA, {name} memorisation"] for n in range(1, 5)]
        gap = np.mean([abs(100 * wrong[0] - ua) for ua in every])
        assert found["Nothing", f"UA gap, {name} memorisation"] == pytest.approx(gap)
        sizes.append(len(part))
    assert sum(sizes) == audited.is_member[k].sum() and max(sizes) - min(sizes) <= 1
    shown = board.by_memorisation(table, table.scenario[0])
    assert list(shown.index) == ["Original", "Gold", *board.ranked_methods(table, table.scenario[0])]
    assert list(shown) == ["low memorisation", "medium memorisation", "high memorisation"]
    floor = board.aggregate(table, table.scenario[0])["mean"]["floor", "UA gap, high memorisation"]
    assert shown["high memorisation"]["Gold"].startswith(f"{floor:.2f}")


def test_the_class_attack_is_on_unseen_images_of_the_forgotten_class(audited, table):
    """In the class scenario alone, against test images of the class that Golds predict most often for it."""
    found = table[table.metric == "class attack"]
    if audited.scenario.name == "random":
        assert found.empty and "class attack" not in heatmap_data(table, "random")[0]
        return
    members, run = audited.is_member[1], audited.runs("Perfect")[1]
    assert audited.nearest not in audited.experiment.split.forget_classes
    logits, y = audited.retain_and_test(run)[1]
    expected = attacks.class_attack(audited.targets(run)[~members], logits[y == audited.nearest])
    assert found[(found.shadow == 1) & (found.method == "Perfect")].value.item() == expected
    assert "class attack" in heatmap_data(table, "class")[0] and found[found.kind == "gold"].value.notna().all()


def test_variance_is_measured_by_source(audited, table):
    """Three draws of each kind alone; every replicate of the table; other draws are other numbers."""
    variance = audited.variance_by_source(table, "Perfect")
    spread = variance["standard deviation, points"]
    assert list(variance.draws) == [3, 3, SHADOWS] and (spread > 0).all() and spread.nunique() == 3
    gaps = replicates(table, table.scenario[0], "average gap")["Perfect"]
    assert spread["all seeds and the forget set"] == pytest.approx(gaps.std())
    members, first, single = audited.is_member[0], audited.runs("Perfect")[0], []
    for seed in (1, 2, 3):
        own, *others = (audited.standard_metrics(run, members, seed) for run in (first, *audited.golds))
        single.append(np.mean([attacks.average_gap(own, gold) for gold in others]))
    assert spread["evaluation, one draw"] == pytest.approx(np.std(single, ddof=1))


def test_conclusions_agree_with_the_table(table):
    """The best, its cost, whether it is within the floor, and the methods that do not differ significantly from it."""
    gap, jsd, lira = board.conclusions(table).splitlines()
    assert (", Gold " in lira) == (table.scenario[0] == "random")
    alone = table[(table.method != "Gold") | (table.metric != "U-LiRA AUC")]
    assert ", Gold " not in board.conclusions(alone), "two are no ensemble"
    blind = table.assign(value=table.value.mask((table.method == "Original") & (table.metric == "U-LiRA AUC"), 0.52))
    found = table.assign(value=table.value.mask((table.method == "Original") & (table.metric == "U-LiRA AUC"), 0.8))
    assert "proves nothing" in board.conclusions(blind) and "proves nothing" not in board.conclusions(found)
    assert "average gap (floor " in gap and "At ≤ 5 %: no ranked method." in gap
    assert "At ≤ 10 %, any cost: **Perfect**, " in gap and " at 10.0 %, " in gap
    assert JSD in jsd and "a uniform prediction" in jsd and "Original" in lira
    tests = board.paired(table, table.scenario[0]).set_index("first")
    named = gap.split("Holm's correction")[1].split(" from ")[0]
    assert len(tests) == 2 and all((f"**{name}**" in named) == (p >= 0.05) for name, p in tests["p (Holm)"].items())
    assert gap.split("Holm's correction")[1].split(" from ")[1].startswith(f"**{tests.second.iloc[0]}**.")


def test_conclusions_doubt_a_measure_that_original_passes(table):
    """Where Original is as near to Gold as another Gold, nearness by that measure proves nothing."""
    is_gap = (table.method == "Original") & (table.metric == "average gap")
    gap, jsd, _ = board.conclusions(table.assign(value=table.value.mask(is_gap, 0.0))).splitlines()
    assert "Original, untouched, is within the floor too" in gap and "untouched" not in jsd


def test_what_was_chosen_with_gold_has_a_table_of_its_own(table):
    """On those data and no others; in words it is named after the ranked ones."""
    scenario, renamed = table.scenario[0], table.replace("Perfect", "Margin matching")
    assert "Margin matching" not in leaderboard(renamed, scenario, "cifar10").index
    assert list(board.chosen_with_gold(renamed, scenario, "cifar10").index) == ["Margin matching"]
    assert board.chosen_with_gold(renamed, scenario, "clean-digits").empty
    ranked = leaderboard(renamed, scenario, "clean-digits")
    assert ranked["≤ 10 %"]["Margin matching"] == "1" and ranked["≤ 5 %"]["Margin matching"] == ""
    assert "so not ranked: **Margin matching**, " in board.conclusions(renamed, "cifar10")
    assert "not ranked" not in board.conclusions(renamed, "clean-digits")


def changed(table, method, metric, value):
    """The table with this mean of a method's metric; its replicates still differ."""
    rows = (table.method == method) & (table.metric == metric)
    return table.assign(value=table.value.where(~rows, table.value - table.value[rows].mean() + value))


def test_methods_are_ranked_among_those_that_cost_no_more(table):
    """A dear method has no place, though it is nearest; a cheap one has a place in both classes of cost."""
    table = changed(changed(table, "Perfect", "images, % of retraining", 50.0), "Nothing", "average gap", 3.0)
    table = changed(changed(table, "Nothing", "images, % of retraining", 4.0), "Perfect", "average gap", 1.0)
    places = leaderboard(table, table.scenario[0])[list(board.COSTS)]
    assert list(places.loc["Perfect"]) == ["", ""] and list(places.loc["Nothing"]) == ["1", "1"]
    assert list(places.loc["Too much"]) == ["", "2"]
    gap = board.conclusions(table).splitlines()[0]
    assert "At ≤ 5 %, ≤ 10 %: **Nothing**, 3.00" in gap and "At any cost: **Perfect**, 1.00" in gap


@pytest.mark.parametrize(("points", "has_place"), [(1.9, True), (-1.9, True), (2.1, False), (-2.1, False)])
def test_a_place_requires_retained_accuracy_near_golds(table, points, has_place):
    """Below the line is the method that lost it, or gained more than Gold has."""
    scenario = table.scenario[0]
    gold = board.aggregate(table, scenario)["mean"]["Gold", "RA"]
    shown = leaderboard(changed(table, "Perfect", "RA", gold + points), scenario)
    order = list(shown.index)
    assert (board.UNRANKED in order) != has_place and ("Perfect" in order)
    assert (shown["≤ 10 %"]["Perfect"] == "1") == has_place
    assert has_place or order.index("Perfect") > order.index(board.UNRANKED)


@pytest.mark.parametrize(
    ("value", "half", "verdict"),
    [
        (1.2, 0.3, "within the floor"),
        (1.2, 0.6, "undecided: the floor is too uncertain"),
        (1.7, 0.6, "above the floor"),
        (1.2, float("nan"), "above the floor, which has no interval"),
        (0.9, float("nan"), "undecided: the floor is too uncertain"),
    ],
)
def test_within_the_floor_needs_a_floor_that_is_known(value, half, verdict):
    assert board.against_floor(value, 1.0, half, 0.5) == verdict


def test_targets_come_in_the_order_of_their_index(audited):
    """Labels and logits of the targets belong to the images of `target_index`."""
    split = audited.experiment.split
    both = torch.cat([split.train.labels, split.sets[split.scenario.held_out].labels])
    assert torch.equal(audited.y, both[target_index(split)]) and len(audited.y) == audited.is_member.shape[1]
    exact = SimpleNamespace(logits={name: 9.0 * one_hot(batches.y, 10) for name, batches in split.sets.items()})
    assert torch.equal(audited.targets(exact).argmax(1), audited.y)


def test_too_few_models_are_refused(monkeypatch):
    """One line with how many there are and how many are needed."""
    with pytest.raises(ValueError, match="an audit needs 6 shadow models and 2 Golds, and preset .* has 8 and 1;"):
        audit_of("random", 1, monkeypatch)


def test_ensembles_are_compared_with_retrained_models_as_many_per_side(table, audited):
    """Forgetting quality compares with Golds, too few of them with shadows that never saw the image."""
    ensemble = table[(table.shadow == ENSEMBLE) & (table.kind != "pair") & (table.method != "Away")]
    at_random = audited.scenario.name == "random"
    assert set(ensemble.method) == {"Original", *SETTINGS, *["Gold"] * at_random} - {"Away"}
    found = ensemble.set_index(["method", "metric"]).value
    members, never = attacks.by_membership(audited.margins(audited.runs("Nothing")), audited.is_member)
    golds = audited.margins(audited.golds)
    assert found["Nothing", "forgetting quality"] == attacks.forgetting_quality(members, golds)["F"]
    assert found["Nothing", "U-LiRA AUC"] == attacks.u_lira(members, never, shared=True)["AUC"]
    _, untouched = attacks.by_membership(audited.margins(audited.runs("Original")), audited.is_member)
    if at_random:
        assert found["Gold", "forgetting quality"] == attacks.forgetting_quality(untouched, golds)["F"]
        assert found["Gold", "U-LiRA AUC"] == attacks.u_lira(golds, untouched, shared=True)["AUC"]
    score = found["Nothing", "forgetting quality"]
    for metric in ("RA", "TA"):
        rows = table[(table.metric == metric) & (table.shadow != ENSEMBLE)]
        own, gold = (part.value.mean() for part in (rows[rows.method == "Nothing"], rows[rows.kind == "gold"]))
        score *= own / gold
    assert found["Nothing", "final score"] == pytest.approx(score)
    uneven = battery.distance_to_retrained(np.random.default_rng(0).normal(size=(8, 5)), golds[:3, :5])
    assert uneven["models per side"] == 3 and found["Nothing", "models per side"] == 4
    assert pd.Series(audited.sizes())["Golds"] == 4


@pytest.mark.parametrize("scenario", ["random", "class"])
def test_two_golds_are_no_ensemble(scenario, monkeypatch):
    """Shadows that never saw an image replace them, but not in the class scenario: they have learnt the class."""
    few = audit_of(scenario, 2, monkeypatch)
    _, untouched = attacks.by_membership(few.margins(few.runs("Original")), few.is_member)
    table = few.table()
    assert set(table[(table.kind == "gold") & (table.shadow == ENSEMBLE)].method) == set()
    if scenario == "random":
        assert np.array_equal(few.retrained, untouched)
        return
    assert all(metric.startswith("U-LiRA") for metric in few.ensemble(few.runs("Nothing")))
    assert few.sizes()["models per side in forgetting quality"] == 0
    assert "final score" not in set(table.metric) and "forgetting quality" not in leaderboard(table, "class")
    assert ", Gold " not in board.conclusions(table), "no reference for U-LiRA"


def test_two_seeds_are_not_pooled(table):
    """Shadows of one seed share its Golds: as independent replicates their interval would be too narrow."""
    both = pd.concat([table, table.assign(seed=1)], ignore_index=True)
    assert (table.seed == 0).all() and not both.duplicated(["seed", "shadow", "method", "metric"]).any()
    with pytest.raises(ValueError, match="these audits are of several seeds"):
        leaderboard(both, table.scenario[0])


def test_an_uncertain_gold_makes_the_ranking_uncertain(table):
    """Golds that disagree by 10 points in retained accuracy are named; those of the table agree."""
    assert "who is ranked" not in board.conclusions(table)
    rows = (table.kind == "gold") & (table.metric == "RA") & (table.method == "Gold 1")
    assert ", who is ranked: uncertain, since Gold's RA is known to ±" in board.conclusions(
        table.assign(value=table.value.where(~rows, table.value - 10))
    )


def test_without_a_method_that_finished_nothing_is_compared(table):
    assert board.paired(table[table.kind != "method"], table.scenario[0]).empty


def test_a_gold_is_not_its_own_reference(audited):
    """RMIA compares it with the other Golds alone."""
    members, golds = audited.is_member[0], audited.golds
    expected = audited.attack(golds[1], members, [golds[0], *golds[2:]])
    assert audited.attacked_golds(members)[1] == expected
    assert expected["RMIA AUC"] != audited.attack(golds[1], members, golds)["RMIA AUC"]


def test_golds_interval_is_over_golds(table, audited):
    """A Gold's predictions on test images are the same in every replicate: the replicates do not repeat it."""
    scenario = table.scenario[0]
    every = [[gold["TA"] for gold in audited.attacked_golds(members)] for members in audited.is_member]
    expected, low, _ = interval(np.mean(every, axis=0))
    stats = board.aggregate(table, scenario).loc[("Gold", "TA")]
    assert stats["mean"] == pytest.approx(expected) and stats.half == pytest.approx(expected - low) and stats.half > 0


def test_p_values_are_adjusted_for_the_choice_of_the_best(table):
    """p-values are adjusted for all pairs, not only for those with the best."""
    scenario = table.scenario[0]
    values = replicates(table, scenario, "average gap")[["Perfect", "Nothing", "Too much"]]
    tests = board.paired(table, scenario).set_index("first")
    every = paired_tests(values[["Nothing", "Too much", "Perfect"]])
    assert list(tests.second) == ["Perfect"] * 2 and len(every) == 3
    for name in tests.index:
        assert (
            tests["p (Holm)"][name] == every[(every["first"] == name) & (every.second == "Perfect")]["p (Holm)"].item()
        )
        assert (
            tests.difference[name] == pytest.approx((values[name] - values["Perfect"]).mean())
            and tests.difference[name] > 0
        )
