"""Train models that notebooks share: Original and Golds, or shadow models, several in one process. The Snakefile runs
this. A training that was cut off resumes from its last checkpoint."""

import sys

from process import main

from helpers.audit.shadows import training_jobs
from helpers.experiment import open_experiments
from helpers.messages import unknown


def train(job):
    """Make the job's models; return what went wrong, whether a retry may help, and the record of a success."""
    [experiment] = open_experiments({**job.parameters, "scenarios": [job.scenario]})
    functions = training_jobs(experiment, shadows=True)
    for name in job.models:
        if name not in functions:
            return f"    model {unknown(name, functions)}", False, None
        try:
            functions[name]()
        except (ArithmeticError, ValueError, RuntimeError) as error:
            return f"    {name}: {type(error).__name__}: {error}", False, None
    return None, False, {"models": job.models}


if __name__ == "__main__":
    sys.exit(main(train))
