"""Train one model that notebooks share: Original, a Gold or a shadow. The Snakefile runs this.

A run that was cut off goes on from its last finished epoch.
"""

import argparse
import json
import sys
from pathlib import Path

from execute import ATTEMPTS, run_job
from wording import model_title, unknown

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers.notebook import open_suite
from helpers.shadows import trainings


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario")
    parser.add_argument("model", help="original, gold, gold-2, shadow-0 and so on")
    parser.add_argument("--parameters", type=json.loads, required=True, help="a notebook's, as a JSON object")
    parser.add_argument("--made-from", required=True, help="a digest of all that the result depends on")
    parser.add_argument("--result", type=Path, required=True, help="the JSON file written when the model is there")
    parser.add_argument("--attempt", type=int, default=ATTEMPTS)
    options = parser.parse_args()
    name = model_title(options.scenario, options.model, options.parameters["seed"])
    described = {"model": options.model, "parameters": options.parameters}
    return run_job(name, lambda: train(options), options, described)


def train(options):
    """Make the model; return what went wrong, if anything, and whether a retry may help."""
    try:
        [experiment] = open_suite(**{**options.parameters, "scenarios": options.scenario}, say=False)
        jobs = trainings(experiment, shadows=True)
        if options.model not in jobs:
            return f"    model {unknown(options.model, [*jobs])}", False
        jobs[options.model]()
    except OSError as error:  # a full disk
        return f"    {type(error).__name__}: {error}", True
    except (ArithmeticError, ValueError, RuntimeError) as error:
        return f"    {type(error).__name__}: {error}", False
    return None, False


if __name__ == "__main__":
    sys.exit(main())
