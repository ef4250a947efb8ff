"""Store the outputs of executed notebooks in `notebooks/`, without anything that changes from run to run."""

import re
from itertools import groupby
from pathlib import Path

import nbformat
from jobs import ROOT
from nbstripout import strip_output

from helpers.paths import replace_text

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
VOLATILE = ["cell.metadata.papermill", "cell.metadata.execution", "cell.metadata.ExecuteTime"]
WIDGET = "application/vnd.jupyter.widget-view+json"


def save_outputs(pairs):
    """Give each notebook the outputs of its execution; `pairs` are paths (notebook, executed). All are saved or none.

    Raises:
        ValueError: a notebook was edited since, or an output holds a path of this machine.
    """
    texts = {notebook: with_outputs(notebook, executed) for notebook, executed in pairs}
    for notebook, text in texts.items():
        replace_text(notebook, text)


def with_outputs(path, executed):
    """The text of the notebook at `path` with the outputs of `executed`."""
    notebook = nbformat.read(path, 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    done = [cell for cell in nbformat.read(executed, 4).cells if cell.cell_type == "code"]
    done = [cell for cell in done if "injected-parameters" not in cell.metadata.get("tags", [])]
    if [cell.source for cell in cells] != [cell.source for cell in done]:
        raise ValueError(f"{path.name} was edited after it ran; run the suite again to save its outputs")
    for cell, done_cell in zip(cells, done):
        cell.outputs = merge_streams(output for output in done_cell.outputs if WIDGET not in output.get("data", {}))
        refuse_paths(path.name, cell.outputs)
    notebook.metadata = nbformat.from_dict(METADATA)
    strip_output(notebook, keep_output=True, keep_count=False, keep_id=True, extra_keys=VOLATILE)
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def merge_streams(outputs):
    """Join neighbouring pieces of one stream: where the kernel cuts what a cell prints is a matter of timing."""
    merged = []
    for stream, group in groupby(outputs, key=lambda output: output.get("name")):
        pieces = list(group)
        if stream:
            pieces[0].text = "".join(piece.text for piece in pieces)
        merged += pieces[:1] if stream else pieces
    return merged


def refuse_paths(name, outputs):
    """Raise ValueError if a text among `outputs` names this repository, the home directory or a running kernel."""
    folders = [str(folder) for folder in (ROOT, Path.home()) if len(folder.parts) > 1]
    pattern = "|".join([*(re.escape(folder) + r"(?![\w-])" for folder in folders), r"[\w/.-]*ipykernel_\d+"])
    for text in texts_in(outputs):
        if found := re.search(pattern, text):
            raise ValueError(f"{name} prints '{found[0]}', which is valid on this machine only; nothing was saved")


def texts_in(value, kind=""):
    """All strings inside notebook outputs except pictures."""
    if isinstance(value, str):
        return [] if kind in ("image/png", "image/jpeg", "application/pdf") else [value]
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in texts_in(item, key)]
    return [text for item in value for text in texts_in(item, kind)] if isinstance(value, list) else []
