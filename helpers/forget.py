"""From a request to forget to a report: the steps of `run_all.sh forget` and of notebook 16."""

import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from . import methods, paths, plots, store
from .audit.one_model import attack
from .fingerprint import file_digest, key
from .metrics import predict
from .results import gap_points, losses_of, request, tidy
from .results.certificate import memorised
from .results.flags import COLLAPSED, accuracies, method_flags
from .tuning import score, tuned

# The best of figures/cifar10-audit/audit.csv by average gap at a small, a medium and a large cost. Points at percent of
# retraining: random 7.8 at 2.8, 11.9 at 4.6, 5.1 at 10.6; class 1.2 at 1.8, 1.3 at 2.8, 1.2 at 4.2.
DEFAULTS = {
    "random": ("Random labels", "SalUn", "Margin matching"),
    "class": ("DELETE", "M2 Selective FT", "Margin matching"),
}
GAP, SCORE = "gap to Gold", "score without Gold"  # by what methods are ranked, in points; 0 is best
FILES = ("report.md", "report.html", request.FIGURE, request.MEMORISATION)
MARK = "unlearned"  # in the metadata of weights: how to use them


# --- before anything is trained -----------------------------------------------------------------------------------


def prepared(e, gold=True):
    """The same experiment, which stores the weights that it delivers and retrains two Golds, or none without `gold`."""
    golds = min(2, e.preset["golds"]) if gold else 0
    return e.derive(preset={**e.preset, "keep_weights": "delivered", "golds": golds})


def chosen_methods(e, names=()):
    """The names of methods, each once; `DEFAULTS` without any.

    Raises:
        ValueError: an unknown method, or one for the other scenario.
    """
    names = list(dict.fromkeys(names or DEFAULTS[e.scenario.name]))
    for name in names:
        if e.scenario.name not in methods.find(name).scenarios:
            raise ValueError(f"method '{name}' is not for the scenario {e.scenario.name}")
        e.settings(name)
    return names


def check_folder(folder, inputs=()):
    """Refuse a folder for the report in which nothing can be written, or which holds anything but a former report.

    Args:
        inputs: files that are read, and so must not lie in it; None for one that there is not.

    Raises:
        ValueError, OSError: in one line.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder.name}' is a file: name a folder for the report")
    kept = [Path(file).name for file in inputs if file and Path(file).absolute().parent == folder.absolute()]
    kept += [file.name for file in sorted(folder.glob("*")) if file.name not in FILES and not is_written_here(file)]
    if kept:
        raise ValueError(f"the folder '{folder.name}' holds '{kept[0]}', which a report must not replace: name another")
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not place.is_dir():
        raise ValueError(f"'{place.name}' is a file: name another folder for the report")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise OSError(f"cannot write to '{place}': {error.strerror}") from None


def is_written_here(file):
    """Whether a file holds weights that `save_weights` wrote."""
    try:
        with safe_open(file, "pt") as opened:
            return MARK in (opened.metadata() or {})
    except (OSError, SafetensorError):
        return False


def default_folder(e, names):
    """Where the report goes: a folder under `runs/forget/` that depends on the request and on who carries it out."""
    determines = [e.split_settings, e.preset_name, e.preset["model"], e.preset["batches"], e.preset["golds"], e.seed]
    weights = e.weights_digest if e.weights_file else None
    return paths.RUNS / "forget" / f"{e.data.name}-{key([*determines, e.data.identity, weights, names])}"


# --- models -------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What became of a request: the experiment and the runs of its methods."""

    e: object  # the Experiment
    runs: list
    failed: dict = field(default_factory=dict)  # method -> why it could not run

    @cached_property
    def results(self):
        """All measurements, tidy."""
        return tidy([self.e], self.runs)

    @cached_property
    def ranking(self):
        """One row per run, the best first; see `rows_by`."""
        rows = rows_by(self.e, self.runs, self.results)
        return rows.sort_values(rows.columns[0], kind="stable")

    @cached_property
    def table(self):
        """Original, the Golds and `ranking`."""
        return pd.concat([rows_by(self.e, [self.e.original(), *self.e.golds()], self.results), self.ranking])

    @property
    def references(self):
        """Original's value of what methods are ranked by, and the floor: the second Gold's, NaN without one."""
        by = self.table.iloc[:, 0]
        return by["Original"], by.get("Gold 2", np.nan)

    @property
    def finished(self):
        """The runs that did not diverge, the best first."""
        by_name = {run.name: run for run in self.runs if not run.diverged}
        return [by_name[name] for name in self.ranking.index if name in by_name]

    @property
    def recommended(self):
        """The best run without a flag that is better than Original, by more than the floor if there is one; or None.

        None at all if Original never learnt.
        """
        collapsed = self.results.method[self.results.metric == COLLAPSED]
        unflagged = [run for run in self.finished if not self.ranking.flag[run.name]]
        if "Original" in set(collapsed) or not unflagged:
            return None
        original, floor = self.references
        value = self.ranking.iloc[:, 0][unflagged[0].name]
        return unflagged[0] if value < original - np.nan_to_num(floor) else None


def carry_out(e, names):
    """Train or load Original, run the methods with their tuned settings or the preset's, retrain Golds: an `Outcome`.

    A method that raises an error is noted; the others run.

    Raises:
        ValueError: a loaded Original that never learnt.
    """
    e.original()
    runs, failed = [], {}
    for name in names:
        try:
            runs += tuned(e, [name])
        except OSError:  # of the disk, not of the method
            raise
        except Exception as error:  # in a user's own method anything may happen
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    e.golds()
    return Outcome(e, runs, failed)


def rows_by(e, runs, results):
    """One row per run; the first column is what methods are ranked by.

    With Gold this is the mean gap to it. Without, it is `tuning.score`: the distance of the forget accuracy to the
    accuracy on unseen images (in the class scenario: to 0), and what retained and unseen accuracy lost against
    Original.

    Returns:
        Table indexed by model: `GAP` or `SCORE`, accuracies, cost, and flag, empty for none.
    """
    found = accuracies(results).groupby(level="method", sort=False).mean()
    flags, names = method_flags(results), [run.name for run in runs]
    by = gap_points(results).set_index("method").gap.rename(GAP) if e.preset["golds"] else scores(e, found)
    rows = pd.DataFrame({by.name: by.reindex(names), **{f"{name} %": found[name].reindex(names) for name in found}})
    for unit in ("images, % of retraining", "images", "seconds"):
        if (results.metric == unit).any():
            rows[unit] = results[results.metric == unit].set_index("method").value.reindex(names)
    rows["flag"] = ["diverged" if run.diverged else flags.get(run.name, "") for run in runs]
    return rows


def scores(e, found):
    """What methods are ranked by without Gold, in points, from the table of accuracies."""
    unseen = "validation" if e.scenario.name == "random" else e.scenario.test
    found = found[["retain", "forget", unseen]].set_axis(["retain", "forget", "validation"], axis=1)
    return found.apply(lambda own: score(own, found.loc["Original"], e.scenario.name), axis=1).rename(SCORE)


def attacks_on(e, run):
    """Every attack that needs one model, on Original, the Golds and `run`; one row per model."""
    untrained = predict(e.build(seed=e.seed + 99, weights=None), e.split.sets["forget"])[0]
    golds = e.golds()
    rows = {
        model.name: attack(e, model, [gold for gold in golds if gold is not model], untrained)
        for model in (e.original(), *golds, run)
    }
    return pd.DataFrame(rows).T


# --- files --------------------------------------------------------------------------------------------------------


def weights_file(run):
    """The file name of a run's weights: `margin-matching.safetensors`."""
    return "".join(c if c.isalnum() else "-" for c in run.name.lower()) + ".safetensors"


def save_weights(e, run, path):
    """Write a run's weights with what is needed to use them: network, order of the classes, input, normalisation."""
    batches = e.split.retain
    record = {
        "method": run.name,
        "settings": run.settings,
        "run": run.id,
        "network": e.network,
        "classes": e.data.classes,
        "image size": batches.image_size,
        "mean": batches.mean,
        "std": batches.std,
    }
    tensors = {name: tensor.cpu() for name, tensor in run.model.state_dict().items()}
    store.write_tensors(path, tensors, {MARK: json.dumps(record)})


def write(outcome, folder, *, listed=None, command="", audit=False):
    """Write weights and report into `folder`, all of it or nothing; return the report as Markdown.

    Args:
        listed: the file that named the images.
        command: what was typed, for the report.
        audit: attack the recommended model, or else the best.

    Raises:
        ValueError, OSError: see `check_folder`; or the disk is full.
    """
    e, folder = outcome.e, Path(folder)
    check_folder(folder, [listed, e.weights_file])
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        weights = {}
        for run in (*outcome.finished, *e.golds()[:1]):
            save_weights(e, run, staging / weights_file(run))
            weights[run.name] = weights_file(run), file_digest(staging / weights_file(run))
        best = outcome.recommended or next(iter(outcome.finished), None)
        if best:
            plots.use_style(e.data.classes)
            figure = plots.loss_histograms(losses_of(e, [best]), unseen=e.scenario.unseen)
            figure.savefig(staging / request.FIGURE, metadata={"Software": None})
        table = memorised(e)
        if table is not None:
            table.to_csv(staging / request.MEMORISATION, float_format="%.4g", lineterminator="\n")
        attacked = attacks_on(e, best) if audit and best else None
        own = {"listed": listed, "command": command, "attacked": attacked, "memorised": table}
        text = request.report(outcome, weights, best=best, **own)
        (staging / "report.md").write_text(text, encoding="utf-8", newline="\n")
        page = request.as_html(text, staging / request.FIGURE)
        (staging / "report.html").write_text(page, encoding="utf-8", newline="\n")
        staging.chmod(0o755)
        replace_folder(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return text


def replace_folder(new, folder):
    """Move the folder `new` to `folder`, in place of one that is there."""
    old = new.with_name(f"{new.name}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)
