"""A summary for people who requested removal: what was forgotten, how it was checked, and what is not guaranteed."""

import hashlib
from math import isnan

import pandas as pd
import torch

from ..audit.shadows import memorisation
from ..metrics import js_distance
from .duplicates import NEAR, near_duplicates
from .rows import tidy
from .tables import in_words

SHOWN = 10  # of the most memorised images
NOT_GUARANTEED = (
    "That no trace is left: no check of a model can show that. Only training again without the images is exact.",
    "That a stronger attack, or one with access to the model before, finds nothing.",
    "Anything about retained near-duplicates that the measure above misses, or about other images like the forgotten.",
    "Anything about backups, logs, earlier versions of the model or models made from them.",
)
ONE_PAIR = "That another seed gives the same result: one pair of retrained models gives a floor, but no interval."


def certificate(e, run):
    """Markdown: what `run` of the experiment `e` should have forgotten, how that was checked, against which floor.

    Raises:
        ValueError: the preset trains no second Gold, so there is no floor; or `run` diverged, is not the result of a
            method, or did not start from Original.
    """
    if e.preset["golds"] < 2:
        raise ValueError(f"preset {e.preset_name} has no second Gold: without a floor there is nothing to certify")
    if run.diverged:
        raise ValueError(f"{run.name} diverged: there is no model to certify")
    if run.kind != "method":
        raise ValueError(f"{run.name} is not the result of a method")
    if run.made_with["start"] != e.original().id:
        raise ValueError(f"{run.name} started from the result of another method: certify one with start = 'fresh'")
    share = 100 * run.cost["images"] / e.gold().cost["images"]
    made = run.environment
    lines = [
        f"# What was forgotten by {run.name}",
        *forgotten_lines(e, near_duplicates(e.split), memorised(e)),
        f"- **How**: {run.name} with {in_words(run.settings)}, from a model trained on all images; seed {e.seed}, "
        f"preset {e.preset_name}; {run.cost['images']:,} images processed, {share:.1f} % of retraining's",
        f"- **Machine**: {made['device']}, {made['threads']} thread{'s' * (made['threads'] != 1)}, {made['precision']}",
        "",
        "## How it was checked",
        "",
        *check_lines(e, run),
        "",
        "## What is not guaranteed",
        "",
        *(f"- {line}" for line in (*NOT_GUARANTEED, ONE_PAIR)),
    ]
    return "\n".join(lines)


def forgotten_lines(e, near, memorised=None):
    """Markdown: which images were to be forgotten, of which classes, and how many retained ones are like them.

    Args:
        near: of `near_duplicates`.
        memorised: of `memorised`.
    """
    index, classes = e.split.forget.index.cpu().sort().values, class_counts(e)
    listed = hashlib.sha256("\n".join(map(str, index.tolist())).encode()).hexdigest()
    identical, alike = near.identical.sum(), (~near.identical).sum()
    counts = [f"{name}: {forgotten:,} of {total:,}" for name, (forgotten, total) in classes.items() if forgotten]
    return [
        f"- **Images**: {len(index):,} of {len(e.split.train.index):,} training images of {e.data.title} (identity "
        f"{e.data.identity}); SHA-256 of their sorted indices, one per line: `{listed}`",
        f"- **Classes**: {'; '.join(counts)}",
        f"- **Retained copies**: {identical:,} of the forgotten images have a retained image with the same pixels. "
        f"{alike:,} more have one that differs by at most {NEAR:g} of 255 grey levels on thumbnails of 8x8 pixels. "
        "What such images teach remains.",
        *([] if memorised is None else [memorised_line(memorised)]),
    ]


def memorised_line(table):
    """Markdown: how much the forgotten images are memorised, and which most."""
    most = ", ".join(f"{image} ({nats:.1f})" for image, nats in table.memorisation.head(SHOWN).items())
    return (
        "- **Memorisation**: the log-odds of an image's label in shadow models trained on it, minus those in shadow "
        f"models that never saw it. Median: {table.memorisation.median():.1f} nats. The largest values, where most is "
        f"to be removed: {most}"
    )


def memorised(e):
    """One row per forgotten image with its memorisation in nats, the most memorised first; see `shadows.memorisation`.

    Returns:
        Table indexed by path, or by index into the training images; None without shadow models.
    """
    nats = memorisation(e)
    if nats is None:
        return None
    index = e.split.forget.index.cpu().tolist()
    images = pd.Index([e.data.files[i] for i in index] if e.data.files else index, name="image")
    return pd.DataFrame({"memorisation": nats}, images).sort_values("memorisation", ascending=False, kind="stable")


def class_counts(e):
    """`{class: (forgotten, all)}`, the numbers of its training images."""
    forgotten, total = (
        torch.bincount(batches.y.cpu(), minlength=len(e.data.classes)).tolist()
        for batches in (e.split.forget, e.split.train)
    )
    return dict(zip(e.data.classes, zip(forgotten, total)))


def check_lines(e, run):
    """Markdown: the checks of a run against Gold and the floor, as a table below a paragraph."""
    return [
        "By comparison with Gold, a model retrained without these images. The floor is the difference between Gold and",
        "a second retrained model. It is a scale, not a test: a third one would exceed it in about half of the cases.",
        "",
        "| check | before | now | Gold | difference | floor | within |",
        "| --- | ---: | ---: | ---: | ---: | ---: | :---: |",
        *(row(*check) for check in checks(e, run)),
    ]


def checks(e, run):
    """For each check: its title and the values of Original, of `run`, of Gold and of the second Gold."""
    models, table = [e.original(), run, e.gold(1), e.gold(2)], tidy([e], [run])
    test = e.scenario.test
    for title, name, metric in (
        ("accuracy on the forgotten images, %", "forget", "accuracy"),
        (f"accuracy on the set {test}, %", test, "accuracy"),
        ("attack: forgotten or never seen? (0.5 = chance)", "forget", "kit MIA"),
    ):
        found = table[(table.set == name) & (table.metric == metric)].set_index("method").value
        yield title, *(found[model.name] for model in models)
    logits = [model.logits[e.scenario.compared] for model in models]
    distances = [js_distance(values, logits[2]).mean().item() for values in logits]
    yield "Jensen-Shannon distance of the predictions to Gold's", *distances


def is_within(now, gold, second):
    """Whether the difference to Gold is at most the floor, but for rounding of the last bits; not if either is NaN."""
    return abs(now - gold) <= abs(second - gold) + 1e-9


def row(title, before, now, gold, second):
    """One line of the table; NaN: it could not be measured."""
    difference, floor = abs(now - gold), abs(second - gold)
    values = ["not measurable" if isnan(value) else f"{value:.3f}" for value in (before, now, gold, difference, floor)]
    within = "not measurable" if isnan(difference + floor) else "yes" if is_within(now, gold, second) else "no"
    return f"| {title} | {' | '.join(values)} | {within} |"
