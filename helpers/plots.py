"""Figures: each function takes the tidy table (or runs) and returns a matplotlib figure; `keep` shows and saves it."""

import io
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image, display
from matplotlib.lines import Line2D
from sklearn.manifold import TSNE

from . import runs

# Okabe and Ito's colour-blind-safe palette. Retained and forgotten, Original and Gold look the same everywhere.
RETAINED, FORGOTTEN, VALIDATION, TEST = "#7f7f7f", "#D55E00", "#0072B2", "#56B4E9"
ORIGINAL, GOLD, METHOD = "#000000", "#E69F00", "#009E73"
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
TITLES = {"random": "random scenario (ResNet-18)", "class": "class scenario (ViT-Tiny)"}
MAIN = {"random": ("retain", "forget"), "class": ("test retain", "train forget")}  # as the two documents report

sns.set_theme(
    context="notebook",
    style="whitegrid",
    rc={"figure.dpi": 110, "savefig.bbox": "tight", "axes.titlesize": 12, "axes.titleweight": "bold",
        "legend.frameon": False, "axes.edgecolor": "0.3", "figure.constrained_layout.use": True},
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


def method_colors(methods):
    """Black for Original, gold for the Golds, green for what unlearns."""
    return {m: ORIGINAL if m == "Original" else GOLD if m.startswith("Gold") else METHOD for m in methods}


def images(batches, count, title, color, classes):
    """A strip of `count` images of a set with their classes beneath."""
    figure, axes = plt.subplots(1, count, figsize=(count * 0.85, 1.5))
    for axis, i in zip(axes, batches.index[:count].tolist()):
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
        part = counts[counts.scenario == scenario].pivot_table(index="class", columns="part", values="images", sort=False)
        part[["retain", "forget"]].plot.barh(stacked=True, color=[RETAINED, FORGOTTEN], ax=axis, width=0.8, legend=False)
        axis.invert_yaxis()
        axis.set(title=TITLES[scenario], xlabel="training images", ylabel="")
        axis.grid(axis="y", visible=False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, ["retained", "forgotten"], loc="outside lower center", ncols=2)
    return figure


def training_curves(results):
    """Loss and tracked accuracies by epoch of Original and Gold, one row a scenario."""
    scenarios = list(dict.fromkeys(results.scenario))
    figure, axes = plt.subplots(len(scenarios), 2, figsize=(9.5, 3.3 * len(scenarios)), squeeze=False)
    trained = results[results.method.isin(["Original", "Gold"])]
    for row, scenario in zip(axes, scenarios):
        part = trained[trained.scenario == scenario]
        sns.lineplot(final(part, "loss"), x="epoch", y="value", hue="method", ax=row[0],
                     palette=method_colors(order(part)))  # fmt: skip
        row[0].set(title=TITLES[scenario], ylabel="training loss", ylim=(0, None))
        row[0].legend(title=None)
        _tracked(part, row[1], style="method")
        row[1].set(title=TITLES[scenario])
    return figure


def _tracked(part, axis, **style):
    rows = final(part, "tracked accuracy")
    sns.lineplot(rows, x="epoch", y="value", hue="set", palette=SETS, ax=axis, **style)
    axis.set(ylabel="accuracy, %", ylim=(-3, 103))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)


def curves(results):
    """Tracked accuracies by epoch, one panel a method; dashed lines are Gold's final accuracies on the same sets."""
    methods = results[~results.method.str.match("Original|Gold")]
    panels = list(dict.fromkeys(zip(methods.scenario, methods.method)))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(0.8 + 3.4 * columns, 0.7 + 2.9 * rows), sharey=True, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (scenario, method) in zip(axes.flat, panels):
        part = methods[(methods.scenario == scenario) & (methods.method == method)]
        rows_ = final(part, "tracked accuracy")
        gold = final(results[(results.scenario == scenario) & (results.method == "Gold")], "accuracy", set(rows_.set))
        for name, values in rows_.groupby("set", sort=False):
            mean = values.groupby("epoch").value.mean()
            axis.plot(mean.index, mean, color=SETS[name], marker=MARKERS[name], markersize=4, label=name)
            axis.axhline(gold[gold.set == name].value.mean(), color=SETS[name], linestyle="--", linewidth=1)
        axis.set(title=f"{method}\n{scenario}", xlabel="epoch", ylim=(-3, 103))
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy, %")
    _legend_of_sets(figure, results, "tracked accuracy", Line2D([], [], color="0.3", linestyle="--", label="Gold"))
    return figure


def _legend_of_sets(figure, results, metric, *more):
    sets = [name for name in SETS if name in set(final(results, metric).set)]
    handles = [Line2D([], [], color=SETS[name], marker=MARKERS[name], label=name) for name in sets]
    figure.legend(handles=[*handles, *more], loc="outside lower center", ncols=min(len(sets) + len(more), 7))


def retain_against_forget(results):
    """Retained against forgotten accuracy, one point a model: right is kept, as high as Gold is forgotten."""
    scenarios = list(dict.fromkeys(results.scenario))
    figure, axes = plt.subplots(1, len(scenarios), figsize=(5.6 * len(scenarios), 4.8), squeeze=False)
    for axis, scenario in zip(axes[0], scenarios):
        part = results[results.scenario == scenario]
        retain, forget = MAIN[scenario]
        wide = final(part, "accuracy", [retain, forget]).pivot_table(index="method", columns="set", values="value", sort=False)
        gold = wide.loc["Gold"]
        axis.axhline(gold[forget], color=GOLD, linewidth=1, zorder=0)
        axis.axvline(gold[retain], color=GOLD, linewidth=1, zorder=0)
        _points(axis, wide[retain], wide[forget])
        axis.set(title=TITLES[scenario], xlabel=f"{retain} accuracy, %", ylabel=f"{forget} accuracy, %")
    return figure


def _points(axis, x, y):
    """Labelled points; each label goes where there is most room among four places around its point."""
    colors = method_colors(x.index)
    axis.scatter(x, y, c=[colors[name] for name in x.index], s=46, zorder=3, edgecolors="white", linewidths=0.7)
    for axes_limits, values in ((axis.set_xlim, x), (axis.set_ylim, y)):
        pad = max(0.18 * (values.max() - values.min()), 0.5)
        axes_limits(values.min() - pad, values.max() + pad)
    axis.figure.canvas.draw()
    taken = [axis.transData.transform(point) for point in zip(x, y)]
    boxes = [(px - 5, py - 5, px + 5, py + 5) for px, py in taken]
    bounds = axis.get_window_extent()
    scale = axis.figure.dpi / 72
    for name, (px, py) in zip(x.index, taken):
        width, height = (5.2 * len(name) + 4) * scale, 11 * scale
        places = [(side, px + dx, py + dy) for d in (7, 16, 27, 40, 55) for side, dx, dy in
                  (("left", d, -height / 2), ("right", -d - width, -height / 2), ("center", -width / 2, d),
                   ("center", -width / 2, -d - height), ("left", d, d), ("right", -d - width, -d - height),
                   ("left", d, -d - height), ("right", -d - width, d))]  # fmt: skip
        candidates = [(left, low, left + width, low + height) for _, left, low in places]
        inside = [box for box in candidates if bounds.x0 < box[0] and box[2] < bounds.x1
                  and bounds.y0 < box[1] and box[3] < bounds.y1] or candidates  # fmt: skip
        best = min(inside, key=lambda box: (sum(_overlap(box, other) for other in boxes), abs(box[0] - px) + abs(box[1] - py)))
        boxes.append(best)
        axis.annotate(
            name, (px, py), xytext=((best[0] + best[2]) / 2, (best[1] + best[3]) / 2), xycoords="figure pixels",
            textcoords="figure pixels", ha="center", va="center", fontsize=8.5, color=colors[name],
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}, annotation_clip=False,
        )  # fmt: skip


def _overlap(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def grouped_bars(results, methods, sets):
    """Accuracy of `methods` on `sets` side by side, with an interval over seeds where there are several."""
    rows = final(results, "accuracy", sets)
    rows = rows[rows.method.isin(methods)]
    figure, axis = plt.subplots(figsize=(max(7, 1.35 * len(methods) + 1.5), 3.8))
    sns.barplot(rows, x="method", y="value", hue="set", order=methods, hue_order=sets, palette=SETS, ax=axis,
                errorbar=("ci", 95) if rows.seed.nunique() > 1 else None, seed=0)  # fmt: skip
    axis.set(xlabel="", ylabel="accuracy, %", ylim=(0, 105))
    axis.set_xticks(axis.get_xticks(), [textwrap.fill(m, 10) for m in methods])
    axis.grid(axis="x", visible=False)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(sets))
    return figure


def trends(results, methods, ylabel, value):
    """A quantity by epoch, one line a method; `value` maps a method's tidy rows to a series indexed by epoch."""
    figure, axis = plt.subplots(figsize=(7.2, 3.6))
    palette = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]
    for method, color, marker in zip(methods, palette, "osD^"):
        series = value(results[results.method == method])
        axis.plot(series.index, series, color=color, marker=marker, markersize=5, label=method)
    axis.set(xlabel="epoch", ylabel=ylabel)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def by_epoch(metric, name=""):
    """For `trends`: the mean over seeds of a metric of a set."""
    return lambda rows: rows[(rows.metric == metric) & (rows.set == name)].groupby("epoch").value.mean()


def predicted_as(shares, classes, forgotten):
    """Heat map: what the forgotten class's test images are predicted as, one row a model; `shares` are percent."""
    figure, axis = plt.subplots(figsize=(1.6 + 0.82 * len(classes), 0.9 + 0.36 * len(shares)))
    sns.heatmap(shares, annot=True, fmt=".0f", cmap="cividis", vmin=0, vmax=100, ax=axis, linewidths=0.5,
                cbar_kws={"label": "% of images"}, annot_kws={"size": 8.5})  # fmt: skip
    axis.set(xlabel="", ylabel="")
    axis.set_xticks(axis.get_xticks(), classes, rotation=35, ha="right")
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
        axis.set_title(name, color=GOLD if name.startswith("Gold") else "black", fontsize=10.5)
        axis.set(xticks=[], yticks=[])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, markerscale=4)
    return figure


def gap_against_cost(points):
    """Mean accuracy gap to Gold against cost; a band is the Gold-against-Gold gap, the floor.

    `points` has scenario, method, gap, low, high, cost; the row whose method is `Gold 2` is the floor.
    """
    scenarios = list(dict.fromkeys(points.scenario))
    figure, axes = plt.subplots(1, len(scenarios), figsize=(5.8 * len(scenarios), 4.6), squeeze=False)
    for axis, scenario in zip(axes[0], scenarios):
        part = points[(points.scenario == scenario) & ~points.method.isin(["Gold", "Original"])].set_index("method")
        methods = part.drop("Gold 2", errors="ignore")
        axis.set_xscale("log")
        axis.errorbar(methods.cost, methods.gap, yerr=[methods.gap - methods.low, methods.high - methods.gap], fmt="none",
                      ecolor="0.6", linewidth=1)  # fmt: skip
        if "Gold 2" in part.index:
            axis.axhspan(0, part.gap["Gold 2"], color=GOLD, alpha=0.3, linewidth=0)
        _log_points(axis, methods.cost, methods.gap)
        axis.set(title=TITLES[scenario], xlabel="images seen, % of retraining", ylabel="mean accuracy gap to Gold, points")
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    floor = plt.Rectangle((0, 0), 1, 1, color=GOLD, alpha=0.3, linewidth=0)
    figure.legend([floor], ["floor: a second Gold's gap to Gold"], loc="outside lower center")
    return figure


def _log_points(axis, x, y):
    _points(axis, x, y)
    axis.set_xlim(x.min() / 1.8, x.max() * 1.8)


def distributions(values, xlabel):
    """Overlaid densities of a per-image quantity on the forgotten images; `values` maps names to arrays."""
    figure, axis = plt.subplots(figsize=(7, 3.4))
    colors = method_colors(values)
    table = pd.DataFrame([(name, v) for name, array in values.items() for v in np.asarray(array)], columns=["model", "value"])
    sns.ecdfplot(table, x="value", hue="model", palette=colors, ax=axis)
    axis.set(xlabel=xlabel, ylabel="share of images")
    return figure
