"""Each notebook, executed by papermill with tiny settings in both scenarios; its figures and its text."""

import json
import re
from pathlib import Path
from statistics import median

import nbformat
import pytest
from execute import run_notebook
from jobs import NEEDS

from helpers.parameters import cell

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
OTHERS = [ROOT / f"notebooks/{name}.ipynb" for name in ("solutions", "coursework")]
LONG = ("11", "12", "13", "15")  # they train many models: minutes even with tiny settings


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the notebooks of this module keep models and figures, shared so that nothing is trained twice."""
    return tmp_path_factory.mktemp("suite")


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.slow) if p.stem.startswith(LONG) else p for p in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_runs_with_tiny_settings_from_any_directory(path, place, monkeypatch):
    """It ends without an error or a warning; its figures have alternative texts, and no other notebook's names."""
    written = place / "output"
    before = set(written.rglob("*.*"))
    for name in ("runs", "figures", "progress", "output"):
        monkeypatch.setenv(f"UNLEARNING_{name.upper()}", str(place / name))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = run_notebook(path, place / path.name, {"preset": "smoke"}, cwd=place)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"], "something was written to stderr"
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert images and all(output.metadata["image/png"]["alt"] for output in images)
    names = [file.name for file in set(written.rglob("*.png")) - before]
    assert names and all(name.startswith(path.stem[:2]) for name in names)
    assert not (place / "figures").exists(), "only the command line writes there"


def test_each_notebook_has_its_place_in_the_table():
    """And there is no place for one that does not exist."""
    assert sorted(NEEDS) == [path.stem[:2] for path in NOTEBOOKS]


@pytest.mark.parametrize("path", [*NOTEBOOKS, *OTHERS], ids=lambda path: path.stem)
def test_the_parameters_cell_is_the_one_definition(path):
    """If this fails: `.venv/bin/python workflow/cells.py`."""
    [found] = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
    assert found.source == cell()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_cells_are_short(path):
    """A reader sees the idea: no cell over 35 lines, the median of those after parameters and imports at most 8."""
    lengths = [len(c.source.splitlines()) for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    assert max(lengths) <= 35 and median(lengths[2:]) <= 8


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_shows_its_figures_without_being_run(path):
    """On a code host a reader sees figures and tables."""
    outputs = [o for cell in nbformat.read(path, 4).cells for o in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_saved_outputs_carry_no_path_and_no_error(path):
    """What is committed shows no machine: no absolute path, no traceback, no leftover metadata."""
    book = json.loads(path.read_text())
    outputs = [output for cell in book["cells"] for output in cell.get("outputs", [])]
    text = json.dumps([o for o in outputs if "image/png" not in o.get("data", {})])
    assert not re.search(r"/(home|root|tmp|Users|usr|work)/", text)
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert "papermill" not in book["metadata"]
