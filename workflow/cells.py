"""Write the parameters cell into every notebook, from `helpers/parameters.py`: `.venv/bin/python workflow/cells.py`."""

import nbformat
from jobs import ROOT

from helpers.parameters import cell
from helpers.paths import replace_text


def main():
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        notebook = nbformat.read(path, 4)
        tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
        if tagged and tagged[0].source != cell():
            tagged[0].source = cell()
            replace_text(path, nbformat.writes(notebook).rstrip("\n") + "\n")
            print(f"updated {path.name}")


if __name__ == "__main__":
    main()
