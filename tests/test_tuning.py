"""Tuning: the score's known values, the same number of trials for all, and no look at Gold."""

import json

import pandas as pd
import pytest

from helpers import runs, tuning
from helpers.budgets import BUDGETS
from helpers.data import load_data
from helpers.experiment import Experiment
from helpers.training import Diverged
from helpers.tuning import COLUMNS, chosen, score, tune

ORIGINAL = {"retain": 99.0, "forget": 99.0, "validation": 80.0}


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """The random scenario on 240 digits, with Golds that nobody may look at."""
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("UNLEARNING_PROGRESS", str(tmp_path / "progress"))
    monkeypatch.setattr(Experiment, "golds", property(lambda self: pytest.fail("looked at Gold")))
    return Experiment(load_data("digits"), "random", "smoke")


@pytest.mark.parametrize(
    "accuracies, scenario, expected",
    [
        (ORIGINAL, "random", 19.0),  # remembers: 99 where unseen images get 80
        ({"retain": 99.0, "forget": 80.0, "validation": 80.0}, "random", 0.0),
        ({"retain": 99.0, "forget": 70.0, "validation": 80.0}, "random", 10.0),  # forgets too much
        ({"retain": 95.0, "forget": 75.0, "validation": 75.0}, "random", 4.0 + 5.0),  # has lost 4 and 5 points
        ({"retain": 100.0, "forget": 82.0, "validation": 82.0}, "random", 0.0),  # a gain is no debt
        ({"retain": 99.0, "forget": 0.0, "validation": 80.0}, "class", 0.0),
        ({"retain": 90.0, "forget": 3.0, "validation": 80.0}, "class", 3.0 + 9.0),
    ],
)
def test_score_by_hand(accuracies, scenario, expected):
    """Distance of forget accuracy from what unseen images get, plus what was lost."""
    assert score(accuracies, ORIGINAL, scenario) == pytest.approx(expected)


def test_every_method_gets_the_same_trials_and_the_first_is_the_budgets_own(experiment, monkeypatch):
    """Rows are reproducible and complete; settings that are not tuned stay as they are."""
    monkeypatch.setitem(BUDGETS["smoke"]["random"], "tuning", {"trials": 3, "epochs": 2})
    for name in ("Gradient ascent", "H2 Square + FT"):
        table = tune(experiment, name, 3)
        assert list(table.columns) == COLUMNS and list(table.trial) == [0, 1, 2] and table.score.notna().all()
        tried = [json.loads(text) for text in table.settings]
        own = experiment.settings(name)
        assert {key: value for key, value in tried[0].items() if key in own} == own
        assert len({settings["lr"] for settings in tried}) == 3
        assert all(1 <= settings["epochs"] <= 2 for settings in tried)
    assert all(settings["final"] == 1 and settings["growth"] == "square" for settings in tried)
    again = tune(experiment, name, 3)
    assert again.drop(columns="seconds").equals(table.drop(columns="seconds"))


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
    assert chosen("smoke", "random") == {"Gradient ascent": json.loads(table.settings[1])}
    assert chosen("smoke", "class") == {} and chosen("short", "random") == {}


def test_a_method_is_tuned_once_and_no_row_is_lost(experiment, monkeypatch, tmp_path):
    """The table gets each method's trials beside the others'; again only where another number is asked for."""
    monkeypatch.syspath_prepend(runs.ROOT / "workflow")
    import tune as command

    calls = []

    def tried(experiment, name, trials):
        calls.append((name, trials))
        rows = [("toy", experiment.scenario, name, number, 1.5, 0.1, "{}") for number in range(trials)]
        return pd.DataFrame(rows, columns=COLUMNS)

    for module in (command, tuning):
        monkeypatch.setattr(module, "TABLES", tmp_path)
    monkeypatch.setattr(command, "tune", tried)
    for name in ("SalUn", "SCRUB", "SalUn"):
        command.tune_once(experiment, name)
    assert calls == [("SalUn", 2), ("SCRUB", 2)]
    experiment.budget["tuning"] = {"trials": 3, "epochs": 2}
    command.tune_once(experiment, "SalUn")
    table = tuning.trials_of("smoke")
    assert table.method.value_counts().to_dict() == {"SalUn": 3, "SCRUB": 2} and calls[2:] == [("SalUn", 3)]


@pytest.mark.parametrize(
    "options, said",
    [
        (["--data", "nosuch"], "tune.py: data 'nosuch' is unknown: give digits, cifar10 or an existing folder"),
        (["--budget", "smoke", "--methods", "SalUm"], "method 'SalUm' is unknown"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, said, monkeypatch, capsys):
    """The value and what is valid, exit code 2, and no traceback."""
    monkeypatch.syspath_prepend(runs.ROOT / "workflow")
    import tune as command

    monkeypatch.setattr("sys.argv", ["tune.py", *options])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2 and said in capsys.readouterr().err.splitlines()[-1]
