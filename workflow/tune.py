"""Choose the methods' settings on held-out data. The same command again goes on where it stopped."""

import argparse
import sys
from pathlib import Path

import pandas as pd
from execute import replace_text
from wording import duration, unknown

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers.budgets import BUDGETS  # noqa: E402
from helpers.data import load_data  # noqa: E402
from helpers.experiment import SCENARIOS, Experiment  # noqa: E402
from helpers.runs import alone  # noqa: E402
from helpers.tuning import TABLES, trials_of, tune  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits", help="digits, cifar10 or a folder of images")
    parser.add_argument("--budget", default="quick", choices=BUDGETS)
    parser.add_argument("--scenario", default=SCENARIOS, choices=SCENARIOS, nargs="+")
    parser.add_argument("--methods", nargs="+", help="only these (default: those of notebooks 11 and 12)")
    options = parser.parse_args()
    try:
        tune_all(options, parser)
    except (ValueError, ConnectionError, OSError) as error:
        parser.exit(2, f"tune.py: {' '.join(str(error).split())}\n")


def tune_all(options, parser):
    """Tune the methods that were asked for, in each scenario."""
    data = load_data(options.data)
    for scenario in options.scenario:
        experiment = Experiment(data, scenario, options.budget)
        names = [*experiment.methods, *experiment.literature]
        if wrong := [name for name in options.methods or [] if name not in names]:
            parser.error(f"method {unknown(wrong[0], names)}")
        for name in options.methods or dict.fromkeys([*experiment.literature, *experiment.budget["audit"]["methods"]]):
            tune_once(experiment, name)


def tune_once(experiment, name):
    """Tune a method, unless its trials are in the table already, and add them to it."""
    trials = experiment.budget["tuning"]["trials"]
    if len(others(experiment, name)) + trials == len(trials_of(experiment.budget_name)):
        return
    made = tune(experiment, name, trials)
    best = made.score.min()
    print(
        f"{experiment.scenario}: {name}: {made.score.iloc[0]:.2f} points off with the budget's settings, "
        f"{best:.2f} with the best of {trials} trials, in {duration(made.seconds.sum())}",
        flush=True,
    )
    file = TABLES / f"{experiment.budget_name}.csv"
    with alone(file):
        text = pd.concat([others(experiment, name), made]).to_csv(index=False, float_format="%.4g")
        replace_text(file, text)


def others(experiment, name):
    """The trials of the other methods and of the other scenario."""
    table = trials_of(experiment.budget_name)
    return table[(table.scenario != experiment.scenario) | (table.method != name)]


if __name__ == "__main__":
    sys.exit(main())
