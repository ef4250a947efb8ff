"""Files that jobs write and others look at: text, never seen half written, and figures, known by their digests."""

import os
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS, FIGURES = (ROOT / (os.environ.get(f"UNLEARNING_{name.upper()}") or name) for name in ("runs", "figures"))
TABLES = {"10": "results.csv", "12": "audit.csv"}  # in `figures/<data>/`, beside the figures


def replace_text(path, text):
    """Write `path` such that no reader ever sees half of it, whatever happens."""
    unfinished = path.with_name(f".{path.name}.part")
    try:
        with open(unfinished, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def figures_of(notebook):
    """When each figure and table of a notebook in `figures/` was written: `{path: nanoseconds}`."""
    number = notebook.name[:2]
    files = [*FIGURES.glob(f"*/{number}_*"), *(FIGURES.glob(f"*/{TABLES[number]}") if number in TABLES else ())]
    return {file.relative_to(FIGURES).as_posix(): file.stat().st_mtime_ns for file in files}


def figure_digest(name):
    """Twelve hex digits of the figure with that path in `figures/`; None where it is not there."""
    with suppress(FileNotFoundError):
        return sha256((FIGURES / name).read_bytes()).hexdigest()[:12]
