"""Tuning: the score's known values, equally many trials for all methods, and no use of Gold."""

import json
import math
import sys
from dataclasses import replace

import pandas as pd
import pytest
from torch import nn

from helpers import tuning
from helpers.datasets import load_data
from helpers.experiment import Experiment
from helpers.metrics import accuracy, predict
from helpers.presets import PRESETS
from helpers.scenario import SCENARIOS
from helpers.training import Diverged
from helpers.tuning import COLUMNS, chosen, held_out_accuracies, scan_rates, score, summary, tune, tuned

ORIGINAL = {"retain": 99.0, "forget": 99.0, "validation": 80.0}


@pytest.fixture
def experiment(runs_folder, monkeypatch):
    """The random scenario on 240 digits, where Gold must not be used."""
    for verb in ("gold", "golds"):
        monkeypatch.setattr(Experiment, verb, lambda self, *number: pytest.fail("used Gold"))
    return Experiment(load_data("clean-digits"), "random", "smoke")


@pytest.mark.parametrize(
    "accuracies, scenario, expected",
    [
        (ORIGINAL, "random", 19.0),  # remembers: 99 where unseen images get 80
        ({"retain": 99.0, "forget": 80.0, "validation": 80.0}, "random", 0.0),
        ({"retain": 99.0, "forget": 70.0, "validation": 80.0}, "random", 10.0),  # forgets too much
        ({"retain": 95.0, "forget": 75.0, "validation": 75.0}, "random", 4.0 + 5.0),  # has lost 4 and 5 points
        ({"retain": 100.0, "forget": 82.0, "validation": 82.0}, "random", 0.0),  # a gain costs nothing
        ({"retain": 99.0, "forget": 0.0, "validation": 80.0}, "class", 0.0),
        ({"retain": 90.0, "forget": 3.0, "validation": 80.0}, "class", 3.0 + 9.0),
    ],
)
def test_score_by_hand(accuracies, scenario, expected):
    """Distance of forget accuracy from what unseen images get, plus what was lost."""
    assert score(accuracies, ORIGINAL, scenario) == pytest.approx(expected)


def test_the_summary_by_hand(experiment, monkeypatch, tmp_path):
    """First, best and chosen of a method's trials; identities that look like numbers stay what they are."""
    monkeypatch.setattr(tuning, "TABLES", tmp_path)
    experiment = experiment.derive(data=replace(experiment.data, identity="000123456789"))
    rows = [("clean-digits", "000123456789", "random", "A", i, points, 1.0, json.dumps({"lr": points})) for i, points in
            enumerate([5.0, 2.0, math.nan, 7.0])]  # fmt: skip
    pd.DataFrame(rows, columns=COLUMNS).to_csv(tmp_path / "smoke.csv", index=False)
    assert summary(experiment).loc["A"].tolist() == [4, 5.0, 2.0, "lr 2.0"] and chosen(experiment) == {"A": {"lr": 2.0}}


def test_every_method_gets_the_same_trials_and_the_first_is_the_presets_own(experiment, monkeypatch):
    """Rows are reproducible and complete; settings that are not tuned stay as they are."""
    monkeypatch.setitem(PRESETS["smoke"]["random"], "tuning", {"trials": 3, "epochs": 2})
    for name in ("Gradient ascent", "H2 Quadratic + FT"):
        table = tune(experiment, name, 3)
        assert list(table.columns) == COLUMNS and list(table.trial) == [0, 1, 2] and table.score.notna().all()
        tried = [json.loads(text) for text in table.settings]
        own = experiment.settings(name)
        assert tried[0] == own and all(settings.keys() == own.keys() for settings in tried)
        assert len({settings["lr"] for settings in tried}) == 3
        assert all(1 <= settings["epochs"] <= 2 for settings in tried)
    assert all(settings["final"] == 1 and settings["growth"] == "quadratic" for settings in tried)
    again = tune(experiment, name, 3)
    assert again.drop(columns="seconds").equals(table.drop(columns="seconds"))


def test_the_scan_changes_the_learning_rates_alone(experiment, monkeypatch):
    """One trial per factor; all else is the preset's, and what diverges has no score."""
    monkeypatch.setattr(tuning, "SCANNED", (1, 1e20))
    table, own = scan_rates(experiment, "2-Stage full"), experiment.settings("2-Stage full")
    tried = [json.loads(text) for text in table.settings]
    assert list(table.columns) == COLUMNS and tried[0] == own
    assert {name for name in own if tried[1][name] != own[name]} == {"lr_uniform", "lr_contrast", "lr_retain"}
    assert math.isfinite(table.score[0]) and math.isnan(table.score[1])
    with pytest.raises(ValueError, match="SSD has no learning rate"):
        scan_rates(experiment, "SSD")


def test_a_diverged_trial_has_no_score_and_is_never_chosen(experiment, monkeypatch, tmp_path):
    """The best of the others is chosen; a method that always diverges has no settings."""
    unlearn, calls = tuning.unlearn, []

    def unstable(*arguments, **settings):
        calls.append(settings)
        if len(calls) != 2:
            raise Diverged("away")
        return unlearn(*arguments, **settings)

    monkeypatch.setattr(tuning, "unlearn", unstable)
    table = tune(experiment, "Gradient ascent", 3)
    assert list(table.score.isna()) == [True, False, True]
    monkeypatch.setattr(tuning, "TABLES", tmp_path)
    away = table.assign(method="Hopeless", score=float("nan"))
    pd.concat([table, away]).to_csv(tmp_path / "smoke.csv", index=False)
    assert chosen(experiment) == {"Gradient ascent": json.loads(table.settings[1])}
    for changes in (
        {"scenario": SCENARIOS["class"]},
        {"preset_name": "short"},
        {"data": replace(experiment.data, identity="x")},
    ):
        assert chosen(experiment.derive(**changes)) == {}, "settings belong to the images that they were tried on"


def test_tuned_runs_have_the_chosen_settings_and_their_origin(experiment, monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, "TABLES", tmp_path)
    settings = {**experiment.settings("Gradient ascent"), "lr": 0.005}
    rows = [("clean-digits", experiment.data.identity, "random", "Gradient ascent", 0, 1.0, 1.0, json.dumps(settings))]
    pd.DataFrame(rows, columns=COLUMNS).to_csv(tmp_path / "smoke.csv", index=False)
    names = ["Gradient ascent", "M1 Retain FT"]
    first, second = tuned(experiment, names)
    assert first.settings == settings and first.settings_origin == "tuned on clean digits (scikit-learn)"
    other = experiment.derive(own_network=True, own_request=True)
    assert tuned(other, names[:1])[0].settings_origin.endswith(
        "(scikit-learn), with the preset's network and forget set"
    )
    assert second.settings == experiment.settings("M1 Retain FT")
    assert second.settings_origin == experiment.settings_origin("M1 Retain FT")
    changed, _ = tuned(experiment, names, **{"Gradient ascent": {"epochs": 1}})
    assert changed.settings == {**settings, "epochs": 1} and changed.settings_origin == "set in the call"


def test_a_method_is_tuned_once_and_no_row_is_lost(experiment, monkeypatch, tmp_path):
    """The table gets each method's trials beside the others'; again only for another number of trials."""
    import tune as command

    calls = []

    def tried(experiment, name, trials):
        calls.append((name, trials))
        identity = experiment.data.identity
        rows = [
            ("toy", identity, experiment.scenario.name, name, number, math.nan, 0.1, "{}") for number in range(trials)
        ]
        return pd.DataFrame(rows, columns=COLUMNS)

    for module in (command, tuning):
        monkeypatch.setattr(module, "TABLES", tmp_path)
    monkeypatch.setattr(command, "tune", tried)
    for name in ("SalUn", "SCRUB", "SalUn"):
        command.tune_once(experiment, name)
    assert calls == [("SalUn", 2), ("SCRUB", 2)]
    experiment.preset["tuning"] = {"trials": 3, "epochs": 2}
    command.tune_once(experiment, "SalUn")
    table = tuning.all_trials("smoke")
    assert table.method.value_counts().to_dict() == {"SalUn": 3, "SCRUB": 2} and calls[2:] == [("SalUn", 3)]
    experiment.data = replace(experiment.data, identity="other images")
    command.tune_once(experiment, "SalUn")
    assert tuning.all_trials("smoke").identity.value_counts()["other images"] == 3, "other images, other trials"


def test_held_out_images_are_those_that_no_audit_attacks(experiment):
    """The second half of the validation images; in the class scenario without the forgotten class's."""
    from helpers.audit.shadows import target_index

    seen = []
    by_class = Experiment(experiment.data, "class", "smoke")
    for e in (experiment, by_class):
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * e.split.train.image_size**2, 10))
        measured = held_out_accuracies(model, e.split)
        validation = e.split.validation
        half = validation.reset(index=validation.index[len(validation.index) // 2 :], shuffle=False)
        kept = half.y != 0 if e is by_class else slice(None)
        expected = [accuracy(predict(model, e.split.sets[n])[0], e.split.sets[n].y) for n in ("retain", "forget")]
        expected.append(accuracy(predict(model, half)[0][kept], half.y[kept]))
        assert list(measured.values()) == pytest.approx(expected)
        seen.append(set(half.index.tolist()))
    targets = target_index(experiment.split) - len(experiment.split.train.images)
    assert not seen[0] & set(targets.tolist())


def test_strengths_near_one_are_drawn_by_their_distance_from_one(experiment):
    """NegGrad+'s alpha: its first trial is the preset's own, the others lie between 0.5 and 0.9999."""
    table = tune(experiment, "NegGrad+", 4)
    alphas = [json.loads(text)["alpha"] for text in table.settings]
    assert alphas[0] == pytest.approx(0.95) and len(set(alphas)) == 4 and 0.5 <= min(alphas) <= max(alphas) <= 0.9999


@pytest.mark.parametrize(
    "options, words",
    [
        (["--data", "nosuch"], "tune.py: data 'nosuch' is unknown: use noisy-digits, clean-digits, cifar10 or"),
        (["--preset", "smoke", "--methods", "SalUm"], "'SalUm' is unknown"),
        (["--preset", "quik"], "'quik' is unknown"),
        (["--trials", "3"], "'--trials' is unknown"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, words, monkeypatch, capsys):
    """The value and what is valid, exit code 2, and no traceback."""
    import tune as command

    monkeypatch.setattr("sys.argv", ["tune.py", *options])
    with pytest.raises(SystemExit) as stopped:
        sys.exit(command.main())
    [line] = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and words in line
