"""Tables and sentences for people, from the tidy table of `rows.tidy`."""

import numpy as np
import pandas as pd

from ..methods import METHODS
from ..scenario import SCENARIOS
from . import published
from .flags import COLLAPSED, method_flags, scenario_flags
from .rows import BY_EPOCH, OTHER_DATA
from .statistics import format_ci, half_width


def without_diverged(results):
    """`results` without the methods that diverged at some seed: a mean over the other seeds would look too good."""
    key = results.scenario + "\n" + results.method
    return results[~key.isin(key[results.metric == "diverged"])]


def summary(results):
    """Mean over seeds and half-width of its 95 % interval (Student's t; NaN for one seed) of each final metric.

    One row per scenario, method, set and metric, with mean, std, count and half; none for a method that diverged.
    """
    results = without_diverged(results)
    final = results[~results.metric.isin([*BY_EPOCH, OTHER_DATA, COLLAPSED])]
    groups = final.groupby(["scenario", "method", "set", "metric"], sort=False).value
    table = groups.agg(["mean", "std", "count"])
    table["half"] = half_width(table)
    return table.reset_index()


def gap_points(results):
    """Mean gap to Gold and cost of each model, one row per scenario and model; none for a method that diverged.

    The gap is the mean distance of its accuracies to Gold's over the sets `Scenario.gap`, in points, mean over seeds.

    Returns:
        Table with columns scenario, kind, method, group (the method's idea; "own" for one that is not in the registry,
        "" for Original and Golds), gap, low, high (the 95 % interval over seeds; equal to gap for one seed) and cost
        (images processed, % of retraining).
    """
    keys = ["scenario", "kind", "method"]
    results = without_diverged(results)
    in_gap = np.array([name in SCENARIOS[scenario].gap for scenario, name in zip(results.scenario, results.set)])
    gaps = results[(results.metric == "gap to Gold") & in_gap].groupby([*keys, "seed"], sort=False).value.mean()
    gaps = gaps.groupby(keys, sort=False).agg(["mean", "std", "count"])
    half = np.nan_to_num(half_width(gaps))
    costs = results[results.metric == "images, % of retraining"].groupby(keys, sort=False).value.mean()
    low, high = (gaps["mean"] - half).clip(lower=0), gaps["mean"] + half
    points = pd.DataFrame({"gap": gaps["mean"], "low": low, "high": high}).assign(cost=costs).reset_index()
    points.insert(3, "group", [group_of(*key) for key in zip(points.kind, points.method)])
    return points


def gap_in_words(row):
    """The gap of a row of `gap_points`; with half of its interval where there are several seeds."""
    return format_ci(row.gap, (row.high - row.gap) or np.nan, 2)


def group_of(kind, method):
    """The idea of a method; "own" outside the registry, "" for what methods are compared with."""
    if kind != "method":
        return ""
    return METHODS[method].idea if method in METHODS else "own"


def second_gold(points):
    """The gap of the second Gold to the first, the floor, from one scenario's `gap_points`; NaN without one."""
    others = points[(points.kind == "gold") & (points.method != "Gold")].gap
    return others.iloc[0] if len(others) else np.nan


# --- tables -------------------------------------------------------------------------------------------------------

GAP = "gap to Gold"


def columns_of(scenario):
    """Heading -> (set, metric, digits) of the columns after the gap, of a `Scenario`."""
    return {
        **{f"{name} %": (name, "accuracy", 1) for name in scenario.sets},
        "entropy": (scenario.compared, "entropy", 3),
        "JSD to Gold": (scenario.compared, "JSD to Gold", 3),
        "kit MIA": ("forget", "kit MIA", 3),
        "% of retraining": ("", "images, % of retraining", 1),
        "seconds": ("", "seconds", 0),
    }


def table(results, scenario, data=""):
    """One scenario's table: one row per model, first its mean gap to Gold, then accuracies, attacks and cost.

    Values over several seeds are mean ± half the 95 % interval. A method that diverged has the word in its first cell;
    the last column has the flags of `flags.method_flags`, if there are any.

    Args:
        scenario: its name.
        data: the name of the data; for those of the documents, each number that they print has a row below ours.
    """
    results = results[results.scenario == scenario]
    stats = summary(results).set_index(["method", "set", "metric"])
    points = gap_points(results).set_index("method")
    columns, rows = columns_of(SCENARIOS[scenario]), {}
    printed = published.PUBLISHED[scenario] if data == published.DATA else {}
    for method in dict.fromkeys(results.method):
        if method not in points.index:
            rows[method] = {GAP: "diverged"}
            continue
        rows[method] = {GAP: gap_in_words(points.loc[method])} | {
            heading: format_ci(*stats.loc[(method, name, metric), ["mean", "half"]], digits)
            for heading, (name, metric, digits) in columns.items()
            if (method, name, metric) in stats.index
        }
        if method in printed:
            rows[f"{method}, published"] = {
                heading: format_ci(printed[method][key], np.nan, digits)
                for heading, (name, metric, digits) in columns.items()
                if (key := name if metric == "accuracy" else metric) in printed[method]
            }
    flags = method_flags(results)
    for method, flag in flags.items():
        rows[method] |= {"flag": flag}
    headings = [GAP, *columns, *["flag"] * bool(flags)]
    shown = pd.DataFrame.from_dict(rows, orient="index", columns=headings)
    return shown.reindex(list(rows)).fillna("")  # pandas 2 changes the order


SHOWN = {  # the numbers that a document prints
    "random": ("retain", "forget", "validation", "test"),
    "class": ("forget", "test retain", "entropy", "JSD to Gold"),
}


def beside_published(sources, scenario):
    """What a document prints beside what was measured: one row per model, three or more columns per number.

    Args:
        sources: `{"fresh": tidy table, "chain": tidy table, ...}`, in the order of the columns; means over seeds.
        scenario: its name; which document and which numbers follow from it.

    Returns:
        Table with columns (number, source), the last source being "published"; NaN where a source has no such number.
    """
    printed, columns = published.PUBLISHED[scenario], columns_of(SCENARIOS[scenario])
    place = {name if metric == "accuracy" else metric: (name, metric) for name, metric, _ in columns.values()}
    found = {}
    for source, results in sources.items():
        stats = summary(results[results.scenario == scenario]).set_index(["method", "set", "metric"])["mean"]
        for number in SHOWN[scenario]:
            found[number, source] = {m: stats.get((m, *place[number]), np.nan) for m in printed}
    for number in SHOWN[scenario]:
        found[number, "published"] = {method: values.get(number, np.nan) for method, values in printed.items()}
    table = pd.DataFrame(found)
    return table[[(number, source) for number in SHOWN[scenario] for source in (*sources, "published")]]


def distances_to_published(table):
    """Mean distance of each source of `beside_published` to the printed accuracies, in points, per method.

    A row counts only if every source has it, so that sources are compared on the same methods.
    """
    accuracies = [number for number in table.columns.unique(0) if number not in ("entropy", "JSD to Gold")]
    sources = [source for source in table.columns.unique(1) if source != "published"]
    apart = {
        source: pd.DataFrame({n: (table[n, source] - table[n, "published"]).abs() for n in accuracies}).mean(axis=1)
        for source in sources
    }
    return pd.DataFrame(apart).dropna()


def published_lines(table):
    """Markdown: how far each source of `beside_published` is from the printed numbers, and where a chain is nearer."""
    apart = distances_to_published(table)
    if apart.empty:
        return ["- No model here has a printed number."]
    lines = [
        f"- **{source}**: on average {apart[source].mean():.1f} points from the printed accuracies of "
        f"{len(apart)} models; farthest is {apart[source].idxmax()} with {apart[source].max():.1f}."
        for source in apart
    ]
    if {"fresh", "chain"} <= set(apart):
        nearer = apart.index[apart.chain < apart.fresh]
        lines.append(
            f"- Started in a chain, as the document did, {len(nearer)} of {len(apart)} are nearer to the printed row: "
            f"{', '.join(nearer) or 'none'}."
        )
    return lines


def effective_settings(suite, runs):
    """With which settings each of `runs` ran, defaults included, and where they come from.

    One row per run of an experiment in `suite`, indexed by scenario, seed (if there are several) and method; columns
    `settings`, in words, and `origin`.
    """
    here = {(e.scenario.name, e.seed) for e in suite}
    runs = [run for run in runs if run.kind == "method" and (run.scenario, run.seed) in here]
    keys = {"scenario": [run.scenario for run in runs], "seed": [run.seed for run in runs]}
    if len(set(keys["seed"])) < 2:
        del keys["seed"]
    index = pd.MultiIndex.from_arrays([*keys.values(), [run.name for run in runs]], names=[*keys, "method"])
    rows = {"settings": [in_words(run.settings) for run in runs], "origin": [run.settings_origin for run in runs]}
    return pd.DataFrame(rows, index=index)


def in_words(settings):
    """`epochs 3, lr 0.01`."""
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "no settings"


# --- sentences ----------------------------------------------------------------------------------------------------


def verdict_lines(results):
    """For each scenario Markdown on the methods nearest to Gold: one line by accuracy, one by Jensen-Shannon distance.

    Args:
        results: tidy, of one or several seeds; values are means over seeds.
    """
    lines, points = [], gap_points(results)
    for scenario, part in points.groupby("scenario", sort=False):
        methods = part[part.kind == "method"].set_index("method")
        if methods.empty:
            lines.append(f"- {scenario}: every method diverged.")
            continue
        compared = results[(results.scenario == scenario) & (results.set == SCENARIOS[scenario].compared)]
        distances = compared[compared.metric == "JSD to Gold"].groupby("method").value.mean()
        lines.append(f"- {scenario}, by accuracy: {nearest_by_accuracy(part, methods)}")
        if len(distances):
            lines.append(f"- {scenario}, by JSD: {nearest_by_jsd(distances, methods.index, methods.gap.idxmin())}")
    return lines


def nearest_by_accuracy(points, methods):
    """Which method has the smallest gap, which others cannot be distinguished from it, and which are in the floor."""
    original, floor = points[points.kind == "original"].gap.item(), second_gold(points)
    nearest, known = methods.gap.idxmin(), np.isfinite(floor)
    line = f"**{nearest}** is nearest to Gold, with a mean gap of {methods.gap[nearest]:.2f} points "
    line += f"at {methods.cost[nearest]:.1f} % of the images that retraining processed "
    line += f"(Original, untouched: {original:.2f} points)."
    if known:
        apart = methods.gap.drop(nearest) - methods.gap[nearest]
        equal = [f"**{name}**" for name in apart.index[apart < floor]]
        line += f" Less than the floor from it: {', '.join(equal)}." if equal else ""
        within = [f"**{name}**" for name in methods.index[methods.gap <= floor]]
        line += f" The floor is {floor:.2f} points; within it: {', '.join(within) or 'none'}."
    better = (methods.gap < original - np.nan_to_num(floor)).sum()
    line += f" {better} of {len(methods)} methods are nearer to Gold than Original"
    return line + (" by more than the floor." if known else ".")


def nearest_by_jsd(distances, names, other):
    """Which method's predictions are nearest to Gold's, and whether those of `other` are nearer than Original's."""
    nearest, original = distances[list(names)].idxmin(), distances["Original"]
    line = f"**{nearest}** is nearest to Gold, {distances[nearest]:.3f} (Original {original:.3f}"
    line += f", floor {distances['Gold 2']:.3f})." if "Gold 2" in distances else ")."
    if other != nearest:
        no_less = ", no less than Original" if distances[other] >= original else ""
        line += f" **{other}** has {distances[other]:.3f}{no_less}."
    return line


def run_lines(results):
    """Markdown, one line per statement: is there anything to forget, and each method's gap to Gold, flag and cost."""
    lines = []
    for scenario in dict.fromkeys(results.scenario):
        here = results[results.scenario == scenario]
        lines += [f"- {scenario}: **{statement}**" for statement in scenario_flags(here, scenario)]
        lines += method_lines(here, scenario)
    return lines


def method_lines(results, scenario):
    """The lines of `run_lines` about one scenario's methods."""
    lines, flags = [], method_flags(results)
    stats = summary(results).set_index(["method", "set", "metric"])["mean"]
    points = gap_points(results)
    original, floor = points[points.kind == "original"].gap.item(), second_gold(points)
    points = points.set_index("method")
    for method in dict.fromkeys(results.method[results.kind == "method"]):
        if method not in points.index:
            lines.append(f"- {scenario}, **{method}**: diverged.")
            continue
        own = points.loc[method]
        better = own.gap < original - np.nan_to_num(floor)
        place = "within the floor" if own.gap <= floor else "nearer" if better else "not nearer by more than the floor"
        place += f", **{flags[method]}**" if method in flags else ""
        forget, gold = (stats[name, "forget", "accuracy"] for name in (method, "Gold"))
        lines.append(
            f"- {scenario}, **{method}**: mean gap to Gold {own.gap:.2f} points (Original {original:.2f}"
            + (f", floor {floor:.2f}" if np.isfinite(floor) else "")
            + f"): {place}. Forget accuracy {forget:.1f} %, Gold's {gold:.1f} %; "
            f"{own.cost:.1f} % of the images that retraining processed."
        )
    return lines
