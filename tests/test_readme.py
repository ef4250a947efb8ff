"""README.md says what was measured: its tables are those of the committed results, its links and options exist."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "workflow"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_those_of_the_results():
    """`workflow/readme.py` would change nothing, and both scenarios have rows."""
    import readme

    assert readme.with_tables(README, *readme.measured()) == README
    assert README.count("| Gold |") == 4 and "| M1 Retain FT |" in README and "| 2-Stage |" in README


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(target):
    """Each relative link and picture is a file of the repository."""
    assert (ROOT / target).is_file()


def test_every_option_of_the_readme_exists():
    """What the README says `run_all.sh` takes, it takes."""
    options = set(re.findall(r"`(--[a-z-]+)", README))
    source = (ROOT / "workflow" / "suite.py").read_text(encoding="utf-8")
    assert options and all(f'"{option}"' in source for option in options)
