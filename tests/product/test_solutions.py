"""Every exercise has a solution, and every solution runs."""

import re
from pathlib import Path

import nbformat
import pytest
from execute import run_notebook

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
SOLUTIONS = NOTEBOOKS / "solutions.ipynb"


def test_each_exercise_has_its_solution_and_the_reverse():
    """The numbered exercises of notebook 05 are sections 05.1, 05.2, ... of the solutions; each has hidden code."""
    asked = []
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        last = nbformat.read(path, 4).cells[-1].source
        if last.startswith("## Exercises"):
            numbers = re.findall(r"^(\d)\. ", last, re.M)
            assert 2 <= len(numbers) <= 4
            asked += [f"{path.stem[:2]}.{number}" for number in numbers]
    cells = nbformat.read(SOLUTIONS, 4).cells
    sections = [i for i, cell in enumerate(cells) if cell.source.startswith("## ")]
    assert [re.match(r"## (\d\d\.\d) ", cells[i].source)[1] for i in sections] == asked and len(asked) >= 20
    for i in sections:
        assert cells[i + 1].metadata["jupyter"]["source_hidden"] and cells[i + 2].source.startswith("<details>")


def test_notebooks_open_with_what_they_teach():
    """What is learnt, how long it takes, what it needs, in the first cell; exercises in the last."""
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        cells = nbformat.read(path, 4).cells
        assert all(f"**{word}**" in cells[0].source for word in ("You will learn", "Time", "You need"))
        assert cells[-1].source.startswith("## Exercises") and "(solutions.ipynb)" in cells[-1].source


@pytest.mark.slow
def test_solutions_run(tmp_path, monkeypatch):
    """All of them, with tiny settings, without a word on stderr."""
    for name in ("runs", "progress", "output"):
        monkeypatch.setenv(f"UNLEARNING_{name.upper()}", str(tmp_path / name))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent))
    done = run_notebook(SOLUTIONS, tmp_path / "done.ipynb", {"preset": "smoke"}, cwd=tmp_path)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert sum(output.get("name") == "stdout" for output in outputs) >= 20
