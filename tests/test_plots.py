"""Figures of the audits: what is drawn where, and that names can be read."""

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers import plots
from helpers.audit import pareto


@pytest.fixture(autouse=True)
def closed():
    """Figures do not outlive their test."""
    yield
    plt.close("all")


def gap_table(methods=32):
    """Original, two Golds and methods of all groups in both scenarios."""
    rng, rows = np.random.default_rng(0), []
    for scenario in ("random", "class"):
        rows += [(scenario, "Original", 6, 6, 6, 111, ""), (scenario, "Gold 2", 0.4, 0.4, 0.4, 100, "")]
        for i in range(methods):
            gap, cost = np.exp(rng.normal(0.6, 1)), np.exp(rng.normal(1.6, 0.9))
            rows.append((scenario, f"Method {i}", gap, gap / 1.2, gap * 1.2, cost, list(plots.GROUPS)[i % 5]))
    return pd.DataFrame(rows, columns=["scenario", "method", "gap", "low", "high", "cost", "group"])


def names(figure, axis):
    """The boxes of the names on an axis, as drawn."""
    figure.draw_without_rendering()
    texts = [text for text in axis.texts if text.get_text()]
    return {text.get_text(): text.get_window_extent() for text in texts}


def test_names_of_many_methods_overlap_neither_each_other_nor_a_point_nor_a_line():
    """Each is there once, within its panel, near enough to its point to be its."""
    table = gap_table()
    figure = plots.gap_against_cost(table)
    for axis, scenario in zip(figure.axes, ("random", "class")):
        boxes = names(figure, axis)
        rows = table[(table.scenario == scenario) & table.method.str.startswith("Method")].set_index("method")
        assert sorted(boxes) == sorted(rows.index)
        assert not [pair for pair in combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]
        dots = axis.transData.transform(rows[["cost", "gap"]].to_numpy())
        front, original = (line(axis, label) for label in ("Pareto front", "Original, untouched"))
        drawn = [one.get_transform().transform_path(one.get_path()) for one in (front, original)]
        assert not [
            name for name, box in boxes.items() if any(path.intersects_bbox(box, filled=False) for path in drawn)
        ]
        for name, box in boxes.items():
            assert not box.count_contains(dots) and axis.get_window_extent().count_contains(box.corners()) == 4
            x, y = axis.transData.transform(rows.loc[name, ["cost", "gap"]].astype(float).to_numpy())
            away = np.hypot(max(box.x0 - x, x - box.x1, 0), max(box.y0 - y, y - box.y1, 0))
            assert away < 150 * figure.dpi / 72


def test_a_method_that_costs_nothing_stands_at_the_left_edge():
    """A logarithmic axis has no 0, and a name may be longer than the panel."""
    table = gap_table()
    table.loc[table.method.str.startswith("Method").idxmax(), ["method", "cost"]] = "Free " * 40, 0.0
    axis = plots.gap_against_cost(table).axes[0]
    costs = np.concatenate([line.get_xdata() for line in axis.lines if line.get_linestyle() == "None"])
    left, right = axis.get_xlim()
    assert 0 < left < costs.min() < 1.2 * left and costs.max() < right


def line(axis, label):
    return next(one for one in axis.lines if one.get_label() == label)


def test_the_front_the_floor_and_the_original_are_drawn_where_they_are():
    table = gap_table()
    floor = {"values": np.array([0.3, 0.5]), "mean": 0.4, "low": -0.1, "high": 0.9}
    figure = plots.gap_against_cost(table, {"random": floor})
    for axis, scenario, high in zip(figure.axes, ("random", "class"), (0.9, 0.4)):
        methods = table[(table.scenario == scenario) & table.method.str.startswith("Method")]
        front = methods[pareto(methods.cost, methods.gap)].sort_values("cost")
        assert np.array_equal(line(axis, "Pareto front").get_xydata(), front[["cost", "gap"]])
        assert set(line(axis, "Original, untouched").get_ydata()) == {6}
        [band] = [patch for patch in axis.patches if patch.get_label().startswith("floor")]
        assert band.get_y() == 0 and band.get_y() + band.get_height() == pytest.approx(high)


def tidy(rows):
    """Rows (method, epoch, set, metric, value) of the random scenario as the tidy table."""
    table = pd.DataFrame(rows, columns=["method", "epoch", "set", "metric", "value"])
    return table.assign(scenario="random", seed=0)


def test_curves_compare_with_gold_on_the_same_images():
    """The dashed line is Gold's last tracked accuracy, not its accuracy on the whole set."""
    rows = [("Gold", 1, "forget", "tracked accuracy", 60), ("Gold", 2, "forget", "tracked accuracy", 70)]
    rows += [("Gold", 2, "forget", "accuracy", 75), ("NoT", 1, "forget", "tracked accuracy", 90)]
    axis = plots.curves(tidy(rows)).axes[0]
    assert [set(one.get_ydata()) for one in axis.lines if one.get_linestyle() == "--"] == [{70}]
    trend = plots.trends(tidy(rows), ["NoT"], "accuracy", plots.by_epoch("tracked accuracy", "forget"), gold=True)
    assert set(line(trend.axes[0], "Gold").get_ydata()) == {70} and trend.axes[0].get_title() == "random scenario"


def test_no_mark_of_a_model_hides_another():
    """Equal accuracies on several sets are marks beside each other, in the row of their model."""
    sets = ("retain", "forget", "validation", "test")
    rows = [(method, 1, name, "accuracy", 80) for method in ("Gold", "NoT") for name in sets]
    axis = plots.accuracies(tidy(rows)).axes[0]
    heights = np.array([marks.get_offsets()[:, 1] for marks in axis.collections if len(marks.get_offsets()) == 2])
    assert len(np.unique(heights)) == 8 and (abs(heights - [0, 1]) < 0.5).all()


def test_battery_colours_by_distance_from_gold_in_units_of_the_floor():
    """Gold and what lies within its floor are lightest, a missing value has neither colour nor number."""
    values = pd.DataFrame(
        {"UA": [0, 20, 20.9, 12, np.nan], "AUC": [0.9, 0.5, 0.52, 0.5, 0.6]},
        index=["Original", "Gold", "SCRUB", "SalUn", "NoT"],
    )
    figure = plots.battery(values, pd.Series({"AUC": 0.01, "UA": 1.0}))
    drawn = figure.axes[0].collections[0]
    expected = [20, 40, 0, 0, 0.9, 2, 8, 0, np.nan, 10]
    assert np.allclose(np.ma.filled(drawn.get_array().astype(float), np.nan).ravel(), expected, equal_nan=True)
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written == ["0", "0.9", "20", "0.5", "20.9", "0.52", "12", "0.5", "0.6"]


def test_relearn_curves_are_means_over_seeds_and_gold_is_golds_colour():
    rows = [
        ("Gold", 0, 40.0),
        ("Gold", 0, 60.0),
        ("Gold", 1, 80.0),
        ("Gold", 1, 90.0),
        ("NoT", 0, 70.0),
        ("NoT", 1, 95.0),
    ]
    curves = pd.DataFrame(rows, columns=["method", "step", "accuracy"])
    axis = plots.relearn_curves(curves, original=98).axes[0]
    assert line(axis, "Gold").get_ydata().tolist() == [50, 85] and line(axis, "Gold").get_color() == plots.GOLD
    assert line(axis, "NoT").get_ydata().tolist() == [70, 95]
    assert line(axis, "within 5 % of Original").get_ydata() == pytest.approx([0.95 * 98] * 2)


def test_margin_histograms_have_a_panel_an_image_with_the_fitted_normals():
    rng = np.random.default_rng(0)
    unlearned, never = rng.normal(3, 1, (8, 3)), rng.normal(0, 2, (5, 3))
    figure = plots.margin_histograms(unlearned, never, np.zeros((3, 8, 8, 3), np.uint8), ["a", "b", "c"])
    for i, axis in enumerate(figure.axes[3:]):
        for curve, side in zip(axis.lines, (unlearned, never)):
            x, y = curve.get_data()
            assert x[y.argmax()] == pytest.approx(side[:, i].mean(), abs=np.ptp(x) / 199)
            assert y.max() == pytest.approx(1 / (side[:, i].std(ddof=1) * np.sqrt(2 * np.pi)), rel=0.02)


def test_names_of_classes_are_no_mathematics():
    figure = plots.predicted_as(pd.DataFrame([[60, 40]], ["Original"]), ["$x_1$", "a_2"], 0)
    figure.draw_without_rendering()  # "$x$ costs 5 $" would not even draw
    assert not any(label.get_parse_math() for label in figure.axes[0].get_xticklabels())


def test_a_chinese_name_is_drawn_where_a_font_has_its_letters(recwarn):
    if plots.FONTS == ["DejaVu Sans"]:
        pytest.skip("no font with Chinese letters is installed")
    figure = plots.predicted_as(pd.DataFrame([[60, 40]], ["Original"]), ["猫", "dog"], 0)
    figure.draw_without_rendering()
    assert not [warning for warning in recwarn if "missing from font" in str(warning.message)]
