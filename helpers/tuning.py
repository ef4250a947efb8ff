"""Settings chosen without a look at Gold: as many trials for each method, judged on held-out data alone.

`tuned/<budget>.csv` has every trial, a row each; the settings with the best score are the chosen ones, for the images
that they were tried on (`identity`) and no others. The first trial is the budget's own settings, half as many as there
are trials are random, the rest is proposed by Optuna's tree-structured Parzen estimator.
"""

import inspect
import json

import optuna
import pandas as pd

from . import runs
from .metrics import GAP, accuracy, predict
from .training import Diverged
from .unlearning import find_method, unlearn

TABLES = runs.ROOT / "helpers" / "tuned"
COLUMNS = ["data", "identity", "scenario", "method", "trial", "score", "seconds", "settings"]

# Tried, on a logarithmic scale: learning rates from a third of the budget's own to thirty times it (authors chose
# theirs for many more steps), a method's strength from the first to the second value; `1 - alpha`: of alpha near 1.
LR = (1 / 3, 30)
STRENGTHS = {
    "M3 Reversal": {"s": (0.01, 3.0)},
    "M4 Per epoch": {"s": (0.01, 3.0)},
    "M5 Per batch": {"s": (0.01, 3.0)},
    "M6 Per batch + FT": {"s": (0.01, 3.0)},
    "H1 Linear": {"s": (0.01, 3.0)},
    "H2 Square + FT": {"s": (0.01, 3.0)},
    "H3 Periodic FT": {"s": (0.01, 3.0)},
    "H4 Thawing": {"s": (0.01, 3.0)},
    "2-Stage": {"tau": (0.1, 10.0)},
    "l1-sparse": {"alpha": (1e-6, 1e-3)},
    "CoUn": {"lam": (0.1, 6.0)},
    "NegGrad+": {"1 - alpha": (1e-4, 0.5)},
    "SFR-on": {"alpha": (0.03, 30.0)},
    "SalUn": {"share": (0.05, 1.0)},
    "Bad Teacher": {"share": (0.1, 1.0)},
    "SCRUB": {"alpha": (1e-3, 1.0)},
    "SCRUB+R": {"alpha": (1e-3, 1.0)},
    "ReGUn": {"l_f": (0.05, 5.0)},
    "NoT+CL": {"lam": (0.1, 6.0)},
    "MSG": {"share": (0.03, 0.6)},
    "SSD": {"alpha": (1.0, 100.0), "lam": (0.1, 1.0)},
    "Fisher": {"alpha": (1e-10, 1e-5)},
    "Influence": {"alpha": (0.1, 300.0)},
}
RATES = ("lr", "lr_uniform", "lr_contrast", "lr_retain", "lr_impair", "lr_repair")
LENGTHS = ("epochs", "rounds")


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
    """Accuracies in percent on retained, forgotten and validation images, without the forgotten class's of these.

    Of the validation images the second half: among the first an audit has its targets (`shadows.joined`).
    """
    retained, forgotten = GAP[split.scenario]
    half = split.validation.index[len(split.validation.index) // 2 :]
    validation = split.validation.fresh(index=half, shuffle=False, batch_size=500)
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
    start = {setting: parameter.default for setting, parameter in inspect.signature(function).parameters.items()} | own
    rates = {rate: tuple(factor * start[rate] for factor in LR) for rate in RATES if rate in start}
    ranges = rates | STRENGTHS.get(name, {})
    longest = experiment.budget["tuning"]["epochs"]
    lengths = {length: (1, max(longest, start[length])) for length in LENGTHS if length in start}
    model = experiment.original.model
    original = held_out_accuracies(model, experiment.split)

    def attempt(trial):
        settings = {**own, **{n: trial.suggest_int(n, *ends) for n, ends in lengths.items()}}
        for setting, ends in ranges.items():
            value = float(f"{trial.suggest_float(setting, *ends, log=True):.3g}")
            settings |= {setting[4:]: round(1 - value, 7)} if setting.startswith("1 - ") else {setting: value}
        trial.set_user_attr("settings", settings)
        try:
            result = unlearn(
                function, model, experiment.split, seed=experiment.seed,
                **experiment.budget["unlearning"], **settings,
            )  # fmt: skip
        except Diverged:
            raise optuna.TrialPruned from None
        return score(held_out_accuracies(result.model, experiment.split), original, experiment.scenario)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=experiment.seed, n_startup_trials=1 + trials // 2)
    study = optuna.create_study(sampler=sampler)
    ends = {**ranges, **lengths}.items()
    start |= {f"1 - {setting}": 1 - value for setting, value in start.items() if isinstance(value, float)}
    study.enqueue_trial({n: min(max(start[n], low), high) for n, (low, high) in ends if n in start})
    study.optimize(attempt, n_trials=trials)
    rows = [
        (experiment.data.title, experiment.data.identity, experiment.scenario, name, trial.number, trial.value,
         trial.duration.total_seconds(), json.dumps(trial.user_attrs["settings"]))
        for trial in study.trials
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS).astype({"score": float})


def all_trials(budget):
    """All trials of a budget's methods on whatever images; an empty table where nothing was tuned."""
    file = TABLES / f"{budget}.csv"
    return pd.read_csv(file, dtype={"identity": str}) if file.exists() else pd.DataFrame(columns=COLUMNS)


def trials_of(experiment):
    """Those on an experiment's images and in its scenario."""
    trials = all_trials(experiment.budget_name)
    return trials[(trials.identity == experiment.data.identity) & (trials.scenario == experiment.scenario)]


def tuned(experiment, names):
    """The models that methods leave with their chosen settings, the budget's own where nothing was tuned."""
    settings = chosen(experiment)
    return [experiment.unlearned(name, **settings.get(name, {})) for name in names]


def summary(experiment):
    """For each method the score of the budget's own settings, the best score and the settings that have it."""
    trials = trials_of(experiment)
    first = trials[trials.trial == 0].set_index("method").score
    best = trials.groupby("method", sort=False).score.min()
    settings = {name: ", ".join(f"{k} {v}" for k, v in own.items()) for name, own in chosen(experiment).items()}
    columns = {"trials": trials.groupby("method").size(), "budget's own, points off": first.round(2),
               "best, points off": best.round(2), "chosen settings": pd.Series(settings)}  # fmt: skip
    return pd.DataFrame(columns, index=best.index)


def chosen(experiment):
    """Method -> the settings whose trial has the best score on the experiment's images."""
    trials = trials_of(experiment)
    trials = trials[trials.score.notna()]
    best = trials.loc[trials.groupby("method", sort=False).score.idxmin()] if len(trials) else trials
    return {row.method: json.loads(row.settings) for row in best.itertuples()}
