"""Experiments: nothing is trained twice, nothing stale is trusted, bad settings and names are refused."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from toys import equal

from helpers.datasets import load_data, read_forget_list
from helpers.experiment import Experiment, MissingRun
from helpers.metrics import predict
from helpers.models import build_model
from helpers.notebook import open_suite, provenance
from helpers.presets import PRESETS
from helpers.results import run_rows
from helpers.training import EpochEnd

pytestmark = pytest.mark.usefixtures("runs_folder")


@pytest.fixture
def no_training(monkeypatch):
    """A call that forbids training from then on."""

    def forbid():
        for name in ("train", "unlearn"):
            monkeypatch.setattr(f"helpers.experiment.{name}", lambda *a, **k: pytest.fail("trained again"))

    return forbid


@pytest.fixture
def few_methods(monkeypatch):
    """The preset `smoke` with one method in the class scenario."""
    monkeypatch.setitem(PRESETS["smoke"], "class", {**PRESETS["smoke"]["class"], "methods": {"Gradient ascent": {}}})


def experiment(scenario="class", **changes):
    return Experiment(load_data("clean-digits"), scenario, "smoke", **changes)


def nothing(model, split):
    """Yield nothing: Original stays as it is."""
    return iter(())


def models(folder):
    return list((folder / "models").rglob("*.safetensors"))


# --- found again --------------------------------------------------------------------------------------------------


def test_nothing_is_trained_twice(no_training):
    """A second experiment finds Original, the Golds and the unlearned model, bit for bit."""
    first = experiment()
    made = [first.original(), *first.golds(), first.unlearn("Gradient ascent")]
    no_training()
    second = experiment()
    again = [second.original(), *second.golds(), second.unlearn("Gradient ascent")]
    for one, other in zip(made, again):
        assert equal(one.model, other.model) and one.id == other.id
        assert one.cost == other.cost and one.history == other.history
        assert all(torch.equal(one.logits[name], other.logits[name]) for name in one.logits)
        assert list(one.logits) == list(first.scenario.sets)


def test_a_run_that_is_read_again_trains_nothing_and_is_loaded_once(monkeypatch, runs_folder):
    e = experiment()
    first, again = e.unlearn("Gradient ascent"), e.unlearn("Gradient ascent")
    assert first.model is again.model and e.original().model is e.original().model
    for file in models(runs_folder):
        file.unlink()
    assert e.unlearn("Gradient ascent").model is first.model and not models(runs_folder)


def test_each_changed_setting_gives_a_model_of_its_own(runs_folder):
    made = [
        experiment().original(),
        experiment(seed=1).original(),
        experiment(forget_class=3).original(),
        experiment(forget_class=[3, 4]).original(),
        experiment().unlearn("Gradient ascent"),
        experiment().unlearn("Gradient ascent", lr=0.5),
    ]
    assert len({run.id for run in made}) == len(models(runs_folder)) == 6
    assert len({json.dumps(run.made_with) for run in made}) == 6


def test_damaged_weights_are_noticed_and_made_again(runs_folder, capsys):
    """One changed bit in the weights: reported in one line that names the file, trained again to the same weights."""
    before = experiment().original().model
    [file] = models(runs_folder)
    damaged = bytearray(file.read_bytes())
    damaged[-5] ^= 1
    file.write_bytes(damaged)
    after = experiment().original().model
    [line] = capsys.readouterr().out.splitlines()
    assert line == f"{file.stem} has weights that do not match their checksum" and equal(before, after)


def test_weights_that_were_not_kept_are_made_again_when_they_are_needed(monkeypatch, runs_folder):
    """`used` keeps Original, the Golds, the documents' methods and those under audit; `all` keeps every model."""
    everything = {**PRESETS["smoke"]["class"], "keep_weights": "all"}
    with monkeypatch.context() as patch:
        patch.setitem(PRESETS["smoke"], "class", everything)
        kept = experiment().unlearn("SalUn")
    assert PRESETS["smoke"]["class"]["keep_weights"] == "used"
    for file in models(runs_folder):
        if file.name.startswith("salun"):
            file.unlink()
    sizes = [file.stat().st_size for file in models(runs_folder)]
    run = experiment().unlearn("SalUn")
    [file] = [file for file in models(runs_folder) if file.name.startswith("salun")]
    assert file.stat().st_size < min(sizes) / 2
    assert all(torch.equal(run.logits[name], kept.logits[name]) for name in kept.logits)
    with pytest.raises(MissingRun, match="the weights of SalUn"):
        _ = experiment().read_only().unlearn("SalUn").model
    assert equal(run.model, kept.model) and file.stat().st_size > min(sizes) / 2
    assert equal(experiment().read_only().unlearn("SalUn").model, kept.model)


def test_an_interrupted_training_leaves_no_model_and_a_finished_one_no_checkpoint(monkeypatch, runs_folder):
    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("helpers.experiment.train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiment().original()
    assert not models(runs_folder)
    experiment().original()
    assert len(models(runs_folder)) == 1 and not list(runs_folder.rglob("*.partial"))


def test_an_experiment_that_may_only_read_trains_nothing(no_training):
    no_training()
    e = experiment().read_only()
    for verb in (e.original, e.gold, lambda: e.unlearn("Gradient ascent")):
        with pytest.raises(MissingRun):
            verb()
    assert e.finished() == []
    attributes = (e.methods, e.published, e.panel, e.panel_is_forgotten, e.tracked, e.output, e.settings("2-Stage"))
    assert all(value is not None for value in attributes), "no attribute trains"


def test_a_finished_run_is_found_with_its_kind():
    e = experiment()
    e.unlearn("Gradient ascent"), e.golds(), e.unlearn("Nothing", nothing)
    found = {run.name: (run.kind, run.seed, run.scenario) for run in e.finished()}
    kinds = {"Original": "original", "Gold": "gold", "Gold 2": "gold"}
    kinds |= {"Gradient ascent": "method", "Nothing": "method"}
    assert found == {name: (kind, 0, "class") for name, kind in kinds.items()}


def test_own_methods_are_those_of_this_original():
    """What started from another seed's Original is not found."""
    for seed in (0, 1):
        experiment(seed=seed).golds()
        experiment(seed=seed).original()
    experiment().unlearn("Nothing", nothing)
    assert "Nothing" in [run.name for run in experiment().finished()]
    assert "Nothing" not in [run.name for run in experiment(seed=1).finished()]


def test_complete_seeds_have_all_models_of_these_settings(few_methods, runs_folder):
    """Not a seed that was cut short, nor one of another forgotten class."""
    for seed in (0, 3):
        e = experiment(seed=seed)
        e.golds(), e.unlearn("Gradient ascent")
    experiment(seed=2).original()
    other = experiment(seed=7, forget_class=5)
    other.golds(), other.unlearn("Gradient ascent")
    assert experiment().complete_seeds() == [0, 3] and experiment(seed=2).complete_seeds() == [0, 2, 3]
    next((runs_folder / "models").rglob("gradient-ascent-seed3-*")).unlink()
    assert experiment().complete_seeds() == [0] and experiment(seed=3).complete_seeds() == [0, 3]


def test_another_seed_has_models_of_its_own_on_the_same_split():
    first = experiment()
    other = first.with_seed(1)
    assert other.split is first.split and first.with_seed(0) is first
    assert other.original().id == experiment(seed=1).original().id != first.original().id
    assert other.gold().made_with["seed"] == 1


def test_a_derived_experiment_shares_no_run():
    e = experiment()
    e.original()
    other = e.derive(role="shadow", seed=5, golds_from=e)
    assert other.original().kind == "shadow" and other.original().id != e.original().id
    assert other.gold().id == e.gold().id


# --- what a model is trained on -----------------------------------------------------------------------------------


def test_gold_shares_the_initial_weights_but_no_image_with_the_forget_set(monkeypatch):
    """Original and Gold start from the same weights, Gold 2 from others; Golds train on the retained images only."""
    from helpers import experiment as module

    starts, indices, train = [], [], module.train

    def watched(model, batches, **settings):
        starts.append({name: value.clone() for name, value in model.state_dict().items()})
        indices.append(set(batches.index.tolist()))
        return train(model, batches, **settings)

    monkeypatch.setattr(module, "train", watched)
    e = experiment()
    e.original(), e.golds()
    weights = [start["blocks.0.attn.qkv.weight"] for start in starts]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    forgotten = set(e.split.forget.index.tolist())
    assert forgotten <= indices[0] and all(forgotten.isdisjoint(index) for index in indices[1:])


def test_the_kits_checkpoint_is_original_on_the_official_data_only(tmp_path, monkeypatch):
    """With a checkpoint in the preset Original is that file's weights, at no cost; other data train their own."""
    kit = build_model(seed=9)
    torch.save(kit.state_dict(), tmp_path / "kit.pth")
    table = {**PRESETS["smoke"]["random"], "original": str(tmp_path / "kit.pth")}
    monkeypatch.setitem(PRESETS, "smoke", {"random": table})
    digits = load_data("clean-digits")
    official = Experiment(replace(digits, title="CIFAR-10 (official)"), "random", "smoke").original()
    own = Experiment(digits, "random", "smoke").original()
    assert equal(official.model, kit)
    assert official.cost == {"seconds": 0.0, "steps": 0, "images": 0} and own.cost["steps"] > 0


@pytest.mark.parametrize(
    ("table", "title", "expected"),
    [
        ({"model": {"name": "vit", "weights": "imagenet"}}, "clean-digits", ["imagenet"]),
        ({"model": {"name": "resnet18"}, "original": "kit"}, "CIFAR-10 (official)", ["kit"]),
        ({"model": {"name": "resnet18"}, "original": "kit"}, "clean-digits", []),
        ({"model": {"name": "resnet18"}}, "CIFAR-10 (official)", []),
    ],
)
def test_what_is_downloaded_is_what_original_and_gold_start_from(monkeypatch, table, title, expected):
    found = []
    monkeypatch.setitem(PRESETS, "smoke", {"random": {**PRESETS["smoke"]["random"], **table}})
    monkeypatch.setattr(Experiment, "build", lambda self, weights: found.append(weights))
    Experiment(replace(load_data("clean-digits"), title=title), "random", "smoke").fetch()
    assert found == expected


def test_the_tracked_images_are_part_of_their_set(monkeypatch):
    """Each tracked set is measured on as many images as the preset has, the same ones after every epoch."""
    e = experiment()
    tracked = e.track(e.build())["tracked"]
    assert tuple(tracked) == e.scenario.tracked
    for name, batches in e.tracked.items():
        whole = e.split.sets[name]
        assert len(batches.index) == min(30, len(whole.index))
        assert set(batches.index.tolist()) <= set(whole.index.tolist())
        assert torch.equal(batches.index, e.tracked[name].index)
    history = e.original().history
    assert [entry["epoch"] for entry in history] == [0, 1] and history[0]["tracked"] == tracked
    logits, _ = predict(e.original().model, e.tracked["retain"])
    right = (logits.argmax(1) == e.tracked["retain"].y).double().mean().item()
    assert history[-1]["tracked"]["retain"] == pytest.approx(100 * right)


def test_unlearning_has_a_seed_of_its_own():
    """Another seed gives another model from the same Original; by default it is the experiment's."""
    e = experiment()
    default, same, other = (e.unlearn("Gradient ascent", unlearning_seed=seed) for seed in (None, 0, 1))
    assert equal(default.model, same.model) and not equal(default.model, other.model)
    assert {run.made_with["start"] for run in (default, same, other)} == {e.original().id}


# --- where a method starts ----------------------------------------------------------------------------------------


def test_a_chain_continues_on_the_model_before():
    """`start="chain"`: the second method starts from what the first left, `fresh` from Original."""
    chain, fresh = (experiment("random", start=start) for start in ("chain", "fresh"))
    first, second = chain.methods[:2]
    assert chain.unlearn(second).made_with["start"] == chain.unlearn(first).id
    assert fresh.unlearn(second).made_with["start"] == fresh.original().id
    assert not equal(chain.unlearn(second).model, fresh.unlearn(second).model)
    assert chain.unlearn("Nothing", nothing).made_with["start"] == chain.original().id
    assert chain.cost(chain.unlearn(first)) == chain.unlearn(first).cost
    both = chain.unlearn(first).cost["images"] + chain.unlearn(second).cost["images"]
    assert chain.cost(chain.unlearn(second))["images"] == both > fresh.cost(fresh.unlearn(second))["images"]
    assert run_rows([chain], [chain.unlearn(second)]).set_index("method").images[second] == both


def test_a_chain_stands_in_the_line_of_origin():
    fresh, chain = (provenance([experiment("random", start=start)]) for start in ("fresh", "chain"))
    assert chain == f"{fresh} · chain" and fresh.endswith("smoke · seed 0 · random scenario")


def test_tables_look_the_same_wherever_pandas_was_imported():
    """Outside a kernel pandas would print as many columns as a terminal is wide."""
    with pd.option_context("display.max_columns", 0):
        open_suite({"preset": "smoke", "scenarios": ["random"]}, show=False)
        wide = pd.DataFrame([[1.25] * 15], columns=[f"column {n}" for n in range(15)])
        assert all(name in repr(wide) for name in wide) and "..." not in repr(wide)


def test_the_class_scenario_has_no_chain():
    chain = experiment(start="chain")
    assert chain.unlearn(chain.methods[1]).made_with["start"] == chain.original().id


def test_a_chain_skips_what_diverged(monkeypatch):
    """The method after one that diverged starts where that one did."""
    table = {"Gradient ascent": {"epochs": 1, "lr": 1e30}, "M1 Retain FT": {"epochs": 1, "lr": 0.01}}
    monkeypatch.setitem(PRESETS["smoke"], "random", {**PRESETS["smoke"]["random"], "methods": table})
    chain = experiment("random", start="chain")
    assert chain.unlearn("Gradient ascent").diverged
    assert chain.unlearn("M1 Retain FT").made_with["start"] == chain.original().id


# --- methods and their settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"epochs": -1}, "epochs must be a whole number of at least 1, not -1"),
        ({"epochs": "5"}, "epochs must be a whole number"),
        ({"epochs": 2.5}, "epochs must be a whole number"),
        ({"lr": float("nan")}, "lr must be a number above 0, not nan"),
        ({"rate": 0.1}, "'rate' is unknown"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_trained(runs_folder, settings, message, no_training):
    no_training()
    with pytest.raises(ValueError, match=message):
        experiment().unlearn("Gradient ascent", **settings)
    assert not models(runs_folder)


@pytest.mark.parametrize("name", ["Original", "Gold", "Gold 2", "mine v. theirs"])
def test_reserved_names_are_refused(name):
    with pytest.raises(ValueError, match=f"a method cannot be called '{name}'"):
        experiment().unlearn(name, nothing)


def test_an_unknown_method_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'Gradient ascend' is unknown.*did you mean Gradient ascent"):
        experiment().unlearn("Gradient ascend")


def test_a_methods_batch_size_is_not_the_experiments():
    """2-Stage full has a setting `batch_size`, of its steps on retained images."""
    e = experiment()
    default, other = e.unlearn("2-Stage full"), e.unlearn("2-Stage full", batch_size=40)
    assert default.settings["batch_size"] == 256 and other.settings["batch_size"] == 40
    assert other.cost["steps"] > default.cost["steps"]


def test_settings_are_complete_and_have_an_origin():
    e = experiment()
    own = PRESETS["smoke"]["class"]["methods"]["2-Stage"]
    assert e.settings("2-Stage").items() > own.items() and "tau" in e.settings("2-Stage")
    run = e.unlearn("2-Stage")
    assert run.settings == e.settings("2-Stage") and run.settings_origin == "preset smoke, chosen for noisy-digits"
    assert e.unlearn("2-Stage", lr=0.001).settings_origin == "set in the call"
    assert e.settings_origin("NegGrad+") == "preset smoke, chosen for noisy-digits"
    assert e.settings_origin("Bad Teacher") == "defaults (Chundawat et al., AAAI 2023)"
    assert e.unlearn("Nothing", nothing).settings_origin == "defaults of the function"


def test_an_own_method_is_found_by_its_source(no_training):
    e = experiment()
    run = e.unlearn("Nothing", nothing)
    assert all(torch.equal(run.logits[name], e.original().logits[name]) for name in run.logits)
    assert run.kind == "method" and run.name == "Nothing" and run.settings == {}
    no_training()
    experiment().unlearn("Nothing", nothing)

    def other(model, split):
        yield EpochEnd()

    with pytest.raises(MissingRun):
        experiment().read_only().unlearn("Nothing", other)


def test_a_method_that_diverges_is_stored_as_diverged(no_training):
    def explode(model, split):
        """One step down an infinite loss."""
        yield model.head.bias.sum() * float("inf")

    assert experiment().unlearn("Explode", explode).logits == {}
    no_training()
    again = experiment().unlearn("Explode", explode)
    assert again.diverged == "Explode diverged in epoch 1: the loss is inf"
    assert (again.logits, again.features, again.history, again.cost) == ({}, None, [], {})
    with pytest.raises(MissingRun, match="the weights of Explode: Explode diverged"):
        _ = again.model


def test_finite_weights_whose_predictions_are_not_finite_are_diverged():
    run = experiment().unlearn("Gradient ascent", epochs=1, lr=1e12)
    assert run.diverged == "Gradient ascent diverged: its predictions are not finite" and run.logits == {}
    assert experiment().unlearn("Gradient ascent", epochs=1, lr=1e12).diverged == run.diverged


# --- parameters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "changes", "message"),
    [
        ("random", {"preset": "quik"}, "preset: 'quik' is unknown: .*did you mean quick"),
        ("clas", {}, "'clas' is unknown: one of random, class"),
        ("random", {"start": "chained"}, "start: 'chained' is unknown: one of fresh, chain"),
        ("random", {"seed": -1}, "seed: -1 is not a whole number"),
        ("random", {"forget_fraction": 1.0}, "forget_fraction 1.0 must lie between 0 and 1"),
        ("class", {"forget_class": "zebra"}, "forget_class 'zebra' is unknown"),
        ("class", {"forget_index": torch.tensor([1, 2])}, "a list of images to forget needs the scenario random"),
        ("random", {"preset": "smoke", "forget_index": torch.tensor([1, 2])}, "a list of images needs another preset"),
    ],
)
def test_bad_parameters_are_refused(scenario, changes, message):
    with pytest.raises(ValueError, match=message):
        Experiment(load_data("clean-digits"), scenario, **changes)


def test_a_list_of_images_is_part_of_the_key(tmp_path):
    digits = load_data("clean-digits")
    (tmp_path / "forget.txt").write_text("3\n5\n9\n")
    lists = read_forget_list(tmp_path / "forget.txt", digits), torch.tensor([1, 2, 3])
    described = [Experiment(digits, "random", forget_index=index).split_settings for index in lists]
    described.append(Experiment(digits, "random").split_settings)
    assert len({json.dumps(settings) for settings in described}) == 3
