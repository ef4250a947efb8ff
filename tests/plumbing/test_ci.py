"""The workflow for GitHub Actions: its commands, versions and paths are those of this repository."""

import re
import shlex
from pathlib import Path

import pytest
import report
import yaml
from jobs import RUNS
from test_install import PROJECT, PYTHONS

from helpers.parameters import checked
from helpers.paths import FIGURES, run_name

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
JOBS = WORKFLOW["jobs"]
STEPS = [(name, step) for name, job in JOBS.items() for step in job["steps"]]
COMMANDS = [shlex.split(line) for _, step in STEPS for line in step.get("run", "").splitlines()]
ACTIONS = {"checkout", "setup-python", "upload-artifact"}


def with_values(action):
    """The inputs of each step that uses an action, with its job's name."""
    return [(name, step["with"]) for name, step in STEPS if step.get("uses", "").startswith(f"actions/{action}@")]


def test_it_runs_on_push_and_on_request_with_the_fewest_rights():
    started_by = WORKFLOW[True]  # YAML reads the key `on` as true
    assert started_by.keys() == {"push", "pull_request", "workflow_dispatch"}
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert not any("permissions" in job or "secrets" in str(job) for job in JOBS.values())
    assert all(values == {"persist-credentials": False} for _, values in with_values("checkout"))


def test_newer_commits_cancel_older_runs_and_no_job_hangs():
    assert WORKFLOW["concurrency"]["cancel-in-progress"] and "github.ref" in WORKFLOW["concurrency"]["group"]
    assert all(0 < job["timeout-minutes"] <= 60 for job in JOBS.values())


def test_every_job_checks_out_and_sets_up_a_cached_python():
    """Each action is one of GitHub's own, with its version; what a cache depends on exists."""
    for name, step in STEPS:
        assert len(step.keys() & {"uses", "run"}) == 1
        if "uses" in step:
            action, version = re.fullmatch(r"actions/([\w-]+)@v(\d+)", step["uses"]).groups()
            assert action in ACTIONS and int(version) >= 6, f"{name}: {step['uses']} may run on a removed Node"
    assert (
        [name for name, _ in with_values("checkout")] == [name for name, _ in with_values("setup-python")] == list(JOBS)
    )
    for _, values in with_values("setup-python"):
        assert values["cache"] == "pip" and (ROOT / values["cache-dependency-path"]).is_file()


def test_its_pythons_are_the_oldest_and_the_newest():
    assert JOBS["tests"]["strategy"]["matrix"]["python"] == [PYTHONS[0], PYTHONS[-1]]
    versions = [values["python-version"] for _, values in with_values("setup-python")]
    assert set(versions) == {"${{ matrix.python }}", PYTHONS[-1]}


def test_every_command_exists():
    """Words of `run_all.sh`, notebooks, the extra: the tests, then the suite and its report."""
    of_suite = [command[1:] for command in COMMANDS if command[0] == "./run_all.sh"]
    assert of_suite == [["test"], [], ["report"]]
    script = (ROOT / "run_all.sh").read_text(encoding="utf-8")
    assert all(re.search(rf"^    ([\w-]+ \| )*{word}( \| \w+)*\)$", script, re.M) for word in ("test", "report"))
    notebooks = [word for command in COMMANDS for word in command if word.endswith(".ipynb")]
    assert notebooks and all((ROOT / name).is_file() for name in notebooks)
    extras = [extra for command in COMMANDS for word in command for extra in re.findall(r"^\.\[(\w+)\]$", word)]
    assert extras == ["notebooks"] and set(extras) <= PROJECT["optional-dependencies"].keys()
    known = {"python3", "pip", "jupyter", "./run_all.sh", ".venv/bin/pip"}
    assert {command[0] for command in COMMANDS} == known


def test_torch_is_the_readmes_for_cpus():
    """In each job that calls `run_all.sh`, before that: otherwise it would install gigabytes for GPUs."""
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for name in ("tests", "suite"):
        runs = [step["run"] for step in JOBS[name]["steps"] if "run" in step]
        make, install = runs[0].splitlines()
        assert f"{make} && {install}" in readme and runs[1].startswith("./run_all.sh")


@pytest.mark.parametrize(
    "name, path",
    [
        ("report", "runs/suite/{}/report.html"),
        ("figures", "figures/{}"),
        ("executed-notebooks", "runs/suite/{}"),
    ],
)
def test_artifacts_are_where_the_default_run_writes(name, path):
    """The report is the file that `report.py` writes, the figures those that `publish.py` copies."""
    run = run_name(checked({}), checked({})["data"])
    [values] = [values for _, values in with_values("upload-artifact") if values["name"] == name]
    assert values["path"].rstrip("/") == path.format(run)
    written = {"report": report.SUITE / run / "report.html", "figures": FIGURES / run}.get(name, report.SUITE / run)
    top = FIGURES if name == "figures" else RUNS
    assert Path(path.format(run)) == Path(path.split("/")[0]) / written.relative_to(top)
