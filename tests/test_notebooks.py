"""Each notebook, executed by papermill with tiny settings in both scenarios; its figures and its text."""

import json
import re
from pathlib import Path
from statistics import median

import nbformat
import pytest
from execute import run_notebook

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
FIGURES = {
    "01": ["01_class_counts", "01_images_random_forget", "01_images_class_retain"],
    "02": ["02_training_curves"],
    "03": ["03_curves"],
    "04": ["04_curves"],
    "05": ["05_curves"],
    "06": ["06_curves"],
    "07": ["07_curves"],
    "08": ["08_curves", "08_entropy_random", "08_entropy_class"],
    "09": ["09_gap_trends", "09_validation", "09_strength", "09_final_loss", "09_hybrids_random", "09_hybrids_class"],
    "10": ["10_retain_against_forget", "10_predicted_as", "10_tsne_random", "10_tsne_class", "10_gap_against_cost"],
    "11": ["11_gap_against_cost"],
    "12": ["12_battery_random", "12_battery_class", "12_gap_against_cost", "12_relearn_random", "12_relearn_class"],
    "13": ["13_explorer"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the notebooks of this module keep models and figures, shared so that nothing is trained twice."""
    return tmp_path_factory.mktemp("suite")


LONG = ("11", "12")  # they train many models: minutes even with tiny settings
WITH_MARKS = [pytest.param(p, marks=pytest.mark.slow) if p.stem.startswith(LONG) else p for p in NOTEBOOKS]


@pytest.mark.parametrize("path", WITH_MARKS, ids=lambda path: path.stem)
def test_runs_with_tiny_settings_from_any_directory(path, place, monkeypatch):
    """It ends without an error, without a warning, and leaves the figures that it is known for."""
    monkeypatch.setenv("UNLEARNING_RUNS", str(place / "runs"))
    monkeypatch.setenv("UNLEARNING_FIGURES", str(place / "figures"))
    monkeypatch.setenv("UNLEARNING_PROGRESS", str(place / "progress"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = run_notebook(path, place / path.name, {"budget": "smoke"}, cwd=place)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"], "something was written to stderr"
    made = {file.stem for file in (place / "figures" / "digits").glob("*.png")}
    assert set(FIGURES[path.stem[:2]]) <= made
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert all(output.metadata["image/png"]["alt"] for output in images), "a figure without alternative text"


def test_there_are_all_notebooks():
    """01 to 13, each once."""
    assert [path.stem[:2] for path in NOTEBOOKS] == sorted(FIGURES) == [f"{number:02d}" for number in range(1, 14)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_has_one_cell_of_literal_parameters(path):
    """The knobs are the same everywhere, and the digits run by default."""
    [cell] = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
    names = re.findall(r"^(\w+) = ", cell.source, re.M)
    assert names == ["data", "budget", "scenarios", "seed", "forget_class", "forget_fraction", "start"]
    assert 'data = "digits"' in cell.source and 'budget = "quick"' in cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_cells_are_short(path):
    """A reader sees the idea: no cell over 35 lines, the median under 8."""
    lengths = [len(c.source.splitlines()) for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    assert max(lengths) <= 35 and median(lengths) <= 8


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_shows_its_figures_without_being_run(path):
    """On a code host a reader sees at least the figures that the notebook is known for."""
    outputs = [o for cell in nbformat.read(path, 4).cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= len(FIGURES[path.stem[:2]])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_saved_outputs_carry_no_path_and_no_error(path):
    """What is committed shows no machine: no absolute path, no traceback, no leftover metadata."""
    book = json.loads(path.read_text())
    outputs = [output for cell in book["cells"] for output in cell.get("outputs", [])]
    text = json.dumps([o for o in outputs if "image/png" not in o.get("data", {})])
    assert not re.search(r"/(home|root|tmp|Users|usr|work)/", text)
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert "papermill" not in book["metadata"]
