"""Statistics over seeds, replicates and pairs of Golds: intervals, paired tests, Pareto front."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import stats


def student(counts):
    """The two-sided 95 % quantile of Student's t for each number of values; NaN for one value."""
    return np.where(counts > 1, stats.t.ppf(0.975, np.maximum(counts - 1, 1)), np.nan)


def half_width(table):
    """Half the width of the 95 % interval (Student's t), from a table's columns std and count; NaN for one value."""
    return student(table["count"]) * table["std"] / np.sqrt(table["count"])


def interval(values):
    """Mean over seeds and its 95 % interval (Student's t): mean, low, high; low and high are NaN for one seed.

    Pitfall: the values must be independent. Pairs of Golds are not, see `pair_interval`.
    """
    values = np.asarray(values, float)
    spread = values.std(ddof=1) if len(values) > 1 else np.nan
    half = student(len(values)) * spread / np.sqrt(len(values))
    return values.mean(), values.mean() - half, values.mean() + half


def pair_interval(values):
    """Mean of the `values` of all pairs, in the order of `combinations`, and its 95 % interval `low` to `high`.

    Distances between all pairs of Golds give the floor: how far an independently retrained model is from a Gold on
    average. A model that varies less than retrained ones can be nearer. Pairs share members, so the error is the
    jackknife's over members (Efron and Stein, 1981) with Student's t; NaN for one pair.
    Pitfall: one pair has no interval and says little.

    Returns:
        dict: `mean`, `low`, `high`.
    """
    values = np.asarray(values, float)
    count = (1 + math.isqrt(1 + 8 * len(values))) // 2  # this many members have that many pairs
    mean, half = values.mean(), np.nan
    if count > 2:
        pairs = np.array(list(combinations(range(count), 2)))
        without = np.array([values[(pairs != i).all(1)].mean() for i in range(count)])
        half = student(count) * np.sqrt((count - 1) * without.var())
    return {"mean": mean, "low": mean - half, "high": mean + half}


def holm(p):
    """Holm's (1979) adjusted p-values, in the order of `p`."""
    p = np.asarray(p, float)
    order, count = np.argsort(p), len(p)
    adjusted = np.empty(count)
    adjusted[order] = np.maximum.accumulate((count - np.arange(count)) * p[order]).clip(max=1)
    return adjusted


def paired_tests(values):
    """Which methods differ: a paired t-test across seeds for each pair of methods.

    Columns first, second, difference (first - second, mean), low, high (its 95 % interval), p, and p (Holm), adjusted
    for all rows. Wilcoxon's test is not used: its p cannot fall below 2^(1 - seeds), 0.06 with 5. Pitfall: with few
    seeds, not significant does not mean equal.

    Args:
        values: one row per seed and one column per method, of one metric.

    Raises:
        ValueError: fewer than 3 seeds, or a value is missing.
    """
    if len(values) < 3:
        raise ValueError(f"a paired test needs at least 3 seeds; there are {len(values)}")
    if values.isna().any(axis=None):
        raise ValueError(f"a value is missing for: {', '.join(map(str, values.columns[values.isna().any()]))}")
    rows = []
    for first, second in combinations(values, 2):
        difference = values[first] - values[second]
        p = stats.ttest_1samp(difference, 0).pvalue if difference.any() else 1.0
        rows.append((first, second, *interval(difference), p))
    table = pd.DataFrame(rows, columns=["first", "second", "difference", "low", "high", "p"])
    return table.assign(**{"p (Holm)": holm(table.p)})


def pareto(cost, gap):
    """Which points are Pareto-optimal, bool `(n,)`: no other is at least as good in both and better in one.

    A point with a NaN is never Pareto-optimal.
    """
    cost, gap = np.asarray(cost, float), np.asarray(gap, float)
    no_worse = (cost[:, None] <= cost) & (gap[:, None] <= gap)
    better = (cost[:, None] < cost) | (gap[:, None] < gap)
    return ~(no_worse & better).any(0) & np.isfinite(cost) & np.isfinite(gap)


def format_ci(mean, half, digits):
    """`88.3`, or `88.3 ± 0.4` where there is an interval; a zero has no sign."""
    shown = [f"{value:.{digits}f}" for value in (mean, half)]
    shown = [text.removeprefix("-") if not text.strip("-0.") else text for text in shown]
    return " ± ".join(shown) if np.isfinite(half) else shown[0]
