"""JupyterLab and Voila in a real browser; screenshots go to the folder in UNLEARNING_SCREENSHOTS."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
from playwright.sync_api import expect, sync_playwright  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 300_000  # milliseconds; enough on a busy machine
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Copies of the notebooks 03 and 17 with tiny settings and without outputs, and an empty `runs/` of their own."""
    place = tmp_path_factory.mktemp("browser")
    for number in ("03", "17"):
        [path] = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
        notebook = nbformat.read(path, 4)
        [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        cell.source += '\npreset, scenarios = "smoke", ["class"]'
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = []
        nbformat.write(notebook, place / path.name)
    settings = {  # all cells are on the page at once, and no dialog covers them
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }
    for name, values in settings.items():
        file = place / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    return place


@contextmanager
def server(folder, *command):
    """A server on a free port; its address, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"RUNS": folder / "runs", "FIGURES": folder / "figures"}
    environment = {**os.environ, **{f"UNLEARNING_{name}": str(path) for name, path in names.items()}}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(folder), "JUPYTER_PREFER_ENV_PATH": "1"}
    environment["JUPYTERLAB_SETTINGS_DIR"] = str(folder / "settings")
    environment.pop("UNLEARNING_PROGRESS", None)
    with open(folder / "server.log", "a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, f"--port={port}"], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        yield wait_for(f"http://127.0.0.1:{port}/", process)
    finally:
        process.terminate()
        process.wait(30)


def wait_for(address, process, seconds=120):
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(address, timeout=60)
            return address
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert process.poll() is None and time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def lab(folder):
    options = ["--no-browser", "--allow-root", "--ServerApp.token=", "--ServerApp.log_level=40"]
    with server(folder, "jupyterlab", *options) as url:
        yield url


@pytest.fixture
def page(browser):
    """A page of 1280 pixels width on which no error may have been logged when the test ends."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    errors = []

    def note(message):
        """Collect errors of the page itself, not of other servers, nor of a debugger that a kernel restart cut off."""
        ours = "127.0.0.1" in message.location["url"] and "Could not restore the debugger" not in message.text
        if message.type == "error" and ours:
            errors.append(f"{message.text} {message.location['url']}")

    opened.on("console", note)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    yield opened
    opened.close()
    assert not errors, errors


def picture(page, name):
    """Keep a screenshot if a folder for it is given."""
    if where := os.environ.get("UNLEARNING_SCREENSHOTS"):
        Path(where).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(where) / f"{name}.png")


def run_all(page, lab, notebook):
    """Open a notebook in JupyterLab, restart its kernel and run all cells, until the last one has its number."""
    page.goto(f"{lab}lab/tree/{notebook}?reset")
    page.locator(".jp-NotebookPanel").wait_for()
    page.get_by_text(re.compile(r"Python 3.*\| Idle")).wait_for()  # the kernel is there
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Restart Kernel and Run All Cells…").click()
    page.locator(".jp-Dialog .jp-mod-accept").click()


def test_03_runs_in_jupyterlab(page, lab):
    """Restart and run all: every cell gets its number, no cell an error, and the table and both figures are there."""
    run_all(page, lab, "03_retain_finetuning.ipynb")
    page.locator(".jp-OutputArea th:has-text('Soften (mine)')").wait_for()
    drawn = page.locator(".jp-RenderedImage img").evaluate_all("images => images.map(i => i.naturalWidth > 0)")
    assert drawn == [True, True]
    assert page.locator(".jp-RenderedText[data-mime-type*=stderr], .jp-mod-error").count() == 0
    picture(page, "lab_03")


def use_explorer(page, name):
    """What a person does on the page of 17: choose, slide, look; run, stop, run again, compare."""
    page.locator(".widget-tab:visible, button:has-text('Train them'):visible").first.wait_for()
    if page.get_by_role("button", name="Train them").count():
        page.get_by_role("button", name="Train them").click()
    page.locator("img[alt*='epoch'][alt*='forget']").first.wait_for()
    page.get_by_role("tab", name="Images").click()
    first = page.get_by_text(re.compile("A forgotten .* JSD to Gold")).inner_text()
    handle = page.locator(".widget-slider:has-text('image') .noUi-handle")
    handle.focus()
    handle.press("ArrowRight")
    expect(page.get_by_text(re.compile("A forgotten .* JSD to Gold"))).not_to_have_text(first)
    picture(page, f"{name}_images")

    epochs = page.locator(".widget-slider:has-text('epochs') .noUi-handle")
    epochs.scroll_into_view_if_needed()
    epochs.focus()
    epochs.press("End")  # as many epochs as the slider has, so that there is time to stop
    page.locator("button.widget-button", has_text="Run").click()
    page.get_by_text(re.compile("epoch [1-9]")).last.wait_for()
    page.locator("button.widget-button", has_text="Stop").click()
    page.get_by_text(re.compile("stopped after [0-9]+ epoch")).wait_for()
    assert page.locator("img[alt*='run in progress']").count() == 1
    epochs.focus()
    epochs.press("Home")
    page.locator("button.widget-button", has_text="Run").click()
    page.get_by_text("finished after 1 epoch").wait_for()
    assert page.get_by_text("last run").count() == 1
    picture(page, f"{name}_live")


def test_explorer_in_jupyterlab(page, lab):
    """Restart and run all, then use it."""
    run_all(page, lab, "17_explorer.ipynb")
    use_explorer(page, "lab_17")


def test_explorer_in_voila(page, folder):
    """The same page as an app, without code."""
    with server(folder, "voila", "17_explorer.ipynb", "--no-browser") as url:
        page.goto(url)
        use_explorer(page, "voila_17")
        assert page.locator(".jp-CodeMirrorEditor, .jp-InputArea-editor:visible").count() == 0
        page.goto("about:blank")  # before the server leaves
