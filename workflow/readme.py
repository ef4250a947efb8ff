"""Put the result tables into README.md and notebooks/results.md, from the committed results.

`.venv/bin/python workflow/readme.py` writes both; their tables stand between `<!-- name -->` and `<!-- end -->`.
"""

import re
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers.paths import FIGURES, ROOT, replace_text
from helpers.results import gap_points, summary
from helpers.results.flags import method_flags
from helpers.results.leaderboard import COSTS, JSD, chosen_with_gold, conclusions, leaderboard
from helpers.results.published import PUBLISHED
from helpers.results.statistics import format_ci
from helpers.results.tables import beside_published, gap_in_words, published_lines

DATA = "cifar10"
RESULTS, AUDIT = FIGURES / "cifar10-short" / "results.csv", FIGURES / "cifar10-audit" / "audit.csv"
CHAIN = FIGURES / "cifar10-short-scenarios-random-start-chain" / "results.csv"
TARGETS = FIGURES / "cifar10-audit" / "targets.csv"
COLUMNS = {
    "random": {name: (name, "accuracy", 1) for name in ("retain", "forget", "validation", "test")},
    "class": {
        "forget": ("forget", "accuracy", 1),
        "test retain": ("test retain", "accuracy", 1),
        "entropy": ("test forget", "entropy", 2),
        "JSD to Gold": ("test forget", "JSD to Gold", 3),
    },
}
BOARD = [*COSTS, "average gap", "UA", "RA", "TA", "MIA", JSD, "RMIA AUC", "U-LiRA AUC", "% of retraining"]
PAGES = {  # page: which of the board's columns it leaves out, and how many of its rows it shows; None: all
    "README.md": (["≤ 5 %", "RMIA AUC"], 6),
    "notebooks/results.md": ([], None),
}


def tables(results, audits, without=(), rows=None):
    """`{marker: Markdown}`: each scenario's results and leaderboard, the conclusions, and those without JSD."""
    columns, scenarios = [name for name in BOARD if name not in without], dict.fromkeys(audits.scenario)
    boards = {f"board {s}": board(leaderboard(audits, s, DATA)[columns].head(rows)) for s in scenarios}
    measured = [name for name in columns if name not in COSTS]
    with_gold = {f"chosen with Gold {s}": board(chosen_with_gold(audits, s, DATA)[measured]) for s in scenarios}
    ours = {f"table {s}": table(results, s) for s in dict.fromkeys(results.scenario)}
    lines = conclusions(audits, DATA)
    verdicts = "\n".join(line for line in lines.splitlines() if JSD not in line)
    others = {"targets": targets(), **beside_document_a(results)}
    return ours | boards | with_gold | others | {"conclusions": lines, "verdicts": verdicts}


def targets():
    """What limits Margin matching (`audit.targets`), as Markdown."""
    found = pd.read_csv(TARGETS, dtype={"epochs": "Int64"})
    digits = {"gap to Gold": 2, "JSD to Gold": 3, "target's JSD to Gold": 3, "RMIA AUC": 3, "% of retraining": 0}
    lines = [["", "epochs", *digits]]
    for _, row in found.iterrows():
        numbers = ["" if pd.isna(row[name]) else f"{row[name]:.{n}f}" for name, n in digits.items()]
        lines.append([row.target, "" if pd.isna(row.epochs) else str(row.epochs), *numbers])
    return markdown(lines)


def beside_document_a(results):
    """Document A's numbers beside those of fresh and of chained runs, and the computed lines below them."""
    sources = {"fresh": results, "chain": pd.read_csv(CHAIN, keep_default_na=False, na_values={"value": ""})}
    found = beside_published(sources, "random")
    shown = found[["retain", "forget"]]
    lines = [["", *(f"{number}, {source}" for number, source in shown.columns)]]
    for method, row in shown.iterrows():
        lines.append([method, *("" if pd.isna(value) else f"{value:.1f}" for value in row)])
    return {"document A": markdown(lines), "document A, lines": "\n".join(published_lines(found))}


def board(shown):
    """Rows of a leaderboard as Markdown."""
    return markdown([["", *shown], *([name, *row] for name, *row in shown.itertuples())])


def table(results, scenario):
    """One scenario's table as Markdown: the gap, ours with the published value in brackets, the cost, the flag."""
    results = results[results.scenario == scenario]
    stats = summary(results).set_index(["method", "set", "metric"])
    points = gap_points(results).set_index("method")
    flags = method_flags(results)
    lines = [["", "gap to Gold", *COLUMNS[scenario], "% of retraining", "flag"]]
    for method in dict.fromkeys(results.method):
        if method not in points.index:
            lines.append([method, "diverged", *[""] * (len(lines[0]) - 2)])
            continue
        published = PUBLISHED[scenario].get(method, {})
        cells = [
            format_ci(*stats.loc[(method, name, metric), ["mean", "half"]], digits)
            + (f" ({published[heading]:.{digits}f})" if heading in published else "")
            for heading, (name, metric, digits) in COLUMNS[scenario].items()
        ]
        gap, cost = gap_in_words(points.loc[method]), f"{points.cost[method]:.0f}"
        lines.append([method, gap, *cells, cost, flags.get(method, "")])
    return markdown(lines)


def markdown(lines):
    """A Markdown table; the first of `lines` is its heading."""
    heading, *rows = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [heading, ["---", *["---:"] * (len(heading) - 1)], *rows])


def measured():
    """The committed results and audits; of their columns only `value` may lack an entry."""
    return [pd.read_csv(file, keep_default_na=False, na_values={"value": ""}) for file in (RESULTS, AUDIT)]


def with_tables(page, text, results, audits):
    """The text of one of `PAGES` with fresh tables between its markers."""
    made = tables(results, audits, *PAGES[page])
    for marker in re.findall(r"<!-- ((?!end )[^>]+) -->", text):
        if marker not in made:
            raise ValueError(f"{page} has an unknown marker <!-- {marker} -->: there are {', '.join(made)}")
        pattern = rf"(<!-- {marker} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda found, new=made[marker]: found[1] + new + "\n" + found[2], text, flags=re.S)
    return text


if __name__ == "__main__":
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        replace_text(ROOT / page, with_tables(page, text, *measured()))
