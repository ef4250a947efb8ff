"""One self-contained HTML page per run: the executed notebooks with contents, figures, tables and the environment.

`./run_all.sh report` writes `runs/suite/<run>/report.html` for every run, `./run_all.sh report digits-quick` for one.
"""

import csv
import html
import json
import re
import sys
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from jobs import ROOT, RUNS
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from options import Parser, guarded
from pygments.formatters import HtmlFormatter
from save import WIDGET

from helpers.messages import duration, unknown
from helpers.paths import replace_text, shown

SUITE = RUNS / "suite"


def main():
    existing = sorted(folder.name for folder in SUITE.glob("*") if any(folder.glob("**/[0-9][0-9].ipynb")))
    parser = Parser(prog="run_all.sh report", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", nargs="*", help=f"of {', '.join(existing)}" if existing else "a folder of runs/suite")
    wanted = parser.parse(sys.argv[1:]).run or existing
    if not existing:
        parser.error("nothing has been run yet: ./run_all.sh first")
    for name in wanted:
        if name not in existing:
            parser.error(f"run {unknown(name, existing)}")
    for name in wanted:
        try:
            print(shown(write(SUITE / name)), flush=True)
        except (OSError, ValueError, KeyError) as error:
            reason = f"{error}" if isinstance(error, OSError) else f"a damaged file ({type(error).__name__}: {error})"
            parser.error(f"run {name}: {reason}; ./run_all.sh makes its files again")


def write(folder):
    """Write `report.html` into a run's folder, which has the tables beside it; return the report's path."""
    notebooks = in_order(folder)
    chapters = [chapter(path) for path in notebooks]
    results = [
        json.loads(path.with_suffix(".json").read_text()) for path in notebooks if path.with_suffix(".json").exists()
    ]
    data = Path(results[0]["parameters"]["data"]) if results else Path("digits")
    tables = sorted(path.name for path in folder.glob("*.csv"))
    contents = "".join(f'<li><a href="#{anchor}">{html.escape(name)}</a></li>' for anchor, name, _ in chapters)
    page = PAGE.format(
        name=html.escape(folder.name),
        style=STYLE,
        opening="".join(map(opening, notebooks)),
        contents=contents,
        environment=environment(results, folder / "runs.csv"),
        numbers=f"<p>All numbers: {links(tables)}</p>" if tables else "",
        chapters="".join(f'<section id="{anchor}">{body}</section>' for anchor, _, body in chapters),
    )
    report = folder / "report.html"
    replace_text(report, without_paths(page, data))
    return report


def in_order(folder):
    """The executed notebooks by seed and number; one that covers all seeds stands among those of the first."""
    paths = list(folder.glob("**/[0-9][0-9].ipynb"))
    seeds = {path: int(path.parent.name[4:]) for path in paths if path.parent != folder}
    return sorted(paths, key=lambda path: (seeds.get(path, min(seeds.values(), default=0)), path.stem))


def opening(path):
    """The outputs of a notebook's cells that are tagged `summary`, as HTML."""
    notebook = nbformat.read(path, 4)
    notebook.cells = [cell for cell in notebook.cells if "summary" in cell.metadata.get("tags", [])]
    if not notebook.cells:
        return ""
    soup = converted(notebook, exclude_input=True)
    for tag in soup.find_all(id=True):  # the chapter has these ids
        del tag["id"]
    return str(soup)


def links(names):
    """Links to files beside the report, as HTML."""
    return ", ".join(f'<a href="{html.escape(name)}">{html.escape(name)}</a>' for name in names)


def chapter(path):
    """An executed notebook: its anchor, its title and its HTML, whose headings' ids begin with the anchor."""
    seed = re.search(r"seed(\d+)$", path.parent.name)
    anchor = f"{path.parent.name}-{path.stem}" if seed else path.stem
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_mathml(cell.source)
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                output.traceback = [f"{output.ename}: {output.evalue}"]
        cell.get("outputs", [])[:] = [o for o in cell.get("outputs", []) if WIDGET not in o.get("data", {})]
    soup = converted(notebook)
    for heading in soup.find_all(["h1", "h2", "h3"], id=True):
        heading["id"] = f"{anchor}-{heading['id']}"
    first = soup.find("h1")
    name = first.get_text() if first else path.stem
    return anchor, name + (f" (seed {seed[1]})" if seed else ""), str(soup)


def converted(notebook, **options):
    """A notebook as HTML without scripts, styles and links to its own headings; `options` are nbconvert's."""
    body, _ = HTMLExporter(template_name="basic", **options).from_notebook_node(notebook)
    soup = BeautifulSoup(body, "html.parser")
    for table in soup.find_all("table"):
        table.wrap(soup.new_tag("div", attrs={"class": "wide"}))
    for unwanted in soup.find_all(["script", "link", "style"]) + soup.find_all("a", class_="anchor-link"):
        unwanted.decompose()
    return soup


def with_mathml(markdown):
    """Markdown whose formulas between dollar signs are MathML, which browsers draw themselves."""
    code = r"```.*?```|`[^`]*`"
    display = r"\$\$(?P<display>.+?)\$\$"
    inline = r"\$(?P<inline>[^$\n]+?)\$"

    def formula(found):
        if found["display"]:
            return "\n\n" + convert(found["display"].strip(), display="block") + "\n\n"
        return convert(found["inline"]) if found["inline"] else found[0]

    return re.sub(f"{code}|{display}|{inline}", formula, markdown, flags=re.S)


def environment(results, runs):
    """Settings, seeds, devices, versions, commit and time of a run, as an HTML table.

    Args:
        results: of the notebooks' jobs.
        runs: path of the table with a row per trained model.
    """
    settings, recorded = {}, {"commit": "not recorded"}
    for result in results:
        settings |= result["parameters"]
        recorded |= result.get("environment", {})
    seeds = sorted({result["parameters"]["seed"] for result in results if "seed" in result["parameters"]})
    settings |= {"seed": ", ".join(map(str, seeds))}
    rows = {**settings, "device": devices(runs), **recorded}
    rows["time"] = duration(sum(result["seconds"] for result in results))
    cells = (
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(readable(value))}</td></tr>" for name, value in rows.items()
    )
    return f'<div class="wide settings"><table>{"".join(cells)}</table></div>'


def devices(runs):
    """What the models of a run were trained on, from its table of runs."""
    if not runs.exists():
        return "not recorded"
    with open(runs, newline="", encoding="utf-8") as file:
        found = {f"{row['device']}, {row['threads']} threads" for row in csv.DictReader(file)}
    return "; ".join(sorted(found))


def readable(value):
    """A setting as text."""
    return ", ".join(map(str, value)) if isinstance(value, list) else "default" if value is None else str(value)


def without_paths(page, data):
    """`page` without folders of this machine: paths start in the repository, or with the data's own folder."""
    folders = {f"{ROOT}/": "", str(ROOT): ".", str(Path.home()): "~"}
    if data.is_absolute():
        folders = {f"{data.parent}/".replace("//", "/"): "", **folders}
    for folder, short in sorted(folders.items(), key=lambda pair: -len(pair[0])):
        if len(folder) > 2:
            page = page.replace(folder, short)
    return page


def highlighting(style, dark):
    """Pygments' colours for code."""
    rules = HtmlFormatter(style=style).get_style_defs(".highlight")
    return f"@media (prefers-color-scheme: dark) {{ {rules} }}" if dark else rules


STYLE = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
STYLE += highlighting("default", False) + highlighting("github-dark", True)
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Machine unlearning, measured: {name}</title>
<style>{style}</style>
</head>
<body>
<header><h1>Machine unlearning, measured</h1><p>Run <b>{name}</b></p></header>
{opening}
<nav aria-label="Contents"><h2>Contents</h2><ol>{contents}</ol></nav>
<main>
<h2>Environment</h2>{environment}{numbers}
{chapters}
</main>
</body>
</html>
"""


if __name__ == "__main__":
    sys.exit(guarded(main, "run_all.sh report"))
