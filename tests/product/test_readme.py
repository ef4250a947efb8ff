"""README.md and the pages beside it: tables are those of the committed results, links and options exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from helpers.parameters import PARAMETERS
from helpers.results.leaderboard import leaderboard

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "workflow"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "helpers/README.md", "workflow/README.md"]
PAGES += [f"notebooks/{name}.md" for name in ("results", "glossary", "teaching")]


@pytest.mark.parametrize("page", ["README.md", "notebooks/results.md"])
def test_tables_are_those_of_the_results(page):
    """`workflow/readme.py` changes nothing, and both scenarios have rows."""
    import readme

    text = (ROOT / page).read_text(encoding="utf-8")
    assert readme.with_tables(page, text, *readme.measured()) == text
    assert text.count("| Gold |") >= 2 and text.count("<!-- board ") == 2


def test_the_numbers_in_the_text_are_those_of_the_results():
    """Original's accuracy on all test images, how long it trained, Gold's on images it never saw, who has a place."""
    import readme

    results, audits = readme.measured()
    last = results[results.metric == "accuracy"].set_index(["scenario", "method", "set"]).value
    by_class = 0.9 * last["class", "Original", "test retain"] + 0.1 * last["class", "Original", "test forget"]
    runs = pd.read_csv(readme.RESULTS.with_name("runs.csv")).set_index(["scenario", "method"])
    for scenario, tested in (("random", last["random", "Original", "test"]), ("class", by_class)):
        [line] = [line for line in README.splitlines() if f"**{scenario.capitalize()} scenario**" in line]
        minutes = runs.seconds[scenario, "Original"] / 60
        assert f"test accuracy is {tested:.1f} %" in line and f"{minutes:.0f} minutes on one" in line
    assert f"Gold classify {last['random', 'Gold', 'forget']:.0f} % of the forgotten images correctly" in README
    placed = {
        s: [n for n, place in leaderboard(audits, s, "cifar10")["≤ 10 %"].items() if place] for s in ("random", "class")
    }
    assert placed == {"random": [], "class": ["DELETE", "M2 Selective FT"]}
    assert "For a class, DELETE and M2 have a place above. For a random share no method has a place" in README


def test_the_text_on_targets_agrees_with_its_table():
    """Own and corrected target, the perfect estimate, two Golds: gap, distance of the target, RMIA."""
    import readme

    found = pd.read_csv(readme.TARGETS).set_index(["target", "epochs"])
    brief, gap, rmia = found.xs(2, level="epochs"), "gap to Gold", "RMIA AUC"
    golds = found.loc[["Gold 2", "Gold 3 itself"]]
    assert brief[gap]["own"] <= golds[gap].max() and brief["% of retraining"]["own"] <= 10
    for epochs in (2, 6):
        part = found.xs(epochs, level="epochs")
        assert golds[rmia].max() + 0.05 < part[rmia]["Gold 3"] < part[rmia]["own"] - 0.01
        assert part["target's JSD to Gold"]["corrected"] < part["target's JSD to Gold"]["own"]
        assert part[gap]["corrected"] > part[gap]["own"] and abs(part[rmia]["corrected"] - part[rmia]["own"]) < 0.01
    shown = [f"{found[rmia][target, n]:.2f}" for target in ("Gold 3", "own") for n in (2, 6)]
    assert shown == ["0.58", "0.57", "0.60", "0.60"]


def test_an_unknown_marker_is_reported():
    import readme

    with pytest.raises(ValueError, match="unknown marker <!-- boad random -->"):
        readme.with_tables("README.md", "<!-- boad random -->\n<!-- end -->", *readme.measured())


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Each relative link and picture is a file or a folder of the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if ":" not in target]
    missing = [target for target in targets if not ((ROOT / page).parent / target).exists()]
    assert not missing


def test_every_option_of_the_readme_exists():
    """Options that the README names are those of the parameters or of the command line."""
    options = set(re.findall(r"(?<![-<])(--[a-z][a-z-]+)", README)) - {"--help", "--index-url"}  # of pip
    known = {parameter.option for parameter in PARAMETERS.values()}
    source = (ROOT / "workflow" / "suite.py").read_text(encoding="utf-8")
    assert options and not [option for option in options if option not in known and f'"{option}"' not in source]


def test_the_line_for_one_notebook_runs(tmp_path):
    """papermill alone, without the command line: as it is written, but with tiny settings and other folders."""
    [line] = re.findall(r"^\.venv/bin/papermill .*", README, re.M)
    _, notebook, executed, *options = shlex.split(line, comments=True)
    assert executed.startswith("runs/") and options == ["-p", "seed", "1"]
    command = [sys.executable, "-m", "papermill", notebook, tmp_path / "done.ipynb", *options]
    tiny = ["-p", "preset", "smoke", "-y", "scenarios: [random]"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "UNLEARNING_RUNS": str(tmp_path / "runs")}
    done = subprocess.run([*command, *tiny], cwd=ROOT, env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / "runs/interactive/noisy-digits-smoke/seed1/figures").glob("08_*.png"))


def test_readme_is_short():
    """At most 1,500 words outside tables and 200 lines: more is read by nobody."""
    words = sum(len(line.split()) for line in README.splitlines() if not line.startswith("|"))
    assert words <= 1500 and len(README.splitlines()) <= 200
