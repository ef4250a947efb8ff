"""Experiments: nothing trained twice, nothing stale trusted, bad parameters refused; helpers.notebook's tables."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import helpers
from helpers import notebook, plots, published, runs
from helpers.budgets import BUDGETS
from helpers.data import load_data
from helpers.experiment import Experiment, head
from helpers.literature import ABLATIONS, LITERATURE
from helpers.methods import DOCUMENTS
from helpers.metrics import predict
from helpers.models import build_model

PARAMETERS = {
    "data": "digits",
    "budget": "smoke",
    "scenarios": ["class"],
    "seed": 0,
    "forget_class": None,
    "forget_fraction": 0.1,
    "start": "fresh",
}


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty `runs/` of the test's own."""
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("UNLEARNING_PROGRESS", str(tmp_path / "progress"))
    return tmp_path / "runs"


@pytest.fixture
def no_training(monkeypatch):
    """A call that forbids training from then on."""

    def forbid():
        for name in ("train", "unlearn"):
            monkeypatch.setattr(f"helpers.experiment.{name}", lambda *a, **k: pytest.fail("trained again"))

    return forbid


def experiment(**changes):
    return Experiment(load_data("digits"), "class", "smoke", **changes)


def test_nothing_is_trained_twice(store, no_training):
    """A second experiment finds Original, the Golds and the unlearned model, bit for bit."""
    first = experiment()
    models = [first.original, *first.golds, first.unlearned("Gradient ascent")]
    no_training()
    second = experiment()
    again = [second.original, *second.golds, second.unlearned("Gradient ascent")]
    for one, other in zip(models, again):
        assert all(
            torch.equal(a, b) for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values())
        )
        assert one.cost == other.cost and one.history == other.history
        assert all(torch.equal(one.logits[name], other.logits[name]) for name in one.logits)


def test_a_changed_setting_is_trained_anew(store):
    """Another seed, another forgotten class and another learning rate each give a model of their own."""
    runs_made = [
        experiment().original,
        experiment(seed=1).original,
        experiment(forget_class=3).original,
        experiment().unlearned("Gradient ascent"),
        experiment().unlearned("Gradient ascent", lr=0.5),
    ]
    assert len({json.dumps(run.settings) for run in runs_made}) == 5
    assert len(list((store / "models").rglob("*.outputs.json"))) == 5


def test_a_damaged_model_is_noticed_and_made_again(store, capsys):
    """One flipped bit in the weights: said in a line that names the file, trained again to the same weights."""
    before = experiment().original.model.state_dict()
    [file] = [f for f in (store / "models").rglob("original*.safetensors") if "outputs" not in f.name]
    damaged = bytearray(file.read_bytes())
    damaged[-5] ^= 1
    file.write_bytes(damaged)
    after = experiment().original.model.state_dict()
    assert "does not match its checksum: making it again" in capsys.readouterr().out
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_gold_shares_the_initial_weights_but_no_image_with_the_forget_set(store, monkeypatch):
    """Original and Gold start from the same weights, Gold 2 from others; Golds train on the retained images only."""
    starts, indices = [], []

    def spy(model, batches, **settings):
        starts.append(model.state_dict()["blocks.0.attn.qkv.weight"].clone())
        indices.append(batches.index)
        return [{"epoch": 1, "loss": 0.0, "seconds": 1.0, "steps": 1, "images": 1}]

    monkeypatch.setattr("helpers.experiment.train", spy)
    e = experiment()
    _ = e.original, e.golds
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    forgotten = set(e.split.forget.index.tolist())
    assert forgotten <= set(indices[0].tolist())
    assert all(forgotten.isdisjoint(index.tolist()) for index in indices[1:])


def test_the_kits_checkpoint_is_original_on_the_official_data_only(store, tmp_path, monkeypatch):
    """With a checkpoint in the budget Original is that file's weights, at no cost; other data train their own."""
    kit = build_model(seed=9).state_dict()
    torch.save(kit, tmp_path / "kit.pth")
    table = {**BUDGETS["smoke"]["random"], "original": str(tmp_path / "kit.pth")}
    monkeypatch.setitem(BUDGETS, "smoke", {"random": table})
    digits = load_data("digits")
    official = Experiment(replace(digits, title="CIFAR-10 (official)"), "random", "smoke").original
    own = Experiment(digits, "random", "smoke").original
    assert all(torch.equal(value, kit[name]) for name, value in official.model.state_dict().items())
    assert official.cost == {"seconds": 0.0, "steps": 0, "images": 0} and own.cost["steps"] > 0


@pytest.mark.parametrize(
    ("table", "title", "expected"),
    [
        ({"model": {"name": "vit", "weights": "imagenet"}}, "digits", ["imagenet"]),
        ({"model": {"name": "resnet18"}, "original": "kit"}, "CIFAR-10 (official)", ["kit"]),
        ({"model": {"name": "resnet18"}, "original": "kit"}, "digits", []),
        ({"model": {"name": "resnet18"}}, "CIFAR-10 (official)", []),
    ],
)
def test_what_is_fetched_is_what_original_and_gold_start_from(store, monkeypatch, table, title, expected):
    asked = []
    monkeypatch.setitem(BUDGETS, "smoke", {"random": {**BUDGETS["smoke"]["random"], **table}})
    monkeypatch.setattr(Experiment, "build", lambda self, weights: asked.append(weights))
    Experiment(replace(load_data("digits"), title=title), "random", "smoke").fetch()
    assert asked == expected


def test_a_chain_continues_on_the_model_before(store):
    """`start="chain"`: the second method starts from what the first left, `fresh` from Original."""
    chain, fresh = (Experiment(load_data("digits"), "random", "smoke", start=start) for start in ("chain", "fresh"))
    first, second = chain.methods[:2]
    assert chain.unlearned(second).settings["start"]["method"] == DOCUMENTS[first][0].__name__
    assert fresh.unlearned(second).settings["start"]["role"] == "original"
    one, other = chain.unlearned(second).model.state_dict(), fresh.unlearned(second).model.state_dict()
    assert not torch.equal(one["fc.weight"], other["fc.weight"])
    own = chain.unlearned("Gentle", lambda model, split: iter(()))
    assert own.settings["start"]["role"] == "original"


def test_the_class_scenario_knows_no_chain(store):
    chain = experiment(start="chain")
    assert chain.unlearned(chain.methods[1]).settings["start"]["role"] == "original"


def test_a_chain_passes_over_what_diverged(store, monkeypatch):
    """The method after one that diverged starts where that one did."""
    monkeypatch.setitem(BUDGETS["smoke"]["random"]["methods"], "Gradient ascent", {"epochs": 1, "lr": 1e30})
    chain = Experiment(load_data("digits"), "random", "smoke", start="chain")
    order = chain.methods
    after = order[order.index("Gradient ascent") + 1]
    monkeypatch.setattr(Experiment, "methods", ["Gradient ascent", after])
    assert chain.unlearned("Gradient ascent").diverged
    assert chain.unlearned(after).settings["start"]["role"] == "original"


def test_a_method_of_ones_own_is_kept_by_its_source(store, no_training):
    """A function handed in under a name joins the table and is not run again."""

    def nothing(model, split):
        """Yield nothing: Original stays."""
        return iter(())

    e = experiment()
    table = e.table([e.unlearned("Nothing", nothing)])
    final = table[table.metric == "accuracy"].pivot(index="set", columns="method", values="value")
    assert (final["Nothing"] == final["Original"]).all()
    no_training()
    experiment().unlearned("Nothing", nothing)


def test_a_method_that_diverges_is_a_row_that_says_so(store, no_training, monkeypatch):
    """It is kept as diverged, not run again, and neither table nor sentence nor chain stumbles over it."""

    def explode(model, split):
        """One step down an infinite loss."""
        yield model.head.bias.sum() * float("inf")

    e = experiment()
    results = e.table([e.unlearned("Explode", explode), "Gradient ascent"])
    no_training()
    again = experiment().unlearned("Explode", explode)
    assert again.diverged == "explode diverged in epoch 1: the loss is inf" and again.logits == {}
    assert results[results.method == "Explode"].metric.tolist() == ["diverged"]
    assert notebook.table(results, "class").loc["Explode"].tolist()[:2] == ["diverged", ""]
    notebook.findings(results)
    assert "Explode" not in set(notebook.gap_points(results).method)
    nobody = results[results.method != "Gradient ascent"]  # figures and sentences do without a method, too
    points = notebook.gap_points(nobody)
    for figure, said in ((plots.curves(nobody), "no curve"), (plots.gap_against_cost(points), "no point")):
        assert said in figure.axes[0].texts[0].get_text()
    said = []
    monkeypatch.setattr(notebook, "display", lambda markdown: said.append(markdown.data))
    notebook.verdict(points)
    assert said == ["- class: every method diverged."]


def test_finite_weights_whose_predictions_are_not_count_as_diverged(store):
    """A row that says so, from a table and from what lies under `runs/`."""
    e = experiment()
    run = e.unlearned("Gradient ascent", epochs=1, lr=1e12)
    assert run.diverged == "Gradient ascent diverged: its predictions are not finite"
    assert e.table([run]).query("method == 'Gradient ascent'").metric.tolist() == ["diverged"]
    assert e.unlearned("Gradient ascent", epochs=1, lr=1e12).diverged


@pytest.mark.parametrize("name", ["Original", "Gold", "Gold 2", "mine v. theirs"])
def test_names_of_what_methods_are_compared_with_are_taken(store, name):
    with pytest.raises(ValueError, match=f"a method cannot be called '{name}'"):
        experiment().unlearned(name, lambda model, split: iter(()))


def test_own_methods_are_those_of_this_original(store):
    """What started from another seed's Original does not count as there."""

    def nothing(model, split):
        return iter(())

    for seed in (0, 1):
        _ = experiment(seed=seed).original, experiment(seed=seed).golds
    experiment().unlearned("Nothing", nothing)
    assert "Nothing" in [run.name for run in experiment().there()]
    assert "Nothing" not in [run.name for run in experiment(seed=1).there()]


def test_the_table_is_tidy_and_costs_are_shares_of_gold(store):
    """Columns as documented; Gold costs 100 % of retraining and lies at no distance from itself."""
    e = experiment()
    table = e.table(["Gradient ascent"])
    assert list(table.columns) == ["scenario", "seed", "method", "epoch", "set", "metric", "value"]
    gold = table[table.method == "Gold"]
    assert (gold[gold.metric.str.endswith("% of retraining")].value == 100).all()
    assert (gold[gold.metric == "gap to Gold"].value == 0).all()
    images = table[(table.method == "Gradient ascent") & (table.metric == "images")].value.item()
    assert images == 2 * len(e.split.forget.index)


def test_the_tracked_images_are_part_of_their_set(store, monkeypatch):
    """Tracking looks at as many images of each set as the budget says."""
    e, looked_at = experiment(), []

    def look(model, batches):
        looked_at.append(batches.index)
        return predict(model, batches)

    monkeypatch.setattr("helpers.experiment.predict", look)
    tracked = e.track(e.build())["tracked"]
    assert list(tracked) == ["train retain", "train forget", "test retain"]
    for name, index in zip(tracked, looked_at, strict=True):
        whole = e.split.sets[name].index
        assert len(index) == min(30, len(whole)) and set(index.tolist()) <= set(whole.tolist())


def test_seeds_there(store, monkeypatch):
    """Beside its own, those of which all lies there: not one that was cut short, nor that of another class."""
    monkeypatch.setitem(BUDGETS["smoke"], "class", {**BUDGETS["smoke"]["class"], "methods": {"Gradient ascent": {}}})
    for seed in (0, 3):
        experiment(seed=seed).table()
    _ = experiment(seed=2).original
    experiment(seed=7, forget_class=5).table()
    assert experiment().seeds_there() == [0, 3] and experiment(seed=2).seeds_there() == [0, 2, 3]
    next((store / "models").rglob("gradient-ascent-seed3-*.json")).unlink()
    assert experiment().seeds_there() == [0] and experiment(seed=3).seeds_there() == [0, 3]


def test_another_seed_has_models_of_its_own_on_the_same_split(store):
    first = experiment()
    _ = first.original, first.golds
    other = first.with_seed(1)
    assert other.split is first.split and other.settings("Gradient ascent") == first.settings("Gradient ascent")
    assert other.original.settings == experiment(seed=1).original.settings != first.original.settings
    assert other.golds[0].settings["seed"] == 1 and first.with_seed(0) is first


@pytest.mark.parametrize(
    ("scenario", "changes", "message"),
    [
        ("random", {"budget": "quik"}, "budget = 'quik': one of quick, short, .*did you mean 'quick'"),
        ("clas", {}, "scenario = 'clas': one of random, class"),
        ("random", {"start": "chained"}, "start = 'chained': one of fresh, chain"),
        ("class", {"forget_index": torch.tensor([1, 2])}, "forget_index = a list: only the scenario random takes one"),
    ],
)
def test_an_experiment_refuses_what_it_does_not_know(scenario, changes, message):
    with pytest.raises(ValueError, match=message):
        Experiment(load_data("digits"), scenario, **changes)


def test_head_cuts_and_renames():
    """A cut collection has another identity, so its models are others."""
    data = load_data("digits")
    cut = head(data, 50)
    assert len(cut.train_y) == len(cut.test_y) == 50 and cut.identity != data.identity
    for part in ("train", "test"):
        whole, some = (
            [(x.numpy().tobytes(), int(y)) for x, y in zip(getattr(d, f"{part}_x"), getattr(d, f"{part}_y"))]
            for d in (data, cut)
        )
        assert set(some) <= set(whole) and some != whole[:50]


def test_unlearning_has_a_seed_of_its_own(store):
    """Another seed, another model, from the same Original; without one it is the experiment's."""
    e = experiment()
    left = [e.unlearned("Gradient ascent", seed=seed) for seed in (None, 0, 1)]
    weights = [torch.cat([p.flatten() for p in run.model.parameters()]) for run in left]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert all(run.settings["start"] == e.original.settings for run in left)
    assert [run.settings.get("unlearning seed") for run in left] == [None, 0, 1]


def test_every_budget_names_known_methods_and_scenarios():
    """Each table has both scenarios, at least two Golds, and all thirteen methods of the documents between them."""
    for table in BUDGETS.values():
        assert set(table) == {"random", "class"}
        assert all(part["golds"] >= 2 and set(part["methods"]) <= set(DOCUMENTS) for part in table.values())
        assert set(DOCUMENTS) == set(table["random"]["methods"]) | set(table["class"]["methods"])
        assert all(set(part.get("literature", {})) <= {*LITERATURE, *ABLATIONS} for part in table.values())
    assert set(LITERATURE) == set(BUDGETS["quick"]["random"]["literature"]) | set(
        BUDGETS["quick"]["class"]["literature"]
    )
    assert len(DOCUMENTS) == 14
    assert set(published.RANDOM) <= set(DOCUMENTS) and set(published.CLASS) - {"Original", "Gold"} <= set(DOCUMENTS)


def test_published_is_the_documents_training():
    """Document A's common settings and document B's; the methods' own are their defaults (see test_methods)."""
    a, b = BUDGETS["published"]["random"], BUDGETS["published"]["class"]
    assert a["model"] == {"name": "resnet18"} and a["original"] == "kit"
    assert a["batches"] == {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010), "image_size": 32}
    assert a["training"] == {
        "epochs": 200, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4, "schedule": "cosine"
    }  # fmt: skip
    assert a["unlearning"] == {"batch_size": 128} and not any(a["methods"].values())
    vit = {"name": "vit_tiny_patch16_224", "image_size": 224, "patch_size": 16, "weights": "imagenet"}
    assert b["model"] == vit and b["batches"] == {"image_size": 224}
    assert b["training"] == {"epochs": 3, "batch_size": 64, "lr": 1e-4, "augment": False}
    assert b["unlearning"] == {"batch_size": 64}
    for name in ("Fine-tuning", "Gradient ascent", "2-Stage", "2-Stage full"):
        assert b["methods"][name] == {}
    for part in (a, b):
        assert part["evaluation"] == {"final": None, "tracked": None}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("budget", "quik", "did you mean 'quick'"),
        ("budget", 3, "one of quick, short, audit, published"),
        ("budget", ["quick"], "one of quick, short, audit, published"),
        ("start", "chained", "did you mean 'chain'"),
        ("scenarios", ["clas"], "did you mean 'class'"),
        ("scenarios", [], "a list of random and class"),
        ("scenarios", 1, "a list of random and class"),
        ("seed", True, "seed = True: a whole number"),
        ("seed", -1, "seed = -1: a whole number"),
        ("seed", 1.5, "seed = 1.5: a whole number"),
        ("seed", "x", "seed = 'x': a whole number"),
        ("forget_fraction", float("nan"), "forget_fraction = nan: a number"),
        ("forget_fraction", "much", "forget_fraction = 'much': a number"),
        ("forget_fraction", 1.0, "must lie between 0 and 1"),
        ("forget_class", "zebra", "'zebra' is unknown"),
        ("data", 5, "data = 5: digits, cifar10 or the path"),
        ("data", "nowhere", "data 'nowhere' is unknown"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(name, value, message):
    """The line names the value and what is valid."""
    parameters = {**PARAMETERS, "scenarios": ["random", "class"], name: value}
    with pytest.raises(ValueError, match=message) as caught:
        notebook.open_suite(**parameters)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_spelt_out_are_taken():
    """YAML gives `1e-1` as a string; it is the number that it spells."""
    assert notebook.number("forget_fraction", "1e-1", float) == 0.1
    assert notebook.number("seed", "2", int) == 2


def toy_results(gaps):
    """A tidy table with these gaps to Gold, `{method: [value of each seed]}`, and a cost of 10 %."""
    rows = []
    for method, values in gaps.items():
        for seed, value in enumerate(values):
            rows += [("random", seed, method, 1, name, "gap to Gold", value) for name in ("retain", "forget", "test")]
            rows.append(("random", seed, method, 1, "validation", "gap to Gold", 99.0))
            rows.append(("random", seed, method, 1, "", "images, % of retraining", 10.0))
    return pd.DataFrame(rows, columns=["scenario", "seed", "method", "epoch", "set", "metric", "value"])


def test_gap_points_have_students_interval():
    """Three seeds 1, 2, 3: mean 2, half-width t(.975, 2) / sqrt(3) = 4.3027 / 1.7321; validation does not count."""
    points = notebook.gap_points(toy_results({"Gold 2": [1, 2, 3], "A": [5, 5, 5]})).set_index("method")
    assert points.gap["Gold 2"] == pytest.approx(2)
    assert points.high["Gold 2"] == pytest.approx(2 + 4.30265 / np.sqrt(3), abs=1e-4)
    assert points.low["A"] == points.high["A"] == pytest.approx(5)
    assert points.cost["A"] == 10


def test_the_verdict_is_computed(capsys, monkeypatch):
    """Nearest, within the floor, hardly nearer than Original: each from the numbers."""
    said = []
    monkeypatch.setattr(notebook, "display", lambda markdown: said.append(markdown.data))
    notebook.verdict(
        notebook.gap_points(toy_results({"Original": [4], "Gold 2": [1], "A": [0.5], "B": [6], "C": [3.2]}))
    )
    assert "nearest to Gold is **A** with a mean gap of 0.50" in said[0]
    assert "The floor is 1.00 points; within it: **A**." in said[0]
    assert "2 of 3 methods end no nearer to Gold than Original was, or nearer by less than the floor" in said[0]


def accuracies(values):
    """A tidy table of the random scenario with these accuracies on all sets, `{method: [value of each seed]}`."""
    rows = [
        ("random", seed, method, 1, name, "accuracy", value)
        for method, by_seed in values.items()
        for seed, value in enumerate(by_seed)
        for name in ("retain", "forget", "test")
    ]
    rows += [("random", seed, method, 1, "", "images, % of retraining", 10.0) for _, seed, method, *_ in rows]
    return pd.DataFrame(rows, columns=["scenario", "seed", "method", "epoch", "set", "metric", "value"])


def test_tables_have_students_interval():
    """Seeds 1, 2, 3: mean 2, half-width t(.975, 2) / sqrt(3) = 2.48."""
    table = notebook.table(accuracies({"A": [1, 2, 3]}), "random")
    assert table["retain %"]["A"] == "2.0 ± 2.5"


def test_what_diverged_at_one_seed_has_no_mean(monkeypatch):
    """Its row says so; it is in no sentence and no figure."""
    results = accuracies({"Original": [99, 99], "Gold": [90, 90], "A": [91]})
    gaps = toy_results({"Original": [9, 9], "A": [1], "B": [5, 5]})
    away = pd.DataFrame([("random", 1, "A", 0, "", "diverged", 1.0)], columns=results.columns)
    assert notebook.table(pd.concat([results, away]), "random").loc["A"].tolist()[:2] == ["diverged", ""]
    assert set(notebook.gap_points(pd.concat([gaps, away])).method) == {"Original", "B"}


def test_findings_say_on_which_side_of_gold(monkeypatch):
    """Above, below, equal, diverged."""
    said = []
    monkeypatch.setattr(notebook, "display", lambda markdown: said.append(markdown.data))
    results = accuracies({"Original": [99], "Gold": [90], "Goldfish": [93.5], "B": [80], "C": [90.04]})
    away = pd.DataFrame([("random", 0, "D", 0, "", "diverged", 1.0)], columns=results.columns)
    notebook.findings(pd.concat([results, away]))
    above, below, equal, diverged = said[0].splitlines()
    assert "**Goldfish**" in above and "93.5 %, 3.5 points above Gold's 90.0 %" in above
    assert "80.0 %, 10.0 points below Gold's" in below and "equal to Gold's" in equal and "**D**: diverged" in diverged


def test_published_rows_stand_under_ours(store):
    """Document B's printed numbers appear as printed, in their columns."""
    e = experiment()
    table = notebook.table(e.table(["Gradient ascent"]), "class")
    row = table.loc["Gradient ascent, published"]
    assert (row["train forget %"], row["test retain %"], row["JSD to Gold"], row["kit MIA"]) == (
        "0.0",
        "11.1",
        "0.556",
        "",
    )


def test_published_rows_beside_other_data_are_said_to_be_of_cifar10(monkeypatch):
    said = []
    monkeypatch.setattr(notebook, "display", lambda markdown, table: said.append(markdown.data))
    original = SimpleNamespace(machine="a cpu")
    for name in ("digits", "cifar10"):
        data = SimpleNamespace(name=name, title=name)
        e = SimpleNamespace(scenario="random", data=data, budget_name="quick", original=original)
        for method in ("H1 Linear", "SalUn"):
            notebook.tables([e], accuracies({method: [99]}))
    assert [text.endswith("Rows *published* are of CIFAR-10.") for text in said] == [True, False, False, False]


def test_the_public_names():
    """What tests, notebooks and users share."""
    assert set(helpers.__all__) == {
        "IDEAS", "METHODS", "build_model", "evaluate", "load_data", "make_split", "train", "unlearn",
    }  # fmt: skip
    assert all(callable(getattr(helpers, name)) for name in helpers.__all__ if not name.isupper())
