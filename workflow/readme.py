"""Put the result tables into README.md, from the committed results: `.venv/bin/python workflow/readme.py`."""

import re
import sys

import pandas as pd
from files import ROOT, replace_text

sys.path.insert(0, str(ROOT))

from helpers.battery import JSD, conclusions, leaderboard
from helpers.notebook import gap_points, summary, text
from helpers.published import PUBLISHED

DATA = "cifar10"
RESULTS, AUDIT = (ROOT / "figures" / DATA / name for name in ("results.csv", "audit.csv"))
COLUMNS = {
    "random": {name: (name, "accuracy", 1) for name in ("retain", "forget", "validation", "test")},
    "class": {
        "train forget": ("train forget", "accuracy", 1),
        "test retain": ("test retain", "accuracy", 1),
        "entropy": ("test forget", "entropy", 2),
        "JSD to Gold": ("test forget", "JSD to Gold", 3),
    },
}
BOARD = ["UA", "RA", "TA", "MIA", "average gap", JSD, "RMIA AUC", "U-LiRA AUC", "% of retraining"]


def tables(results, audits):
    """Marker -> Markdown: of each scenario the results, of each that was audited the board, and what follows."""
    boards = {f"board {scenario}": board(audits, scenario) for scenario in dict.fromkeys(audits.scenario)}
    ours = {f"table {scenario}": table(results, scenario) for scenario in dict.fromkeys(results.scenario)}
    return ours | boards | {"conclusions": conclusions(audits, DATA)}


def board(audits, scenario):
    """One scenario's leaderboard as Markdown."""
    rows = leaderboard(audits, scenario, DATA)[BOARD]
    lines = [["", *BOARD], ["---", *["---:"] * len(BOARD)], *([name, *row] for name, *row in rows.itertuples())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(results, scenario):
    """One scenario's Markdown table: ours, the published value in brackets, gap and cost."""
    stats = summary(results[results.scenario == scenario]).set_index(["method", "set", "metric"])
    points = gap_points(results[results.scenario == scenario]).set_index("method")
    headings = ["", *COLUMNS[scenario], "gap to Gold", "% of retraining"]
    lines = [" | ".join(headings), " | ".join(["---", *["---:"] * (len(headings) - 1)])]
    for method in dict.fromkeys(results[results.scenario == scenario].method):
        published = PUBLISHED[scenario].get(method, {})
        cells = [method]
        if method not in points.index:
            lines.append(" | ".join([method, "diverged", *[""] * (len(headings) - 2)]))
            continue
        for heading, (name, metric, digits) in COLUMNS[scenario].items():
            own = text(stats["mean"][method, name, metric], stats["half"][method, name, metric], digits)
            cells.append(own + (f" ({published[heading]:.{digits}f})" if heading in published else ""))
        lines.append(" | ".join([*cells, f"{points.gap[method]:.2f}", f"{points.cost[method]:.0f}"]))
    return "\n".join(f"| {line} |" for line in lines)


def measured():
    """The committed results and audits; of their columns only `value` may lack an entry."""
    return [pd.read_csv(file, keep_default_na=False, na_values={"value": ""}) for file in (RESULTS, AUDIT)]


def with_tables(readme, results, audits):
    """The text of README.md with fresh tables between its markers."""
    for marker, markdown in tables(results, audits).items():
        pattern = rf"(<!-- {marker} -->\n).*?(<!-- end -->)"
        if not re.search(pattern, readme, re.S):
            raise ValueError(f"README.md has no marker <!-- {marker} -->")
        readme = re.sub(pattern, lambda found, new=markdown: found[1] + new + "\n" + found[2], readme, flags=re.S)
    return readme


if __name__ == "__main__":
    readme = ROOT / "README.md"
    replace_text(readme, with_tables(readme.read_text(encoding="utf-8"), *measured()))
