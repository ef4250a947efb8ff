"""Statistics: intervals, paired tests and the Pareto front, against scipy, hand-made cases and loops."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from helpers.results.statistics import (
    format_ci,
    half_width,
    holm,
    interval,
    pair_interval,
    paired_tests,
    pareto,
    student,
)


def normal(*shape, mean=0.0, seed=0):
    return np.random.default_rng(seed).normal(mean, 1, shape)


def test_interval_agrees_with_scipy():
    values = normal(6, mean=3)
    expected = stats.t.interval(0.95, 5, values.mean(), stats.sem(values))
    assert interval(values) == pytest.approx((values.mean(), *expected))
    assert student(np.array([1, 3])) == pytest.approx([np.nan, stats.t.ppf(0.975, 2)], nan_ok=True)


def test_interval_of_one_seed_is_unknown():
    mean, low, high = interval([4.0])
    assert mean == 4 and np.isnan(low) and np.isnan(high)


def distances(values):
    return [abs(one - other) for one, other in combinations(values, 2)]


def test_floor_by_hand():
    """Golds at 0, 1, 3: distances 1, 3, 2; without one Gold 2, 3, 1: the jackknife's error is sqrt(2 * 2/3)."""
    found = pair_interval(distances([0, 1, 3]))
    assert found["mean"] == 2
    half = stats.t.ppf(0.975, 2) * math.sqrt(2 / 3 * ((2 - 2) ** 2 + (3 - 2) ** 2 + (1 - 2) ** 2))
    assert (found["low"], found["high"]) == pytest.approx((2 - half, 2 + half))


def test_the_floor_of_two_golds_has_no_interval():
    found = pair_interval(distances([4, 9]))
    assert found["mean"] == 5 and np.isnan(found["low"]) and np.isnan(found["high"])


def test_the_floors_interval_contains_the_truth_as_often_as_it_should():
    """Mean distance of two standard normals, 2 / sqrt(pi): in the interval of 5 Golds nearly always, not always."""
    rng = np.random.default_rng(0)
    truth, hits = 2 / math.sqrt(math.pi), 0
    for _ in range(400):
        found = pair_interval(distances(rng.normal(size=5)))
        hits += found["low"] < truth < found["high"]
    assert 0.88 < hits / 400 < 0.995


def test_holm_by_hand():
    """.01 x 4, .03 x 3 = .09, .04 x 2 raised to .09, .2 x 1: in the order given."""
    assert holm([0.04, 0.01, 0.2, 0.03]) == pytest.approx([0.09, 0.04, 0.2, 0.09])
    assert holm([0.9, 0.8]).tolist() == [1, 1]


def gaps(seeds=5):
    """Two methods alike up to noise that both share, one that is worse."""
    shared = normal(seeds, seed=3) * 5
    noise = {"B": 0.02 * normal(seeds, seed=4), "C": 2 + 0.02 * normal(seeds, seed=5)}
    return pd.DataFrame({"A": shared, **{name: shared + values for name, values in noise.items()}})


def test_paired_tests_find_what_differs_and_nothing_else():
    """The shared noise, which would hide it from an unpaired test, cancels."""
    values = gaps()
    table = paired_tests(values).set_index(["first", "second"])
    assert table["p (Holm)"]["A", "C"] < 0.001 and table["p (Holm)"]["B", "C"] < 0.001 < 0.05 < table.p["A", "B"]
    assert stats.ttest_ind(values.A, values.C).pvalue > 0.3
    for first, second in table.index:
        assert table.p[first, second] == pytest.approx(stats.ttest_rel(values[first], values[second]).pvalue)
    assert np.allclose(table["p (Holm)"], holm(table.p))
    row, expected = table.loc["A", "C"], stats.ttest_rel(values.A, values.C).confidence_interval()
    assert (row.low, row.high) == pytest.approx((expected.low, expected.high))
    assert row.difference == pytest.approx((values.A - values.C).mean())


def test_paired_tests_of_equal_columns():
    table = paired_tests(pd.DataFrame({"A": [1.0, 2, 3], "B": [1.0, 2, 3]}))
    assert table.p.tolist() == [1] and table["p (Holm)"].tolist() == [1]


def test_paired_tests_refuse_few_seeds_and_missing_values():
    with pytest.raises(ValueError, match="at least 3 seeds; there are 2"):
        paired_tests(gaps(2))
    with pytest.raises(ValueError, match="a value is missing for: B"):
        paired_tests(gaps().assign(B=[1, np.nan, 2, 3, 4]))


def test_pareto_by_hand():
    """(1, 5), (2, 3) twice and (9, 1) are beaten by none; (2, 4), (3, 3) are; a diverged one is not on the front."""
    cost, gap = [1, 2, 2, 9, 2, 3, 1], [5, 3, 3, 1, 4, 3, np.nan]
    assert pareto(cost, gap).tolist() == [True, True, True, True, False, False, False]


def test_pareto_agrees_with_a_loop():
    cost, gap = np.random.default_rng(0).integers(0, 30, (2, 40))
    expected = [not any((c <= x and g <= y) and (c < x or g < y) for c, g in zip(cost, gap)) for x, y in zip(cost, gap)]
    assert pareto(cost, gap).tolist() == expected and 2 < sum(expected) < 20


def test_a_mean_is_written_with_its_interval():
    """88.25 from 3 values with standard deviation 0.2: half-width t(.975, 2) 0.2 / sqrt(3) = 0.497; no minus zero."""
    half = half_width(pd.DataFrame({"std": [0.2, np.nan], "count": [3, 1]}))
    assert half[0] == pytest.approx(4.30265 * 0.2 / math.sqrt(3), abs=1e-4) and np.isnan(half[1])
    assert format_ci(88.251, half[0], 1) == "88.3 ± 0.5" and format_ci(88.251, half[1], 1) == "88.3"
    assert format_ci(-0.001, np.nan, 2) == "0.00" and format_ci(-0.01, 0.2, 2) == "-0.01 ± 0.20"
