"""The tables and sentences of an audit with shadow models, from the rows of `audit.battery.Battery.table`."""

import numpy as np
import pandas as pd

from .statistics import format_ci, half_width, pair_interval, paired_tests
from .tables import group_of

COLUMNS = ["run", "scenario", "seed", "shadow", "kind", "method", "metric", "value"]
ENSEMBLE = -1  # in the column `shadow`: measured on all shadows together
JSD = "JSD to Gold"
BOARD = {  # heading: (metric, digits)
    "average gap": ("average gap", 2),
    "UA": ("UA", 1),
    "RA": ("RA", 1),
    "TA": ("TA", 1),
    "MIA": ("MIA", 1),
    JSD: (JSD, 3),
    "RMIA AUC": ("RMIA AUC", 3),
    "U-LiRA AUC": ("U-LiRA AUC", 3),
    "forgetting quality": ("forgetting quality", 3),
    "ToW": ("ToW", 3),
    "% of retraining": ("images, % of retraining", 1),
}
ATTACKS = {  # metrics of one model: the least unit of the heat map's colours
    "UA": 0.5,
    "RA": 0.5,
    "TA": 0.5,
    "MIA": 0.5,
    "MIA, entropy": 0.5,
    "MIA, modified entropy": 0.5,
    "MIA, probabilities": 0.5,
    "kit MIA": 0.005,
    "RMIA AUC": 0.005,
    "RMIA TPR at 1 % FPR": 0.005,
    "Streisand KS": 0.005,
    "Streisand AUC": 0.005,
    "ZRF": 0.005,
    "class attack": 0.005,
}
STRATA = ("low", "medium", "high")  # thirds of the forgotten images, by how much shadow models memorise them
COST = "images, % of retraining"
COSTS = {"≤ 5 %": 5.0, "≤ 10 %": 10.0}  # classes of cost in which methods are ranked, percent of retraining
RETAINED = 2.0  # a method is ranked if its retained accuracy is at most so many points from Gold's
UNRANKED = f"RA more than {RETAINED:g} points from Gold's:"  # the row above the methods that are not ranked
KNOWN = {"average gap": 0.5, JSD: 0.005}  # half-width up to which a floor decides that a method is within it
TUNED_ON_GOLD = {"cifar10": ("Margin matching",)}  # data: methods of which a part was chosen by the gap to Gold on them


def aggregate(table, scenario):
    """Means and half-widths of 95 % intervals over the replicates of one scenario, indexed by (method, metric).

    The method `Gold` is the mean over Golds with its interval over them; `floor` is the distance of two Golds with the
    interval of `pair_interval`. A half-width is NaN below three values. All replicates share the Golds and the retained
    images, and two of them have complementary targets: the intervals are those of other forget sets and trainings,
    given these Golds and these images.

    Raises:
        ValueError: audits of several seeds.
    """
    part = table[(table.scenario == scenario) & (table.metric != "diverged")]
    if part.seed.nunique() > 1:
        raise ValueError("these audits are of several seeds, which share no Golds: read one seed at a time")
    on_golds = part[(part.kind == "gold") & (part.shadow != ENSEMBLE)]
    golds = on_golds.groupby(["method", "metric"], sort=False).value.mean().reset_index()
    others = part[~part.kind.isin(["gold", "pair"])]
    ensemble = part[(part.kind == "gold") & (part.shadow == ENSEMBLE)]
    values = pd.concat([others, ensemble, golds.assign(method="Gold")])
    stats = values.groupby(["method", "metric"], sort=False).value.agg(["mean", "std", "count"])
    stats = stats.assign(half=half_width(stats))
    stats = stats.assign(half=stats.half.where(stats["count"] > 2))
    pairs = part[part.kind == "pair"]
    floor = {("floor", metric): pair_interval(rows.value) for metric, rows in pairs.groupby("metric", sort=False)}
    floor = pd.DataFrame([{"mean": f["mean"], "half": f["high"] - f["mean"]} for f in floor.values()],
                         index=pd.MultiIndex.from_tuples(floor, names=stats.index.names))  # fmt: skip
    return pd.concat([stats[["mean", "half"]], floor])


def floors(table):
    """The floor of the average gap of each scenario: {scenario: {`mean`, `low`, `high`}}."""
    pairs = table[(table.kind == "pair") & (table.metric == "average gap")]
    return {scenario: pair_interval(part.value) for scenario, part in pairs.groupby("scenario", sort=False)}


def ranked_methods(table, scenario):
    """The methods that did not diverge, the smallest average gap first."""
    part = table[(table.scenario == scenario) & (table.kind == "method")]
    part = part[(part.metric == "average gap") & ~part.method.isin(diverged(table, scenario))]
    return list(part.groupby("method", sort=False).value.mean().sort_values().index)


def diverged(table, scenario):
    """The methods that diverged on some shadow."""
    return list(dict.fromkeys(table[(table.scenario == scenario) & (table.metric == "diverged")].method))


def competitors(table, scenario, data=""):
    """The methods that are ranked, the smallest average gap first.

    Those whose retained accuracy is within `RETAINED` points of Gold's, unless Gold was used to choose a part of them.
    """
    ra = aggregate(table, scenario)["mean"].xs("RA", level="metric")
    kept = [name for name in ranked_methods(table, scenario) if abs(ra[name] - ra["Gold"]) <= RETAINED]
    return [name for name in kept if name not in TUNED_ON_GOLD.get(data, ())]


def leaderboard(table, scenario, data=""):
    """Mean ± half the 95 % interval of Original, Gold (its distances are the floor) and the methods by average gap.

    The first columns, `COSTS`, hold a method's place among the `competitors` that cost no more. Below the row
    `UNRANKED` are the methods that lost or gained too much retained accuracy. A metric that was not measured has no
    column; a method that diverged has the word in its first cell. Methods that were `chosen_with_gold` are left out.

    Args:
        data: the name of the data, see `TUNED_ON_GOLD`.
    """
    stats, ranked = aggregate(table, scenario), competitors(table, scenario, data)
    cost, left_out = stats["mean"].xs(COST, level="metric"), TUNED_ON_GOLD.get(data, ())
    rows = {name: cells(stats, name) for name in ("Original", "Gold", *ranked)}
    for heading, limit in COSTS.items():
        for place, name in enumerate([name for name in ranked if cost[name] <= limit], 1):
            rows[name][heading] = str(place)
    if others := [name for name in ranked_methods(table, scenario) if name not in (*ranked, *left_out)]:
        rows |= {UNRANKED: {}, **{name: cells(stats, name) for name in others}}
    rows |= {name: {"average gap": "diverged"} for name in diverged(table, scenario)}
    return as_board(rows)


def chosen_with_gold(table, scenario, data):
    """The leaderboard's rows of methods of which a part was chosen by the gap to Gold on these data; no place."""
    stats = aggregate(table, scenario)
    chosen = [name for name in ranked_methods(table, scenario) if name in TUNED_ON_GOLD.get(data, ())]
    return as_board({name: cells(stats, name) for name in chosen})


def cells(stats, name):
    """`{heading of BOARD: text}` of a method; Gold's distances are the floor."""
    sources = (name, "floor") if name == "Gold" else (name,)
    return {
        heading: format_ci(*stats.loc[measured[0], ["mean", "half"]], digits)
        for heading, (metric, digits) in BOARD.items()
        if (measured := [(source, metric) for source in sources if (source, metric) in stats.index])
    }


def as_board(rows):
    """A table of `{name: cells}`, without empty columns of metrics."""
    board = pd.DataFrame.from_dict(rows, orient="index", columns=[*COSTS, *BOARD]).reindex(list(rows))
    empty = [heading for heading in BOARD if board[heading].isna().all()]
    return board.drop(columns=empty).fillna("")


def in_stratum(metric, name):
    """The name of a metric on one of `STRATA`."""
    return f"{metric}, {name} memorisation"


def by_memorisation(table, scenario):
    """The gap to Gold in UA by stratum, mean ± half the 95 % interval: Original, Gold (the floor), methods by gap.

    One column per third of the forgotten images, from those that the shadow models memorised least to those that they
    memorised most.
    """
    stats = aggregate(table, scenario)
    sources = {"Original": "Original", "Gold": "floor", **{name: name for name in ranked_methods(table, scenario)}}
    rows = {
        name: {s: format_ci(*stats.loc[(source, in_stratum("UA gap", s)), ["mean", "half"]], 2) for s in STRATA}
        for name, source in sources.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename(columns="{} memorisation".format)


def heatmap_data(table, scenario):
    """The arguments of `plots.battery`: the mean of each attack on one model, and the unit of its colours.

    Rows: Original, Gold, the methods in the order of `table`. The unit is the floor, but at least that in `ATTACKS`: a
    few Golds may agree exactly.
    """
    stats, ranked = aggregate(table, scenario)["mean"], ranked_methods(table, scenario)
    means = stats.unstack("metric")
    means = means[[attack for attack in ATTACKS if attack in means]]
    methods = [method for method in dict.fromkeys(table.method) if method in ranked]
    least = pd.Series(ATTACKS)[list(means)]
    return means.loc[["Original", "Gold", *methods]], means.loc["floor"].clip(lower=least)


def board_points(table):
    """The argument of `plots.gap_against_cost`, like `tables.gap_points`, of the average gap; `Gold 2` is the floor."""
    parts = []
    for scenario in dict.fromkeys(table.scenario):
        stats = aggregate(table, scenario)
        gap, cost = (stats.xs(metric, level="metric") for metric in ("average gap", COST))
        kinds = {"Original": "original", "floor": "gold"}
        part = pd.DataFrame({
            "scenario": scenario,
            "kind": [kinds.get(method, "method") for method in gap.index],
            "method": gap.index,
            "gap": gap["mean"],
            "low": (gap["mean"] - gap.half).clip(lower=0),
            "high": gap["mean"] + gap.half,
            "cost": cost["mean"].reindex(gap.index),
        })  # fmt: skip
        part.insert(3, "group", [group_of(*key) for key in zip(part.kind, part.method)])
        parts.append(part.replace({"method": {"floor": "Gold 2"}}))
    return pd.concat(parts, ignore_index=True)


def replicates(table, scenario, metric):
    """The argument of `statistics.paired_tests`: one row per shadow, one column per model."""
    part = table[(table.scenario == scenario) & (table.metric == metric) & (table.shadow != ENSEMBLE)]
    part = part[part.kind != "gold"]
    return part.pivot_table(index="shadow", columns="method", values="value", sort=False)


def paired(table, scenario, metric="average gap", names=None):
    """`paired_tests` over the shadows, of each method against the one with the smallest mean.

    The p-values are adjusted for all pairs of methods, since the same numbers chose that one.

    Args:
        names: the methods; by default all that did not diverge.
    """
    values = replicates(table, scenario, metric)[ranked_methods(table, scenario) if names is None else names]
    best = list(values.mean().nsmallest(1).index)
    tests = paired_tests(values[[name for name in values if name not in best] + best])  # best is never first
    return tests[tests.second.isin(best)].reset_index(drop=True)


# --- sentences ----------------------------------------------------------------------------------------------------


def conclusions(table, data=""):
    """Markdown: for each scenario which method is nearest to Gold by average gap and by JSD, and what U-LiRA finds.

    Args:
        data: the name of the data, see `TUNED_ON_GOLD`.
    """
    lines = []
    for scenario in dict.fromkeys(table.scenario):
        lines += [nearest_line(table, scenario, *metric, data) for metric in (("average gap", 2), (JSD, 3))]
        lines += [u_lira_line(table, scenario, data), *ranking_line(table, scenario)]
    return "\n".join(lines)


def ranking_line(table, scenario):
    """That Gold's RA is too uncertain to decide which methods are ranked, as a list of lines; empty if it is not."""
    half = aggregate(table, scenario).half["Gold", "RA"]
    if not half > RETAINED:
        return []
    return [f"- {scenario}, who is ranked: uncertain, since Gold's RA is known to ±{half:.1f} points only."]


def nearest_line(table, scenario, metric, digits, data):
    """Which ranked method has the smallest value of `metric` in each class of cost, beside the floor, and at any cost.

    Then what a paired test cannot distinguish from the best, and the methods that were chosen with Gold.
    """
    stats, ranked = aggregate(table, scenario), competitors(table, scenario, data)
    mean, half = stats["mean"].xs(metric, level="metric"), stats.half.xs(metric, level="metric")
    cost = stats["mean"].xs(COST, level="metric")

    def shown(name):
        return format_ci(mean[name], half[name], digits)

    references = f"floor {shown('floor')}, Original {mean['Original']:.{digits}f}"
    references += f", a uniform prediction {mean['uniform']:.{digits}f}" if metric == JSD else ""
    found = {}
    for heading, limit in {**COSTS, "any cost": np.inf}.items():
        names = [name for name in ranked if cost[name] <= limit]
        best = mean[names].idxmin() if names else None
        found.setdefault(best, []).append(heading)
    parts = []
    for best, headings in found.items():
        at = ", ".join(headings)
        if best is None:
            none = "no ranked method" if ranked else f"no method with an RA within {RETAINED:g} points of Gold's"
            parts.append(f"{at}: {none}")
        else:
            verdict = against_floor(mean[best], mean["floor"], half["floor"], KNOWN[metric])
            parts.append(f"{at}: **{best}**, {shown(best)} at {cost[best]:.1f} %, {verdict}")
    line = f"- {scenario}, {metric} ({references}). {'. '.join(f'At {part}' for part in parts)}."
    if len(ranked) > 1:
        tests = paired(table, scenario, metric, ranked)
        equal = [f"**{name}**" for name in tests["first"][tests["p (Holm)"] >= 0.05]]
        apart = f"do not distinguish {', '.join(equal)} from" if equal else "distinguish every other ranked method from"
        line += f" For these Golds, paired t-tests with Holm's correction {apart} **{tests.second[0]}**."
    for name in chosen_with_gold(table, scenario, data).index:
        line += f" Chosen with Gold, so not ranked: **{name}**, {shown(name)} at {cost[name]:.1f} %."
    if mean["Original"] <= mean["floor"] + np.nan_to_num(half["floor"]):
        line += " Original, untouched, is within the floor too: here this measure proves nothing."
    return line


def against_floor(value, floor, half, known):
    """Whether a value is above the floor's interval or within it; undecided if the floor's half-width exceeds `known`.

    A half-width of NaN: no interval could be computed.
    """
    if value > floor + np.nan_to_num(half):
        return "above the floor" if half == half else "above the floor, which has no interval"
    return "within the floor" if half <= known else "undecided: the floor is too uncertain"


def u_lira_line(table, scenario, data):
    """Which ranked method U-LiRA separates least from models that never saw the images, and whether it works at all."""
    auc = aggregate(table, scenario)["mean"].xs("U-LiRA AUC", level="metric")
    references = f"Original {auc['Original']:.3f}" + (f", Gold {auc['Gold']:.3f}" if "Gold" in auc else "")
    line, ranked = f"- {scenario}, U-LiRA AUC ({references}). ", competitors(table, scenario, data)
    if len(ranked) == 1:
        line += f"The only ranked method, **{ranked[0]}**, has {auc[ranked[0]]:.3f}."
    elif ranked:
        apart = auc[ranked].sub(0.5).abs().round(3)
        best = [f"**{name}**" for name in ranked if apart[name] == apart.min()]
        line += f"Of the ranked methods, {' and '.join(best)} {'are' if len(best) > 1 else 'is'} nearest to chance: "
        line += f"{auc[apart.idxmin()]:.3f}."
    else:
        line += f"No method has an RA within {RETAINED:g} points of Gold's."
    if abs(auc["Original"] - 0.5) < 0.05:
        line += " It hardly finds the members of the untouched Original either: here it proves nothing."
    return line
