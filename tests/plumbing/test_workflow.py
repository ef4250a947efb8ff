"""run_all.sh and workflow/, on tiny notebooks in a copy of the repository whose `helpers` need no torch."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from execute import parameter_problem
from jobs import Job, code_used, find_notebooks
from nbformat.v4 import new_code_cell, new_notebook, new_output
from options import guarded
from process import take_gpu
from progress import simulate
from publish import publish
from repository import (
    DATA,
    HELPERS,
    PATIENCE,
    ROOT,
    execute,
    make_repository,
    order,
    running_suite,
    suite,
    write_notebook,
)
from save import save_outputs
from suite import list_files, share_out

from helpers.parameters import checked
from helpers.paths import replace_text

# run_all.sh, with a stand-in for .venv/bin/python that records how it is called


@pytest.fixture
def shell(tmp_path):
    folder = tmp_path / "a folder"
    (folder / ".venv/bin").mkdir(parents=True)
    for name in ("run_all.sh", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    make_repository(folder, ["03"])
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


def test_a_link_to_the_script_is_the_script(shell):
    """Also in another folder, and through a link to the checkout: the set-up is not made again."""
    (shell.parent / "elsewhere").mkdir()
    (shell.parent / "elsewhere/start").symlink_to("../" + shell.name + "/run_all.sh")
    (shell.parent / "also").symlink_to(shell)
    assert run_all(shell).returncode == 0 and len(calls(shell)) == 2
    for command in (shell.parent / "elsewhere/start", shell.parent / "also/run_all.sh"):
        answer = subprocess.run([command, "status"], capture_output=True, text=True, timeout=PATIENCE)
        assert answer.returncode == 0 and answer.stdout == "" and calls(shell)[0].endswith("suite.py status")


def test_a_misspelt_option_is_refused_before_the_set_up(shell):
    shutil.rmtree(shell / ".venv")
    answer = run_all(shell, "--prest", "quick")
    assert answer.returncode == 2 and "'--prest' is unknown" in answer.stderr and answer.stderr.count("\n") == 1
    assert "Setting up" not in answer.stdout and not (shell / ".venv").exists()


def test_set_up_happens_once_and_again_when_requirements_change(shell):
    first = run_all(shell, "--seeds", "0")
    assert first.returncode == 0 and "Setting up" in first.stdout
    pip, started = calls(shell)
    assert "-r requirements.txt" in pip and started.endswith("workflow/suite.py --seeds 0")
    assert "Setting up" not in run_all(shell).stdout and len(calls(shell)) == 1
    (shell / "requirements.txt").write_text("other")
    assert "Updating .venv" in run_all(shell).stdout


def test_failed_set_up_is_reported_and_tried_again(shell):
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


@pytest.fixture(scope="module")
def quiet_repository(tmp_path_factory):
    """Nothing is ever run here."""
    return make_repository(tmp_path_factory.mktemp("quiet"), ["03", "04", "10", "13"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--prest quick", "'--prest' is unknown: one of --help, "),
        ("--prest quick", "did you mean --preset?"),
        ("--budget quick", "--budget is now called --preset"),
        ("--budget=quick", "--budget is now called --preset"),
        ("tset", "did you mean test?"),
        ("stauts", "did you mean status?"),
        ("--cluster slrum", "did you mean slurm?"),
        ("--preset quik", "--preset: 'quik' is unknown: one of quick, short, audit, documents, smoke; did you mean"),
        ("--scenario random clas", "did you mean class?"),
        ("--start chian", "did you mean chain?"),
        ("--only 3 4 12", "'12' is unknown: one of 03, 04, 13, 10"),
        ("--preset short --only 13", "notebook 13 is left out: preset short trains no shadow models"),
        ("--seeds", "expected at least one argument"),
        ("--seeds 0 -1", "'-1' is not a whole number"),
        ("--seeds 1.5", "'1.5' is not a whole number"),
        ("--seeds 99999999999999999999", "is not a whole number from 0 to"),
        ("--forget-fraction 0", "'0' is not a number between 0 and 1"),
        ("--forget-fraction 1", "'1' is not a number between 0 and 1"),
        ("--forget-fraction nan", "'nan' is not a number between 0 and 1"),
        ("--forget-fraction half", "--forget-fraction: 'half' is not a number between 0 and 1"),
        ("--jobs 0", "--jobs: 0 is too few"),
        ("--forget-fraction 0.0005 --only 3 --dry-run", "0 images to forget"),
        ("--data nowhere", "data 'nowhere' is unknown: digits"),
        ("--data=", "--data: '' is not a non-empty string"),
        ("--forget-class 7", "forget_class '7' is unknown"),
    ],
)
def test_bad_option_is_refused_in_one_line(quiet_repository, options, message):
    answer = suite(quiet_repository, *options.split())
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.count("\n") == 1 and answer.stderr.startswith("run_all.sh: ") and message in answer.stderr
    assert not (quiet_repository / "runs").exists()


def test_a_parameter_is_added_in_one_place(tmp_path):
    """A record in `parameters.py` is enough for the command line, its help, its check and the notebooks' cell."""
    repository = make_repository(tmp_path, ["03"])
    path = repository / "helpers/parameters.py"
    record = 'Parameter("depth", 1, "of something", whole_number, "--depth"),'
    path.write_text(path.read_text().replace("RECORDS = (\n", f"RECORDS = (\n    {record}\n"))
    assert "--depth DEPTH" in suite(repository, "--help").stdout
    assert "--depth: 'deep' is not a whole number" in suite(repository, "--depth", "deep").stderr
    written = subprocess.run([sys.executable, "workflow/cells.py"], cwd=repository, capture_output=True, text=True)
    assert written.stdout == "updated 03_some_words.ipynb\n"
    cells = nbformat.read(repository / "notebooks/03_some_words.ipynb", 4).cells
    assert cells[1].source.startswith("depth = 1  # of something\n")


@pytest.mark.parametrize("text", ["{\n<<<<<<< HEAD\n", "{}", '{"cells": [{"cell_type": "code"}]}'])
def test_a_broken_notebook_is_named_in_one_line(tmp_path, text):
    make_repository(tmp_path, ["03", "04"])
    (tmp_path / "notebooks/04_some_words.ipynb").write_text(text)
    answer = suite(tmp_path, "--dry-run")
    assert answer.returncode == 2 and answer.stderr.count("\n") == 1
    assert answer.stderr.startswith("run_all.sh: notebooks/04_some_words.ipynb is no notebook (")


@pytest.mark.parametrize(
    "words", ["report --foo", "bench --foo", "bench --cases vit33", "bench --cases notebook --data foo", "clean --foo"]
)
def test_other_commands_refuse_a_bad_option_in_one_line(words):
    name, *options = words.split()
    script = {"bench": "benchmark"}.get(name, name)
    command = [sys.executable, ROOT / f"workflow/{script}.py", *options]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert answer.returncode == 2 and answer.stderr.count("\n") == 1
    assert answer.stderr.startswith(f"run_all.sh {name}: ") and options[-1] in answer.stderr


def test_an_interruption_is_one_line(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert guarded(interrupted, "run_all.sh clean") == 130
    assert capsys.readouterr().err == "\nrun_all.sh clean: stopped\n"


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
    assert answer.returncode == 2 and "cannot write to /dev/null/there/" in answer.stderr
    assert answer.stderr.count("\n") == 1 and order(quiet_repository) == []
    shutil.rmtree(quiet_repository / "runs", ignore_errors=True)


def test_a_cluster_that_is_missing_is_reported(quiet_repository, monkeypatch):
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
    answer = suite(quiet_repository, "--cluster", "slurm")
    assert answer.returncode == 2 and "there is no sbatch here" in answer.stderr and answer.stderr.count("\n") == 1


# One notebook


def test_success_leaves_notebook_and_result(tmp_path):
    answer = execute(tmp_path, "import os\nprint(seed, forget_class, os.path.basename(os.getcwd()))")
    assert answer.returncode == 0 and answer.stdout == "", answer.stderr
    result = json.loads((tmp_path / "runs/03.json").read_text())
    assert result["notebook"] == "03_some_words.ipynb" and result["parameters"] == {"seed": 5} and result["seconds"] > 0
    assert nbformat.read(tmp_path / "runs/03.ipynb", 4).cells[-1].outputs[0].text == "5 None notebooks\n"
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == [".03.outputs", ".03.progress", "03.ipynb", "03.json"]


WRITE = """from os import environ
from pathlib import Path
folder = Path(environ["UNLEARNING_OUTPUT"])
(folder / "figures").mkdir()
(folder / "figures/{name}.png").write_text(f"seed {{seed}}")
(folder / "{name}.csv").write_text("value")
"""


def test_outputs_appear_when_all_cells_have_run_and_replace_the_former_ones(tmp_path):
    assert execute(tmp_path, WRITE.format(name="03_a")).returncode == 0
    result = json.loads((tmp_path / "runs/03.json").read_text())
    assert result["outputs"] == ["03_a.csv", "figures/03_a.png"]
    (tmp_path / "runs/03.json").unlink()
    assert execute(tmp_path, WRITE.format(name="03_b"), "1 / 0").returncode == 1
    assert [path.name for path in (tmp_path / "runs/figures").iterdir()] == ["03_a.png"]
    assert execute(tmp_path, WRITE.format(name="03_b")).returncode == 0
    assert [path.name for path in (tmp_path / "runs/figures").iterdir()] == ["03_b.png"]
    assert not (tmp_path / "runs/03_a.csv").exists()


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


def test_kernels_use_no_port(tmp_path):
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
    answer = execute(tmp_path, "open('../ran', 'w')", parameters={"prest": "quick"})
    assert answer.returncode == 1 and "'prest' is unknown" in answer.stdout and "did you mean preset?" in answer.stdout
    assert not (tmp_path / "ran").exists() and not (tmp_path / "runs/03.json").exists()


def test_only_the_tagged_cell_declares_parameters():
    tagged = new_code_cell("a, b = 1, 2\nc: int = 3\nd = e = 4\nprint(d)", metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[tagged, new_code_cell("f = 5")])
    assert parameter_problem(notebook, {"c": 0, "d": 0, "e": 0}) == ""
    assert "'f'" in parameter_problem(notebook, {"f": 0})
    assert "'d=1;x'" in parameter_problem(notebook, {"d=1;x": 0})


# The graph

IMPORT = "if False:\n    from helpers import datasets"
FOLDER = f"runs/suite/{DATA}-quick"


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """A run in which 03 fails, the same command after a repair, and what follows; with what ran each time."""
    numbers = ["01", "02", "03", "04", "10", "17"]
    repository = make_repository(tmp_path_factory.mktemp("story") / "with space", numbers, IMPORT)
    answers, data = {}, repository / "helpers/datasets.py"

    def chapter(name, *options):
        answers[name] = (suite(repository, *options), order(repository))

    (repository / "fail03").touch()
    chapter("broken")
    (repository / "fail03").unlink()
    chapter("status", "status")
    chapter("plan", "--dry-run")
    chapter("repaired", "--save")
    saved = {path.name: path.read_bytes() for path in repository.glob("notebooks/*")}
    chapter("same again")
    (repository / FOLDER / "seed0/04.json").unlink()
    chapter("04 anew", "--save", "--only", "4")
    answers["saved"] = saved, {path.name: path.read_bytes() for path in repository.glob("notebooks/*")}
    chapter("after 04")
    chapter("other settings", "--only", "04", "--forget-fraction", "0.2", "--dry-run")
    data.write_text(HELPERS["datasets.py"].replace('"""The data."""', '"""All the data."""  # and nothing else'))
    chapter("other docstring", "--dry-run")
    data.write_text(HELPERS["datasets.py"].replace("unknown", "not known"))
    chapter("other code", "--dry-run")
    chapter("status of other code", "status", "--only", "03")
    data.write_text(HELPERS["datasets.py"])
    notebook = repository / "notebooks/02_some_words.ipynb"
    notebook.write_text(notebook.read_text().replace("# Title", "# Another title"))
    chapter("other text", "--dry-run")
    notebook.write_text(notebook.read_text().replace("print(preset)", "print(start)"))
    chapter("other cell")
    chapter("and again")
    shutil.rmtree(repository / ".snakemake" / "metadata")
    chapter("another checkout", "--dry-run")
    notebook.write_text(notebook.read_text().replace("print(start)", "print(preset)"))
    chapter("another checkout, other cell", "--dry-run")
    notebook.write_text(notebook.read_text().replace("print(preset)", "print(start)"))
    result = repository / FOLDER / "seed0/04.json"
    result.write_text(result.read_text()[:40])
    chapter("damaged result", "--dry-run")
    chapter("status of a damaged result", "status", "--only", "04")
    return repository, answers


def test_failure_is_reported_and_the_rest_finishes(story):
    answer, ran = story[1]["broken"]
    assert answer.returncode == 1 and answer.stderr == ""
    assert ran[0] == "01" and sorted(ran) == ["01", "02", "03", "04"]
    assert "03 some words, seed 0: FAILED" in answer.stdout and "    ValueError: too bad" in answer.stdout
    assert "Not run: 10 some words; 17 some words, seed 0\n" in answer.stdout and "seed0/03.ipynb" in answer.stdout
    assert "04 some words, seed 0: done in " in answer.stdout and "rule" not in answer.stdout


def test_same_command_does_only_what_is_left(story):
    answer, ran = story[1]["plan"]
    planned = "Would run: 03 some words, seed 0; 10 some words; 17 some words, seed 0\n"
    assert ran == [] and planned in answer.stdout
    answer, ran = story[1]["repaired"]
    assert answer.returncode == 0 and ran[0] == "03" and sorted(ran) == ["03", "10", "17"]
    answer, ran = story[1]["same again"]  # also shows that saved outputs are no reason to run a notebook again
    assert answer.returncode == 0 and ran == [] and "Nothing to do" in answer.stdout


def test_each_finished_job_is_a_line_with_the_time_left(story):
    lines = story[1]["broken"][0].stdout.splitlines()
    assert re.fullmatch(r"The weights that it stores in runs/ need 0\.0 GB at most \(\d+ GB are free\)\.", lines[1])
    assert re.fullmatch(r"8 jobs; about .* left", lines[2])
    finished = [line for line in lines if ": done in " in line]
    assert [line.split("]")[0] for line in finished] == [f"[{number}/8" for number in range(1, 6)]
    assert all(re.search(r"done in \d+ s; about .* left$", line) for line in finished)
    last = story[1]["repaired"][0].stdout.splitlines()
    assert last[-6].startswith("[3/3] ") and last[-5].startswith("All done in ")
    assert last[-2] == f"Open first: {FOLDER}/seed0/01.ipynb"
    assert last[-1] == f"All notebooks as one HTML page: ./run_all.sh report {DATA}-quick"


def test_status_shows_what_is_done_and_what_failed(story):
    answer, ran = story[1]["status"]
    lines = answer.stdout.splitlines()
    assert answer.returncode == 0 and ran == [] and lines[0].startswith("01 some words, seed 0: done in ")
    assert lines[2] == "03 some words, seed 0: FAILED: ValueError: too bad"
    assert lines[4:] == ["10 some words: to do", "17 some words, seed 0: to do", "3 of 6 done"]
    outdated = story[1]["status of other code"][0].stdout
    assert outdated.endswith("03 some words, seed 0: out of date\n0 of 3 done\n"), "with both jobs of models"


def test_parallel_notebooks_share_the_cores(story):
    threads = int((story[0] / "pid").read_text().split()[1])
    assert threads == max(1, len(os.sched_getaffinity(0)) // 2)


def test_what_follows_a_notebook_runs_after_it(story):
    """10 and 17 show what the others made; a run of 04 alone leaves them to the next full run."""
    assert story[1]["04 anew"][1] == ["04"] and sorted(story[1]["after 04"][1]) == ["10", "17"]


def test_other_settings_are_another_run(story):
    answer, ran = story[1]["other settings"]
    assert ran == [] and f"into {FOLDER}-forget_fraction-0.2/\n" in answer.stdout
    assert answer.stdout.endswith("class: Original and Golds, seed 0; 04 some words, seed 0\n")


def test_docstrings_comments_and_text_are_no_reason_to_run_anything(story):
    assert story[1]["other docstring"][0].stdout.endswith("Would run: nothing\n")
    assert story[1]["other text"][0].stdout.endswith("Would run: nothing\n")


def test_code_is_a_reason(story):
    planned = story[1]["other code"][0].stdout
    assert all(f"{number} some words" in planned for number in ("01", "02", "03", "04", "10", "17"))
    answer, ran = story[1]["other cell"]
    assert answer.returncode == 0 and ran[0] == "02" and sorted(ran) == ["02", "10", "17"]
    assert story[1]["and again"][1] == []


def test_a_checkout_judges_results_that_another_has_made(story):
    """Snakemake's metadata stay in the checkout that made a result in a shared folder."""
    assert story[1]["another checkout"][0].stdout.endswith("Would run: nothing\n")
    assert "02 some words" in story[1]["another checkout, other cell"][0].stdout.splitlines()[-1]


def test_a_damaged_result_is_made_again(story):
    planned = story[1]["damaged result"][0].stdout.splitlines()[-1]
    assert "04 some words" in planned and "02 some words" not in planned
    answer = story[1]["status of a damaged result"][0]
    assert answer.returncode == 0 and "04 some words, seed 0: to do" in answer.stdout


def test_a_notebook_depends_on_what_it_imports():
    """Directly or not, in each form of import; presets count as their tables."""

    def used(source):
        return set(code_used(source, "quick")[0])

    assert {"helpers.metrics", "helpers.models"} <= used("import numpy\nfrom helpers import metrics, models")
    assert "helpers.store" in used("def f():\n    from helpers.experiment import Experiment")
    assert "helpers.explorer" not in used("import helpers.data")
    assert used("import numpy as np") == set()
    assert used("from helpers import train") == used("no Python") > used("import helpers.experiment")
    assert code_used("", "quick")[1] != code_used("", "short")[1]


@pytest.mark.parametrize(
    ("jobs", "named", "expected", "shared"),
    [
        (None, "", (2, 4, False), None),
        (3, "-1", (3, 2, False), None),
        (1, "", (1, 8, False), None),
        (None, "2", (1, 8, False), None),
        (None, "2,5", (2, 4, True), "2,5"),
        (4, "2,5", (4, 2, True), "2,5,2,5"),
    ],
)
def test_cores_and_gpus_are_shared_out(monkeypatch, jobs, named, expected, shared):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setenv("UNLEARNING_GPUS", "")
    assert share_out(SimpleNamespace(jobs=jobs, cluster=None)) == expected
    assert os.environ["UNLEARNING_GPUS"] == (shared or "")


def test_each_job_has_a_gpu_of_its_own(monkeypatch):
    (ROOT / ".snakemake").mkdir(exist_ok=True)
    monkeypatch.setenv("UNLEARNING_GPUS", "2,5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    locks = {}
    for _ in range(2):
        lock = take_gpu()
        locks[os.environ["CUDA_VISIBLE_DEVICES"]] = lock
    assert locks.keys() == {"2", "5"}
    locks["5"].close()
    assert take_gpu() and os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def job(kind, after=()):
    return Job(kind, kind, kind, 0, f"{kind}.json", "", {}, after=[f"{name}.json" for name in after])


def test_the_time_left_follows_from_slots_and_what_waits_for_what():
    jobs = [job("a"), job("b"), job("c", ["a", "b"]), job("d", ["c"])]
    seconds = {"a.json": 10, "b.json": 20, "c.json": 5, "d.json": 3}
    assert simulate(jobs, seconds, 2) == 28 and simulate(jobs, seconds, 1) == 38
    assert simulate(jobs[:2], seconds, 2) == 20 and simulate(jobs[:2], seconds, 8) == 20


def test_the_one_table_orders_the_notebooks():
    """As a reader goes; those that come after the methods last."""
    order = list(find_notebooks())
    assert order[0] == "01" and order[-2:] == ["10", "17"] and order[:-2] == sorted(order[:-2])


# Models


def test_models_are_trained_before_the_notebooks_that_need_them(tmp_path):
    """Several in one process, once; shadow models only for 13; one that fails is named."""
    repository = make_repository(tmp_path, ["01", "03", "13"])
    (repository / "fail-gold").touch()
    options = ["--scenario", "random", "--seeds", "4"]
    answer = suite(repository, *options, "--only", "03")
    assert answer.returncode == 1 and (repository / "order.txt").read_text() == "random-original\n"
    assert "FAILED: random: Original and Golds, seed 4: gold: ArithmeticError: the loss is nan" in answer.stdout
    assert "Not run: 03 some words, seed 4" in answer.stdout
    (repository / "fail-gold").unlink()
    (repository / "order.txt").unlink()
    assert suite(repository, *options, "--only", "03").returncode == 0
    assert (repository / "order.txt").read_text().split() == ["random-original", "random-gold", "random-gold-2", "03"]
    order(repository)
    answer = suite(repository, *options)
    ran = (repository / "order.txt").read_text().split()
    assert answer.returncode == 0 and sorted(ran) == ["01", "13", *(f"random-shadow-{n}" for n in range(6))]
    assert ran[-1] == "13" and "random: shadow models 0 to 5, seed 4: done in " in answer.stdout
    order(repository)
    shutil.rmtree(repository / f"{FOLDER}-scenarios-random/seed4/models")
    assert "Nothing to do" in suite(repository, *options).stdout, "models that nothing waits for are not made again"
    planned = suite(repository, *options, "--only", "01", "--dry-run").stdout
    assert planned.endswith("Would run: nothing\n"), "no models for a notebook that needs none"
    executed = repository / f"{FOLDER}-scenarios-random/seed4/01.ipynb"
    executed.write_text("")
    assert "Would run: 01 some words, seed 4\n" in suite(repository, *options, "--dry-run").stdout
    executed.unlink()
    assert suite(repository, *options, "--only", "01").returncode == 0 and executed.stat().st_size
    for facts in (repository / "runs/facts").iterdir():
        facts.write_text("")
    assert "Nothing to do" in suite(repository, *options).stdout, "damaged facts are found again"


def test_weights_are_fetched_before_anything_is_trained(tmp_path):
    """Without a network that is refused at once; with all models made it does not matter."""
    repository = make_repository(tmp_path, ["01", "03"])
    (repository / "offline").touch()
    options = ["--preset", "documents", "--scenario", "class"]
    answer = suite(repository, *options)
    assert answer.returncode == 2 and order(repository) == []
    assert answer.stderr == "run_all.sh: the weights of 'class' could not be loaded\n"
    assert suite(repository, *options, "--only", "01").returncode == 0 and order(repository) == ["01"]


# Figures and tables

FIGURES = """import os
from pathlib import Path
folder = Path(os.environ["UNLEARNING_OUTPUT"])
(folder / "figures").mkdir()
name = os.environ["UNLEARNING_PROGRESS"].split(".")[-2]
(folder / f"figures/{name}_curves.png").write_text(f"{preset} {seed}")
(folder / f"{name}_runs.csv").write_text(f"run,scenario,seed\\n{name}-{seed},random,{seed}\\nshared,random,0\\n")
"""


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """A run of seeds 0 and 1."""
    repository = make_repository(tmp_path_factory.mktemp("seeds"), ["01", "03", "10"], FIGURES)
    answer = suite(repository, "--seeds", "0", "1")
    assert answer.returncode == 0 and sorted(order(repository)) == ["01", "01", "03", "03", "10"], answer.stdout
    return repository


def test_no_figure_and_no_table_mixes_seeds(seeds):
    """Each seed has its own; the first seed's and those of 10 are published."""
    for seed in (0, 1):
        figures = sorted((seeds / FOLDER / f"seed{seed}/figures").iterdir())
        assert [figure.name for figure in figures] == ["01_curves.png", "03_curves.png"]
        assert {figure.read_text() for figure in figures} == {f"quick {seed}"}
    published = {path.name: path.read_text() for path in (seeds / f"figures/{DATA}-quick").iterdir()}
    table = published.pop("runs.csv")
    assert published == dict.fromkeys(["01_curves.png", "03_curves.png", "10_curves.png"], "quick 0")
    rows = ["01-0,random,0", "03-0,random,0", "10-0,random,0", "shared,random,0", "01-1,random,1", "03-1,random,1"]
    assert table.splitlines() == ["run,scenario,seed", *rows] and (seeds / FOLDER / "runs.csv").read_text() == table


def test_published_files_come_back_and_lost_outputs_are_made_again(seeds):
    shutil.rmtree(seeds / "figures")
    answer = suite(seeds, "--seeds", "0", "1")
    assert "Nothing to do" in answer.stdout and order(seeds) == []
    assert len(list((seeds / f"figures/{DATA}-quick").iterdir())) == 4
    (seeds / FOLDER / "seed1/figures/03_curves.png").unlink()
    assert "03 some words, seed 1: out of date" in suite(seeds, "status", "--seeds", "0", "1").stdout
    assert suite(seeds, "--seeds", "0", "1").returncode == 0 and sorted(order(seeds)) == ["03", "10"]
    assert (seeds / FOLDER / "seed1/figures/03_curves.png").exists()


def test_other_presets_have_their_own_figures(seeds):
    assert suite(seeds, "--preset", "smoke", "--only", "01").returncode == 0 and order(seeds) == ["01"]
    assert (seeds / f"figures/{DATA}-smoke/01_curves.png").read_text() == "smoke 0"
    assert (seeds / f"figures/{DATA}-quick/01_curves.png").read_text() == "quick 0"


def test_10_runs_again_when_more_seeds_are_complete(tmp_path):
    repository = make_repository(tmp_path, ["03", "10"])
    only = ["--only", "10", "--seeds", "3", "--scenario", "class"]
    assert suite(repository, "--seeds", "3", "--scenario", "class").returncode == 0
    assert order(repository) == ["03", "10"]
    assert "Nothing to do" in suite(repository, *only).stdout
    assert suite(repository, "--only", "03", "--seeds", "4", "--scenario", "class").returncode == 0
    assert order(repository) == ["03"]
    assert suite(repository, *only).returncode == 0 and order(repository) == ["10"]
    folder = repository / f"{FOLDER}-scenarios-class"
    assert json.loads((folder / "10.json").read_text())["parameters"]["seed"] == 3


def test_a_published_copy_is_replaced_only_if_it_differs(tmp_path, monkeypatch):
    monkeypatch.setattr("publish.FIGURES", tmp_path / "figures")
    source = SimpleNamespace(notebook="n", seed=0, record={"outputs": ["a.csv"]}, output=str(tmp_path))
    (tmp_path / "a.csv").write_text("1")
    target = tmp_path / "figures/run/a.csv"
    publish([source], tmp_path / "run", 0)
    before = target.stat().st_mtime_ns
    publish([source], tmp_path / "run", 0)
    assert target.stat().st_mtime_ns == before
    publish([source], tmp_path / "run", 1)
    (tmp_path / "a.csv").write_text("2")
    publish([source], tmp_path / "run", 0)
    assert target.read_text() == "2"


# Results


def test_results_hold_the_parameters(story):
    folder = story[0] / FOLDER
    parameters = json.loads((folder / "seed0/01.json").read_text())["parameters"]
    assert json.loads((folder / "10.json").read_text())["parameters"] == parameters
    assert parameters["data"] == DATA and parameters["scenarios"] == ["random", "class"]
    assert parameters["seed"] == 0 and parameters["forget_class"] is None


def test_paths_in_parameters_are_absolute_and_their_files_count(tmp_path):
    """A relative folder of images and list of images to forget mean the same in every job; an edit runs it again."""
    repository = make_repository(tmp_path / "suite", ["01"], "print(data, forget_list)")
    (repository / "pictures").mkdir()
    (repository / "pictures/a.png").touch()
    (repository / "list.txt").write_text("a.png")
    options = ["--data", "pictures", "--forget-list", "list.txt"]
    assert suite(repository, *options).returncode == 0 and order(repository) == ["01"]
    [executed] = repository.glob("runs/suite/pictures-quick-*/seed0/01.ipynb")
    printed = nbformat.read(executed, 4).cells[3].outputs[0].text
    assert printed == f"{repository / 'pictures'} {repository / 'list.txt'}\n"
    assert "Nothing to do" in suite(repository, *options).stdout
    (repository / "list.txt").write_text("b.png")
    assert suite(repository, *options).returncode == 0 and order(repository) == ["01"]
    (repository / "pictures/b.png").touch()
    assert suite(repository, *options).returncode == 0 and order(repository) == ["01"]


def test_files_of_a_users_own_are_absolute_and_an_edit_changes_the_identity(tmp_path):
    """Methods, weights and a network, the last as `file.py:function`; the name of a model in timm stays a name."""
    repository = make_repository(tmp_path, [])
    values = {"own_methods": "mine.py", "original": "w.pth", "model": "net.py:make"}

    def facts(**changes):
        parameters = json.dumps({**checked({}), **values, **changes})
        command = [sys.executable, "workflow/facts.py", parameters]
        return json.loads(subprocess.run(command, cwd=repository, capture_output=True, text=True).stdout)

    files = {name: repository / value.partition(":")[0] for name, value in values.items()}
    for file in (*files.values(), repository / "resnet18"):
        file.write_text("1")
    found = facts()
    shown = {name: found["parameters"][name] for name in values}
    assert shown == {**{name: str(file) for name, file in files.items()}, "model": f"{files['model']}:make"}
    for file in files.values():
        file.write_text("2")
        assert facts()["identity"] != found["identity"]
        file.write_text("1")
    assert facts(model="resnet18")["parameters"]["model"] == "resnet18"
    assert list_files(f"{files['model']}:make")[0][0] == str(files["model"])


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


def test_saved_notebooks_repeat_byte_for_byte(story):
    answer, ran = story[1]["04 anew"]
    assert answer.returncode == 0 and ran == ["04"] and "Saved the outputs of 1 notebooks" in answer.stdout
    before, after = story[1]["saved"]
    assert before == after
    notebook = nbformat.reads(after["04_some_words.ipynb"].decode(), 4)
    assert [cell.id for cell in notebook.cells] == [f"cell{number}" for number in range(5)]
    assert notebook.cells[-1].outputs[0].text == "quick\n"


def test_interrupted_or_killed_run_leaves_nothing_behind_and_resumes(tmp_path):
    make_repository(tmp_path, ["03"])
    for number in (signal.SIGINT, signal.SIGKILL):
        (tmp_path / "wait03").touch()
        with running_suite(tmp_path) as (process, children):
            assert len(children) >= 3  # Snakemake, the job's process, the kernel
            second = suite(tmp_path, "--preset", "short")
            assert second.returncode == 2 and f"another run (process {process.pid})" in second.stderr
            assert "03 some words, seed 0: running: started" in suite(tmp_path, "status").stdout
            process.send_signal(number)
            output = process.communicate(timeout=PATIENCE)[0]
            assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
            assert ("the same command resumes" in output) == (number == signal.SIGINT)
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
        with pytest.raises(ValueError, match="is valid on this machine only"):
            pair(output)
    assert pair(stream("good\n")) == before
    assert pair(new_output("display_data", data={"image/png": text}))


def test_notebook_edited_after_its_run_is_not_saved(pair):
    with pytest.raises(ValueError, match="edited after it ran"):
        pair(source="print(2)")
