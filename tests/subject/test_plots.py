"""Figures: what is drawn where, and that names can be read."""

from itertools import combinations, pairwise
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.ft2font import FT2Font
from scipy.stats import norm

from helpers import plots
from helpers.methods import METHODS, PUBLISHED
from helpers.results.statistics import pareto

LONG = [f"a class with a very long name, number {i:02d}" for i in range(10)]  # 40 letters
UNBROKEN = [f"{'Wm' * 19}{i:02d}" for i in range(10)]


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        plots.use_style()
        yield


def line(ax, label):
    return next(one for one in ax.lines if one.get_label() == label)


def boxes(figure, texts):
    figure.draw_without_rendering()
    return {text.get_text(): text.get_window_extent() for text in texts if text.get_text()}


def overlapping(found):
    return [pair for pair in combinations(found, 2) if found[pair[0]].overlaps(found[pair[1]])]


# --- the gap to Gold against cost ---------------------------------------------------------------------------------


def gap_table(methods=PUBLISHED):
    """Original, two Golds and methods of all ideas in both scenarios."""
    rng, rows = np.random.default_rng(0), []
    for scenario in ("random", "class"):
        rows += [(scenario, "original", "Original", "", 6, 6, 6, 111), (scenario, "gold", "Gold", "", 0, 0, 0, 100)]
        rows.append((scenario, "gold", "Gold 2", "", 0.4, 0.4, 0.4, 100))
        for name in methods:
            gap, cost = np.exp(rng.normal(0.6, 1)), np.exp(rng.normal(1.6, 0.9))
            idea = METHODS[name].idea if name in METHODS else "own"
            rows.append((scenario, "method", name, idea, gap, gap / 1.2, gap * 1.2, cost))
    return pd.DataFrame(rows, columns=["scenario", "kind", "method", "group", "gap", "low", "high", "cost"])


def methods_of(table, scenario):
    return table[(table.scenario == scenario) & (table.kind == "method")].set_index("method")


def test_names_of_many_methods_overlap_neither_each_other_nor_a_point_nor_a_line():
    """Each is there once, within its panel, near its point."""
    table = gap_table([*PUBLISHED, *(f"Method {i}" for i in range(9))])
    figure = plots.gap_against_cost(table)
    for ax, scenario in zip(figure.axes, ("random", "class")):
        found, rows = boxes(figure, ax.texts), methods_of(table, scenario)
        shorts = [METHODS[name].short if name in METHODS else name for name in rows.index]
        assert sorted(found.keys() - {"floor: Gold against Gold"}) == sorted(shorts)
        assert not overlapping(found)
        dots = ax.transData.transform(rows[["cost", "gap"]].to_numpy())
        drawn = line(ax, "Pareto front")
        front = drawn.get_transform().transform_path(drawn.get_path())
        for short, name in zip(shorts, rows.index):
            box = found[short]
            assert not box.count_contains(dots) and not front.intersects_bbox(box, filled=False)
            assert ax.get_window_extent().count_contains(box.corners()) == 4
            x, y = ax.transData.transform(rows.loc[name, ["cost", "gap"]].astype(float).to_numpy())
            away = np.hypot(max(box.x0 - x, x - box.x1, 0), max(box.y0 - y, y - box.y1, 0))
            assert away < 150 * figure.dpi / 72


def points_drawn(ax):
    """The coordinates of all methods' markers, sorted."""
    drawn = np.concatenate([container.lines[0].get_xydata() for container in ax.containers])
    return drawn[np.lexsort(drawn.T)]


@pytest.mark.parametrize("idea", ["own", "an unknown idea", None, np.nan])
def test_a_method_of_any_idea_has_its_point(idea):
    table = gap_table([*PUBLISHED[:5], "Soften (mine)"])
    table["group"] = table.group.where(table.method != "Soften (mine)", idea)
    figure = plots.gap_against_cost(table)
    for ax, scenario in zip(figure.axes, ("random", "class")):
        wanted = methods_of(table, scenario)[["cost", "gap"]].to_numpy()
        assert np.allclose(points_drawn(ax), wanted[np.lexsort(wanted.T)])
        assert "Soften (mine)" in [text.get_text() for text in ax.texts]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "own" in legend and len(figure.legends) == 1


def test_a_method_that_costs_nothing_is_at_the_left_edge():
    """A logarithmic axis has no 0, and a name may be longer than the panel."""
    table = gap_table([*PUBLISHED[:5], "Free " * 40])
    table.loc[table.method == "Free " * 40, "cost"] = 0.0
    ax = plots.gap_against_cost(table).axes[0]
    left, right = ax.get_xlim()
    cost = points_drawn(ax)[:, 0]
    assert 0 < left < cost.min() < 1.2 * left and cost.max() < right


def test_the_front_is_stairs_that_start_at_original_with_cost_0():
    """From one method of the front to the next it runs level, then falls: no mixture of two methods is promised."""
    table = gap_table()
    floor = {"mean": 0.4, "low": -0.1, "high": 0.9}
    figure = plots.gap_against_cost(table, {"random": floor})
    for ax, scenario, high in zip(figure.axes, ("random", "class"), (0.9, 0.4)):
        rows = methods_of(table, scenario)
        front = rows[pareto(rows.cost, rows.gap) & (rows.gap < 6)].sort_values("cost")
        corners = line(ax, "Pareto front").get_xydata()
        assert corners[0].tolist() == [ax.get_xlim()[0], 6] and corners[-1, 0] == ax.get_xlim()[1]
        assert all(a[0] == b[0] or a[1] == b[1] for a, b in pairwise(corners))
        assert np.allclose(corners[2::2], front[["cost", "gap"]])
        [band] = ax.patches
        assert band.get_y() == 0 and band.get_y() + band.get_height() == pytest.approx(high)
    assert figure.get_size_inches()[1] <= 1243 / 110 / 2


# --- curves -------------------------------------------------------------------------------------------------------


def tidy(rows):
    """Rows (method, epoch, set, metric, value) of the random scenario as the tidy table."""
    table = pd.DataFrame(rows, columns=["method", "epoch", "set", "metric", "value"])
    kinds = {"Original": "original", "Gold": "gold", "Gold 2": "gold"}
    return table.assign(run="", scenario="random", seed=0, kind=[kinds.get(name, "method") for name in table.method])


CURVES = [
    ("Gold", 1, "forget", "tracked accuracy", 60),
    ("Gold", 2, "forget", "tracked accuracy", 70),
    ("Gold", 2, "forget", "accuracy", 75),
    ("NoT", 0, "forget", "tracked images", 150),
    ("NoT", 0, "forget", "tracked accuracy", 99),
    ("NoT", 1, "forget", "tracked accuracy", 90),
    ("NoT", 1, "forget", "accuracy", 88),
]


def test_a_curve_starts_at_epoch_0_and_ends_at_the_value_on_the_whole_set():
    """So that figure and table agree; Gold's line is its value on the whole set, too."""
    ax = plots.curves(tidy(CURVES)).axes[0]
    assert line(ax, "forget").get_xydata().tolist() == [[0, 99], [1, 90]]
    ends = [one.get_xydata().tolist() for one in ax.lines if one.get_markerfacecolor() == "white"]
    assert ends == [[[1, 88]]]
    [target] = [one for one in ax.lines if one.get_linestyle() == "--"]
    assert set(target.get_ydata()) == {75} and target.get_linewidth() > 2
    assert "Gold 75.0" in [text.get_text() for text in ax.texts]
    assert ax.get_legend().get_title().get_text() == "tracked on 150 images"
    assert ax.get_ylim()[0] > 65  # a narrow band fills the axis


def test_trends_mark_values_on_whole_sets():
    value, final = plots.by_epoch("tracked accuracy", "forget"), plots.at_end("accuracy", "forget")
    ax = plots.trends(tidy(CURVES), ["NoT"], "accuracy", value, final).axes[0]
    assert set(line(ax, "Gold").get_ydata()) == {75} and line(ax, "NoT").get_ydata().tolist() == [99, 90]
    assert [one.get_ydata().tolist() for one in ax.lines if one.get_markerfacecolor() == "white"] == [[88]]


def test_figures_of_diverged_methods_are_a_sentence():
    for figure in (plots.curves(tidy(CURVES[:3])), plots.gap_against_cost(gap_table([]))):
        assert "diverged" in figure.texts[0].get_text()


def test_a_method_has_one_colour_in_schedule_loss_and_trends():
    """Also one that has no epoch without ascent, or that comes after such a one."""
    rows = [(name, epoch, "", "s", s) for name in ("A", "B") for epoch, s in ((1, 0.2), (2, 0.5))]
    rows += [("B", 3, "", "s", 0), *((name, epoch, "", "loss", 0.5) for name in ("A", "B") for epoch in (1, 2, 3))]
    left, right = plots.schedule(tidy(rows), ["A", "B"]).axes
    trend = plots.trends(tidy(rows), ["A", "B"], "loss", plots.by_epoch("loss")).axes[0]
    colours = {name: line(trend, name).get_color() for name in ("A", "B")}
    steps = {patch.get_label(): patch for patch in left.patches}
    for name, color in colours.items():
        assert matplotlib.colors.to_hex(steps[name].get_edgecolor()) == color.lower()
    assert [value.tolist() for value in steps["B"].get_data()[:2]] == [[0.2, 0.5, 0], [0, 1, 2, 3]]
    assert [one.get_xydata().tolist() for one in right.lines if len(one.get_xydata())] == [[[3, 0.5]]]
    assert {one.get_color() for one in right.lines if len(one.get_xydata())} == {colours["B"]}


def test_colours_have_one_meaning():
    """No method has the colour of the forgotten images or of Gold; members and non-members have their own."""
    taken = {color for color, _ in plots.SETS.values()} | {plots.ORIGINAL, plots.GOLD}
    methods = {color for color, _ in plots.IDEAS.values()} | set(plots.PALETTE)
    assert not taken & methods and not {plots.TRAINED_ON, plots.NEVER_SAW} & (taken | methods)


# --- accuracies, attacks ------------------------------------------------------------------------------------------


def test_no_mark_of_a_model_hides_another():
    """Equal accuracies on several sets are markers beside each other, in the row of their model."""
    sets = ("retain", "forget", "validation", "test")
    rows = [(method, 1, name, "accuracy", 80) for method in ("Gold", "NoT") for name in sets]
    ax = plots.accuracies(tidy(rows)).axes[0]
    heights = np.array([marks.get_offsets()[:, 1] for marks in ax.collections if len(marks.get_offsets()) == 2])
    assert len(np.unique(heights)) == 8 and (abs(heights - [0, 1]) < 0.5).all()


def test_accuracy_against_a_setting_leaves_out_what_diverged():
    rows = [("Gold", 1, "forget", "accuracy", 60.0), ("a", 1, "forget", "accuracy", 90.0)]
    rows += [("b", 0, "", "diverged", 1.0), ("c", 1, "forget", "accuracy", 20.0)]
    ax = plots.against_setting(tidy(rows), {"c": 0.9, "a": 0.1, "b": 0.4}, "s").axes[0]
    assert line(ax, "forget").get_xydata().tolist() == [[0.1, 90], [0.9, 20]]
    assert ax.get_xlabel() == "s" and "Gold 60.0" in [text.get_text() for text in ax.texts]


def test_grouped_bars_show_values_also_zero_and_golds_lines():
    rows = [("Gold", 1, "forget", "accuracy", 3.2), ("NoT", 1, "forget", "accuracy", 0.0)]
    ax = plots.grouped_bars(tidy(rows), ["Gold", "NoT"], ["forget"]).axes[0]
    assert [text.get_text() for text in ax.texts] == ["3", "0"]
    assert [set(one.get_ydata()) for one in ax.lines if one.get_linestyle() == "--"] == [{3.2}]


def test_battery_colours_by_distance_from_gold_and_writes_fixed_decimals():
    """Gold and what is within its floor are lightest; a missing value has neither colour nor number."""
    values = {"UA": [0, 20, 20.9, 12, np.nan], "Streisand KS": [0.9, 0.5, -0.5204, -0.0001, 0.6]}
    table = pd.DataFrame(values, index=["Original", "Gold", "SCRUB", "SalUn", "NoT"])
    figure = plots.battery(table, pd.Series({"Streisand KS": 0.01, "UA": 1.0}))
    drawn = figure.axes[0].collections[0].get_array().astype(float)
    expected = [20, 40, 0, 0, 0.9, 102.04, 8, 50.01, np.nan, 10]
    assert np.allclose(np.ma.filled(drawn, np.nan).ravel(), expected, equal_nan=True)
    written = [text.get_text().replace("\n", " ") for text in figure.axes[0].texts]
    numbers = ["0.0", "0.900", "20.0", "0.500", "20.9", "−0.520", "12.0", "0.000", "0.600"]
    assert written[: len(numbers)] == numbers and {"accuracy, %", "Streisand effect"} <= {*written}


def test_relearn_curves_are_means_over_seeds_with_names_at_their_ends():
    rows = [("Gold", 0, 40.0), ("Gold", 0, 60.0), ("Gold", 1, 80.0), ("Gold", 1, 90.0)]
    rows += [(name, step, value) for name in ("NoT", "SSD", "CT", "MSG") for step, value in ((0, 70.0), (1, 95.0))]
    figure = plots.relearn_curves(pd.DataFrame(rows, columns=["method", "step", "accuracy"]), original=98)
    ax = figure.axes[0]
    assert line(ax, "Gold").get_ydata().tolist() == [50, 85] and line(ax, "Gold").get_color() == plots.GOLD
    assert line(ax, "NoT").get_ydata().tolist() == [70, 95]
    assert line(ax, "within 5 % of Original").get_ydata() == pytest.approx([0.95 * 98] * 2)
    found = boxes(figure, ax.texts)
    assert found.keys() >= {"Gold", "NoT", "SSD", "CT", "MSG"}
    names = {name: box for name, box in found.items() if not name.startswith("within")}
    figure.canvas.draw()
    middles = sorted(text.xyann[1] for text in ax.texts if text.get_text() in names)
    assert np.diff(middles).min() > 0.06


def test_spread_keeps_order_and_distance():
    heights = np.array([0.9, 0.91, 0.2, 0.92, 0.95, 0.99])
    placed = plots.spread(heights, 0.1)
    assert (np.argsort(placed) == np.argsort(heights)).all() and placed[2] == pytest.approx(0.2)
    assert np.diff(np.sort(placed)).min() > 0.1 - 1e-9 and placed.max() <= 1 + 1e-9


def test_margin_histograms_have_one_panel_per_image_with_the_fitted_normals():
    rng = np.random.default_rng(0)
    trained, never = rng.normal(3, 1, (8, 3)), rng.normal(0, 2, (40, 3))
    figure = plots.margin_histograms(trained, never, np.zeros((3, 8, 8, 3), np.uint8), ["a", "b", "c"])
    for i, ax in enumerate(figure.axes[3:]):
        for curve, side in zip(ax.lines, (trained, never)):
            x, y = curve.get_data()
            assert np.allclose(y, norm.pdf(x, side[:, i].mean(), side[:, i].std(ddof=1)))


def test_loss_histograms_show_all_images_and_the_share_of_pairs():
    """Every image is in a bar, also one with loss 0; the share is counted by a loop over pairs."""
    rng = np.random.default_rng(0)
    forget, test = np.r_[0.0, rng.exponential(0.1, 30)], rng.exponential(1, 50)
    figure = plots.loss_histograms({"Original": {"forget": forget, "test": test}})
    bars = [patch.get_height() for patch in figure.axes[0].patches if isinstance(patch, matplotlib.patches.Rectangle)]
    assert sum(bars) == pytest.approx(200)
    pairs = np.mean([low < high for low in forget for high in test])
    assert f"in {100 * pairs:.0f} % of pairs" in figure.axes[0].texts[0].get_text()


def test_entropies_have_a_mark_at_the_uniform_prediction():
    ax = plots.distributions({"Original": [0.1, 0.5], "NoT": [1.0]}, "entropy", classes=10).axes[0]
    marks = [one.get_xdata()[0] for one in ax.lines if one.get_linestyle() == ":"]
    assert marks == [pytest.approx(np.log(10))] and "uniform: ln 10" in [text.get_text() for text in ax.texts]


def test_tsne_states_the_shares_of_forgotten_images():
    is_forgotten = np.arange(40) < 20
    figure = plots.tsne_panels({"Original": np.zeros((40, 2)), "Gold": np.ones((40, 2))}, is_forgotten, 0.1)
    title = figure.legends[0].get_title().get_text()
    assert title == "50 % of the points are forgotten images (of the training images: 10 %)"


# --- names of classes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [LONG, UNBROKEN, ["dog"] * 10], ids=["words", "no spaces", "short"])
def test_class_names_do_not_overlap(classes):
    """Neither under images nor in the heat map; the number at the end stays readable."""
    images = torch.zeros(10, 8, 8, 3, dtype=torch.uint8)
    batches = SimpleNamespace(images=images, labels=torch.arange(10), index=torch.arange(10))
    strip = plots.images(batches, 10, "forget", plots.FORGOTTEN, classes)
    shares = pd.DataFrame(np.full((3, 10), 10.0), ["Original", "Gold", "M1 Retain FT"])
    heat = plots.predicted_as(shares, classes, (0, 3))
    for figure, labels in (
        (strip, [ax.xaxis.label for ax in strip.axes]),
        (heat, heat.axes[0].get_xticklabels()),
    ):
        figure.draw_without_rendering()
        extents = [label.get_window_extent() for label in labels]
        assert len(extents) == 10 and all(label.get_text() for label in labels)
        assert all(a.x1 < b.x0 for a, b in pairwise(extents))
        assert all(label.get_text().endswith(name[-2:]) for label, name in zip(labels, classes))


def test_many_classes_become_one_column():
    """With 100 classes the heat map has the forgotten one, those predicted most, and the sum of the others."""
    shares = pd.DataFrame([np.full(100, 0.5), np.full(100, 0.5)], ["Original", "Gold"])
    shares[40] = [50.5, 0.5]
    figure = plots.predicted_as(shares, [f"class {i}" for i in range(100)], 7)
    labels = [label.get_text().replace("\n", " ") for label in figure.axes[0].get_xticklabels()]
    assert len(labels) == 16 and {"class 7", "class 40", "other classes"} <= {*labels}
    assert np.allclose(figure.axes[0].collections[0].get_array().sum(1), shares.sum(axis=1))


def test_names_of_classes_are_no_mathematics():
    figure = plots.predicted_as(pd.DataFrame([[60, 40]], ["Original"]), ["$x_1$", "a_2"], 0)
    figure.draw_without_rendering()  # "$x$ costs 5 $" would not even draw
    assert not any(label.get_parse_math() for label in figure.axes[0].get_xticklabels())


@pytest.mark.parametrize("name", ["猫", "เสือ", "Ω mega", "☃"])
def test_a_font_has_the_letters_of_a_class_or_one_line_names_those_that_no_font_has(name, caplog, recwarn):
    fonts = [FT2Font(matplotlib.font_manager.findfont(family)) for family in plots.fonts_for([name])]
    missing = [letter for letter in sorted(set(name)) if not any(ord(letter) in font.get_charmap() for font in fonts)]
    figure = plots.predicted_as(pd.DataFrame([[60, 40]], ["Original"]), [name, "dog"], 0)
    figure.canvas.draw()
    plots.fonts_for([name])
    lines = [record.message for record in caplog.records]
    assert len(lines) == bool(missing) and all(letter in lines[0] for letter in missing)
    assert not [warning for warning in recwarn if "missing from font" in str(warning.message)]
    if missing:
        installed = [font.fname for font in matplotlib.font_manager.fontManager.ttflist]
        assert not any(ord(letter) in plots.letters_of(file) for letter in missing for file in installed)
