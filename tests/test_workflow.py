"""run_all.sh and workflow/, on tiny notebooks in a copy of the repository whose `helpers` need no torch."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import files
import nbformat
import psutil
import pytest
import suite as command
from execute import parameter_problem, take_gpu
from files import replace_text
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from save import save_outputs
from suite import share_out, time_left
from wording import duration, title, unknown

from helpers.budgets import BUDGETS
from helpers.experiment import SCENARIOS, STARTS

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 600  # seconds; enough on a machine that is busy with other things
PARAMETERS = """data = "digits"
budget = "quick"
scenarios = ["random", "class"]
forget_class = None
forget_fraction = 0.1
start = "fresh"
"""
HELPERS = {
    "__init__.py": "from .data import load_data\n",
    "data.py": """
from types import SimpleNamespace

def load_data(source):
    if source != "digits":
        raise ValueError(f"data '{source}' is unknown:\\n digits")
    return SimpleNamespace(name="digits", title="digits", identity="0", classes=("0", "1"))

def find_folder(source):
    load_data(source)

def class_number(data, name):
    if name not in (None, *data.classes):
        raise ValueError(f"forget_class '{name}' is unknown")
""",
    "training.py": "def pick_device():\n    return 'cpu'\n",
    "notebook.py": """
from dataclasses import dataclass, replace
from pathlib import Path
from .data import load_data

@dataclass
class Experiment:
    data: object
    scenario: str
    seed: int

    def with_seed(self, seed):
        return replace(self, seed=seed)

    def fetch(self):
        if Path("offline").exists():
            raise ConnectionError(f"the weights of '{self.scenario}' could not be loaded")

    def seeds_there(self):
        listed = Path("seeds.txt")
        return sorted({self.seed, *map(int, listed.read_text().split() if listed.exists() else [])})

def open_suite(data, budget, scenarios, seed, forget_class, forget_fraction, start, say):
    if forget_fraction < 0.001:
        raise ValueError("0 images to forget")
    scenarios = [scenarios] if isinstance(scenarios, str) else scenarios
    return [Experiment(load_data(data), scenario, seed) for scenario in scenarios]
""",
    "shadows.py": """
from pathlib import Path

def make(experiment, name):
    if Path(f"fail-{name}").exists():
        raise ArithmeticError("the loss is nan")
    with open("order.txt", "a") as file:
        print(f"{experiment.scenario}-{name}", file=file)
    Path(f"{experiment.scenario}-{name}-{experiment.seed}.model").touch()

def trainings(experiment, shadows):
    listed = Path("models.txt")  # those that start with s are shadows
    names = [name for name in (listed.read_text().split() if listed.exists() else []) if shadows or name[0] != "s"]
    return {name: lambda name=name: make(experiment, name) for name in names}

def still_to_train(experiment, shadows):
    names = trainings(experiment, shadows)
    return [name for name in names if not Path(f"{experiment.scenario}-{name}-{experiment.seed}.model").exists()]
""",
}


def write_notebook(path, *cells):
    """A notebook whose first code cell holds the parameters."""
    parameters = new_code_cell(PARAMETERS + "seed = 0", metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell("# Title"), parameters, *map(new_code_cell, cells)]
    for number, cell in enumerate(cells):
        cell.id = f"cell{number}"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


def make_repository(folder, numbers, *cells):
    """The workflow with notebooks that write their number into order.txt, then fail or wait if a file says so.

    `cells` come before that in each.
    """
    shutil.copytree(ROOT / "workflow", folder / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "helpers").mkdir()
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
        path = folder / f"notebooks/{number}_some_words.ipynb"
        write_notebook(path, *cells, code, "print(budget)")
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
        wait_until(lambda: (repository / "order.txt").exists() or process.poll() is not None)
        yield process, psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()


def wait_until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def order(repository):
    """The notebooks that ran since the last call."""
    file = repository / "order.txt"
    numbers = file.read_text().split() if file.exists() else []
    file.unlink(missing_ok=True)
    return numbers


# Wording


def test_wording():
    assert [duration(seconds) for seconds in (0.4, 59.4, 59.6, 3599.6, 3900)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "1 h 0 min",
        "1 h 5 min",
    ]
    assert title("notebooks/03_fine-tuning_it.ipynb", 4) == "03 fine-tuning it (seed 4)"
    assert title("notebooks/10_all.ipynb") == title("notebooks/10_all.ipynb", 3) == "10 all"
    assert unknown("quik", ["quick", "short"]) == "'quik' is unknown: one of quick, short; did you mean quick?"
    assert "did you mean" not in unknown("zzz", ["quick", "short"])


# run_all.sh, with a stand-in for .venv/bin/python that notes how it is called


@pytest.fixture
def shell(tmp_path):
    folder = tmp_path / "a folder"
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / "workflow").mkdir()
    for name in (
        "run_all.sh",
        "requirements.txt",
        "pyproject.toml",
        "workflow/suite.py",
        "workflow/wording.py",
        "workflow/files.py",
    ):
        shutil.copy(ROOT / name, folder / name)
    python = folder / ".venv/bin/python"
    python.write_text("""#!/bin/sh
cd "$(dirname "$0")/../.."
echo "$*" >>calls
if [ -e fails ] && echo "$*" | grep -q -e "$(cat fails)"; then echo "no luck"; exit 7; fi
""")
    python.chmod(0o755)
    return folder


def run_all(folder, *options):
    command = [folder / "run_all.sh", *options]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=PATIENCE)


def calls(folder):
    lines = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    (folder / "calls").unlink(missing_ok=True)
    return lines


def test_help_needs_no_set_up(shell):
    shutil.rmtree(shell / ".venv")
    answer = run_all(shell, "--help")
    assert answer.returncode == 0 and "--forget-fraction" in answer.stdout
    assert not (shell / ".venv").exists()


def test_a_misspelt_option_is_told_before_the_set_up(shell):
    shutil.rmtree(shell / ".venv")
    answer = run_all(shell, "--budgt", "quick")
    assert answer.returncode == 2 and "'--budgt' is unknown" in answer.stderr and answer.stderr.count("\n") == 1
    assert "Setting up" not in answer.stdout and not (shell / ".venv").exists()


def test_set_up_happens_once_and_again_when_requirements_change(shell):
    first = run_all(shell, "--seeds", "0")
    assert first.returncode == 0 and "Setting up" in first.stdout
    pip, started = calls(shell)
    assert "-r requirements.txt" in pip and started.endswith("workflow/suite.py --seeds 0")
    assert "Setting up" not in run_all(shell).stdout and len(calls(shell)) == 1
    (shell / "requirements.txt").write_text("other")
    assert "Setting up" in run_all(shell).stdout


def test_failed_set_up_is_told_and_tried_again(shell):
    (shell / "fails").write_text("-m pip")
    for _ in range(2):
        answer = run_all(shell)
        assert answer.returncode != 0 and "no luck" in answer.stderr
        assert len(calls(shell)) == 1
    (shell / "fails").unlink()
    assert run_all(shell).returncode == 0 and len(calls(shell)) == 2


@pytest.mark.parametrize(("failing", "reached"), [("check .", 1), ("format --check", 2), ("pytest -k data", 3)])
def test_checks_stop_at_the_first_that_fails(shell, failing, reached):
    run_all(shell)
    calls(shell)
    (shell / "fails").write_text(failing)
    assert run_all(shell, "test", "-k", "data").returncode == 7
    assert len(calls(shell)) == reached
    (shell / "fails").unlink()
    assert run_all(shell, "test", "-k", "data").returncode == 0


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--budgt quick", "'--budgt' is unknown: one of --help, "),
        ("--budgt quick", "did you mean --budget?"),
        ("tset", "did you mean test?"),
        ("stauts", "did you mean status?"),
        ("--cluster slrum", "did you mean slurm?"),
        ("--budget quik", "'quik' is unknown: one of quick, short, audit, published, smoke; did you mean quick?"),
        ("--scenario random clas", "did you mean class?"),
        ("--start chian", "did you mean chain?"),
        ("--only 3 4 12", "'12' is unknown: one of 03, 04, 10"),
        ("--seeds", "expected at least one argument"),
        ("--seeds 0 -1", "'-1' is not a whole number"),
        ("--seeds 1.5", "'1.5' is not a whole number"),
        ("--seeds 99999999999999999999", "is not a whole number from 0 to"),
        ("--forget-fraction 0", "'0' is not a number between 0 and 1"),
        ("--forget-fraction 1", "'1' is not a number between 0 and 1"),
        ("--forget-fraction nan", "'nan' is not a number between 0 and 1"),
        ("--forget-fraction half", "'half' is not a number between 0 and 1"),
        ("--jobs 0", "'0' is not a whole number from 1"),
        ("--forget-fraction 0.0005 --only 3 --dry-run", "0 images to forget"),
        ("--data nowhere", "data 'nowhere' is unknown: digits"),
        ("--data=", "data '' is unknown: digits"),
        ("--forget-class 7", "forget_class '7' is unknown"),
    ],
)
def test_bad_option_is_refused_in_one_line(quiet_repository, options, message):
    answer = suite(quiet_repository, *options.split())
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.count("\n") == 1 and answer.stderr.startswith("run_all.sh: ") and message in answer.stderr
    assert not (quiet_repository / "runs").exists()


@pytest.mark.parametrize("text", ["{\n<<<<<<< HEAD\n", "{}", '{"cells": [{"cell_type": "code"}]}'])
def test_a_broken_notebook_is_named_in_one_line(tmp_path, text):
    make_repository(tmp_path, ["03", "04"])
    (tmp_path / "notebooks/04_some_words.ipynb").write_text(text)
    answer = suite(tmp_path, "--dry-run")
    assert answer.returncode == 2 and answer.stderr.count("\n") == 1
    assert answer.stderr.startswith("run_all.sh: notebooks/04_some_words.ipynb is no notebook (")


@pytest.mark.parametrize("words", ["report --foo", "bench --foo", "bench --cases vit33"])
def test_report_and_bench_refuse_a_bad_option_in_one_line(words):
    name, *options = words.split()
    script = {"report": "workflow/report.py", "bench": "tests/bench.py"}[name]
    command = [sys.executable, ROOT / script, *options]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert answer.returncode == 2 and answer.stderr.count("\n") == 1
    assert answer.stderr.startswith(f"run_all.sh {name}: ") and options[-1] in answer.stderr


@pytest.fixture(scope="module")
def quiet_repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("quiet"), ["03", "04", "10"])


def test_folder_that_cannot_be_written_is_named_before_anything_runs(tmp_path):
    make_repository(tmp_path, ["03"])
    (tmp_path / "figures").write_text("a file")
    answer = suite(tmp_path)
    assert answer.returncode == 2 and "cannot write to figures/" in answer.stderr
    assert order(tmp_path) == []


@pytest.mark.parametrize("name", ["RUNS", "FIGURES"])
def test_folder_named_in_the_environment_that_cannot_be_written_is_named_too(quiet_repository, name, monkeypatch):
    monkeypatch.setenv(f"UNLEARNING_{name}", "/dev/null/there")
    answer = suite(quiet_repository)
    assert answer.returncode == 2 and "cannot write to /dev/null/there/: " in answer.stderr
    assert answer.stderr.count("\n") == 1 and order(quiet_repository) == []


# One notebook


def execute(folder, *cells, parameters=None, attempt=1):
    if cells:
        write_notebook(folder / "notebooks/03_some_words.ipynb", *cells)
    command = [
        sys.executable,
        ROOT / "workflow/execute.py",
        "notebooks/03_some_words.ipynb",
        "--executed",
        "runs/03.ipynb",
    ]
    command += ["--result", "runs/03.json", "--made-from", "0", "--attempt", str(attempt)]
    command += ["--parameters", json.dumps({"seed": 5} if parameters is None else parameters)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)


def test_success_leaves_notebook_and_result(tmp_path):
    answer = execute(tmp_path, "import os\nprint(seed, forget_class, os.path.basename(os.getcwd()))")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "03 some words (seed 5)  started\n"
    result = json.loads((tmp_path / "runs/03.json").read_text())
    assert result["notebook"] == "03_some_words.ipynb" and result["parameters"] == {"seed": 5} and result["seconds"] > 0
    assert nbformat.read(tmp_path / "runs/03.ipynb", 4).cells[-1].outputs[0].text == "5 None notebooks\n"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [".03.progress", "03.ipynb", "03.json"]


def test_failing_cell_keeps_its_traceback_and_is_not_tried_again(tmp_path):
    answer = execute(tmp_path, "a = 1\n" * 8 + "1 / 0", "print('never')")
    assert answer.returncode == 1
    assert "ZeroDivisionError: division by zero" in answer.stdout and answer.stdout.count("a = 1") == 5
    assert not (tmp_path / "runs/03.json").exists()
    outputs = [
        output for cell in nbformat.read(tmp_path / "runs/03.ipynb", 4).cells for output in cell.get("outputs", [])
    ]
    assert [output.ename for output in outputs] == ["ZeroDivisionError"] and outputs[0].traceback
    again = execute(tmp_path, attempt=2)
    assert again.returncode == 1 and again.stdout == ""


def test_dead_kernel_is_tried_again(tmp_path):
    cell = """import os, signal
if not os.path.exists("../died"):
    open("../died", "w").close()
    os.kill(os.getpid(), signal.SIGKILL)"""
    first = execute(tmp_path, cell, "print(1)")
    assert first.returncode == 1 and "kernel died" in first.stdout and "once more" in first.stdout
    assert not (tmp_path / "runs/03.json").exists()
    assert execute(tmp_path, attempt=2).returncode == 0
    assert (tmp_path / "runs/03.json").exists()


def test_kernels_want_no_port(tmp_path):
    """Of two that start at once one could find the port that it had chosen taken, and die."""
    cell = """import json
from ipykernel import get_connection_info
info = json.loads(get_connection_info())
print(info["transport"], info["ip"])"""
    addresses = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        assert execute(tmp_path / str(number), cell).returncode == 0
        outputs = nbformat.read(tmp_path / f"{number}/runs/03.ipynb", 4).cells[-1].outputs
        addresses.append(outputs[0].text)
    assert len(set(addresses)) == 2 and all(address.startswith("ipc ") for address in addresses)


def test_notebook_that_leaves_early_is_no_success(tmp_path):
    answer = execute(tmp_path, "import sys\nsys.exit(0)", "print('never')")
    assert answer.returncode == 1 and "stopped before its last cell" in answer.stdout
    assert not (tmp_path / "runs/03.json").exists()


def test_unknown_parameter_is_refused(tmp_path):
    answer = execute(tmp_path, "open('../ran', 'w')", parameters={"buget": "quick"})
    assert answer.returncode == 1 and "'buget' is unknown" in answer.stdout and "did you mean budget?" in answer.stdout
    assert not (tmp_path / "ran").exists() and not (tmp_path / "runs/03.json").exists()


def test_only_the_tagged_cell_declares_parameters():
    tagged = new_code_cell("a, b = 1, 2\nc: int = 3\nd = e = 4\nprint(d)", metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[tagged, new_code_cell("f = 5")])
    assert parameter_problem(notebook, {"c": 0, "d": 0, "e": 0}) == ""
    assert "'f'" in parameter_problem(notebook, {"f": 0})
    assert "'d=1;x'" in parameter_problem(notebook, {"d=1;x": 0})


# The graph


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A run in which 03 fails, the same command after a repair, and what follows; with what ran each time."""
    repository = make_repository(tmp_path_factory.mktemp("story") / "with space", ["01", "02", "03", "04", "10"])
    answers = {}

    def tell(chapter, *options):
        answers[chapter] = (suite(repository, *options), order(repository))

    (repository / "fail03").touch()
    tell("broken")
    (repository / "fail03").unlink()
    tell("status", "status")
    tell("plan", "--dry-run")
    tell("repaired", "--save")
    saved = {path.name: path.read_bytes() for path in repository.glob("notebooks/*")}
    tell("same again")
    (repository / "runs/suite/digits-quick/seed0/04.json").unlink()
    tell("04 anew", "--save", "--only", "4")
    answers["saved"] = saved, {path.name: path.read_bytes() for path in repository.glob("notebooks/*")}
    tell("other settings", "--only", "04", "--forget-fraction", "0.2", "--dry-run")
    (repository / "helpers/data.py").write_text(HELPERS["data.py"] + "# changed\n")
    tell("other helpers", "--only", "03", "04", "--dry-run")
    tell("status of other helpers", "status", "--only", "03")
    (repository / "notebooks/02_some_words.ipynb").write_text(
        (repository / "notebooks/02_some_words.ipynb").read_text().replace("print(budget)", "print(start)")
    )
    tell("other helpers and 02")
    tell("and again")
    (repository / "runs/suite/digits-quick/seed0/02.json").unlink()
    tell("02 anew")
    return repository, answers


def test_failure_is_told_and_the_rest_finishes(story):
    answer, ran = story[1]["broken"]
    assert answer.returncode == 1 and answer.stderr == ""
    assert ran[:2] == ["01", "02"] and sorted(ran[2:]) == ["03", "04"]
    assert "03 some words (seed 0)  FAILED" in answer.stdout and "    ValueError: too bad" in answer.stdout
    assert "Not run: 10 some words\n" in answer.stdout and "seed0/03.ipynb" in answer.stdout
    assert "04 some words (seed 0)  done in " in answer.stdout and "rule" not in answer.stdout


def test_same_command_does_only_what_is_left(story):
    answer, ran = story[1]["plan"]
    assert ran == [] and "Would run: 03 some words (seed 0), 10 some words\n" in answer.stdout
    answer, ran = story[1]["repaired"]
    assert answer.returncode == 0 and ran == ["03", "10"] and "All done in " in answer.stdout
    answer, ran = story[1]["same again"]  # also shows that saved outputs are no reason to run a notebook again
    assert answer.returncode == 0 and ran == [] and "Nothing to do" in answer.stdout


def test_each_finished_notebook_is_a_line_with_the_time_left(story):
    lines = story[1]["broken"][0].stdout.splitlines()
    finished = [line for line in lines if "  done in " in line]
    assert [line.split("; ")[1].split(",")[0] for line in finished] == ["1 of 5", "2 of 5", "3 of 5"]
    assert all(", at least " in line and line.endswith(" left") for line in finished)
    assert "; 2 of 2\n" in story[1]["repaired"][0].stdout


def test_status_tells_what_is_done_and_what_failed(story):
    answer, ran = story[1]["status"]
    lines = answer.stdout.splitlines()
    assert answer.returncode == 0 and ran == [] and lines[0].startswith("01 some words (seed 0)  done in ")
    assert lines[2] == "03 some words (seed 0)  FAILED: ValueError: too bad"
    assert lines[4:] == ["10 some words  to do", "3 of 5 done"]
    outdated = story[1]["status of other helpers"][0].stdout
    assert outdated == "03 some words (seed 0)  out of date\n0 of 1 done\n"


def test_parallel_notebooks_share_the_cores(story):
    threads = int((story[0] / "pid").read_text().split()[1])
    assert threads == max(1, len(os.sched_getaffinity(0)) // 2)


@pytest.mark.parametrize(
    ("jobs", "device", "named", "expected", "shared"),
    [
        (None, "cpu", "", (2, 4), None),
        (3, "cpu", "", (3, 2), None),
        (1, "cpu", "", (1, 8), None),
        (None, "cuda", "2", (1, 8), None),
        (None, "cuda", "2,5", (2, 4), "2,5"),
        (4, "cuda", "2,5", (4, 2), "2,5,2,5"),
    ],
)
def test_cores_and_gpus_are_shared_out(monkeypatch, jobs, device, named, expected, shared):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setenv("UNLEARNING_GPUS", "")
    assert share_out(SimpleNamespace(jobs=jobs, cluster=None), device) == expected
    assert os.environ["UNLEARNING_GPUS"] == (shared or "")


def test_each_job_has_a_gpu_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNLEARNING_GPUS", "2,5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    (tmp_path / ".snakemake").mkdir()
    locks = {}
    for _ in range(2):
        lock = take_gpu()
        locks[os.environ["CUDA_VISIBLE_DEVICES"]] = lock
    assert locks.keys() == {"2", "5"}
    locks["5"].close()
    assert take_gpu() and os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def test_the_time_left_is_what_remains_shared_by_the_jobs():
    """What has not run before counts as the shortest of its kind, and the words say so."""
    waiting = [SimpleNamespace(number=number) for number in ("02", "03", "04", "random-gold")]
    before = {"01": 10, "02": 60, "03": 20, "class-gold": 45, "class-gold-2": 36}
    assert time_left(waiting, 2, before | {"04": None, "random-gold": None}) == ", at least 1 min 3 s left"
    assert time_left(waiting[:3], 2, {"02": 60, "03": 20, "04": 30}) == ", about 55 s left"
    assert time_left(waiting[:1], 8, {"02": 60}) == ", about 1 min 0 s left"
    assert time_left(waiting[:3], 2, {"class-gold": 45}) == time_left([], 2, {"02": 60}) == ""


def test_a_cluster_that_is_not_there_is_told(quiet_repository, monkeypatch):
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    answer = suite(quiet_repository, "--cluster", "slurm")
    assert answer.returncode == 2 and "there is no sbatch here" in answer.stderr and answer.stderr.count("\n") == 1


def test_results_hold_the_parameters(story):
    folder = story[0] / "runs/suite/digits-quick"
    settings = {"data": "digits", "budget": "quick", "scenarios": ["random", "class"], "start": "fresh"}
    settings |= {"forget_class": None, "forget_fraction": 0.1}
    assert json.loads((folder / "10.json").read_text())["parameters"] == settings | {"seed": 0}
    assert json.loads((folder / "seed0/01.json").read_text())["parameters"] == settings | {"seed": 0}


def test_changed_settings_or_helpers_are_noticed(story):
    assert "Would run: 04 some words (seed 0)\n" in story[1]["other settings"][0].stdout
    assert "Would run: 03 some words (seed 0), 04 some words (seed 0)\n" in story[1]["other helpers"][0].stdout


def test_what_is_out_of_date_runs_though_its_leader_runs_too(story):
    """Snakemake by itself skips jobs behind an `ancient` edge from one that runs, whatever else they depend on."""
    answer, ran = story[1]["other helpers and 02"]
    assert answer.returncode == 0 and ran[:2] == ["01", "02"] and sorted(ran[2:4]) == ["03", "04"] and ran[4:] == ["10"]
    assert story[1]["and again"][1] == []


def test_a_leader_that_runs_again_is_no_reason_for_the_others(story):
    assert story[1]["02 anew"][1] == ["02", "10"]


def test_10_is_of_the_first_seed_and_of_those_that_are_complete(tmp_path):
    """It is made again once more seeds are complete, and models are made for the seeds of what is to run alone."""
    repository = make_repository(tmp_path, ["02", "10"], "print(seed)")
    (repository / "models.txt").write_text("original")
    assert suite(repository, "--seeds", "3", "4", "--scenario", "class").returncode == 0
    assert order(repository) == ["class-original", "class-original", "02", "02", "10"]
    result = json.loads((repository / "runs/suite/digits-quick/10.json").read_text())
    assert result["parameters"]["seed"] == 3
    only = ["--only", "10", "--seeds", "3", "--scenario", "class"]
    (repository / "seeds.txt").write_text("3 4")
    assert "Nothing to do" in suite(repository, *only).stdout
    (repository / "seeds.txt").write_text("3 4 5")
    answer = suite(repository, *only)
    assert "10 some words  started" in answer.stdout and order(repository) == ["10"]
    answer = suite(repository, "--seeds", "7", "8", "--only", "10", "--scenario", "class", "--dry-run")
    assert "Would run: class: original (seed 7), 10 some words\n" in answer.stdout


def test_weights_are_fetched_before_anything_is_trained(tmp_path):
    """Who has no network hears of it at once; with all models there it does not matter."""
    repository = make_repository(tmp_path, ["03"])
    (repository / "models.txt").write_text("original")
    (repository / "offline").touch()
    answer = suite(repository)
    assert answer.returncode == 2 and order(repository) == []
    assert answer.stderr == "run_all.sh: the weights of 'random' could not be loaded\n"
    (repository / "models.txt").write_text("")
    assert suite(repository).returncode == 0 and order(repository) == ["03"]


FIGURE = """from pathlib import Path
folder = Path("../figures/digits")
folder.mkdir(parents=True, exist_ok=True)
(folder / "03_curves.png").write_text(f"{budget} {seed}")
(folder / "audit.csv").write_text("12 writes this beside it")
"""


def test_a_notebook_runs_again_once_its_figures_are_gone_or_anothers(tmp_path):
    """What another seed of the same run left counts as its own; what another budget left does not."""
    repository = make_repository(tmp_path, ["03"], FIGURE)
    figure, seeds = repository / "figures/digits/03_curves.png", ["--seeds", "0", "1"]
    assert suite(repository, *seeds).returncode == 0 and order(repository) == ["03", "03"]
    recorded = json.loads((repository / "runs/suite/digits-quick/seed0/03.json").read_text())["figures"]
    assert list(recorded) == ["digits/03_curves.png"]
    assert "Nothing to do" in suite(repository, *seeds).stdout
    assert suite(repository, "--budget", "smoke").returncode == 0 and order(repository) == ["03"]
    assert suite(repository).returncode == 0 and order(repository) == ["03"]
    assert figure.read_text() == "quick 0" and "Nothing to do" in suite(repository, *seeds).stdout
    shutil.rmtree(repository / "figures")
    assert "out of date" in suite(repository, "status").stdout
    assert suite(repository).returncode == 0 and order(repository) == ["03"] and figure.exists()


def test_the_tables_are_those_of_10_and_12(tmp_path, monkeypatch):
    """Which notebooks run side by side: none takes another's table for its own."""
    monkeypatch.setattr(files, "FIGURES", tmp_path)
    (tmp_path / "digits").mkdir()
    for name in ("results.csv", "audit.csv", "10_tsne.png", "11_gap.png"):
        (tmp_path / "digits" / name).touch()
    for number, found in (("10", ["10_tsne.png", "results.csv"]), ("11", ["11_gap.png"]), ("12", ["audit.csv"])):
        assert sorted(files.figures_of(Path(f"{number}_x.ipynb"))) == [f"digits/{name}" for name in found]


def test_the_command_knows_what_the_helpers_know():
    """It repeats their lists, since `--help` does without torch."""
    assert [*BUDGETS] == command.BUDGETS and [*SCENARIOS] == command.SCENARIOS and [*STARTS] == command.STARTS


def test_folders_named_in_the_environment_are_the_same_from_everywhere(tmp_path):
    """A relative one is taken from the repository, an empty one for none, by helpers and workflow alike."""
    ask = f"""import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "workflow")!r}]
import files; from helpers import runs
print(runs.RUNS, runs.FIGURES, files.FIGURES, sep="\\n")"""
    for named, expected in (("../else", ROOT / "../else"), ("", None), (str(tmp_path), tmp_path)):
        environment = {**os.environ, "UNLEARNING_RUNS": named, "UNLEARNING_FIGURES": named}
        words = subprocess.check_output([sys.executable, "-c", ask], cwd=tmp_path, env=environment, text=True).split()
        assert words == [str(expected or ROOT / "runs"), *2 * [str(expected or ROOT / "figures")]]


def test_text_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    """A full disk leaves the old text and nothing beside it."""
    file = tmp_path / "a.txt"
    replace_text(file, "old")

    def full(handle):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_text(file, "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_models_are_jobs_of_the_same_graph(tmp_path):
    """Each is trained before the notebooks that start from it, once; shadows only for 12; one that fails is named."""
    repository = make_repository(tmp_path, ["01", "03", "12"])
    (repository / "models.txt").write_text("original gold shadow-0")
    (repository / "fail-gold").touch()
    seeds = ["--scenario", "class", "--seeds", "4"]
    answer = suite(repository, *seeds, "--only", "03")
    assert answer.returncode == 1 and order(repository) == ["class-original"], answer.stdout
    assert "FAILED: class: gold (seed 4): ArithmeticError: the loss is nan\nNot run: 03 some words" in answer.stdout
    (repository / "fail-gold").unlink()
    answer = suite(repository, *seeds, "--only", "03", "12", "--dry-run")
    assert "run: class: gold (seed 4), class: shadow-0 (seed 4), 03 some words (seed 4), 12" in answer.stdout
    answer, ran = suite(repository, *seeds), order(repository)
    assert answer.returncode == 0 and "class: gold (seed 4)  done in " in answer.stdout and "of 5" in answer.stdout
    assert sorted(ran) == ["01", "03", "12", "class-gold", "class-shadow-0"]
    assert ran.index("class-gold") < ran.index("03") and ran.index("class-shadow-0") < ran.index("12")
    (repository / "class-shadow-0-4.model").unlink()
    assert "3 of 3 done" in suite(repository, "status", *seeds).stdout, "what nothing needs is not to be made"


def test_saved_notebooks_repeat_byte_for_byte(story):
    answer, ran = story[1]["04 anew"]
    assert answer.returncode == 0 and ran == ["04"] and "Saved the outputs of 1 notebooks" in answer.stdout
    before, after = story[1]["saved"]
    assert before == after
    notebook = nbformat.reads(after["04_some_words.ipynb"].decode(), 4)
    assert [cell.id for cell in notebook.cells] == ["cell0", "cell1", "cell2", "cell3"]
    assert notebook.cells[-1].outputs[0].text == "quick\n"


def test_interrupted_or_killed_run_leaves_nothing_behind_and_resumes(tmp_path):
    make_repository(tmp_path, ["03"])
    for number in (signal.SIGINT, signal.SIGKILL):
        (tmp_path / "wait03").touch()
        with running_suite(tmp_path) as (process, children):
            assert len(children) >= 3  # Snakemake, the executor, the kernel
            second = suite(tmp_path, "--budget", "short")
            assert second.returncode == 2 and f"another run (process {process.pid})" in second.stderr
            process.send_signal(number)
            output = process.communicate(timeout=PATIENCE)[0]
            assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
            assert ("the same command goes on" in output) == (number == signal.SIGINT)
            assert not psutil.wait_procs(children, timeout=PATIENCE)[1]
        assert order(tmp_path) == ["03"]
    (tmp_path / "wait03").unlink()
    assert suite(tmp_path).returncode == 0 and order(tmp_path) == ["03"]


# Saved outputs


@pytest.fixture
def pair(tmp_path):
    """A notebook and a function that writes its execution with the given outputs in the last cell."""
    path, executed = tmp_path / "notebooks/03_some_words.ipynb", tmp_path / "executed.ipynb"
    write_notebook(path, "print(1)")

    def run(*outputs, count=1, source=None):
        notebook = nbformat.read(path, 4)
        notebook.cells.insert(2, new_code_cell("seed = 7", metadata={"tags": ["injected-parameters"]}))
        notebook.metadata["papermill"] = {"duration": count}
        notebook.cells[-1].update(outputs=list(outputs), execution_count=count, source=source or "print(1)")
        notebook.cells[-1].metadata["papermill"] = {"duration": count}
        nbformat.write(notebook, executed)
        save_outputs([(path, executed)])
        return path.read_text()

    return run


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def result(text, count):
    return new_output("execute_result", data={"text/plain": text}, execution_count=count)


def test_saving_keeps_outputs_and_drops_what_varies(pair):
    widget = new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": "Slider()"})
    first = pair(stream("a\n"), stream("b\n"), stream("c", "stderr"), widget, result("2", 1))
    assert first == pair(stream("a\nb\n"), stream("c", "stderr"), result("2", 8), count=8)
    notebook = nbformat.reads(first, 4)
    assert [cell.source for cell in notebook.cells][2:] == ["print(1)"]
    assert [output.get("text") for output in notebook.cells[-1].outputs] == ["a\nb\n", "c", None]
    assert "papermill" not in first and "injected" not in first


@pytest.mark.parametrize(
    "text",
    [f"saved {ROOT}/figures", f"{Path.home()}/photos", "/".join(["", "tmp", "ipykernel_12", "3.py:1: UserWarning"])],
)
def test_paths_of_this_machine_are_refused(pair, text):
    before = pair(stream("good\n"))
    for output in (stream(text), new_output("display_data", data={"text/html": f"<b>{text}</b>"})):
        with pytest.raises(ValueError, match="holds on this machine only"):
            pair(output)
    assert pair(stream("good\n")) == before
    assert pair(new_output("display_data", data={"image/png": text}))


def test_notebook_edited_after_its_run_is_not_saved(pair):
    with pytest.raises(ValueError, match="edited after it ran"):
        pair(source="print(2)")
