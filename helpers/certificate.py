"""A summary for those who asked for removal: what was forgotten, how it was checked, and what is not guaranteed."""

import hashlib
from math import isnan

from .metrics import FORGOTTEN, MEMBERS, js_distance

NOT_GUARANTEED = (
    "That no trace is left: no check of a model can show that. Only training again without the images is exact.",
    "That a stronger attack than the one above, or one that knows the model before, finds nothing.",
    "Anything about near-duplicates that were retained, or about other images like the forgotten ones.",
    "Anything about backups, logs, earlier versions of the model or models made from them.",
    "That another seed gives the same: the floor comes from one pair of retrained models.",
)


def certificate(e, run):
    """Markdown: what `run` of the experiment `e` was asked to forget, how that was checked, against which floor.

    Raises:
        ValueError: the budget trains no second Gold, so there is no floor; `run` diverged, or is not what a method
            left of Original.
    """
    if len(e.golds) < 2:
        raise ValueError(f"budget {e.budget_name} has no second Gold: without a floor there is nothing to certify")
    if run.diverged:
        raise ValueError(f"{run.name} diverged: there is no model to certify")
    if "start" not in run.settings:
        raise ValueError(f"{run.name} is not what a method left of Original")
    if run.settings["start"]["role"] != "original":
        raise ValueError(f"{run.name} started from what another method left: certify one with start = 'fresh'")
    index = e.split.forget.index.cpu().sort().values
    listed = hashlib.sha256("\n".join(map(str, index.tolist())).encode()).hexdigest()
    lines = [
        f"# What was forgotten by {run.name}",
        f"- **Images**: {len(index):,} of {len(e.split.train.index):,} training images of {e.data.title} (identity "
        f"{e.data.identity}); SHA-256 of their sorted indices, one a line: `{listed}`",
        f"- **How**: {run.name} with {settings(run)}, from a model trained on all images; seed {e.seed}, budget "
        f"{e.budget_name}; {run.cost['images']:,} images seen, {percent(run, e)} of what retraining sees",
        f"- **Machine**: {run.machine}",
        "",
        "## How it was checked",
        "",
        "Against Gold, a model retrained without these images. The floor is what a second retrained model differs by;",
        "a difference above it is a trace that this check can see.",
        "",
        "| check | before | now | Gold | difference | floor | within |",
        "| --- | ---: | ---: | ---: | ---: | ---: | :---: |",
        *(row(*check) for check in checks(e, run)),
        "",
        "## What is not guaranteed",
        "",
        *(f"- {line}" for line in NOT_GUARANTEED),
    ]
    return "\n".join(lines)


def settings(run):
    """The method's settings in words."""
    return ", ".join(f"{name} = {value}" for name, value in run.settings["settings"].items()) or "its own settings"


def percent(run, e):
    return f"{100 * run.cost['images'] / e.gold.cost['images']:.1f} %"


def checks(e, run):
    """For each check: its name and the values of Original, of `run`, of Gold and of the second Gold."""
    models, table = [e.original, run, *e.golds[:2]], e.table([run])
    members, others = MEMBERS[e.scenario]
    useful = {"random": "test", "class": "test retain"}[e.scenario]
    asked = {
        "accuracy on the forgotten images, %": (members, "accuracy"),
        f"accuracy on the set {useful}, %": (useful, "accuracy"),
        "attack: forgotten or never seen? (0.5 = chance)": (f"{members} v. {others}", "kit MIA"),
    }
    for title, (name, metric) in asked.items():
        found = table[(table.set == name) & (table.metric == metric)].set_index("method").value
        yield title, *(found[model.name] for model in models)
    name = FORGOTTEN[e.scenario]
    distances = [js_distance(model.logits[name], e.gold.logits[name]).mean().item() for model in models]
    yield "Jensen-Shannon distance of the predictions to Gold's", *distances


def row(title, before, now, gold, second):
    """One line of the table; a difference no larger than the floor is within it. NaN could not be measured."""
    apart, floor = abs(now - gold), abs(second - gold)
    values = ["not measurable" if isnan(value) else f"{value:.3f}" for value in (before, now, gold, apart, floor)]
    within = "not measurable" if isnan(apart + floor) else "yes" if apart <= floor else "no"
    return f"| {title} | {' | '.join(values)} | {within} |"
