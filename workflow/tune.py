"""Choose the methods' settings on held-out data. The same command again goes on where it stopped."""

import sys

import pandas as pd
from files import ROOT, replace_text
from wording import Parser, duration, refuse, unknown

sys.path.insert(0, str(ROOT))

from helpers.budgets import BUDGETS
from helpers.data import load_data
from helpers.experiment import SCENARIOS, Experiment
from helpers.runs import alone
from helpers.tuning import TABLES, all_trials, trials_of, tune


def main():
    parser = Parser(prog="tune.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--data", default="digits", help="digits, cifar10 or a folder of images")
    parser.add_argument("--budget", default="quick", choices=BUDGETS)
    parser.add_argument("--scenario", default=SCENARIOS, choices=SCENARIOS, nargs="+")
    parser.add_argument("--methods", nargs="+", help="only these (default: those of notebooks 11 and 12)")
    options = parser.parse(sys.argv[1:])
    try:
        tune_all(options, parser)
    except (ValueError, ArithmeticError, ConnectionError, OSError) as error:
        return refuse(error, parser.prog)


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
    """Tune a method, unless its trials on these images are in the table already, and add them to it."""
    trials = experiment.budget["tuning"]["trials"]
    if (trials_of(experiment).method == name).sum() == trials:
        print(f"{experiment.scenario}: {name}: its {trials} trials on {experiment.data.title} are there", flush=True)
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
        table = all_trials(experiment.budget_name)
        same = (table.identity == experiment.data.identity) & (table.scenario == experiment.scenario)
        text = pd.concat([table[~(same & (table.method == name))], made]).to_csv(index=False, float_format="%.4g")
        replace_text(file, text)


if __name__ == "__main__":
    sys.exit(main())
