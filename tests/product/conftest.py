"""The default run, made once for all slow tests that look at it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from default_run import SEEDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def default_run(tmp_path_factory):
    """The runs folder of a run of all notebooks with the default data and preset, on `default_run.SEEDS`."""
    folder = tmp_path_factory.mktemp("default")
    places = {"UNLEARNING_RUNS": str(folder / "runs"), "UNLEARNING_FIGURES": str(folder / "figures")}
    command = [sys.executable, "workflow/suite.py", "--seeds", *map(str, SEEDS)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **places}, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return folder / "runs"
