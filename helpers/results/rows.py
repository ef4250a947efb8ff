"""The two tables from which all others are made: measurements in tidy form, and one row per run."""

import json

import pandas as pd

from ..metrics import losses, measure, predicted_shares
from .flags import COLLAPSED, is_collapsed

COLUMNS = ["run", "scenario", "seed", "kind", "method", "epoch", "set", "metric", "value"]
BY_EPOCH = ("tracked accuracy", "tracked images", "loss", "s")  # metrics of epochs; all others are of finished models
OTHER_DATA = "settings for other data"
RUN_COLUMNS = [
    "run",
    "data",
    "identity",
    "preset",
    "start",
    "scenario",
    "seed",
    "kind",
    "method",
    "settings",
    "settings_origin",
    "model",
    "device",
    "threads",
    "precision",
    "torch",
    "torchvision",
    "timm",
    "python",
    "seconds",
    "steps",
    "images",
    "diverged",
]


def tidy(suite, runs):
    """All measurements as one table: one row per value, of Original, the Golds and `runs` of each experiment.

    Columns: `COLUMNS`. `kind` is original, gold or method. Metrics of `BY_EPOCH` have a row per epoch: tracked ones are
    of part of a set, whose size is in `tracked images`. The others are of the finished model, and their epoch is its
    number of epochs: accuracy, retain-forget gap and gap to Gold in percent or points, entropy (nats), JSD to Gold,
    kit MIA, the share of the test images that is predicted as one class (`largest class`, percent), and the cost in
    seconds, steps and images, also as `% of retraining`. Without a Gold there are no distances to it and no shares of
    its cost. A method that diverged has one row, with the metric `diverged`. `collapsed` marks a collapsed model,
    `settings for other data` settings that were chosen for other data.

    Args:
        suite: experiments, of several scenarios or seeds.
        runs: what `Experiment.unlearn` returned, of any of them; the order is kept.
    """
    rows = [
        pd.DataFrame(rows_of(e, run), columns=["epoch", "set", "metric", "value"]).assign(
            run=run.id, scenario=run.scenario, seed=run.seed, kind=run.kind, method=run.name
        )
        for e in suite
        for run in with_references(e, runs)
    ]
    return pd.concat(rows, ignore_index=True)[COLUMNS]


def with_references(e, runs):
    """Original, the Golds and those of `runs` that are of this experiment."""
    own = [run for run in runs if (run.scenario, run.seed) == (e.scenario.name, e.seed)]
    return [e.original(), *e.golds(), *own]


def rows_of(e, run):
    """(epoch, set, metric, value) of one run."""
    if run.diverged:
        return [(0, "", "diverged", 1.0)]
    rows = [
        (entry["epoch"], name, "tracked accuracy", value)
        for entry in run.history
        for name, value in entry.get("tracked", {}).items()
    ]
    if rows:
        rows += [(0, name, "tracked images", float(len(batches.index))) for name, batches in e.tracked.items()]
    rows += [
        (entry["epoch"], "", metric, entry[metric])
        for entry in run.history
        for metric in ("loss", "s")
        if metric in entry
    ]
    rows += [(run.epochs, row.set, row.metric, row.value) for row in e.measured(run).itertuples()]
    test = e.scenario.test
    largest, labels = predicted_shares(run.logits[test]).max(), e.split.sets[test].y.cpu()
    most_frequent = 100 * labels.bincount().max().item() / len(labels)
    rows.append((run.epochs, test, "largest class", largest))
    retain = next(value for _, name, metric, value in rows if (name, metric) == ("retain", "accuracy"))
    if is_collapsed(largest, most_frequent, retain, len(e.data.classes)):
        rows.append((run.epochs, "", COLLAPSED, 1.0))
    for unit, value in e.cost(run).items():
        rows.append((run.epochs, "", unit, value))
        if e.preset["golds"]:
            rows.append((run.epochs, "", f"{unit}, % of retraining", 100 * value / e.gold().cost[unit]))
    if made_for_other_data(e, run):
        rows.append((run.epochs, "", OTHER_DATA, 1.0))
    return rows


def made_for_other_data(e, run):
    """The name of the data for which the preset's settings of this run were chosen, if these are other data; or ''."""
    if run.kind != "method" or run.settings_origin != e.settings_origin(run.name):
        return ""
    parts = (part for part in ("methods", "published") if e.preset[part].get(run.name))
    chosen_for = next((e.preset["written_for"][part] for part in parts), e.data.name)
    return chosen_for if chosen_for != e.data.name else ""


def losses_of(e, runs):
    """For `plots.loss_histograms`: `{model: {set: cross-entropy of each image, nats}}` on forgotten and unseen images.

    The models are Original, Gold (if there is one) and those of `runs` that are of this experiment and did not diverge.
    """
    labels = {name: e.split.sets[name].y.cpu() for name in ("forget", e.scenario.unseen)}
    own = [run for run in runs if (run.scenario, run.seed) == (e.scenario.name, e.seed) and not run.diverged]
    models = [e.original(), *([e.gold()] if e.preset["golds"] else []), *own]
    return {run.name: {name: losses(run.logits[name], y) for name, y in labels.items()} for run in models}


def measured_rows(e, models):
    """The rows of models that are no `Run`, with `COLUMNS`, as those of `tidy`; `run` is empty.

    Args:
        models: have a name, a kind, logits `{set: (n, classes)}` and a cost; the one called Gold is the reference.
    """
    gold, tables = next(model for model in models if model.name == "Gold"), []
    for model in models:
        rows = [(row.set, row.metric, row.value) for row in measure(model.logits, e.split, gold.logits).itertuples()]
        for unit, value in model.cost.items():
            rows += [("", unit, value), ("", f"{unit}, % of retraining", 100 * value / gold.cost[unit])]
        named = {"run": "", "scenario": e.scenario.name, "seed": e.seed, "kind": model.kind, "method": model.name}
        tables.append(pd.DataFrame(rows, columns=["set", "metric", "value"]).assign(**named, epoch=0))
    return pd.concat(tables, ignore_index=True)[COLUMNS]


def melted(e, kind, table):
    """A table with a name per row and a metric per column as rows with `COLUMNS`; set and run are empty."""
    rows = table.rename_axis("method").reset_index().melt("method", var_name="metric").dropna(subset="value")
    named = {"run": "", "scenario": e.scenario.name, "seed": e.seed, "kind": kind, "epoch": 0, "set": ""}
    return rows.assign(value=rows.value.astype(float), **named)[COLUMNS]


def run_rows(suite, runs):
    """One row per run: what determined it, where its settings come from, where it was made, what it cost.

    Columns: `RUN_COLUMNS`; `run` is the key by which other tables refer to it, `settings` is JSON, and `images` counts
    all that a model processed, with repetition. The same runs give the same bytes: rows and settings are sorted.
    """
    return runs_table({run.id: (e, run) for e in suite for run in with_references(e, runs)}.values())


def runs_table(pairs):
    """One row per pair of an experiment and its run, with `RUN_COLUMNS`, sorted."""
    table = pd.DataFrame([run_row(e, run) for e, run in pairs], columns=RUN_COLUMNS)
    return table.sort_values(["scenario", "seed", "kind", "method", "run"], ignore_index=True)


def run_row(e, run):
    """The row of one run, `{column: value}`."""
    environment = ("device", "threads", "precision", "torch", "torchvision", "timm", "python")
    return {
        "run": run.id,
        "data": e.data.name,
        "identity": e.data.identity,
        "preset": e.preset_name,
        "start": e.start,
        "scenario": run.scenario,
        "seed": run.seed,
        "kind": run.kind,
        "method": run.name,
        "settings": json.dumps(run.settings, sort_keys=True),
        "settings_origin": run.settings_origin,
        "model": e.network,
        **{name: run.environment[name] for name in environment},
        **{unit: e.cost(run).get(unit) for unit in ("seconds", "steps", "images")},
        "diverged": run.diverged,
    }
