"""Choose the methods' settings on held-out data. The same command again resumes where it stopped."""

import json
import sys

import pandas as pd
from options import Parser, add_parameters, parameters_of, refuse

from helpers.datasets import load_data
from helpers.experiment import Experiment
from helpers.messages import duration, unknown
from helpers.paths import replace_text
from helpers.store import lock
from helpers.tuning import TABLES, all_trials, scan_rates, trials_of, tune

PARAMETERS = ("data", "preset", "scenarios", "own_methods")


def main():
    parser = Parser(prog="tune.py", description=__doc__, allow_abbrev=False)
    add_parameters(parser, PARAMETERS)
    parser.add_argument("--rates", action="store_true", help="only the learning rates, of the documents' methods")
    parser.add_argument("--methods", nargs="+", metavar="M", help="only these (default: published and audited ones)")
    options = parser.parse(sys.argv[1:])
    try:
        tune_all(parameters_of(options, parser), options.methods, options.rates, parser)
    except (ValueError, ArithmeticError, OSError) as error:
        return refuse(error, parser.prog)


def tune_all(parameters, wanted, rates, parser):
    """Tune the wanted methods in each scenario, or with `rates` scan their learning rates."""
    data = load_data(parameters["data"])
    for scenario in parameters["scenarios"]:
        experiment = Experiment(data, scenario, parameters["preset"], own_methods=parameters["own_methods"])
        names = [*experiment.methods, *experiment.published]
        if wrong := [name for name in wanted or [] if name not in names]:
            parser.error(f"method {unknown(wrong[0], names)}")
        default = [*experiment.published, *experiment.preset["audit"]["methods"]]
        for name in wanted or (experiment.methods if rates else dict.fromkeys(default)):
            if rates:
                add_trials(experiment, name, scan_rates(experiment, name), f"{experiment.preset_name}-rates")
            else:
                tune_once(experiment, name)


def tune_once(experiment, name):
    """Tune a method, unless its trials on these images are in the table already, and add them to it."""
    trials, scenario = experiment.preset["tuning"]["trials"], experiment.scenario.name
    if (trials_of(experiment).method == name).sum() == trials:
        print(f"{scenario}: {name}: its {trials} trials on {experiment.data.title} exist", flush=True)
        return
    add_trials(experiment, name, tune(experiment, name, trials), experiment.preset_name)


def add_trials(experiment, name, made, table_name):
    """Report the trials of a method and put them into a table in place of older ones."""
    scenario, own = experiment.scenario.name, experiment.settings(name)
    own_score = made.score[made.settings == json.dumps(own)]
    first = f"{own_score.iloc[0]:.2f} points with the preset's settings, " if len(own_score) else ""
    best = f"{made.score.min():.2f} with the best of {len(made)} trials"
    print(f"{scenario}: {name}: score {first}{best}, in {duration(made.seconds.sum())}", flush=True)
    file = TABLES / f"{table_name}.csv"
    with lock(file):
        table = all_trials(table_name)
        same = (table.identity == experiment.data.identity) & (table.scenario == scenario)
        text = pd.concat([table[~(same & (table.method == name))], made]).to_csv(index=False, float_format="%.4g")
        replace_text(file, text)


if __name__ == "__main__":
    sys.exit(main())
