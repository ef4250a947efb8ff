"""Figures: each function takes the tidy table (or runs) and returns a matplotlib figure; `keep` shows and saves it."""

import io
import logging
import textwrap
from functools import partial
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image, display
from matplotlib.colors import BoundaryNorm
from matplotlib.font_manager import get_font_names
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from scipy.stats import norm
from sklearn.manifold import TSNE

from . import runs
from .audit import interval, pareto
from .experiment import YARDSTICK

# Okabe and Ito's colour-blind-safe palette. Retained and forgotten, Original and Gold look the same everywhere.
RETAINED, FORGOTTEN, VALIDATION, TEST = "#7f7f7f", "#D55E00", "#0072B2", "#56B4E9"
ORIGINAL, GOLD, METHOD = "#000000", "#E69F00", "#009E73"
GOLD_TEXT = "#8F6200"  # Gold's colour, dark enough to read on white
GROUPS = {  # methods by idea: colour and marker
    "relearn": ("#0072B2", "o"),
    "push away": ("#D55E00", "^"),
    "relabel": ("#CC79A7", "s"),
    "distil": ("#009E73", "D"),
    "edit weights": ("#56B4E9", "v"),
}
SETS = {
    "retain": RETAINED,
    "forget": FORGOTTEN,
    "validation": VALIDATION,
    "test": TEST,
    "train retain": RETAINED,
    "train forget": FORGOTTEN,
    "test retain": TEST,
    "test forget": "#CC79A7",
}
MARKERS = {name: marker for name, marker in zip(SETS, "osD^osD^")}
TITLES = {"random": "random scenario", "class": "class scenario"}
FALLBACKS = ["Noto Sans CJK SC", "Droid Sans Fallback", "WenQuanYi Micro Hei", "Hiragino Sans GB", "Arial Unicode MS"]
FONTS = ["DejaVu Sans", *(name for name in FALLBACKS if name in get_font_names())]  # a class may be called 猫
logging.getLogger("matplotlib.font_manager").setLevel("ERROR")  # silent about a fallback without a bold face

sns.set_theme(
    context="notebook",
    style="whitegrid",
    rc={"font.family": FONTS,
        "figure.dpi": 110, "savefig.bbox": "tight", "axes.titlesize": 12, "axes.titleweight": "bold",
        "legend.frameon": False, "axes.edgecolor": "0.3", "figure.constrained_layout.use": True,
        "text.parse_math": False},  # a class may be called $x$
)  # fmt: skip


def keep(figure, data, name, alt):
    """Show `figure` with its alternative text and save it as `figures/<data>/<name>.png`."""
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    plt.close(figure)
    path = runs.FIGURES / data / f"{name}.png"
    runs.replace_file(path, lambda file: file.write_bytes(png.getvalue()))
    display(Image(png.getvalue(), format="png", alt=alt))


def final(results, metric, sets=None):
    """The rows of finished models with this metric, of these sets."""
    rows = results[results.metric == metric]
    return rows if sets is None else rows[rows.set.isin(sets)]


def order(results):
    """Method names in the order in which the table has them: Original, Golds, methods."""
    return list(dict.fromkeys(results.method))


def images(batches, count, title, color, classes):
    """A strip of `count` images of a set with their classes beneath."""
    figure, axes = plt.subplots(1, count, figsize=(max(3, count * 0.85), 1.5), squeeze=False)
    for axis, i in zip(axes[0], batches.index[:count].tolist()):
        axis.imshow(batches.images[i].cpu().numpy())
        axis.set_xlabel(classes[batches.labels[i]], fontsize=8, color=color)
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(color=color, linewidth=2)
    figure.suptitle(title, color=color, fontsize=11, fontweight="bold")
    return figure


def class_counts(counts):
    """Stacked bars: images of each class, retained and forgotten; `counts` has scenario, class, part, images."""
    scenarios = list(dict.fromkeys(counts.scenario))
    figure, axes = plt.subplots(1, len(scenarios), figsize=(5 * len(scenarios), 3.4), squeeze=False)
    for axis, scenario in zip(axes[0], scenarios):
        part = counts[counts.scenario == scenario].pivot_table(
            index="class", columns="part", values="images", sort=False
        )
        part[["retain", "forget"]].plot.barh(
            stacked=True, color=[RETAINED, FORGOTTEN], ax=axis, width=0.8, legend=False
        )
        axis.invert_yaxis()
        axis.set(title=TITLES[scenario], xlabel="training images", ylabel="")
        axis.grid(axis="y", visible=False)
    handles, _ = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, ["retained", "forgotten"], loc="outside lower center", ncols=2)
    return figure


def training_curves(results):
    """Loss and tracked accuracies by epoch, Original solid and Gold dashed, one row a scenario."""
    scenarios = list(dict.fromkeys(results.scenario))
    figure, axes = plt.subplots(len(scenarios), 2, figsize=(9.5, 3.2 * len(scenarios)), squeeze=False)
    for row, scenario in zip(axes, scenarios):
        for method, line in (("Original", "-"), ("Gold", "--")):
            part = results[(results.scenario == scenario) & (results.method == method)]
            loss = by_epoch("loss")(part)
            row[0].plot(
                loss.index, loss, color=GOLD if method == "Gold" else ORIGINAL, linestyle=line, marker=".", label=method
            )
            _tracked(row[1], part, linestyle=line)
        row[0].set(title=TITLES[scenario], xlabel="epoch", ylabel="training loss", ylim=(0, None))
        row[0].legend()
        row[1].set(title=TITLES[scenario])
        _sets_legend(row[1], part, Line2D([], [], color="0.3", linestyle="--", label="under Gold"))
        whole_epochs(*row)
    return figure


def whole_epochs(*axes):
    """Ticks at whole epochs."""
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _tracked(axis, part, **style):
    """Draw the tracked accuracies of one method's rows."""
    for name, rows in final(part, "tracked accuracy").groupby("set", sort=False):
        mean = rows.groupby("epoch").value.mean()
        axis.plot(mean.index, mean, color=SETS[name], marker=MARKERS[name], markersize=4, **style)
    axis.set(xlabel="epoch", ylabel="accuracy, %", ylim=(-3, 103))


def _sets_legend(axis, part, *more):
    """A legend of the tracked sets at the right of `axis`."""
    names = dict.fromkeys(final(part, "tracked accuracy").set)
    handles = [Line2D([], [], color=SETS[name], marker=MARKERS[name], markersize=5, label=name) for name in names]
    axis.legend(handles=[*handles, *more], loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9.5)


def _no_figure(reason):
    figure, axis = plt.subplots(figsize=(5, 0.6))
    axis.axis("off")
    axis.text(0, 0.5, reason, va="center")
    return figure


def curves(results):
    """Tracked accuracies by epoch, a row a scenario, a panel a method; dashed lines are Gold's last ones."""
    unlearned = final(results[~results.method.str.fullmatch(YARDSTICK)], "tracked accuracy")
    methods = {scenario: order(part) for scenario, part in unlearned.groupby("scenario", sort=False)}
    if not methods:
        return _no_figure("no curve: every method here diverged")
    columns = max(map(len, methods.values()))
    figure, axes = plt.subplots(len(methods), columns, figsize=(2.2 + 2.7 * columns, 2.9 * len(methods)), squeeze=False)
    for row, (scenario, names) in zip(axes, methods.items()):
        here = results[results.scenario == scenario]
        gold = here[here.method == "Gold"]
        for axis, method in zip(row, names):
            part = here[here.method == method]
            _tracked(axis, part)
            for name in dict.fromkeys(final(part, "tracked accuracy").set):
                last = by_epoch("tracked accuracy", name)(gold).iloc[-1]
                axis.axhline(last, color=SETS[name], linestyle="--", linewidth=1, zorder=0)
            axis.set_title(f"{method}\n{scenario} scenario", fontsize=10.5)
        for axis in row[1:]:
            axis.set_ylabel("")
            axis.tick_params(labelleft=False)
        for axis in row[len(names) :]:
            axis.axis("off")
        _sets_legend(row[len(names) - 1], part, Line2D([], [], color="0.3", linestyle="--", label="Gold, final"))
        whole_epochs(*row[: len(names)])
    return figure


def accuracies(results):
    """Retained against forgotten accuracy and the rest, a row a model, a mark a set; vertical lines are Gold's.

    Over several seeds a mark is the mean and its bar the range of all seeds.
    """
    scenarios = list(dict.fromkeys(results.scenario))
    rows = max(results[results.scenario == scenario].method.nunique() for scenario in scenarios)
    figure, axes = plt.subplots(1, len(scenarios), figsize=(5.6 * len(scenarios), 1.6 + 0.36 * rows), squeeze=False)
    for axis, scenario in zip(axes[0], scenarios):
        part = final(results[results.scenario == scenario], "accuracy")
        methods = order(part)
        names = [name for name in SETS if name in set(part.set)]
        for name, shift in zip(reversed(names), np.linspace(0.27, -0.27, len(names))):  # none hides another
            values = part[part.set == name].groupby("method").value.agg(["mean", "min", "max"]).loc[methods]
            heights = np.arange(len(methods)) + shift
            axis.hlines(heights, values["min"], values["max"], color=SETS[name], linewidth=2)
            axis.scatter(values["mean"], heights, color=SETS[name], marker=MARKERS[name], s=30,
                         edgecolors="white", linewidths=0.6, zorder=3, label=name)  # fmt: skip
            axis.axvline(values["mean"]["Gold"], color=SETS[name], linestyle="--", linewidth=1, zorder=0)
        axis.set_yticks(range(len(methods)), methods)
        for label in axis.get_yticklabels():
            label.set_color(GOLD_TEXT if label.get_text().startswith("Gold") else "black")
        axis.invert_yaxis()
        axis.set(title=TITLES[scenario], xlabel="accuracy, %", xlim=(-3, 103))
        axis.legend(*(reversed(part) for part in axis.get_legend_handles_labels()), loc="upper center",
                    bbox_to_anchor=(0.5, -0.11), ncols=4, fontsize=9, handletextpad=0.1, columnspacing=1)  # fmt: skip
    return figure


CODES = {"Fine-tuning": "FT", "Gradient ascent": "GA", "2-Stage": "2S", "2-Stage full": "2S full"}


def code(method):
    """What a crowded figure calls a method: M1, H3, GA; a name of one's own stays."""
    return CODES.get(method) or (method.split()[0] if method[:1] in "MH" and method[1:2].isdigit() else method)


def label_points(axis, points, lines=()):
    """Name each point (cost, gap, low, high) where the name covers no point, no interval, none of `lines` and no other
    name, if it can.

    The nearest such place is taken; a line leads to a name that is not right beside its point.
    """
    place, bounds = axis.transData.transform, axis.get_window_extent()
    unit = axis.figure.dpi / 72
    dots = place(points[["cost", "gap"]].to_numpy())
    taken = [(x - 5 * unit, y - 5 * unit, x + 5 * unit, y + 5 * unit) for x, y in dots]
    for end in ("low", "high"):
        ends = place(points[["cost", end]].to_numpy())
        taken += [(x - 1, min(y, end), x + 1, max(y, end)) for (x, y), (_, end) in zip(dots, ends)]
    for line in lines:
        drawn = line.get_transform().transform_path(line.get_path()).interpolated(200).vertices
        taken += [(x - 1, y - 1, x + 1, y + 1) for x, y in drawn]
    for name, point, (x, y) in zip(map(code, points.index), points[["cost", "gap"]].to_numpy(), dots):
        label = axis.annotate(name, point, (0, 0), textcoords="offset points", ha="center", va="center", fontsize=9,
                              path_effects=[withStroke(linewidth=2.5, foreground="white", alpha=0.8)])  # fmt: skip
        extent = label.get_window_extent()
        around = partial(boxes_around, x, y, extent.width + 3 * unit, extent.height, unit, bounds.extents)
        free = (one for one in around() if not any(overlap(one[1], other) for other in taken))
        r, box = next(free, None) or next(around(), (0, (x, y, x, y)))
        taken.append(box)
        offset = ((box[0] + box[2]) / 2 - x) / unit, ((box[1] + box[3]) / 2 - y) / unit
        label.set_position(offset)
        if r > 10 * unit:
            axis.annotate("", point, offset, textcoords="offset points", zorder=1,
                          arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkB": 0})  # fmt: skip


def boxes_around(x, y, width, height, unit, bounds):
    """(distance, box) of such boxes about a point inside `bounds`, the nearest first."""
    directions = [(np.cos(angle), np.sin(angle)) for angle in np.linspace(0, 2 * np.pi, 24, endpoint=False)]
    for r in unit * np.arange(5, 150, 4):
        for cosine, sine in directions:
            u, v = x + (r + width / 2) * cosine, y + (r + height / 2) * sine
            box = (u - width / 2, v - height / 2, u + width / 2, v + height / 2)
            if within(box, bounds):
                yield r, box


def within(a, b):
    """Whether box a (left, low, right, high) lies in box b."""
    return b[0] < a[0] and b[1] < a[1] and a[2] < b[2] and a[3] < b[3]


def overlap(a, b):
    """Whether two boxes (left, low, right, high) share a point."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def grouped_bars(results, methods, sets):
    """Accuracy of `methods` on `sets` side by side, with the 95 % interval over seeds where there are several."""
    rows = final(results, "accuracy", sets)
    rows = rows[rows.method.isin(methods)]
    figure, axis = plt.subplots(figsize=(max(7, 1.35 * len(methods) + 1.5), 3.8))
    sns.barplot(rows, x="method", y="value", hue="set", order=methods, hue_order=sets, palette=SETS, ax=axis,
                errorbar=(lambda values: interval(values)[1:]) if rows.seed.nunique() > 1 else None)  # fmt: skip
    axis.set(xlabel="", ylabel="accuracy, %", ylim=(0, 105))
    axis.set_xticks(range(len(methods)), [textwrap.fill(m, 10) for m in methods])
    axis.grid(axis="x", visible=False)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(sets))
    return figure


def trends(results, methods, ylabel, value, gold=False):
    """A quantity by epoch, one line a method; `value` maps a method's tidy rows to a series indexed by epoch.

    Args:
        results: rows of one scenario.
        gold: draw Gold's last value as a dashed line.
    """
    figure, axis = plt.subplots(figsize=(7.2, 3.6))
    palette = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]
    if gold:
        last = value(results[results.method == "Gold"]).iloc[-1]
        axis.axhline(last, color=GOLD, linestyle="--", linewidth=1.5, zorder=0, label="Gold")
    looks = zip(cycle(palette), cycle("osD^"), cycle(("-", "-", "-", ":")))  # one may lie on another
    for method, (color, marker, line) in zip(methods, looks):
        series = value(results[results.method == method])
        axis.plot(series.index, series, color=color, marker=marker, linestyle=line, markersize=5, label=method)
    axis.set(xlabel="epoch", ylabel=ylabel, title=TITLES[results.scenario.iloc[0]])
    whole_epochs(axis)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def by_epoch(metric, name=""):
    """For `trends`: the mean over seeds of a metric of a set."""
    return lambda rows: rows[(rows.metric == metric) & (rows.set == name)].groupby("epoch").value.mean()


def predicted_as(shares, classes, forgotten):
    """Heat map: what the forgotten class's test images are predicted as, one row a model; `shares` are percent."""
    figure, axis = plt.subplots(figsize=(1.6 + 0.82 * len(classes), 0.9 + 0.36 * len(shares)))
    sns.heatmap(shares, annot=True, fmt=".0f", cmap="cividis", vmin=0, vmax=100, ax=axis, linewidths=0.5,
                yticklabels=True, cbar_kws={"label": "% of images"}, annot_kws={"size": 8.5})  # fmt: skip
    axis.set(xlabel="", ylabel="")
    axis.set_xticks(np.arange(len(classes)) + 0.5, classes, rotation=35, ha="right")
    axis.get_xticklabels()[forgotten].set(color=FORGOTTEN, fontweight="bold")
    axis.tick_params(axis="y", rotation=0)
    return figure


def embed(features, seed=0):
    """t-SNE in two dimensions, as document B: perplexity 30 (less for few images), PCA start, fixed seed."""
    perplexity = min(30, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features)


def tsne_panels(embeddings, is_forgotten):
    """One panel a model: retained images grey, forgotten ones red; `embeddings` maps names to `(m, 2)`."""
    columns = min(5, len(embeddings))
    rows = -(-len(embeddings) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.25 * columns, 2.5 * rows + 0.4), squeeze=False)
    for axis in axes.flat[len(embeddings) :]:
        axis.axis("off")
    for axis, (name, points) in zip(axes.flat, embeddings.items()):
        for part, color, label in ((~is_forgotten, RETAINED, "retained"), (is_forgotten, FORGOTTEN, "forgotten")):
            axis.scatter(*points[part].T, s=5, color=color, alpha=0.65, linewidths=0, label=label)
        axis.set_title(name, color=GOLD_TEXT if name.startswith("Gold") else "black", fontsize=10.5)
        axis.set(xticks=[], yticks=[])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, markerscale=4)
    return figure


def gap_against_cost(points, floors=None):
    """Mean gap to Gold against cost, a point with its interval a method; a band is the floor, Gold against Gold.

    The line joins the methods that no other beats in both. The gap's axis is linear up to 1 point, then logarithmic.

    Args:
        points: the table of `notebook.gap_points`; a column `group`, one of `GROUPS`, colours the methods.
        floors: `battery.floors`, whose 95 % interval is the band; without, it reaches up to the row `Gold 2`.
    """
    scenarios, drawn = list(dict.fromkeys(points.scenario[~points.method.str.fullmatch(YARDSTICK)])), []
    if not scenarios:
        return _no_figure("no point: every method diverged")
    figure, axes = plt.subplots(len(scenarios), 1, figsize=(9.4, 5.6 * len(scenarios)), squeeze=False)
    for axis, scenario in zip(axes[:, 0], scenarios):
        part = points[points.scenario == scenario].set_index("method")
        methods = part[~part.index.str.fullmatch(YARDSTICK)]
        methods = methods.assign(cost=cost_axis(axis, methods.cost))
        axis.axhline(part.gap["Original"], color=ORIGINAL, linestyle=":", linewidth=1.5, label="Original, untouched")
        _floor_band(axis, part, (floors or {}).get(scenario))
        front = methods[pareto(methods.cost, methods.gap)].sort_values("cost")
        axis.plot(front.cost, front.gap, color="0.45", linewidth=1.4, zorder=1, label="Pareto front")
        for group, rows in methods.groupby(methods.get("group", pd.Series("", methods.index)), sort=False):
            color, marker = GROUPS.get(group, (METHOD, "o"))
            reach = [rows.gap - rows.low, rows.high - rows.gap]
            axis.errorbar(rows.cost, rows.gap, yerr=reach, fmt=marker, color=color, ecolor="0.6", elinewidth=1,
                          markersize=7, markeredgecolor="white", label=group or "a method")  # fmt: skip
        axis.set_yscale("symlog", linthresh=1)
        top = 1.2 * max(methods.high.max(), part.gap["Original"], 1)
        axis.set_yticks([tick for tick in (0, 0.25, 0.5, 0.75, 1, 2, 5, 10, 20, 50, 100) if tick <= top])
        axis.set_ylim(0, top)
        axis.set(title=TITLES[scenario], ylabel="mean gap to Gold, points")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, fontsize=9.5)
        drawn.append(methods)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # from here on nothing moves
    for axis, methods in zip(axes[:, 0], drawn):
        label_points(axis, methods, [line for line in axis.lines if line.get_linestyle() != "None"])
    return figure


def cost_axis(axis, cost):
    """Make the horizontal axis one of cost, in percent, logarithmic; return `cost` with what is 0 at its left edge."""
    some = cost[cost > 0]
    left, right = (some.min() / 1.6, some.max() * 1.6) if len(some) else (0.1, 1)
    axis.set(xscale="log", xlim=(left, right), xlabel="images seen, % of retraining")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    return cost.clip(lower=1.05 * left)


def _floor_band(axis, part, floor):
    """The floor as a band: the interval of `battery.floors` around its mean, or from 0 to the second Gold's gap."""
    if floor is not None and np.isfinite(floor["high"]):
        axis.axhspan(max(floor["low"], 0), floor["high"], color=GOLD, alpha=0.35, linewidth=0,
                     label="floor: Gold against Gold, 95 % interval")  # fmt: skip
        axis.axhline(floor["mean"], color=GOLD, linewidth=1.2, zorder=0)
    elif "Gold 2" in part.index:
        axis.axhspan(0, part.gap["Gold 2"], color=GOLD, alpha=0.35, linewidth=0, label="floor: a second Gold")


def battery(values, floors):
    """Heat map of attacks: what each found on each model, coloured by how far that is from what it found on Gold.

    A cell is empty where there is no value.

    Args:
        values: a table, a row a model (Original and Gold first) and a column an attack.
        floors: a series, for each attack the colours' unit, above 0, see `battery.heat`.
    """
    units = (values - values.loc["Gold"]).abs() / floors[values.columns]
    steps = [0, 1, 2, 4, 8, 16]
    colours = plt.get_cmap("Blues", len(steps))
    figure, axis = plt.subplots(figsize=(3.2 + 0.8 * len(values.columns), 2.8 + 0.34 * len(values)))
    sns.heatmap(units, annot=values.map(lambda value: f"{value:.3g}"), fmt="", mask=units.isna(), ax=axis, cmap=colours,
                norm=BoundaryNorm(steps, colours.N, extend="max"), linewidths=0.5, yticklabels=True, xticklabels=True,
                annot_kws={"size": 8.5}, cbar_kws={"ticks": steps, "format": "%g", "location": "bottom", "shrink": 0.45,
                "label": "distance from Gold, in mean distances of two Golds (at least 0.5 points or 0.005)",
                "aspect": 40, "pad": 0.04})  # fmt: skip
    axis.set_facecolor("0.88")
    axis.grid(visible=False)
    yardsticks = values.index.str.fullmatch(YARDSTICK).sum()
    axis.axhline(yardsticks, color="0.2", linewidth=1.6)
    axis.set(xlabel="", ylabel="")
    axis.xaxis.tick_top()
    axis.set_xticks(
        np.arange(len(values.columns)) + 0.5, values.columns, rotation=35, ha="left", rotation_mode="anchor"
    )
    axis.tick_params(axis="both", length=0)
    axis.tick_params(axis="y", rotation=0)
    for label in axis.get_yticklabels():
        label.set_color(GOLD_TEXT if label.get_text().startswith("Gold") else "black")
    return figure


def relearn_curves(curves, original, tolerance=5):
    """Forget accuracy by step while the forgotten images are taught again, a line a model, with the range over seeds.

    Args:
        curves: `audit.relearn`'s tables with a column method (and seed).
        original: Original's forget accuracy in percent; the dashed line is `tolerance` percent below it.
    """
    figure, axis = plt.subplots(figsize=(8.4, 3.9))
    looks = cycle((color, line, marker) for line in ("-", "--", ":") for color, marker in GROUPS.values())
    for method, rows in curves.groupby("method", sort=False):
        color, line, marker = {"Original": (ORIGINAL, "-", ""), "Gold": (GOLD, "-", "")}.get(method) or next(looks)
        by_step = rows.groupby("step").accuracy
        mean = by_step.mean()
        axis.plot(mean.index, mean, color=color, linestyle=line, marker=marker, markersize=5, markevery=0.12,
                  linewidth=2.6 if method == "Gold" else 1.7, label=method)  # fmt: skip
        axis.fill_between(mean.index, by_step.min(), by_step.max(), color=color, alpha=0.1, linewidth=0)
    axis.axhline((1 - tolerance / 100) * original, color="0.3", linestyle="--", linewidth=1, zorder=0,
                 label=f"within {tolerance} % of Original")  # fmt: skip
    axis.set(xlabel="gradient steps on forgotten and retained images", ylabel="forget accuracy, %")
    axis.set_xlim(0, curves.step.max())
    whole_epochs(axis)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9.5)
    return figure


def margin_histograms(trained, never, pictures, names):
    """What U-LiRA looks at: an image a panel, its margins over models trained on it and models that never saw it.

    Args:
        trained, never: margins `(models, images)`; the curves are the normals fitted to them.
        pictures: the images, uint8 `(images, size, size, 3)`.
        names: what stands over each.
    """
    count = len(names)
    figure, axes = plt.subplots(2, count, figsize=(2.5 * count, 4), height_ratios=[1, 1.7], squeeze=False)
    for i, (picture, axis) in enumerate(zip(*axes)):
        picture.imshow(np.asarray(pictures[i]))
        picture.set(xticks=[], yticks=[])
        picture.set_title(names[i], fontsize=10.5)
        sides = np.asarray(trained)[:, i], np.asarray(never)[:, i]
        edges = np.histogram_bin_edges(np.concatenate(sides), bins=12)
        beyond = 0.6 * (edges[-1] - edges[0])
        grid = np.linspace(edges[0] - beyond, edges[-1] + beyond, 200)
        for side, color, label in zip(sides, (FORGOTTEN, VALIDATION), ("trained on it", "never saw it")):
            axis.hist(side, edges, density=True, color=color, alpha=0.4, linewidth=0, label=label)
            spread = max(side.std(ddof=1), 1e-6)
            axis.plot(grid, norm.pdf(grid, side.mean(), spread), color=color)
        axis.set(yticks=[], xlabel="margin, nats")
        axis.grid(visible=False)
    axes[1, 0].set_ylabel("density of models")
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def distributions(values, xlabel):
    """The share of images below each value of a per-image quantity; `values` maps models to arrays."""
    figure, axis = plt.subplots(figsize=(7, 3.2))
    others = cycle((METHOD, VALIDATION, "#CC79A7", "#0072B2"))
    for name, array in values.items():
        color = {"Original": ORIGINAL, "Gold": GOLD}.get(name) or next(others)
        axis.ecdf(np.asarray(array), color=color, linewidth=2.5 if name == "Gold" else 1.8, label=name)
    axis.set(xlabel=xlabel, ylabel="share of images")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
