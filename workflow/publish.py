"""Copy the figures and tables of a run's first seed to `figures/`. Nothing else writes there. Imports no torch."""

import csv
import filecmp
import io
import shutil
from contextlib import suppress

from jobs import ROOT

from helpers.paths import FIGURES, replace_file, replace_text

RUNS_TABLE = "runs.csv"


def publish(jobs, folder, seed):
    """Copy the outputs of finished notebooks that are of `seed` or of all seeds to `figures/<name of the run>/`.

    A file that is equal already is not written; a missing one is restored.

    Args:
        folder: of the run; its tables of runs are merged into one `runs.csv`.
    """
    target = FIGURES / folder.name
    for job in jobs:
        if job.notebook and job.seed in (seed, None):
            for name in job.record.get("outputs", []):
                if not name.endswith(RUNS_TABLE):
                    copy(ROOT / job.output / name, target / name.removeprefix("figures/"))
    if merged := merged_runs(folder):
        replace_changed(folder / RUNS_TABLE, merged)
        copy(folder / RUNS_TABLE, target / RUNS_TABLE)


def copy(source, target):
    """Copy a file unless the target has the same bytes."""
    if source.exists() and not (target.exists() and filecmp.cmp(source, target, shallow=False)):
        replace_file(target, lambda file: shutil.copyfile(source, file))


def replace_changed(path, text):
    """Write a text file unless it has this text already."""
    with suppress(FileNotFoundError):
        if path.read_text(encoding="utf-8") == text:
            return
    replace_text(path, text)


def merged_runs(folder):
    """All `*runs.csv` of a run's notebooks as one table: a row per run, by scenario, seed and id; empty without any."""
    rows, columns = {}, []
    for path in sorted(folder.glob(f"seed*/*{RUNS_TABLE}")) + sorted(folder.glob(f"*_{RUNS_TABLE}")):
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns += [column for column in reader.fieldnames or [] if column not in columns]
            rows |= {row["run"]: row for row in reader}
    if not rows:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows.values(), key=lambda row: (row["scenario"], int(row["seed"]), row["run"])))
    return text.getvalue()
