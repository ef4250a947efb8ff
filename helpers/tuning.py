"""Settings chosen without a look at Gold: as many trials for each method, judged on held-out data alone.

`tuned/<budget>.csv` has every trial, a row each; the settings with the best score are the chosen ones. Optuna's
tree-structured Parzen estimator proposes them, after a first trial of the budget's own.
"""

import inspect
import json

import optuna
import pandas as pd

from . import runs
from .metrics import accuracy, predict
from .training import Diverged
from .unlearning import find_method, unlearn

TABLES = runs.ROOT / "helpers" / "tuned"
COLUMNS = ["data", "scenario", "method", "trial", "score", "seconds", "settings"]
RANGES = {"lr": (1e-5, 0.1), "s": (0.01, 3.0)}  # setting: lowest and highest value tried, drawn on a logarithmic scale


def score(accuracies, original, scenario):
    """How far a model is from what held-out data ask for, in points; 0 is perfect, and Gold is not looked at.

    In the random scenario a model that never saw the forgotten images is right about them as often as about validation
    images; in the class scenario it is right about none. What retained and validation accuracy lost against Original
    is added. Arguments are `{"retain", "forget", "validation": percent}` of the model and of Original.
    """
    wanted = accuracies["validation"] if scenario == "random" else 0.0
    lost = sum(max(original[name] - accuracies[name], 0.0) for name in ("retain", "validation"))
    return abs(accuracies["forget"] - wanted) + lost


def held_out_accuracies(model, split):
    """Accuracies in percent on retained, forgotten and validation images, without the forgotten class's of these."""
    retained, forgotten = {"random": ("retain", "forget"), "class": ("train retain", "train forget")}[split.scenario]
    validation = split.validation.fresh(shuffle=False, batch_size=500)
    sets = {"retain": split.sets[retained], "forget": split.sets[forgotten], "validation": validation}
    measured = {}
    for name, batches in sets.items():
        logits, y = predict(model, batches)[0], batches.y.cpu()
        kept = y != split.forget_class if name == "validation" and split.scenario == "class" else slice(None)
        measured[name] = accuracy(logits[kept], y[kept])
    return measured


def tune(experiment, name, trials):
    """Try `trials` settings of a method from an experiment's Original; a table with `COLUMNS`, a row a trial.

    A trial that diverges has no score.
    """
    function, defaults = find_method(name)
    own = {**defaults, **experiment.settings(name)}
    parameters = {n: p.default for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    start = {**parameters, **own}
    most = experiment.budget["tuning"]["epochs"]
    original = held_out_accuracies(experiment.original.model, experiment.split)

    def attempt(trial):
        settings = {n: float(f"{trial.suggest_float(n, *RANGES[n], log=True):.3g}") for n in start if n in RANGES}
        settings |= {n: trial.suggest_int(n, 1, most) for n in start if n in ("epochs", "rounds")}
        settings = {**own, **settings}
        trial.set_user_attr("settings", settings)
        try:
            result = unlearn(
                function, experiment.original.model, experiment.split, seed=experiment.seed,
                **experiment.budget["unlearning"], **settings,
            )  # fmt: skip
        except Diverged:
            raise optuna.TrialPruned from None
        return score(held_out_accuracies(result.model, experiment.split), original, experiment.scenario)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=experiment.seed))
    study.enqueue_trial({n: start[n] for n in start if n in RANGES or n in ("epochs", "rounds")})
    study.optimize(attempt, n_trials=trials)
    rows = [
        (experiment.data.title, experiment.scenario, name, trial.number, trial.value, trial.duration.total_seconds(),
         json.dumps(trial.user_attrs["settings"]))
        for trial in study.trials
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def trials_of(budget):
    """All trials of a budget's methods; an empty table where nothing was tuned."""
    file = TABLES / f"{budget}.csv"
    return pd.read_csv(file) if file.exists() else pd.DataFrame(columns=COLUMNS)


def chosen(budget, scenario):
    """Method -> the settings whose trial has the best score."""
    trials = trials_of(budget)
    trials = trials[(trials.scenario == scenario) & trials.score.notna()]
    best = trials.loc[trials.groupby("method", sort=False).score.idxmin()] if len(trials) else trials
    return {row.method: json.loads(row.settings) for row in best.itertuples()}
