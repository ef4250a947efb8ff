"""Name and identity of a run's data, and whether its parameters fit them. A process of its own, since it needs torch.

`python workflow/facts.py '{"data": ..., ...}'` prints `{"name", "title", "identity", "parameters"}` as JSON; with the
word `fetch` it also downloads the weights that the preset names.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers.datasets import find_folder
from helpers.experiment import open_experiments
from helpers.fingerprint import file_digest
from helpers.paths import split_function

FILES = ("forget_list", "model", "original", "own_methods")  # parameters that may name a file


def main():
    try:
        print(json.dumps(find_facts(json.loads(sys.argv[1]), fetch="fetch" in sys.argv[2:])))
    except (ValueError, ConnectionError, OSError) as error:
        sys.exit(" ".join(str(error).split()))


def find_facts(parameters, fetch=False):
    """The facts of a run; parameters come back with absolute paths, since jobs run in other folders.

    Raises:
        ValueError: the data cannot be used, or a parameter does not fit them.
        ConnectionError: data or weights could not be downloaded.
    """
    identity = []
    for name in FILES:
        file, function = split_function(parameters[name] or "")
        if file.is_file() and (function or name != "model"):
            identity.append(file_digest(file))
            parameters[name] = f"{file}:{function}" if function else str(file)
    suite = open_experiments({**parameters, "seed": 0})
    for experiment in suite * fetch:
        experiment.fetch()
    data = suite[0].data
    if data.files:
        parameters["data"] = str(find_folder(parameters["data"]))
    return {
        "name": data.name,
        "title": data.title,
        "identity": [*sorted({e.data.identity for e in suite}), *identity],
        "disk": sum(experiment.stored_bytes() for experiment in suite),
        "parameters": parameters,
    }


if __name__ == "__main__":
    main()
