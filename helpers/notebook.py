"""What the notebooks share: opening a suite with checked parameters, showing source, tables and computed sentences."""

import inspect
import re

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from . import published
from .audit import half_width
from .data import load_data
from .experiment import SCENARIOS, YARDSTICK, Experiment, check
from .metrics import FORGOTTEN, GAP, MEMBERS


def open_suite(data, budget, scenarios, seed, forget_class, forget_fraction, start, *, say=True):
    """Check the parameters and return one `Experiment` a scenario.

    Raises:
        ValueError: a parameter of the wrong type or value; names it and the valid ones.
    """
    scenarios = [scenarios] if isinstance(scenarios, str) else scenarios
    if not isinstance(scenarios, list | tuple) or not scenarios:
        raise ValueError(f"scenarios = {scenarios!r}: a list of {' and '.join(SCENARIOS)}")
    for scenario in scenarios:
        check(scenario, budget, start)
    seed = number("seed", seed, int)
    forget_fraction = number("forget_fraction", forget_fraction, float)
    if not isinstance(data, str):
        raise ValueError(f"data = {data!r}: digits, cifar10 or the path of a folder of images")
    loaded = load_data(data)
    suite = [
        Experiment(loaded, name, budget, seed, forget_class=forget_class, forget_fraction=forget_fraction, start=start)
        for name in dict.fromkeys(scenarios)
    ]
    if say:
        display(Markdown(describe(suite)))
    return suite


def number(name, value, kind):
    """`value` as a number from 0 to 2**31 - 1; a string that spells one is taken, a bool is not."""
    try:
        if isinstance(value, bool):
            raise ValueError
        converted = kind(value)
        if converted != float(value) or not 0 <= converted < 2**31:
            raise ValueError
        return converted
    except (TypeError, ValueError, OverflowError):
        wanted = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} = {value!r}: {wanted}, not negative, less than 2**31") from None


def describe(suite):
    """One Markdown paragraph: the data, the budget, what is forgotten, the machine."""
    first = suite[0]
    lines = [
        f"**{first.data.title}**, {len(first.data.train_y):,} training and {len(first.data.test_y):,} test images; "
        f"budget **{first.budget_name}**, seed {first.seed}, start **{first.start}**."
    ]
    for e in suite:
        epochs = e.budget["training"]["epochs"]
        trained = "Original: the starting kit's checkpoint. Gold" if e.downloads_original else "Original and Gold"
        most = e.budget["unlearning"].get("retain_limit", len(e.split.retain.index))
        limit = f" A method's pass over the retained images sees {most:,}." if most < len(e.split.retain.index) else ""
        what = f"the class **{e.data.classes[e.split.forget_class]}**" if e.scenario == "class" else "a random share"
        lines.append(
            f"- **{e.scenario}**: {e.budget['model']['name']} forgets {what}: {len(e.split.forget.index):,} images, "
            f"{len(e.split.retain.index):,} stay. {trained}: {epochs} epoch{'s' * (epochs != 1)}.{limit}"
        )
    return "\n".join(lines)


def show(*functions):
    """Print the source of functions as fenced Markdown."""
    source = "\n\n".join(inspect.getsource(function).rstrip() for function in functions)
    display(Markdown(f"```python\n{source}\n```"))


def results_of(suite, methods):
    """The tidy table of Original, the Golds and those of `methods` that each scenario's budget runs."""
    return pd.concat([e.table([m for m in methods if m in e.methods]) for e in suite], ignore_index=True)


def steady(results):
    """Without the methods that diverged at a seed: the mean over the others would flatter them."""
    key = results.scenario + "\n" + results.method
    return results[~key.isin(key[results.metric == "diverged"])]


def summary(results):
    """Mean and half-width of the 95 % interval over seeds (Student's t; none for one seed) of each final metric.

    A row a scenario, method, set and metric, with mean, std, count and half; none for a method that diverged at a seed.
    """
    results = steady(results)
    final = results[~results.metric.isin(["tracked accuracy", "loss", "s"])]
    groups = final.groupby(["scenario", "method", "set", "metric"], sort=False).value
    table = groups.agg(["mean", "std", "count"])
    table["half"] = half_width(table)
    return table.reset_index()


def text(mean, half, digits):
    """`88.3` or, where there is an interval, `88.3 ± 0.4`."""
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if np.isfinite(half) else "")


def columns_of(scenario):
    """Heading -> (set, metric, digits) of a scenario's table."""
    forgotten = FORGOTTEN[scenario]
    sets = {
        "random": ["retain", "forget", "validation", "test"],
        "class": ["train forget", "test retain", "test forget", "train retain"],
    }[scenario]
    return {
        **{f"{name} %": (name, "accuracy", 1) for name in sets},
        "retain - forget": (GAP[scenario][1], "retain-forget gap", 1),
        "entropy": (forgotten, "entropy", 3),
        "JSD to Gold": (forgotten, "JSD to Gold", 3),
        "kit MIA": (" v. ".join(MEMBERS[scenario]), "kit MIA", 3),
        "seconds": ("", "seconds", 0),
        "steps": ("", "steps", 0),
        "images seen": ("", "images", 0),
        "% of retraining": ("", "images, % of retraining", 1),
    }


def table(results, scenario):
    """Original, the Golds and the methods, a row each, beneath each the row that its document printed.

    Values over several seeds are mean ± half the 95 % interval.
    """
    stats = summary(results[results.scenario == scenario]).set_index(["method", "set", "metric"])
    rows = {}
    for method in dict.fromkeys(results[results.scenario == scenario].method):
        rows[method] = {
            heading: text(stats["mean"][method, name, metric], stats["half"][method, name, metric], digits)
            for heading, (name, metric, digits) in columns_of(scenario).items()
            if (method, name, metric) in stats.index
        } or {next(iter(columns_of(scenario))): "diverged"}
        if method in published.PUBLISHED[scenario]:
            numbers = published.PUBLISHED[scenario][method]
            rows[f"{method}, published"] = {
                heading: text(numbers[key], np.nan, digits)
                for heading, (name, metric, digits) in columns_of(scenario).items()
                if (key := name if metric == "accuracy" else metric) in numbers
            }
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(columns_of(scenario))).fillna("")


def tables(suite, results):
    """Show each scenario's table under a line that says what it and, if that differs, its published rows are of."""
    for e in suite:
        seeds = sorted(int(seed) for seed in results[results.scenario == e.scenario].seed.unique())
        shown = table(results, e.scenario)
        elsewhere = e.data.name != "cifar10" and any(shown.index.str.endswith(", published"))
        note = " Rows *published* are of CIFAR-10." if elsewhere else ""
        display(
            Markdown(
                f"**{e.scenario}** on {e.data.title}, budget {e.budget_name}, seed{'s' * (len(seeds) > 1)} "
                f"{', '.join(map(str, seeds))}; seconds without evaluation on: {e.original.machine}.{note}"
            ),
            shown,
        )


def findings(results):
    """Computed sentences: how far each method's forget accuracy lies from Gold's, against the floor, at what cost."""
    stats = summary(results).set_index(["scenario", "method", "set", "metric"])["mean"]
    lines = []
    for scenario, method in dict.fromkeys(zip(results.scenario, results.method)):
        if re.fullmatch(YARDSTICK, method):
            continue
        forget = GAP[scenario][1]
        test = "test" if scenario == "random" else "test retain"
        here = stats[scenario]
        if (method, forget, "accuracy") not in here:
            lines.append(f"- {scenario}, **{method}**: diverged.")
            continue
        own, gold = here[method, forget, "accuracy"], here["Gold", forget, "accuracy"]
        side = "above" if own > gold else "below"
        away = f"{abs(own - gold):.1f} points {side}" if round(own - gold, 1) else "equal to"
        floor = here.get(("Gold 2", forget, "gap to Gold"))
        versus = "" if floor is None else f" (a second Gold lies {floor:.1f} away)"
        lines.append(
            f"- {scenario}, **{method}**: accuracy on the forgotten images {own:.1f} %, {away} Gold's {gold:.1f} %"
            f"{versus}; {test} accuracy {here[method, test, 'accuracy']:.1f} % (Gold "
            f"{here['Gold', test, 'accuracy']:.1f} %), at {here[method, '', 'images, % of retraining']:.1f} % of the "
            "images that retraining saw."
        )
    display(Markdown("\n".join(lines)))


def gap_points(results):
    """For each method the mean distance of its accuracies to Gold's, and its cost, over seeds.

    Columns scenario, method, gap, low, high (points; the 95 % interval over seeds, equal to gap for one seed) and cost
    (images seen, % of retraining); no row for a method that diverged at a seed. The gap is the mean over retain, forget
    and test in the random scenario, over all four sets in the class scenario. The row `Gold 2` is the floor.
    """
    results = steady(results)
    gaps = results[(results.metric == "gap to Gold") & (results.set != "validation")]
    gaps = gaps.groupby(["scenario", "method", "seed"], sort=False).value.mean()
    gaps = gaps.groupby(["scenario", "method"], sort=False).agg(["mean", "std", "count"])
    half = np.nan_to_num(half_width(gaps))
    costs = (
        results[results.metric == "images, % of retraining"].groupby(["scenario", "method"], sort=False).value.mean()
    )
    points = pd.DataFrame(
        {"gap": gaps["mean"], "low": (gaps["mean"] - half).clip(lower=0), "high": gaps["mean"] + half}
    )
    return points.assign(cost=costs).reset_index()


def verdict(points):
    """Computed sentences: which methods lie within the floor, and which comes nearest to Gold."""
    lines = []
    for scenario, part in points.groupby("scenario", sort=False):
        part = part.set_index("method")
        methods = part[~part.index.str.fullmatch(YARDSTICK)]
        if methods.empty:
            lines.append(f"- {scenario}: every method diverged.")
            continue
        nearest = methods.gap.idxmin()
        line = (
            f"- {scenario}: nearest to Gold is **{nearest}** with a mean gap of {methods.gap[nearest]:.2f} points at "
        )
        line += f"{methods.cost[nearest]:.1f} % of the images that retraining saw "
        line += f"(Original, untouched: {part.gap['Original']:.2f} points)."
        if "Gold 2" in part.index:
            floor = part.gap["Gold 2"]
            within = [f"**{name}**" for name in methods.index[methods.gap <= floor]]
            line += f" The floor is {floor:.2f} points; within it: {', '.join(within) or 'none'}."
        better = methods.gap < part.gap["Original"] - part.gap.get("Gold 2", 0.0)
        line += f" {(~better).sum()} of {len(methods)} methods end no nearer to Gold than Original was, or nearer by "
        line += "less than the floor."
        lines.append(line)
    display(Markdown("\n".join(lines)))
