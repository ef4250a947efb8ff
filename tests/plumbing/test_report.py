"""The report: one file that needs nothing else, names what was run, and shows no path of the machine."""

import base64
import json
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from repository import make_repository

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000"
        "050001a5f645400000000049454e44ae426082"
    )
).decode()


def outputs(folder):
    """What a notebook may hold: a figure, a table, a widget, an error with a traceback, paths."""
    figure = new_output("display_data", data={"image/png": PIXEL}, metadata={"image/png": {"alt": 'A "dot" & more'}})
    table = "<style scoped>td {color: red}</style><table><tr><th>gap</th></tr><tr><td>1.25</td></tr></table>"
    return [
        figure,
        new_output("display_data", data={"text/html": table, "text/plain": "gap"}),
        new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}, "text/plain": "a slider"}),
        new_output("stream", name="stdout", text=f"wrote {folder}/figures/a.png from {folder.parent}/photos/cat\n"),
        new_output("error", ename="ValueError", evalue="too bad", traceback=["File /usr/lib/python3/x.py line 3"]),
    ]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the workflow with one executed run of two seeds and notebook 10; the report has been made."""
    folder = tmp_path_factory.mktemp("place") / "suite"
    make_repository(folder, [])
    run = folder / "runs" / "suite" / "photos-quick"
    text = "# 03 · A title\n\n$$\\frac{a}{b} \\le 1$$\n\n## Same heading\n\nwith $s_e^2$, `$HOME` and [a paper](https://x.org)"
    settings = {"data": f"{folder.parent}/photos", "preset": "quick", "scenarios": ["random"], "forget_class": None}
    for path, seed in ((run / "seed0/03.ipynb", 0), (run / "seed1/03.ipynb", 1), (run / "10.ipynb", None)):
        injected = new_code_cell(f"data = '{folder.parent}/photos'", metadata={"tags": ["injected-parameters"]})
        cells = [new_markdown_cell(text), injected, new_code_cell("x = 1 < 2", outputs=outputs(folder))]
        if seed is None:
            shown = new_output("display_data", data={"text/html": "<b>M9</b> is nearest", "text/plain": "M9"})
            cells.append(new_code_cell("verdict(results)", metadata={"tags": ["summary"]}, outputs=[shown]))
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(new_notebook(cells=cells), path)
        parameters = settings if seed is None else {**settings, "seed": seed}
        result = {"parameters": parameters, "seconds": 30, "environment": {"torch": "2.99", "commit": "abc123"}}
        path.with_suffix(".json").write_text(json.dumps(result))
    (run / "results.csv").write_text("scenario,value\nrandom,1\n")
    (run / "runs.csv").write_text("run,device,threads\na,abacus,2\nb,abacus,2\n")
    answer = report(folder)
    assert answer.returncode == 0 and answer.stdout == "runs/suite/photos-quick/report.html\n", answer.stderr
    return folder


def report(folder, *words):
    command = [sys.executable, "workflow/report.py", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def page(repository):
    return (repository / "runs/suite/photos-quick/report.html").read_text(encoding="utf-8")


def test_it_needs_nothing_from_outside(page):
    """No script, no style sheet, font or picture that would be fetched; a link to a paper stays a link."""
    soup = BeautifulSoup(page, "html.parser")
    assert not soup.find_all(["script", "link", "iframe", "object", "embed", "video"])
    assert all(image["src"].startswith("data:") for image in soup.find_all("img"))
    assert not re.search(r"url\(|@import", page)
    assert [link["href"] for link in soup.find_all("a") if link["href"].startswith("http")] == ["https://x.org"] * 3


def test_contents_lead_to_every_notebook(page):
    """Seeds in order, 10 with the first; no anchor twice, and each entry has its place."""
    soup = BeautifulSoup(page, "html.parser")
    entries = soup.nav.find_all("a")
    assert [entry.text for entry in entries] == ["03 · A title (seed 0)", "03 · A title", "03 · A title (seed 1)"]
    ids = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(ids) == len(set(ids)) and {entry["href"][1:] for entry in entries} <= set(ids)


def test_it_opens_with_what_10_marks_as_summary(page):
    """The outputs stand before the contents, without the code; in their chapter they have it."""
    before, after = page.split("<nav", 1)
    assert "is nearest" in before and "verdict" not in before.partition("<body>")[2]
    assert "is nearest" in after and "verdict" in after


def test_figures_tables_and_formulas_are_there(page):
    """Each figure has its alternative text; formulas are MathML; code in backticks is left alone."""
    soup = BeautifulSoup(page, "html.parser")
    assert [image["alt"] for image in soup.find_all("img")] == ['A "dot" & more'] * 3
    assert page.count("1.25") == 3 and len(soup.find_all("mfrac")) == 3 and len(soup.find_all("msubsup")) == 3
    assert "$HOME" in page and "$$" not in page and "a slider" not in page


def test_environment_is_what_the_run_recorded(page):
    """Settings, seeds, device, versions, commit and time."""
    rows = {row.th.text: row.td.text for row in BeautifulSoup(page, "html.parser").main.table.find_all("tr")}
    assert rows["seed"] == "0, 1" and rows["scenarios"] == "random" and rows["device"] == "abacus, 2 threads"
    assert (rows["torch"], rows["commit"], rows["time"]) == ("2.99", "abc123", "1 min 30 s")


def test_no_path_of_the_machine(page, repository):
    """The repository, the data's folder and tracebacks are named without where they lie."""
    assert str(repository.parent) not in page and "/usr/lib" not in page
    assert "'photos'" in page and "wrote figures/a.png from photos/cat" in page and "ValueError: too bad" in page


def test_tables_beside_it_are_linked(page):
    links = [link["href"] for link in BeautifulSoup(page, "html.parser").main.find_all("a")]
    assert links[:2] == ["results.csv", "runs.csv"]


def test_unknown_run_is_refused(repository):
    answer = report(repository, "photo-quick")
    assert answer.returncode == 2 and answer.stderr.endswith("did you mean photos-quick?\n")


@pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine")
@pytest.mark.parametrize("scheme, dark", [("light", False), ("dark", True)])
def test_a_browser_without_network_shows_it(repository, page, scheme, dark):
    """Nothing is requested but the file; text and background differ enough in both colour schemes."""
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_context(offline=True, color_scheme=scheme).new_page()
        requests = []
        opened.on("request", lambda request: requests.append(request.url))
        opened.goto((repository / "runs/suite/photos-quick/report.html").as_uri())
        assert [url for url in requests if not url.startswith("data:")] == requests[:1]
        assert opened.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        style = "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))"
        text, back = (sum(map(int, re.findall(r"\d+", color)[:3])) for color in opened.evaluate(style))
        assert (back < 150 and text > 600) if dark else (back > 700 and text < 150)
        browser.close()
