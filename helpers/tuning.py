"""Settings chosen without Gold: equally many trials for each method, scored on held-out data alone.

`tuned/<preset>.csv` has one row per trial, with the preset's network and forget set; the settings with the best score
are the chosen ones, for the images that they were tried on (`identity`) and no others. The first trial is the preset's
own settings, half of the trials are random, the rest is proposed by Optuna's tree-structured Parzen estimator.
"""

import json
import time

import pandas as pd

from . import methods, paths
from .metrics import accuracy, predict
from .training import Diverged, unlearn

TABLES = paths.ROOT / "helpers" / "tuned"
COLUMNS = ["data", "identity", "scenario", "method", "trial", "score", "seconds", "settings"]
RATE_FACTORS = (1 / 3, 30)  # learning rates, times the preset's own: authors chose theirs for many more steps
SCANNED = (1 / 10, 1 / 3, 1, 2, 4, 8, 16, 30)  # learning rates of `scan_rates` times the preset's own, by default
RATES = ("lr", "lr_uniform", "lr_contrast", "lr_retain", "lr_impair", "lr_repair")
LENGTHS = ("epochs", "rounds")


def score(accuracies, original, scenario):
    """The distance of a model from what held-out data require, in points; 0 is best, and Gold is not used.

    In the random scenario a model that never saw the forgotten images is right about them as often as about validation
    images; in the class scenario it is right about none. What retained and validation accuracy lost against Original
    is added.

    Args:
        accuracies, original: `{"retain", "forget", "validation": percent}` of the model and of Original.
        scenario: "random" or "class".
    """
    target = accuracies["validation"] if scenario == "random" else 0.0
    lost = sum(max(original[name] - accuracies[name], 0.0) for name in ("retain", "validation"))
    return abs(accuracies["forget"] - target) + lost


def held_out_accuracies(model, split):
    """Accuracies in percent on retained, forgotten and validation images, these without the forgotten class.

    Of the validation images the second half is used: the first contains an audit's targets (`audit.shadows`).
    """
    half = split.validation.index[len(split.validation.index) // 2 :]
    validation = split.validation.reset(index=half, shuffle=False, batch_size=500)
    measured = {}
    for name, batches in {
        "retain": split.sets["retain"],
        "forget": split.sets["forget"],
        "validation": validation,
    }.items():
        logits, y = predict(model, batches)[0], batches.y.cpu()
        chosen = ~split.is_forgotten_class(y) if name == "validation" else slice(None)
        measured[name] = accuracy(logits[chosen], y[chosen])
    return measured


class Space:
    """What the tuner varies of a method: learning rates, the number of epochs, and its record's `search` ranges."""

    def __init__(self, experiment, name):
        record, self.start = methods.find(name), experiment.settings(name)
        longest = experiment.preset["tuning"]["epochs"]
        self.rates = {rate: tuple(f * self.start[rate] for f in RATE_FACTORS) for rate in RATES if rate in self.start}
        self.lengths = {n: (1, max(longest, self.start[n])) for n in LENGTHS if n in self.start}
        self.search = record.search

    def first(self):
        """The preset's own settings as Optuna's parameters, within the ranges."""
        ranges = {**self.rates, **self.lengths, **{n: (r.low, r.high) for n, r in self.search.items()}}
        value = {
            n: 1 - self.start[n] if n in self.search and self.search[n].complement else self.start[n] for n in ranges
        }
        return {n: min(max(value[n], low), high) for n, (low, high) in ranges.items()}

    def draw(self, trial):
        """The settings of one trial, complete."""
        drawn = {n: trial.suggest_int(n, *ends) for n, ends in self.lengths.items()}
        for name, (low, high) in self.rates.items():
            drawn[name] = rounded(trial.suggest_float(name, low, high, log=True))
        for name, found in self.search.items():
            value = rounded(trial.suggest_float(name, found.low, found.high, log=True))
            drawn[name] = round(1 - value, 7) if found.complement else value
        return {**self.start, **drawn}


def rounded(value):
    """Three significant digits."""
    return float(f"{value:.3g}")


def tune(experiment, name, trials):
    """Try `trials` settings of a method from an experiment's Original; a table with `COLUMNS`, one row per trial.

    A trial that diverges has no score.
    """
    import optuna  # slow to import, and only needed here

    space, attempt = Space(experiment, name), attempts(experiment, name)

    def objective(trial):
        settings = space.draw(trial)
        trial.set_user_attr("settings", settings)
        found = attempt(settings)
        if found is None:
            raise optuna.TrialPruned
        return found

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=experiment.seed, n_startup_trials=1 + trials // 2)
    study = optuna.create_study(sampler=sampler)
    study.enqueue_trial(space.first())
    study.optimize(objective, n_trials=trials)
    tried = [(t.number, t.value, t.duration.total_seconds(), t.user_attrs["settings"]) for t in study.trials]
    return trials_table(experiment, name, tried)


def scan_rates(experiment, name):
    """The score of a method with its learning rates times some factors, all else as in the preset; like `tune`.

    The factors are the preset's `tuning["rates"]`, by default `SCANNED`. For the documents' methods: these keep the
    documents' other settings, so that only the rate is chosen.

    Raises:
        ValueError: the method has no learning rate.
    """
    own, tried = experiment.settings(name), []
    if not any(rate in own for rate in RATES):
        raise ValueError(f"{name} has no learning rate to scan")
    attempt = attempts(experiment, name)
    for number, factor in enumerate(experiment.preset["tuning"].get("rates", SCANNED)):
        settings = {**own, **{rate: rounded(factor * own[rate]) for rate in RATES if rate in own}}
        started = time.perf_counter()
        tried.append((number, attempt(settings), time.perf_counter() - started, settings))
    return trials_table(experiment, name, tried)


def attempts(experiment, name):
    """A function from settings of a method to their score on an experiment's Original; None if the method diverges."""
    model, split, scenario = experiment.original().model, experiment.split, experiment.scenario.name
    original = held_out_accuracies(model, split)

    def attempt(settings):
        try:
            trained = unlearn(name, model, split, settings, seed=experiment.seed, **experiment.preset["unlearning"])
        except Diverged:
            return None
        return score(held_out_accuracies(trained.model, split), original, scenario)

    return attempt


def trials_table(experiment, name, tried):
    """A table with `COLUMNS` of (number, score, seconds, settings)."""
    fixed = experiment.data.title, experiment.data.identity, experiment.scenario.name, name
    rows = [(*fixed, number, found, seconds, json.dumps(settings)) for number, found, seconds, settings in tried]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"score": float})


# --- reading the trials -------------------------------------------------------------------------------------------


def all_trials(preset):
    """All trials of a preset's methods on any images; an empty table where nothing was tuned."""
    file = TABLES / f"{preset}.csv"
    return pd.read_csv(file, dtype={"identity": str}) if file.exists() else pd.DataFrame(columns=COLUMNS)


def trials_of(experiment):
    """The trials on an experiment's images and in its scenario."""
    trials = all_trials(experiment.preset_name)
    return trials[(trials.identity == experiment.data.identity) & (trials.scenario == experiment.scenario.name)]


def chosen(experiment):
    """Method -> the settings with the best score on the experiment's images."""
    trials = trials_of(experiment)
    trials = trials[trials.score.notna()]
    best = trials.loc[trials.groupby("method", sort=False).score.idxmin()] if len(trials) else trials
    return {row.method: json.loads(row.settings) for row in best.itertuples()}


def tuned(experiment, names, **settings):
    """The `Run`s of methods with their chosen settings; with the preset's own where nothing was tuned.

    Args:
        settings: by name of a method, dicts over the chosen settings.
    """
    found, origin = chosen(experiment), f"tuned on {experiment.data.title}"
    tried_with = ["network"] * experiment.own_network + ["forget set"] * experiment.own_request
    if tried_with:  # trials are of the preset's alone
        origin += f", with the preset's {' and '.join(tried_with)}"
    runs = []
    for name in names:
        run = experiment.unlearn(name, **{**found.get(name, {}), **settings.get(name, {})})
        if name in found and not settings.get(name):
            run.settings_origin = origin
        runs.append(run)
    return runs


def summary(experiment):
    """For each method the score of the preset's own settings, the best score and the settings that reach it."""
    trials = trials_of(experiment)
    first = trials[trials.trial == 0].set_index("method").score
    best = trials.groupby("method", sort=False).score.min()
    settings = {name: ", ".join(f"{k} {v}" for k, v in own.items()) for name, own in chosen(experiment).items()}
    columns = {
        "trials": trials.groupby("method").size(),
        "preset's own, points": first.round(2),
        "best, points": best.round(2),
        "chosen settings": pd.Series(settings, dtype=object),
    }
    return pd.DataFrame(columns, index=best.index)
