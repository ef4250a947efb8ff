"""A copy of the workflow with tiny notebooks and `helpers` that need no torch, for tests of the command line."""

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import nbformat
import psutil
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from helpers.parameters import PARAMETERS, cell

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600  # seconds; enough on a machine that is busy with other things
DATA = PARAMETERS["data"].default
TORCH_FREE = ("__init__", "messages", "parameters", "paths", "presets", "scenario", "fingerprint")
HELPERS = {
    "data.py": "",
    "datasets.py": '''"""The data."""
from pathlib import Path
from types import SimpleNamespace

from .parameters import PARAMETERS


def load_data(source, size):
    built_in = source == PARAMETERS["data"].default
    if not built_in and not Path(source).is_dir():
        raise ValueError(f"data '{source}' is unknown:\\n digits")
    files = [] if built_in else sorted(Path(source).iterdir())
    return SimpleNamespace(name=Path(source).name, title=source, identity=str(len(files)), files=files)


def find_folder(source):
    return Path(source).absolute()


def read_forget_list(path, data):
    return Path(path).read_text().split()
''',
    "experiment.py": """
from pathlib import Path

from .datasets import load_data, read_forget_list
from .parameters import checked


def open_experiments(parameters):
    values = checked(parameters)
    data = load_data(values.pop("data"), size=32)
    listed = values.pop("forget_list")
    index = read_forget_list(listed, data) if listed else None
    return [Experiment(data, name, **values, forget_index=index) for name in values.pop("scenarios")]


class Experiment:
    def __init__(self, data, scenario, preset, seed, forget_class, forget_fraction, **others):
        if forget_fraction < 0.001:
            raise ValueError("0 images to forget")
        if forget_class not in (None, "0", "1"):
            raise ValueError(f"forget_class '{forget_class}' is unknown")
        self.data, self.scenario, self.preset, self.seed = data, scenario, preset, seed

    def stored_bytes(self):
        return 1000

    def fetch(self):
        if Path("offline").exists():
            raise ConnectionError(f"the weights of '{self.scenario}' could not be loaded")
""",
    "audit/__init__.py": "",
    "audit/shadows.py": """
from pathlib import Path

from ..experiment import Experiment
from ..presets import PRESETS


def make(experiment, name):
    if Path(f"fail-{name}").exists():
        raise ArithmeticError("the loss is nan")
    with open("order.txt", "a") as file:
        print(f"{experiment.scenario}-{name}", file=file)


def training_jobs(experiment, shadows=False):
    preset = PRESETS[experiment.preset][experiment.scenario]
    names = ["original", "gold", *(f"gold-{n}" for n in range(2, preset["golds"] + 1))]
    names += [f"shadow-{n}" for n in range(preset["audit"]["shadows"])]
    return {name: lambda name=name: make(experiment, name) for name in names}
""",
}


def write_notebook(path, *cells):
    """A notebook whose first code cell holds the parameters."""
    parameters = new_code_cell(cell(), metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell("# Title"), parameters, *map(new_code_cell, cells)]
    for number, new in enumerate(cells):
        new.id = f"cell{number}"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


def make_repository(folder, numbers, *cells):
    """The workflow with notebooks that append their number to order.txt, then fail or wait if a file says so.

    `cells` come before that in each.
    """
    shutil.copytree(ROOT / "workflow", folder / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "helpers/audit").mkdir(parents=True)
    for name in TORCH_FREE:
        shutil.copy(ROOT / f"helpers/{name}.py", folder / "helpers")
    for name, text in HELPERS.items():
        (folder / "helpers" / name).write_text(text)
    for number in numbers:
        code = f"""import os, time
with open("../order.txt", "a") as file:
    print("{number}", file=file)
if os.path.exists("../fail{number}"):
    raise ValueError("too bad")
while os.path.exists("../wait{number}"):
    time.sleep(0.1)
with open("../pid", "w") as file:
    print(os.getpid(), os.environ["OMP_NUM_THREADS"], file=file)
"""
        write_notebook(folder / f"notebooks/{number}_some_words.ipynb", *cells, code, "print(preset)")
    return folder


def suite(repository, *options):
    command = [sys.executable, "workflow/suite.py", *options]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=PATIENCE)


@contextmanager
def running_suite(repository, *options):
    """A suite that has come to its first notebook, with the processes that it started."""
    command = [sys.executable, "workflow/suite.py", *options]
    process = subprocess.Popen(
        command,
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # who runs the tests may ignore it
    )
    try:
        wait_until(lambda: notebooks_run(repository) or process.poll() is not None)
        yield process, psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()


def notebooks_run(repository):
    """The notebooks in order.txt, without models."""
    file = repository / "order.txt"
    return [word for word in file.read_text().split() if word.isdigit()] if file.exists() else []


def wait_until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def order(repository):
    """The notebooks that ran since the last call, or the models."""
    found = notebooks_run(repository)
    (repository / "order.txt").unlink(missing_ok=True)
    return found


def execute(folder, *cells, parameters=None, attempt=1):
    """The process of one notebook's job, in a folder with nothing else but the helpers that need no torch."""
    if not (folder / "workflow").exists():
        make_repository(folder, [])
    if cells:
        write_notebook(folder / "notebooks/03_some_words.ipynb", *cells)
    job = {"kind": "03", "title": "03 some words", "name": "n", "seed": 5, "result": "runs/03.json", "made_from": "0"}
    job |= {
        "parameters": {"seed": 5} if parameters is None else parameters,
        "notebook": "notebooks/03_some_words.ipynb",
    }
    (folder / "config.json").write_text(json.dumps({"jobs": [job]}))
    command = [sys.executable, "workflow/execute.py", "config.json", "runs/03.json", str(attempt)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
