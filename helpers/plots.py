"""Figures: each function takes the tidy table (or runs) and returns a matplotlib figure; `keep` shows and saves it."""

import io
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from IPython.display import Image, display
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from sklearn.manifold import TSNE

from . import runs

# Okabe and Ito's colour-blind-safe palette. Retained and forgotten, Original and Gold look the same everywhere.
RETAINED, FORGOTTEN, VALIDATION, TEST = "#7f7f7f", "#D55E00", "#0072B2", "#56B4E9"
ORIGINAL, GOLD, METHOD = "#000000", "#E69F00", "#009E73"
GOLD_TEXT = "#8F6200"  # Gold's colour, dark enough to read on white
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


def curves(results):
    """Tracked accuracies by epoch, a row a scenario, a panel a method; dashed lines are Gold's final accuracies."""
    unlearned = final(results[~results.method.str.match("Original|Gold")], "tracked accuracy")
    methods = {scenario: order(part) for scenario, part in unlearned.groupby("scenario", sort=False)}
    if not methods:
        raise ValueError("there is no curve to draw: every method diverged")
    columns = max(map(len, methods.values()))
    figure, axes = plt.subplots(len(methods), columns, figsize=(2.2 + 2.7 * columns, 2.9 * len(methods)), squeeze=False)
    for row, (scenario, names) in zip(axes, methods.items()):
        here = results[results.scenario == scenario]
        gold = by_set(here[here.method == "Gold"])
        for axis, method in zip(row, names):
            part = here[here.method == method]
            _tracked(axis, part)
            for name in dict.fromkeys(final(part, "tracked accuracy").set):
                axis.axhline(gold[name], color=SETS[name], linestyle="--", linewidth=1, zorder=0)
            axis.set_title(f"{method}\n{scenario} scenario", fontsize=10.5)
        for axis in row[1:]:
            axis.set_ylabel("")
            axis.tick_params(labelleft=False)
        for axis in row[len(names) :]:
            axis.axis("off")
        _sets_legend(row[len(names) - 1], part, Line2D([], [], color="0.3", linestyle="--", label="Gold, final"))
        whole_epochs(*row[: len(names)])
    return figure


def by_set(rows):
    """Final accuracy of each set, mean over seeds."""
    return final(rows, "accuracy").groupby("set").value.mean()


def accuracies(results):
    """Retained against forgotten accuracy and the rest, a row a model, a mark a set; vertical lines are Gold's.

    Over several seeds a mark is the mean and its bar the range of all seeds.
    """
    scenarios = list(dict.fromkeys(results.scenario))
    rows = max(results[results.scenario == scenario].method.nunique() for scenario in scenarios)
    figure, axes = plt.subplots(1, len(scenarios), figsize=(5.6 * len(scenarios), 1.6 + 0.3 * rows), squeeze=False)
    for axis, scenario in zip(axes[0], scenarios):
        part = final(results[results.scenario == scenario], "accuracy")
        methods = order(part)
        for name in reversed([name for name in SETS if name in set(part.set)]):
            values = part[part.set == name].groupby("method").value.agg(["mean", "min", "max"]).loc[methods]
            axis.hlines(range(len(methods)), values["min"], values["max"], color=SETS[name], linewidth=2)
            axis.scatter(values["mean"], range(len(methods)), color=SETS[name], marker=MARKERS[name], s=38,
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


def label_points(axis, x, y):
    """Name each point of a scatter; a label goes to the nearest place that covers no point and no other label."""
    axis.figure.draw_without_rendering()
    points = axis.transData.transform(np.column_stack([x, y]))
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in points]
    unit = axis.figure.dpi / 72
    bounds = axis.get_window_extent()
    for name, (px, py) in zip(map(code, x.index), points):
        width, height = (6.4 * len(name) + 3) * unit, 11 * unit
        places = [
            (px + r * np.cos(angle) - width / 2 * (1 - np.cos(angle)), py + r * np.sin(angle) - height / 2)
            for r in np.arange(8, 90, 6)
            for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False)
        ]
        boxes = [(left, low, left + width, low + height) for left, low in places]
        boxes = [b for b in boxes if bounds.x0 < b[0] and b[2] < bounds.x1 and bounds.y0 < b[1] and b[3] < bounds.y1]
        free = [box for box in boxes if not any(overlap(box, other) for other in taken)]
        left, low, right, high = (free or boxes)[0]
        taken.append((left, low, right, high))
        axis.annotate(name, (px, py), xytext=((left + right) / 2, (low + high) / 2), xycoords="figure pixels",
                      textcoords="figure pixels", ha="center", va="center", fontsize=9,
                      arrowprops={"arrowstyle": "-", "color": "0.65", "linewidth": 0.7})  # fmt: skip


def overlap(a, b):
    """Whether two boxes (left, low, right, high) share a point."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def grouped_bars(results, methods, sets):
    """Accuracy of `methods` on `sets` side by side, with an interval over seeds where there are several."""
    rows = final(results, "accuracy", sets)
    rows = rows[rows.method.isin(methods)]
    figure, axis = plt.subplots(figsize=(max(7, 1.35 * len(methods) + 1.5), 3.8))
    sns.barplot(rows, x="method", y="value", hue="set", order=methods, hue_order=sets, palette=SETS, ax=axis,
                errorbar=("ci", 95) if rows.seed.nunique() > 1 else None, seed=0)  # fmt: skip
    axis.set(xlabel="", ylabel="accuracy, %", ylim=(0, 105))
    axis.set_xticks(range(len(methods)), [textwrap.fill(m, 10) for m in methods])
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


def gap_against_cost(points):
    """Mean accuracy gap to Gold against cost; a band is the Gold-against-Gold gap, the floor.

    `points` is the table of `notebook.gap_points`.
    """
    scenarios = list(dict.fromkeys(points.scenario))
    figure, axes = plt.subplots(1, len(scenarios), figsize=(5.4 * len(scenarios), 4.6), squeeze=False)
    for axis, scenario in zip(axes[0], scenarios):
        part = points[points.scenario == scenario].set_index("method")
        methods = part[~part.index.str.match("Original|Gold")]
        axis.axhline(part.gap["Original"], color=ORIGINAL, linestyle=":", linewidth=1.5, label="Original, untouched")
        if "Gold 2" in part.index:
            axis.axhspan(0, part.gap["Gold 2"], color=GOLD, alpha=0.35, linewidth=0, label="floor: a second Gold")
        axis.errorbar(methods.cost, methods.gap, yerr=[methods.gap - methods.low, methods.high - methods.gap], fmt="o",
                      color=METHOD, ecolor="0.6", elinewidth=1, markersize=6.5, markeredgecolor="white")  # fmt: skip
        axis.set_xscale("log")
        axis.set_xlim(methods.cost.min() / 1.6, methods.cost.max() * 1.6)
        axis.set_ylim(0, 1.15 * max(methods.high.max(), part.gap["Original"], 0.1))
        axis.set(
            title=TITLES[scenario], xlabel="images seen, % of retraining", ylabel="mean accuracy gap to Gold, points"
        )
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.legend(loc="lower center", bbox_to_anchor=(0.5, -0.32), ncols=2, fontsize=9.5)
        label_points(axis, methods.cost, methods.gap)
    return figure


def distributions(values, xlabel):
    """The share of images below each value of a per-image quantity; `values` maps models to arrays."""
    figure, axis = plt.subplots(figsize=(7, 3.2))
    others = iter((METHOD, VALIDATION, "#CC79A7"))
    for name, array in values.items():
        color = {"Original": ORIGINAL, "Gold": GOLD}.get(name) or next(others)
        axis.ecdf(np.asarray(array), color=color, linewidth=2.5 if name == "Gold" else 1.8, label=name)
    axis.set(xlabel=xlabel, ylabel="share of images")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
