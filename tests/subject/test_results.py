"""Results: the tidy table, rows of runs, tables for people and computed sentences."""

import importlib
import json
import sys

import numpy as np
import pandas as pd
import pytest

from helpers import methods
from helpers.datasets import load_data
from helpers.experiment import Experiment
from helpers.metrics import accuracy
from helpers.presets import PRESETS
from helpers.results import effective_settings, gap_points, run_rows, table, tidy, verdict_lines
from helpers.results.published import PUBLISHED
from helpers.results.rows import COLUMNS, OTHER_DATA, RUN_COLUMNS
from helpers.results.tables import beside_published, distances_to_published, published_lines, run_lines

pytestmark = pytest.mark.usefixtures("runs_folder")


def experiment(scenario="class", **changes):
    return Experiment(load_data("clean-digits"), scenario, "smoke", **changes)


# --- from real runs -----------------------------------------------------------------------------------------------


def test_the_tidy_table_of_a_run():
    """Columns as documented; epoch 0 is Original; final values are those of the predictions; Gold's own gap is 0."""
    e = experiment()
    run = e.unlearn("Gradient ascent")
    results = tidy([e], [run])
    assert list(results.columns) == COLUMNS and set(results.kind) == {"original", "gold", "method"}
    assert list(dict.fromkeys(results.method)) == ["Original", "Gold", "Gold 2", "Gradient ascent"]
    own = results[results.method == "Gradient ascent"]
    assert set(own.run) == {run.id} and (own.seed == 0).all()
    tracked = own[own.metric == "tracked accuracy"]
    assert sorted(tracked.epoch.unique()) == list(range(run.epochs + 1)) and set(tracked.set) == {*e.scenario.tracked}
    start = tracked[tracked.epoch == 0].set_index("set").value
    assert start.to_dict() == pytest.approx(e.track(e.original().model)["tracked"])
    counts = own[own.metric == "tracked images"].set_index("set").value
    assert all(counts[name] == min(30, len(e.split.sets[name].index)) for name in e.scenario.tracked)
    final = own[own.metric == "accuracy"].set_index("set").value
    for name, batches in e.split.sets.items():
        assert final[name] == accuracy(run.logits[name], batches.y)
    gold = results[results.method == "Gold"]
    assert (gold[gold.metric.str.endswith("% of retraining")].value == 100).all()
    assert (gold[gold.metric == "gap to Gold"].value == 0).all()
    images = own[own.metric == "images"].value.item()
    assert images == run.epochs * len(e.split.forget.index)


def test_a_method_that_diverged_is_one_row_with_that_word():
    """In the tidy table, in the table for people and in a sentence; it has no point."""

    def explode(model, split):
        """One step down an infinite loss."""
        yield model.head.bias.sum() * float("inf")

    e = experiment()
    results = tidy([e], [e.unlearn("Explode", explode), e.unlearn("Gradient ascent")])
    assert results[results.method == "Explode"].metric.tolist() == ["diverged"]
    shown = table(results, "class").loc["Explode"].tolist()
    assert shown == ["diverged", *[""] * (len(shown) - 1)]
    assert "Explode" not in set(gap_points(results).method)
    assert "- class, **Explode**: diverged." in run_lines(results)
    alone = results[results.method != "Gradient ascent"]
    assert verdict_lines(alone) == ["- class: every method diverged."]
    rows = run_rows([e], [e.unlearn("Explode", explode)]).set_index("method")
    assert "inf" in rows.diverged["Explode"] and np.isnan(rows.images["Explode"])


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """A method that a module of its own registers, as a reader would add one."""
    source = '''
from helpers.methods import Method, register
from helpers.training import EpochEnd, Phase, descend


def gentle(model, split, *, epochs=1, lr=1e-3, s=0.4):
    """Down the cross-entropy of the retained images."""
    yield Phase(lr)
    for _ in range(epochs):
        yield from descend(model, split.retain)
        yield EpochEnd({"s": s})


register(Method("Gentle", gentle, "relearn", "a temporary module", short="G"))
'''
    (tmp_path / "a_new_method.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(methods.METHODS)
    importlib.import_module("a_new_method")
    yield "Gentle"
    sys.modules.pop("a_new_method")
    methods.METHODS.clear()
    methods.METHODS.update(before)


def test_a_newly_registered_method_is_in_tables_settings_and_rows(registered):
    """Two places, its function and its record, are enough."""
    e = experiment("random")
    run = e.unlearn(registered, lr=2e-3)
    results = tidy([e], [run])
    assert float(table(results, "random")["retain %"]["Gentle"]) == pytest.approx(
        results[(results.method == "Gentle") & (results.metric == "accuracy")].value.iloc[0], abs=0.06
    )
    assert gap_points(results).set_index("method").group["Gentle"] == "relearn"
    settings = effective_settings([e], [run]).loc["random", "Gentle"]
    assert settings.to_dict() == {"settings": "epochs 1, lr 0.002, s 0.4", "origin": "set in the call"}
    row = run_rows([e], [run]).set_index("method").loc["Gentle"]
    assert json.loads(row.settings) == {"epochs": 1, "lr": 0.002, "s": 0.4} and row.kind == "method"


def test_effective_settings_contain_the_defaults():
    """M5's ascent weight, which no preset sets, is there; so is where the settings come from."""
    e = experiment("random")
    runs = [e.unlearn(name) for name in ("M1 Retain FT", "M5 Per batch")]
    shown = effective_settings([e], runs)
    assert "s 0.4" in shown.settings["random", "M5 Per batch"].split(", ")
    for run in runs:
        assert shown.settings["random", run.name].count(", ") == len(run.settings) - 1
    assert (shown.origin == [run.settings_origin for run in runs]).all() and (shown.origin != "").all()


def test_two_seeds_leave_rows_that_can_be_distinguished():
    """Of the same method: other runs, each under its seed, in the tidy table, in rows of runs and in settings."""
    suite = [experiment(), experiment(seed=1)]
    runs = [e.unlearn("Gradient ascent") for e in suite]
    results, rows = tidy(suite, runs), run_rows(suite, runs)
    assert not results.duplicated(["seed", "method", "epoch", "set", "metric"]).any()
    assert results.groupby("run").seed.nunique().eq(1).all() and set(results.seed) == {0, 1}
    assert len(rows) == rows.run.nunique() == 8 and set(rows.run) == set(results.run)
    assert list(effective_settings(suite, runs).index) == [("class", s, "Gradient ascent") for s in (0, 1)]
    shown = table(results, "class")["retain %"]["Gradient ascent"]
    values = results[(results.method == "Gradient ascent") & (results.metric == "accuracy") & (results.set == "retain")]
    assert shown.startswith(f"{values.value.mean():.1f} ± ") or values.value.nunique() == 1


def test_rows_of_runs_are_complete_and_stable():
    """The schema; the same bytes from a second experiment that finds the runs; no blank where there is a value."""
    first = experiment()
    runs = [first.unlearn("Gradient ascent", lr=2e-3)]
    rows = run_rows([first], runs)
    assert list(rows.columns) == RUN_COLUMNS
    again = experiment()
    assert run_rows([again], [again.unlearn("Gradient ascent", lr=2e-3)]).to_csv() == rows.to_csv()
    assert run_rows([first], runs * 2).to_csv() == rows.to_csv()
    row = rows.set_index("method").loc["Gradient ascent"]
    assert (row.data, row.preset, row.start, row.scenario, row.seed) == ("clean-digits", "smoke", "fresh", "class", 0)
    assert row.identity == first.data.identity and row.images == runs[0].cost["images"]
    assert json.loads(row.settings)["lr"] == 2e-3 and row.settings_origin == "set in the call"
    assert (rows[["device", "threads", "precision", "torch", "torchvision", "timm", "python"]] != "").all(axis=None)


def test_settings_for_other_data_are_marked(monkeypatch):
    """Where the preset has them for other data; not for these data, nor where the call sets them."""
    preset = PRESETS["smoke"]["class"]
    other = {
        **preset,
        "methods": {"Gradient ascent": {"epochs": 1}},
        "written_for": {"methods": "cifar10", "published": "cifar10"},
    }

    def marked(**settings):
        e = experiment()
        results = tidy([e], [e.unlearn("Gradient ascent", **settings)])
        return list(results[results.metric == OTHER_DATA].method)

    monkeypatch.setitem(
        PRESETS["smoke"], "class", {**other, "written_for": {"methods": "clean-digits", "published": "cifar10"}}
    )
    assert marked() == []
    monkeypatch.setitem(PRESETS["smoke"], "class", other)
    assert marked() == ["Gradient ascent"] and marked(lr=2e-3) == []


def test_printed_numbers_are_below_ours_for_the_documents_data_only():
    """Document B's numbers as printed, in their columns, with the data CIFAR-10; no such row with other data."""
    e = experiment()
    results = tidy([e], [e.unlearn("Gradient ascent")])
    printed = table(results, "class", "cifar10")
    row = printed.loc["Gradient ascent, published"]
    assert (row["forget %"], row["test retain %"], row["JSD to Gold"], row["kit MIA"]) == ("0.0", "11.1", "0.556", "")
    assert list(printed.index)[-2:] == ["Gradient ascent", "Gradient ascent, published"]
    assert list(table(results, "class", "clean-digits").index) == ["Original", "Gold", "Gold 2", "Gradient ascent"]


# --- from hand-made tables ----------------------------------------------------------------------------------------

KINDS = {"Original": "original", "Gold": "gold", "Gold 2": "gold"}


def rows_of(method, seed, values, metric):
    """Rows of the random scenario, `{set: value}`."""
    kind = KINDS.get(method, "method")
    return [
        (f"{method}-{seed}", "random", seed, kind, method, 1, name, metric, value) for name, value in values.items()
    ]


def with_gaps(gaps):
    """A tidy table with these gaps to Gold, `{method: [value of each seed]}`, accuracies and a cost of 10 %."""
    rows = []
    for method, by_seed in gaps.items():
        for seed, value in enumerate(by_seed):
            sets = dict.fromkeys(("retain", "forget", "test"), value)
            rows += rows_of(method, seed, {**sets, "validation": 99.0}, "gap to Gold")
            rows += rows_of(method, seed, {name: 90 - value for name in sets}, "accuracy")
            rows += rows_of(method, seed, {"": 10.0}, "images, % of retraining")
    return pd.DataFrame(rows, columns=COLUMNS)


def test_gap_points_have_students_interval():
    """Three seeds 1, 2, 3: mean 2, half-width t(.975, 2) / sqrt(3) = 4.3027 / 1.7321; validation does not count."""
    points = gap_points(with_gaps({"Gold 2": [1, 2, 3], "A": [5, 5, 5]})).set_index("method")
    assert points.gap["Gold 2"] == pytest.approx(2) and points.kind["Gold 2"] == "gold"
    assert points.high["Gold 2"] == pytest.approx(2 + 4.30265 / np.sqrt(3), abs=1e-4)
    assert points.low["A"] == points.high["A"] == pytest.approx(5)
    assert points.cost["A"] == 10


def test_every_method_has_a_group():
    """The idea of its record; "own" for a method that is not in the registry, so that it keeps its point."""
    points = gap_points(with_gaps({"Original": [4], "SalUn": [1], "Mine": [2]})).set_index("method")
    assert points.group.to_dict() == {"Original": "", "SalUn": "relabel", "Mine": "own"}


def test_tables_begin_with_the_gap_and_have_students_interval():
    """Seeds 1, 2, 3: mean 2, half-width t(.975, 2) / sqrt(3) = 2.48; one seed has no interval."""
    shown = table(with_gaps({"Original": [40] * 3, "Gold": [0] * 3, "A": [1, 2, 3]}), "random")
    assert list(shown.columns[:3]) == ["gap to Gold", "retain %", "forget %"]
    assert shown["gap to Gold"]["A"] == "2.00 ± 2.48" and shown["retain %"]["A"] == "88.0 ± 2.5"
    one = table(with_gaps({"Original": [40], "Gold": [0], "A": [1]}), "random")
    assert (one["gap to Gold"]["A"], one["retain %"]["A"]) == ("1.00", "89.0")


def test_what_diverged_at_one_seed_has_no_mean():
    """The mean over the other seeds would look too good."""
    results = with_gaps({"Original": [9, 9], "A": [1], "B": [5, 5]})
    away = pd.DataFrame([("A-1", "random", 1, "method", "A", 0, "", "diverged", 1.0)], columns=COLUMNS)
    results = pd.concat([results, away])
    assert table(results, "random").loc["A"].tolist()[:2] == ["diverged", ""]
    assert set(gap_points(results).method) == {"Original", "B"}


def accuracies_of(shift):
    """A tidy table with document A's printed accuracies of M1 and H1, each plus `shift[method]`."""
    rows = []
    for method, by in shift.items():
        rows += rows_of(method, 0, {n: v + by for n, v in PUBLISHED["random"][method].items()}, "accuracy")
    return pd.DataFrame(rows, columns=COLUMNS)


def test_a_documents_numbers_stand_beside_fresh_and_chained_ones():
    """Distances by hand: M1 is 1 point off fresh and 2 in a chain, H1 30 and 6; a model without a chain is left out."""
    fresh, chain = (
        accuracies_of({"M1 Retain FT": -1, "H1 Linear": 30, "M3 Reversal": 5}),
        accuracies_of({"M1 Retain FT": 2, "H1 Linear": -6}),
    )
    table = beside_published({"fresh": fresh, "chain": chain}, "random")
    assert list(table.columns[:3]) == [("retain", "fresh"), ("retain", "chain"), ("retain", "published")]
    assert table.loc["H1 Linear", "forget"].tolist() == pytest.approx([67.22, 31.22, 37.22])
    assert np.isnan(table.loc["M3 Reversal", ("forget", "chain")]) and list(table.index) == list(PUBLISHED["random"])
    apart = distances_to_published(table)
    assert list(apart.index) == ["M1 Retain FT", "H1 Linear"]
    assert apart.fresh.tolist() == pytest.approx([1, 30]) and apart.chain.tolist() == pytest.approx([2, 6])
    lines = published_lines(table)
    assert "15.5 points from the printed accuracies of 2 models; farthest is H1 Linear with 30.0" in lines[0]
    assert lines[2].endswith("1 of 2 are nearer to the printed row: H1 Linear.")
    assert len(published_lines(beside_published({"fresh": fresh}, "random"))) == 1
    assert published_lines(beside_published({"fresh": accuracies_of({})}, "random")) == [
        "- No model here has a printed number."
    ]


def test_the_verdict_is_computed():
    """Nearest, less than the floor from it, within the floor, hardly nearer than Original: each from the numbers."""
    gaps = {"Original": [4], "Gold": [0], "Gold 2": [1], "A": [0.5], "B": [6], "C": [3.2], "D": [1.4]}
    [line] = verdict_lines(with_gaps(gaps))
    assert "**A** is nearest to Gold, with a mean gap of 0.50 points at 10.0 %" in line
    assert "Less than the floor from it: **D**. The floor is 1.00 points; within it: **A**." in line
    assert line.endswith("2 of 4 methods are nearer to Gold than Original by more than the floor.")
    del gaps["Gold 2"]
    [line] = verdict_lines(with_gaps(gaps))
    assert "floor" not in line and line.endswith("3 of 4 methods are nearer to Gold than Original.")


def test_the_verdict_names_the_nearest_predictions():
    """A is nearest by accuracy, but its predictions are farther from Gold's than Original's; B's are nearest."""
    results = with_gaps({"Original": [4], "Gold": [0], "Gold 2": [1], "A": [0.5], "B": [6]})
    distances = {"Original": 0.3, "Gold": 0.0, "Gold 2": 0.15, "A": 0.4, "B": 0.2}
    first = results.drop_duplicates("method").assign(set="forget", metric="JSD to Gold")
    _, line = verdict_lines(pd.concat([results, first.assign(value=first.method.map(distances))]))
    assert line.endswith("0.200 (Original 0.300, floor 0.150). **A** has 0.400, no less than Original.")
    assert "by JSD: **B** is nearest" in line


def test_each_methods_sentence_is_computed():
    gaps = {"Original": [4], "Gold": [0], "Gold 2": [1], "A": [0.5], "B": [6], "C": [2.5]}
    lines = [line for line in run_lines(with_gaps(gaps)) if "mean gap" in line]
    assert [line.split("): ")[1].split(".")[0] for line in lines] == [
        "within the floor",
        "not nearer by more than the floor",
        "nearer",
    ]
    assert "mean gap to Gold 6.00 points (Original 4.00, floor 1.00)" in lines[1]
    assert "Forget accuracy 84.0 %, Gold's 90.0 %; 10.0 % of the images" in lines[1]
