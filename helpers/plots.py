"""Figures of tidy tables (`results.tidy`) and arrays; each function returns a matplotlib figure.

Functions with `ax` draw on those axes, or on a new figure if there are none; the others place several of them in one
figure. A colour has one meaning everywhere: see the constants below.
"""

import logging
import textwrap
import warnings
from functools import cache
from itertools import pairwise

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox, ScaledTranslation
from scipy.stats import mannwhitneyu, norm
from sklearn.manifold import TSNE

from .methods import METHODS
from .results.statistics import interval, pareto
from .scenario import SCENARIOS

RETAINED, FORGOTTEN, VALIDATION, TEST, TEST_FORGOTTEN = "#7f7f7f", "#D55E00", "#0072B2", "#56B4E9", "#0B3C8C"
SETS = {  # colour, marker
    "retain": (RETAINED, "o"),
    "forget": (FORGOTTEN, "s"),
    "validation": (VALIDATION, "D"),
    "test": (TEST, "^"),
    "test retain": (TEST, "^"),
    "test forget": (TEST_FORGOTTEN, "v"),
}
ORIGINAL, GOLD, GOLD_TEXT = "#000000", "#E69F00", "#8F6200"  # Gold's texts are darker, to be read on white
TRAINED_ON, NEVER_SAW = "#7A0177", "#1A9E96"  # models that were trained on an image, models that never saw it
PALETTE = ("#009E73", "#AA4499", "#332288", "#999933", "#6B4423", "#CC6677")  # methods in one figure
METHOD = PALETTE[0]
IDEAS = {  # methods by idea: colour, marker
    "relearn": ("#009E73", "o"),
    "push away": ("#882255", "^"),
    "relabel": ("#CC79A7", "s"),
    "distil": ("#332288", "D"),
    "edit weights": ("#999933", "v"),
    "own": ("#6B4423", "*"),
}
TITLES = {"random": "random scenario", "class": "class scenario"}
FAR = 3  # a gap of more than so many times Original's is drawn at the upper edge
HALO = [withStroke(linewidth=2.5, foreground="white")]

# --- style and text -----------------------------------------------------------------------------------------------


def use_style(texts=()):
    """Set theme and fonts for all figures that follow; `texts` are names that these show, such as those of classes."""
    text = {"font.family": fonts_for(texts), "text.parse_math": False}  # a class may be called $x$
    axes = {"axes.titlesize": 12, "axes.titleweight": "bold", "axes.edgecolor": "0.3"}
    legend = {"legend.frameon": False, "legend.fontsize": 9.5, "legend.title_fontsize": 9.5}
    sns.set_theme(rc={"figure.dpi": 110, "savefig.bbox": "tight", **text, **axes, **legend}, style="whitegrid")
    logging.getLogger("matplotlib.font_manager").setLevel("ERROR")  # silent about a fallback without a bold face


def fonts_for(texts):
    """Installed font families that have all letters of `texts`, DejaVu Sans first; one line reports missing letters."""
    missing = {ord(letter) for letter in "".join(texts) if letter.isprintable()}
    missing -= letters_of(fontManager.findfont("DejaVu Sans"))
    fonts, chosen = [font for font in fontManager.ttflist if missing and font.style == "normal"], ["DejaVu Sans"]
    for font in sorted(fonts, key=lambda font: -len(missing & letters_of(font.fname))):
        if missing & letters_of(font.fname):
            chosen.append(font.name)
            missing = missing - letters_of(font.fname)
    if missing:
        report_missing("".join(map(chr, sorted(missing))))
    return chosen


@cache
def report_missing(letters):
    """One line, once, on letters that figures show as boxes."""
    logging.getLogger(__name__).warning(f"no installed font has the letters {letters}: figures show boxes instead")
    warnings.filterwarnings("ignore", "Glyph .* missing from font")


@cache
def letters_of(file):
    """The code points for which a font has a glyph; none for TeX's fonts and for a font of placeholders."""
    try:
        font = FT2Font(file)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(() if font.family_name.startswith(("cm", "Last Resort")) else font.get_charmap())


def shorten(name, length):
    """`name`, its middle replaced by an ellipsis where it has more than `length` characters."""
    if len(name) <= length:
        return name
    start, end = name[: length - length // 3 - 1], name[len(name) - length // 3 :]
    if " " in start and " " in end:  # no half words
        return f"{start.rpartition(' ')[0]}… {end.partition(' ')[2]}"
    return f"{start}…{end}"


def fit(name, width, figure, **font):
    """`name` in at most three lines of at most `width` pixels; one that is too long loses its middle."""
    text = figure.text(0, 0, name, **font)
    for length in range(len(name), 0, -1):
        wrapped = (textwrap.wrap(shorten(name, total), length) for total in range(3 * length, 0, -1))
        text.set_text("\n".join(next(lines for lines in wrapped if len(lines) <= 3)))
        if text.get_window_extent().width <= width:
            break
    text.remove()
    return text.get_text()


def write(ax, text, place, offset=(0, 0), coordinates="data", **style):
    """A text on a white halo, `offset` points away from `place`."""
    style = {"fontsize": 9, "color": "0.3", "path_effects": HALO, "zorder": 5, **style}
    return ax.annotate(text, place, offset, coordinates, "offset points", annotation_clip=False, **style)


def text_colour(name):
    """The colour of a model's name."""
    return GOLD_TEXT if name == "Gold" else "black"


def percent(share):
    """`10 %`."""
    return f"{100 * share:.0f} %"


# --- axes ---------------------------------------------------------------------------------------------------------


def axes_on(ax, width, height):
    """`ax`, or the axes of a new figure of that size in inches."""
    return ax or grid(1, 1, width, height)[1][0, 0]


def grid(rows, columns, width, height, **options):
    """A new figure and its axes `(rows, columns)`."""
    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def by_scenario(table, width, height):
    """A new figure with a titled panel per scenario, each `width` inches wide, and `(ax, scenario, rows)` of each."""
    parts = list(table.groupby("scenario", sort=False))
    figure, axes = grid(1, len(parts), width * len(parts), height)
    for ax, (scenario, _) in zip(axes[0], parts):
        ax.set_title(TITLES[scenario])
    return figure, [(ax, *part) for ax, part in zip(axes[0], parts)]


def sentence(text):
    """A figure of one sentence."""
    figure = Figure((5, 0.6))
    figure.text(0.02, 0.5, text, va="center")
    return figure


def legend_right(ax, **options):
    """A legend at the right of `ax`."""
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), alignment="left", **options)


def legend_below(ax, **options):
    """The legend of `ax` below its figure, in one row."""
    handles = ax.get_legend_handles_labels()
    ax.figure.legend(*handles, loc="outside lower center", ncols=len(handles[0]), **options)


def name_models(ax, names, shift=0.5, golds=("Gold",)):
    """Write models' names on the vertical axis, row i at i + `shift`, Golds in gold."""
    ax.set_yticks(np.arange(len(names)) + shift, [shorten(name, 26) for name in names], rotation=0)
    for name, label in zip(names, ax.get_yticklabels()):
        label.set_color(GOLD_TEXT if name in golds else "black")


def whole_numbers(*axes):
    """Ticks at whole numbers on the horizontal axes."""
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def percent_limits(values):
    """Limits of an axis of percentages: a narrow band fills it, else it has all from 0 to 100."""
    low, high = np.nanmin(values), np.nanmax(values)
    margin = max(0.12 * (high - low), 1)
    return (-3, 103) if high - low > 45 else (max(low - margin, -3), min(high + margin, 103))


def spread(heights, gap):
    """Heights in [0, 1] in the same order, moved apart so that neighbours differ by at least `gap` if there is room."""
    order = np.argsort(heights, kind="stable")
    steps = min(gap, 1 / max(len(order) - 1, 1)) * np.arange(len(order))
    placed = np.maximum.accumulate(np.asarray(heights, float)[order] - steps) + steps
    return np.minimum(placed, 1 - steps[::-1])[np.argsort(order)]


def looks(names):
    """`{name: (colour, marker, line)}`: Original black, Golds gold, each method the same in all figures if it can be.

    A method's look follows from its place in the registry; where another name of the figure has it, the next is used.
    """
    found = {"Original": (ORIGINAL, "", "-"), "Gold": (GOLD, "", "-"), "Gold 2": (GOLD, "", ":")}
    others, count = [name for name in names if name not in found], len(PALETTE)
    free, order = list(range(count * (1 + len(others) // count))), list(METHODS)
    for name in others:
        wanted = order.index(name) if name in METHODS else 0
        i = min(free, key=lambda look: (look // count, (look - wanted) % count))
        free.remove(i)
        found[name] = PALETTE[i % count], "osD^vP"[i % count], "-" if i < count else "--"
    return found


# --- what tidy tables hold ----------------------------------------------------------------------------------------


def by_epoch(metric, name=""):
    """For `trends`: the function from a model's rows to a metric of a set by epoch, mean over seeds."""
    return lambda rows: rows[(rows.metric == metric) & (rows.set == name)].groupby("epoch").value.mean()


def at_end(metric, name=""):
    """For `trends`: the function from a model's rows to a metric of the finished model, mean over seeds."""
    return lambda rows: rows[(rows.metric == metric) & (rows.set == name)].value.mean()


def final_of(rows):
    """`{set: accuracy}` of a finished model on whole sets; mean over seeds."""
    return rows[rows.metric == "accuracy"].groupby("set", sort=False).value.mean().to_dict()


def of_kind(table, kind):
    """The rows of a kind: original, gold, method or shadow."""
    return table[table.kind == kind]


# --- data ---------------------------------------------------------------------------------------------------------


def images(batches, count, title, color, classes):
    """A strip of `count` images of a set with their classes beneath."""
    side = max(0.85, 2 / count)
    figure, axes = grid(1, count, side * count, side + 0.5)
    font = {"fontsize": 8, "fontfamily": fonts_for(classes)}
    for ax, i in zip(axes[0], batches.index[:count].tolist()):
        ax.imshow(batches.images[i].cpu().numpy())
        ax.set_xlabel(fit(classes[batches.labels[i]], figure.bbox.width / count - 6, figure, **font), font, color=color)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(color=color, linewidth=2)
    lines = max(ax.get_xlabel().count("\n") for ax in axes[0])
    figure.set_figheight(side + 0.5 + 0.14 * lines)
    figure.suptitle(title, color=color, fontsize=11, fontweight="bold")
    return figure


def class_counts(counts):
    """Stacked bars: images of each class, retained and forgotten; `counts` has scenario, class, part, images."""
    classes = list(dict.fromkeys(counts["class"]))
    height, size = (0.26, 10) if len(classes) <= 40 else (0.13, 6)
    figure, panels = by_scenario(counts, 5, 1.2 + height * len(classes))
    places, font = range(len(classes)), {"fontsize": size, "fontfamily": fonts_for(classes)}
    for ax, _, rows in panels:
        table = rows.pivot_table(index="class", columns="part", values="images", sort=False)
        ax.barh(places, table["retain"], color=RETAINED, label="retained")
        ax.barh(places, table["forget"], left=table["retain"], color=FORGOTTEN, label="forgotten")
        ax.set_yticks(places, [shorten(name, 24) for name in classes], **font)
        ax.set(xlabel="training images", xlim=(0, 1.06 * table.sum(axis=1).max()), ylim=(len(classes) - 0.4, -0.6))
        ax.grid(axis="y", visible=False)
    legend_below(ax)
    return figure


# --- curves by epoch ----------------------------------------------------------------------------------------------


def curve(ax, values, end, color, marker, **style):
    """A line of `values` by epoch; an open marker at its end for `end`, the value on the whole set, unless None."""
    ax.plot(values.index, values, **{"color": color, "marker": marker, "markersize": 4, **style})
    if end is not None and len(values):
        whole = {"markersize": 9, "markerfacecolor": "white", "markeredgecolor": color, "markeredgewidth": 1.8}
        ax.plot(values.index[-1], end, marker, zorder=4, clip_on=False, **whole)


def tracked_curves(tracked, ax, ends=None, gold=None, **style):
    """Accuracy in percent by epoch, from epoch 0 (before the first step), one line per tracked set.

    Args:
        tracked: `{set: series by epoch}`, on tracked images.
        ends: `{set: accuracy on the whole set}`, an open marker at the end of each curve.
        gold: the same of Gold, dashed lines; that of the forgotten images, the target, is bold and labelled.
    """
    ends, gold, shown = ends or {}, gold or {}, []
    for i, (name, values) in enumerate(tracked.items()):
        look = {"linewidth": 1.7 if i else 3.4, "label": name, **style}  # another curve may lie on the first
        curve(ax, values, ends.get(name), *SETS[name], **look)
        shown += [*values, ends.get(name, np.nan), gold.get(name, np.nan)]
        if name in gold:
            width = 2.6 if name == "forget" else 1.1
            ax.axhline(gold[name], color=SETS[name][0], linestyle="--", linewidth=width, zorder=1.5)
    if "forget" in gold and "forget" in tracked:
        place, offset = ((0.03, gold["forget"]), (0, 3) if gold["forget"] < 10 else (0, -12))
        style = {"color": GOLD_TEXT, "fontweight": "bold"}
        write(ax, f"Gold {gold['forget']:.1f}", place, offset, ("axes fraction", "data"), **style)
    ax.set(xlabel="epoch", ylabel="accuracy, %", ylim=percent_limits(shown))
    whole_numbers(ax)


def sets_legend(ax, counts):
    """A legend of tracked sets at the right of `ax`; `counts` maps each to how many images it is tracked on."""
    same, handles = len(set(counts.values())) == 1, []
    for name, count in counts.items():
        label = name if same else f"{name}: {count:,.0f} images"
        handles.append(Line2D([], [], color=SETS[name][0], marker=SETS[name][1], markersize=5, label=label))
    open_marker = {"marker": "o", "markerfacecolor": "white", "markersize": 9, "markeredgewidth": 1.8}
    handles.append(Line2D([], [], color="0.3", linestyle="", label="on the whole set", **open_marker))
    handles.append(Line2D([], [], color="0.3", linestyle="--", label="Gold, whole set"))
    title = f"tracked on {next(iter(counts.values())):,.0f} images" if same else "tracked on a part"
    legend_right(ax, handles=handles, title=title)


def tracked_panel(ax, rows, gold, title, **look):
    """The tracked accuracies of one model on `ax`; `rows` and `gold` are its and Gold's rows of one scenario."""
    tracked = rows[rows.metric == "tracked accuracy"].groupby("set", sort=False)
    by_set = {name: part.groupby("epoch").value.mean() for name, part in tracked}
    tracked_curves(by_set, ax, final_of(rows), final_of(gold))
    ax.set_title(title, **look)


def tracked_counts(rows):
    """`{set: how many images it is tracked on}`, of one model's rows."""
    return rows[rows.metric == "tracked images"].groupby("set", sort=False).value.max().to_dict()


def training_curves(results):
    """Training loss of Original and Gold, and the tracked accuracies of each by epoch; one row per scenario."""
    parts = list(results.groupby("scenario", sort=False))
    figure, axes = grid(len(parts), 3, 12, 3 * len(parts))
    for (loss, *others), (scenario, here) in zip(axes, parts):
        gold = here[here.method == "Gold"]
        for ax, name in zip(others, ("Original", "Gold")):
            rows = here[here.method == name]
            curve(loss, by_epoch("loss")(rows), None, looks([name])[name][0], ".", label=name)
            tracked_panel(ax, rows, gold, f"{name}, {TITLES[scenario]}", color=text_colour(name))
            ax.set_ylim(-3, 103)
        for ax in (loss, *others):
            ax.set_xlim(-0.03 * gold.epoch.max(), 1.05 * gold.epoch.max())
        loss.set(title=f"Training loss, {TITLES[scenario]}", xlabel="epoch", ylabel="cross-entropy, nats")
        loss.set_ylim(0, None)
        loss.legend()
        whole_numbers(loss)
        ax.set_ylabel("")
        sets_legend(ax, tracked_counts(rows))
    return figure


def curves(results):
    """Tracked accuracies by epoch, one panel per method, with the values on whole sets and Gold's."""
    tracked = of_kind(results, "method").query("metric == 'tracked accuracy'")
    panels = []  # of a row: the scenario and its methods
    for scenario, names in tracked.groupby("scenario", sort=False).method.unique().items():
        panels += [(scenario, names[start : start + 4]) for start in range(0, len(names), 4)]
    if not panels:
        return sentence("no curve: every method here diverged")
    columns = max(len(names) for _, names in panels)
    figure, axes = grid(len(panels), columns, 2.4 + 2.7 * columns, 2.9 * len(panels), sharey="row")
    for row, (scenario, names) in zip(axes, panels):
        here = results[results.scenario == scenario]
        for ax, method in zip(row, names):
            rows, title = here[here.method == method], f"{shorten(method, 24)}\n{TITLES[scenario]}"
            tracked_panel(ax, rows, here[here.method == "Gold"], title, fontsize=10.5)
        row[0].set_ylim(percent_limits(np.concatenate([line.get_ydata() for ax in row for line in ax.lines])))
        for ax in row[1:]:
            ax.set_ylabel("")
        for ax in row[len(names) :]:
            ax.set_axis_off()
        sets_legend(row[len(names) - 1], tracked_counts(rows))
    return figure


def trends(results, methods, ylabel, value, final=None, ax=None):
    """A quantity by epoch, one line per method, in one scenario.

    Args:
        value: maps a model's rows to a series by epoch, such as `by_epoch(...)`.
        final: maps them to the value on whole sets, such as `at_end(...)`: an open marker at the end of each line, and
            a dashed line for Gold.
    """
    ax, gold = axes_on(ax, 7.2, 3.6), results[results.method == "Gold"]
    if final and len(gold):
        ax.axhline(final(gold), color=GOLD, linestyle="--", linewidth=2.4, label="Gold")
    for i, method in enumerate(methods):
        rows, (color, marker, line) = results[results.method == method], looks(methods)[method]
        style = {"linewidth": max(3.6 - 0.7 * i, 1.5), "linestyle": line, "markersize": 5}  # one may lie on another
        curve(ax, value(rows), final and final(rows), color, marker, label=method, **style)
    ax.set(xlabel="epoch" + (" (open: on whole sets)" if final else ""), ylabel=ylabel)
    ax.set_title(TITLES[results.scenario.iloc[0]])
    whole_numbers(ax)
    legend_right(ax)
    return ax.figure


def schedule(results, methods):
    """Of one scenario's methods: the ascent weight s of each epoch as steps, and the loss of epochs without ascent."""
    figure, [[left, right]] = grid(1, 2, 10.5, 3.4)
    for i, method in enumerate(methods):
        rows, (color, marker, _) = results[results.method == method], looks(methods)[method]
        s, loss = by_epoch("s")(rows), by_epoch("loss")(rows)
        if s.empty:
            continue
        edges = np.arange(s.index[0] - 1, s.index[-1] + 1)
        width = max(6.5 - 1.7 * i, 1.4)  # one may lie on another
        left.stairs(s.reindex(edges[1:]), edges, baseline=None, color=color, linewidth=width, label=method)
        plain = loss[s.reindex(loss.index).eq(0) & (loss.index > 1)]
        curve(right, plain, None, color, marker, linewidth=1.4, markersize=7)
    left.set(xlabel="epochs done", ylabel="ascent weight s", title=f"Schedule, {TITLES[results.scenario.iloc[0]]}")
    right.set(xlabel="epoch", ylabel="cross-entropy, nats", title="Loss of epochs without ascent", xlim=left.get_xlim())
    right.margins(y=0.15)
    whole_numbers(left, right)
    legend_below(left)
    return figure


# --- final accuracies ---------------------------------------------------------------------------------------------


def accuracies(results):
    """Accuracy of every model, one row per model, one marker per set; vertical lines are Gold's.

    Over several seeds a marker is the mean and its bar the range.
    """
    results = results[results.metric == "accuracy"]
    most = results.groupby("scenario").method.nunique().max()
    figure, panels = by_scenario(results, 5.6, 1.6 + 0.36 * most)
    for ax, _, rows in panels:
        models, names = list(dict.fromkeys(rows.method)), [name for name in SETS if name in set(rows.set)]
        for name, shift in zip(names, np.linspace(-0.27, 0.27, len(names))):  # none hides another
            values = rows[rows.set == name].groupby("method").value.agg(["mean", "min", "max"]).loc[models]
            (color, marker), heights = SETS[name], np.arange(len(models)) + shift
            ax.hlines(heights, values["min"], values["max"], color=color, linewidth=2)
            look = {"color": color, "edgecolors": "white", "linewidths": 0.6, "zorder": 3}
            ax.scatter(values["mean"], heights, 32, marker=marker, label=name, **look)
            if "Gold" in values.index:
                ax.axvline(values["mean"]["Gold"], color=color, linestyle="--", linewidth=1.3, zorder=1.5)
        name_models(ax, models, 0, set(of_kind(rows, "gold").method))
        for i in range(1, len(models), 2):
            ax.axhspan(i - 0.5, i + 0.5, color="0.96", zorder=0)
        ax.grid(axis="y", visible=False)
        ax.set(xlabel="accuracy, %", xlim=percent_limits(rows.value), ylim=(len(models) - 0.4, -0.6))
        ax.plot([], [], color="0.3", linestyle="--", linewidth=1.3, label="Gold")
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -55 / ax.bbox.height), "ncols": 5}
        ax.legend(**below, fontsize=9, handletextpad=0.4, columnspacing=1)
    return figure


def against_setting(results, values, xlabel):
    """Accuracy on whole sets against a setting, `values` `{method: value}`, Gold's dashed; one panel per scenario."""
    figure, panels = by_scenario(results, 5.2, 3.2)
    for ax, scenario, here in panels:
        finals = {value: final_of(here[here.method == method]) for method, value in values.items()}
        lines = pd.DataFrame({value: final for value, final in finals.items() if final}).T.sort_index()
        shown = [name for name in ("retain", "forget", SCENARIOS[scenario].test) if name in lines]
        tracked_curves({name: lines[name] for name in shown}, ax, gold=final_of(here[here.method == "Gold"]))
        ax.set(xlabel=xlabel, xticks=list(values.values()))
        ax.plot([], [], color="0.3", linestyle="--", label="Gold")
        legend_right(ax)
    return figure


def against_rate(results, models):
    """Measures of finished models against the learning rate, one panel per measure, one line per method.

    Args:
        results: tidy rows of one scenario with a column `lr`, NaN for Original and Gold, whose values are dashed.
        models: `{title of a panel: (set, metric)}`.
    """
    figure, axes = grid(1, len(models), 3.6 * len(models), 3)
    style = looks(dict.fromkeys(results.method))
    for ax, (title, (name, metric)) in zip(axes[0], models.items()):
        values = results[(results.set == name) & (results.metric == metric)]
        for method, rows in values.groupby("method", sort=False):
            color, marker, line = style[method]
            if rows.lr.isna().all():
                ax.axhline(rows.value.iloc[0], color=color, linestyle="--", linewidth=1.3, label=method)
            else:
                rows = rows.sort_values("lr")
                ax.plot(rows.lr, rows.value, line, color=color, marker=marker, label=method)
        ax.set(title=title, xlabel="learning rate", xscale="log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
    legend_below(axes[0, 0])
    return figure


def against_found(results, metrics):
    """Each of `metrics` against the percentage of the corrupted images that is found, one line per model.

    Original and the clean Gold, which need no list of images, are dashed.

    Args:
        results: of `corrupt.tidy_rows`, of one corruption.
    """
    figure, axes = grid(1, len(metrics), 3.4 * len(metrics), 3.4)
    style = looks(dict.fromkeys(results.method[results.kind == "method"]))
    for ax, metric in zip(axes[0], metrics):
        here = results[results.metric == metric]
        for (kind, method), rows in here.groupby(["kind", "method"], sort=False):
            if kind in ("original", "reference"):
                color = ORIGINAL if kind == "original" else TEST
                ax.axhline(rows.value.item(), color=color, linestyle="--", linewidth=1.5, label=method)
            else:
                color, marker, line = style[method]
                ax.plot(rows.found, rows.value, line, color=color, marker=marker or "o", label=method)
        ax.set(title=textwrap.fill(metric, 22), xlabel="found, % of the corrupted images")
        ax.set_ylim(percent_limits(here.value))
        ax.set_xticks(sorted(set(results.found) - {0}))
    axes[0, 0].set_ylabel("percent")
    legend_below(axes[0, 0])
    return figure


def grouped_bars(results, methods, sets, ax=None):
    """Accuracy of `methods` on `sets` with its value, dashed lines at Gold's; the 95 % interval over several seeds."""
    rows = results[(results.metric == "accuracy") & results.set.isin(sets) & results.method.isin(methods)]
    ax = axes_on(ax, max(7, 1.5 * len(methods) + 1.5), 3.8)
    bars = {"x": "method", "y": "value", "hue": "set", "order": methods, "hue_order": sets, "saturation": 1}
    error = (lambda values: interval(values)[1:]) if rows.seed.nunique() > 1 else None
    sns.barplot(rows, **bars, palette={name: SETS[name][0] for name in sets}, errorbar=error, ax=ax)
    gold = final_of(results[results.method == "Gold"])
    for name, drawn in zip(sets, ax.containers):
        ax.bar_label(drawn, fmt="%.0f", fontsize=8, padding=1, path_effects=HALO)
        if name in gold:
            ax.axhline(gold[name], color=SETS[name][0], linestyle="--", linewidth=1.1, zorder=0.5)
    ax.set(xlabel="", ylabel="accuracy, % (dashed: Gold)", ylim=(0, 108))
    ax.set_xticks(range(len(methods)), [textwrap.fill(shorten(method, 26), 13) for method in methods])
    ax.grid(axis="x", visible=False)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(sets))
    return ax.figure


# --- predictions and features -------------------------------------------------------------------------------------


def predicted_as(shares, classes, forgotten, of="", ax=None):
    """Heat map: what the forgotten classes' test images are predicted as, one row per model.

    With more than 15 classes, those that are predicted most have a column, the others have one together.

    Args:
        shares: a table in percent, one column per class.
        forgotten: numbers of the forgotten classes, or one number.
        of: the images, for the title.
    """
    forgotten, names = [*np.atleast_1d(forgotten)], [*classes]
    shares = shares.set_axis(range(len(names)), axis=1)
    if len(names) > 15:
        rank = shares.max().drop(forgotten).sort_values(ascending=False, kind="stable").index
        kept = sorted([*forgotten, *rank[: 15 - len(forgotten)]])
        shares = shares[kept].assign(others=shares.drop(columns=kept).sum(axis=1))
        names = [*(classes[i] for i in kept), "other classes"]
    ax = axes_on(ax, 2.6 + 0.8 * len(names), 1.1 + 0.36 * len(shares))
    cells = {"annot": True, "fmt": ".0f", "annot_kws": {"size": 9}, "linewidths": 0.5, "cbar": False}
    sns.heatmap(shares, cmap="cividis", vmin=0, vmax=100, xticklabels=False, ax=ax, **cells)
    ax.set(xlabel="", ylabel="", title=": ".join([*([of] if of else []), "predicted as, % of images"]))
    name_models(ax, shares.index)
    if ax.figure.get_layout_engine():
        ax.figure.draw_without_rendering()
    font = {"fontsize": 9, "fontfamily": fonts_for(names), "fontweight": "bold"}
    width = ax.get_window_extent().width / len(names) - 5
    labels = [fit(name, width, ax.figure, **font) for name in names]
    ax.set_xticks(np.arange(len(names)) + 0.5, labels, rotation=0, **font)
    for column, label in zip(shares, ax.get_xticklabels()):
        is_forgotten = column in forgotten
        label.set(color=FORGOTTEN if is_forgotten else "0.15", fontweight="bold" if is_forgotten else "normal")
    return ax.figure


def embed(features):
    """t-SNE in two dimensions, as document B: perplexity 30 (less for few images), PCA start, fixed seed."""
    return TSNE(perplexity=min(30, (len(features) - 1) / 3), init="pca", random_state=0).fit_transform(features)


def embedding(points, is_forgotten, title, ax):
    """One t-SNE panel: `points` `(m, 2)`, retained images grey, forgotten ones orange."""
    for part, color, label in ((~is_forgotten, RETAINED, "retained"), (is_forgotten, FORGOTTEN, "forgotten")):
        ax.scatter(*points[part].T, s=6, color=color, alpha=0.55, linewidths=0, label=label)
    ax.set_title(shorten(title, 24), color=text_colour(title), fontsize=10.5)
    ax.set(xticks=[], yticks=[])


def tsne_panels(embeddings, is_forgotten, share):
    """One t-SNE panel per model; `embeddings` maps names to `(m, 2)`, `share` is that of D_f in the training images."""
    columns = min(5, len(embeddings))
    rows = -(-len(embeddings) // columns)
    figure, axes = grid(rows, columns, max(2.3 * columns, 6), 2.5 * rows + 0.5)
    for ax in axes.flat[len(embeddings) :]:
        ax.set_axis_off()
    for ax, (name, points) in zip(axes.flat, embeddings.items()):
        embedding(points, is_forgotten, name, ax)
    here, of_all = percent(is_forgotten.mean()), percent(share)
    title = f"{here} of the points are forgotten images (of the training images: {of_all})"
    legend_below(axes[0, 0], markerscale=4, title=title)
    return figure


# --- the gap to Gold against cost ---------------------------------------------------------------------------------


def gap_against_cost(points, floors=None):
    """Mean gap to Gold against cost, one labelled point with its interval per method; one panel per scenario.

    Args:
        points: the table of `results.tables.gap_points`: scenario, method, kind, gap, low, high, cost, group.
        floors: `{scenario: {"mean", "low", "high"}}`, the floor with its interval; without, the second Gold's gap.
    """
    scenarios = of_kind(points, "method").scenario
    if scenarios.empty:
        return sentence("no point: every method diverged")
    figure, panels = by_scenario(points[points.scenario.isin(scenarios)], 5.4, 4.6)
    handles = {}
    for ax, scenario, rows in panels:
        gap_panel(rows, (floors or {}).get(scenario), ax)
        handles |= {label: handle for handle, label in zip(*ax.get_legend_handles_labels())}
    handles = {label: handles[label] for label in [*IDEAS, *handles] if label in handles}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles), columnspacing=1.2)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # from here on nothing moves
    for ax, _, rows in panels:
        label_points(ax, of_kind(rows, "method"))
    return figure


def gap_panel(points, floor, ax):
    """One scenario's panel of `gap_against_cost`, without the names of the points (`label_points`).

    The axis of cost is logarithmic and its left edge is 0; that of the gap has square roots, to show small gaps.
    """
    methods, original = of_kind(points, "method"), of_kind(points, "original").gap.iloc[0]
    some = methods.cost[methods.cost > 0]
    left, right = (some.min() / 2.2, some.max() * 1.7) if len(some) else (0.1, 1)
    near = methods.high[methods.gap <= max(FAR * original, 1)]
    top = (1.15 if len(near) == len(methods) else 1.4) * max([*near, original, 1])
    ax.set(xscale="log", xlim=(left, right), xlabel="images processed, % of retraining")
    ticks = [n * 10.0**power for power in range(-6, 5) for n in (1, 2, 5)]
    ticks = [tick for tick in ticks if 1.3 * left < tick <= right]
    ax.set_xticks([left, *ticks], ["0", *(f"{tick:g}" for tick in ticks)])
    ax.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    ticks = [tick for tick in (0, 0.25, 1, 2, 5, 10, 20, 40, 70, 100) if tick <= top]
    ax.set(ylim=(0, top), ylabel="mean gap to Gold, points", yticks=ticks, yticklabels=[f"{tick:g}" for tick in ticks])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
    second = points[(points.kind == "gold") & (points.method != "Gold")].gap
    if floor is None and len(second):
        floor = {"low": 0, "mean": np.nan, "high": second.iloc[0]}
    if floor is not None and not np.isfinite(floor["high"]):  # one pair of Golds has no interval
        floor = {"low": 0, "mean": np.nan, "high": floor["mean"]}
    if floor is not None:
        low = max(floor["low"], 0)
        ax.axhspan(low, floor["high"], color=GOLD, alpha=0.35, linewidth=0)
        ax.axhline(floor["mean"], color=GOLD, linewidth=1.2, zorder=1)
        write(ax, "floor: Gold against Gold", (0.015, low), (0, 2), ("axes fraction", "data"), color=GOLD_TEXT)
    ax.axhline(original, color=ORIGINAL, linestyle=":", linewidth=1.2, zorder=1)
    ax.plot(left, original, "s", color=ORIGINAL, markersize=8, clip_on=False, zorder=4, label="Original")
    methods = on_axes(methods, ax)
    all_points = np.array([(left, original), *zip(methods.cost, methods.gap)])
    front = all_points[pareto(*all_points.T)]
    x, y = front[np.argsort(front[:, 0], kind="stable")].T.repeat(2, axis=1)  # stairs: level, then down
    ax.plot([*x[1:], right], y, color="0.35", linewidth=1.4, zorder=1.5, label="Pareto front")
    groups = methods.group.where(methods.group.isin([*IDEAS]), "own")
    for idea in groups.unique():
        rows, (color, marker) = methods[groups == idea], IDEAS[idea]
        look = {"color": color, "markeredgecolor": "white", "markeredgewidth": 0.7, "zorder": 3, "clip_on": False}
        error, size = [rows.gap - rows.low, rows.high - rows.gap], 11 if marker == "*" else 7
        ax.errorbar(rows.cost, rows.gap, error, label=idea, fmt=marker, markersize=size, **look)


def on_axes(points, ax):
    """The points, those of no cost moved to the left edge and those with a gap beyond the upper edge to that edge."""
    left, top = 1.05 * ax.get_xlim()[0], 0.95 * ax.get_ylim()[1]
    return points.assign(cost=points.cost.clip(lower=left), **points[["gap", "low", "high"]].clip(upper=top))


def label_points(ax, points):
    """Write the short name of each method at the nearest place where it covers no point, line or other name.

    A point beyond the upper edge is at that edge, and its gap is beside its name.

    A line leads to a name that is not right beside its point.
    """
    unit, panel, to_pixels = ax.figure.dpi / 72, ax.get_window_extent(), ax.transData.transform
    gaps, points = points.gap, on_axes(points, ax)
    dots, low, high = (to_pixels(np.c_[points.cost, points[name]]) for name in ("gap", "low", "high"))
    taken = [Bbox(corners) for corners in [*zip(dots - 5 * unit, dots + 5 * unit), *zip(low, high)]]
    taken += [text.get_window_extent() for text in ax.texts]
    lines = [line for line in ax.lines if line.get_linestyle() != "None"]
    paths = [line.get_transform().transform_path(line.get_path()) for line in lines]

    def is_free(box):
        return not box.count_overlaps(taken) and not any(path.intersects_bbox(box, filled=False) for path in paths)

    for method, point, dot, gap in zip(points.method, np.c_[points.cost, points.gap], dots, gaps):
        name = METHODS[method].short if method in METHODS else method
        name += f" ↑ {gap:.0f}" if gap > point[1] else ""
        label = write(ax, shorten(name, 18), point, color="0.15", ha="center", va="center", zorder=4)
        boxes = boxes_around(dot, np.add(label.get_window_extent().size, (3 * unit, 0)), unit)
        inside = [box for box in boxes if panel.count_contains(box.corners()) == 4]
        box = next(filter(is_free, inside), (inside or boxes)[0])
        taken.append(box)
        offset = (box.get_points().mean(0) - dot) / unit
        label.set_position(offset)
        if np.hypot(*(np.clip(dot, box.min, box.max) - dot)) > 10 * unit:
            arrow = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.7, "shrinkB": 0}
            ax.annotate("", point, offset, textcoords="offset points", zorder=1, arrowprops=arrow)


def boxes_around(point, size, unit):
    """Boxes of a size in 24 directions around a point, the nearest first; all in pixels, `unit` of them per point."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    distances = unit * np.arange(5, 150, 4)[:, None, None] + size / 2
    centres = (point + distances * np.c_[np.cos(angles), np.sin(angles)]).reshape(-1, 2)
    return [Bbox((centre - size / 2, centre + size / 2)) for centre in centres]


# --- attacks ------------------------------------------------------------------------------------------------------

ATTACKS = {  # metric: group, heading, decimals
    "UA": ("accuracy, %", "UA", 1),
    "RA": ("accuracy, %", "RA", 1),
    "TA": ("accuracy, %", "TA", 1),
    "MIA": ("membership attack, % classified as unseen", "confi-\ndence", 1),
    "MIA, entropy": ("membership attack, % classified as unseen", "entropy", 1),
    "MIA, modified entropy": ("membership attack, % classified as unseen", "modified\nentropy", 1),
    "MIA, probabilities": ("membership attack, % classified as unseen", "proba-\nbilities", 1),
    "kit MIA": ("other attacks", "kit\nMIA", 3),
    "RMIA AUC": ("other attacks", "RMIA\nAUC", 3),
    "RMIA TPR at 1 % FPR": ("other attacks", "RMIA TPR\nat 1 % FPR", 3),
    "Streisand KS": ("Streisand effect", "KS", 3),
    "Streisand AUC": ("Streisand effect", "AUC", 3),
    "ZRF": ("", "ZRF", 3),
    "class attack": ("", "class\nattack", 3),
}


def battery(values, floors, ax=None):
    """Heat map of attacks: the result on each model, coloured by its distance from the result on Gold.

    A cell is empty where there is no value.

    Args:
        values: one row per model (Original and Gold first), one column per attack.
        floors: for each attack the unit of the colours, above 0.
    """
    groups, headings, digits = zip(*(ATTACKS.get(name, ("", textwrap.fill(name, 10), 3)) for name in values))
    rounded = values.round(dict(zip(values, digits))) + 0.0  # no minus sign before a zero
    written = [[f"{value:.{n}f}".replace("-", "−") for value, n in zip(row, digits)] for row in rounded.to_numpy()]
    units = (values - values.loc["Gold"]).abs() / floors[values.columns]
    steps, colours = [0, 1, 2, 4, 8, 16], ["#FFFFFF", *sns.color_palette("Blues", 7)[1:6]]
    look = {"cmap": ListedColormap(colours), "norm": BoundaryNorm(steps, len(steps), extend="max")}
    look |= {"annot": written, "fmt": "", "annot_kws": {"size": 9}, "linewidths": 0.5, "linecolor": "0.85"}
    bar = {"ticks": steps, "format": "%g", "location": "bottom", "shrink": 0.5, "aspect": 40, "pad": 0.03}
    bar["label"] = "distance from Gold, in mean distances of two Golds (at least 0.5 points or 0.005)"
    ax = axes_on(ax, 2.6 + 0.72 * len(headings), 2.3 + 0.32 * len(values))
    sns.heatmap(units, mask=units.isna(), cbar_kws=bar, xticklabels=headings, ax=ax, **look)
    ax.collections[0].colorbar.outline.set(visible=True, edgecolor="0.6")
    ax.set(xlabel="", ylabel="", facecolor="0.88")
    ax.axhline(2, color="0.2", linewidth=1.6)
    name_models(ax, values.index)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.tick_params(axis="x", labelrotation=0, labelsize=9)
    group_headings(ax, groups)
    return ax.figure


def group_headings(ax, groups):
    """Write each run of equal `groups` over its columns, and draw lines beneath and between them."""
    edges = [i for i in range(len(groups) + 1) if i in (0, len(groups)) or groups[i] != groups[i - 1]]
    above = ax.get_xaxis_transform() + ScaledTranslation(0, 33 / 72, ax.figure.dpi_scale_trans)
    for start, stop in pairwise(edges):
        ax.axvline(start, color="0.2", linewidth=1.2 if start else 0)
        text = textwrap.fill(groups[start], max(11 * (stop - start), 14))
        style = {"ha": "center", "va": "bottom", "fontsize": 9.5, "fontweight": "bold"}
        write(ax, text, ((start + stop) / 2, 1), (0, 36), ("data", "axes fraction"), **style)
        if text:
            ends = [start + 0.08, stop - 0.08]
            ax.plot(ends, [1, 1], color="0.3", linewidth=1.2, clip_on=False, transform=above)


def relearn_curves(curves, original, ax=None):
    """Forget accuracy by gradient step of relearning, one line per model, the range over seeds as a band.

    Args:
        curves: the tables of `audit.relearn` with a column method (and seed).
        original: Original's forget accuracy in percent; the dashed line is 5 % below it.
    """
    ax, level, ends, names = axes_on(ax, 7.6, 3.9), 0.95 * original, [], list(dict.fromkeys(curves.method))
    for name in names:
        color, _, line = looks(names)[name]
        by_step = curves[curves.method == name].groupby("step").accuracy
        mean, width = by_step.mean(), 3 if name in ("Original", "Gold") else 1.5
        ax.plot(mean.index, mean, color=color, linestyle=line, linewidth=width, zorder=3.5 - width / 3, label=name)
        ax.fill_between(mean.index, by_step.min(), by_step.max(), color=color, alpha=0.1, linewidth=0)
        ends.append(mean.iloc[-1])
    label = "within 5 % of Original"
    ax.axhline(level, color="0.3", linestyle="--", linewidth=1, zorder=1, label=label)
    write(ax, label, (0.015, level), (0, 2), ("axes fraction", "data"))
    low, high = percent_limits([*curves.accuracy, level])
    ax.set(xlabel="gradient steps on forgotten and retained images", ylabel="forget accuracy, %")
    ax.set(xlim=(0, curves.step.max()), ylim=(low, high))
    whole_numbers(ax)
    heights = (np.array(ends) - low) / (high - low)
    for name, height, place in zip(names, heights, spread(heights, 0.062)):
        color = GOLD_TEXT if name in ("Gold", "Gold 2") else looks(names)[name][0]
        leader = {"arrowstyle": "-", "color": color, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)}
        style = {"fontsize": 9, "color": color, "fontweight": "bold" if name in ("Original", "Gold") else "normal"}
        where = (1, height), (1.05, place), "axes fraction", "axes fraction"
        ax.annotate(shorten(name, 22), *where, va="center", annotation_clip=False, arrowprops=leader, **style)
    return ax.figure


def margin_histograms(trained, never, pictures, names):
    """The basis of U-LiRA: one panel per image, its margins under models trained on it and models that never saw it.

    The curves are the normal distributions fitted to them. Fewer than 30 models are short lines, more a histogram.

    Args:
        trained, never: margins `(models, images)`.
        pictures: the images, uint8 `(images, size, size, 3)`.
        names: titles of the panels.
    """
    figure, axes = grid(2, len(names), max(2.5 * len(names), 5), 4, height_ratios=[1, 1.7])
    for i, (picture, ax) in enumerate(zip(*axes)):
        picture.imshow(np.asarray(pictures[i]))
        picture.set(xticks=[], yticks=[])
        picture.set_title(names[i], fontsize=10.5)
        sides = np.asarray(trained)[:, i], np.asarray(never)[:, i]
        edges = np.histogram_bin_edges(np.concatenate(sides), bins=20)
        beyond = 0.6 * (edges[-1] - edges[0])
        positions = np.linspace(edges[0] - beyond, edges[-1] + beyond, 200)
        for side, color, label in zip(sides, (TRAINED_ON, NEVER_SAW), ("trained on it", "never saw it")):
            density = norm.pdf(positions, side.mean(), max(side.std(ddof=1), 1e-6))
            ax.plot(positions, density, color=color, linewidth=2, label=label)
            if len(side) < 30:
                ax.fill_between(positions, density, color=color, alpha=0.15, linewidth=0)
                ax.vlines(side, 0, 0.12 * density.max(), color=color, linewidth=2)
            else:
                ax.hist(side, edges, density=True, color=color, alpha=0.35, linewidth=0)
        ax.set(yticks=[], xlabel="margin, nats")
        ax.set_ylim(0, None)
        ax.grid(visible=False)
    axes[1, 0].set_ylabel("density of models")
    legend_below(axes[1, 0])
    return figure


def loss_histograms(losses, unseen="test", axes=None):
    """Histograms of the loss on forgotten and on unseen images, one panel per model.

    A model that remembers the forgotten images has lower losses on them than on unseen ones; Gold does not.

    Args:
        losses: `{model: {set: cross-entropy of each image, nats}}` of Original, Gold and a method.
        unseen: the set of unseen images.
        axes: as many as models, on which to draw instead of on a new figure.
    """
    axes = grid(1, len(losses), 3.5 * len(losses), 3.5, sharey=True)[1][0] if axes is None else axes
    most = max(np.quantile(values, 0.999) for both in losses.values() for values in both.values())
    edges = np.geomspace(1e-4, max(most, 1), 26)
    for ax, (name, both) in zip(axes, losses.items()):
        for part, label in (("forget", "forgotten images"), (unseen, f"unseen images ({unseen})")):
            values, color = np.clip(both[part], *edges[[0, -1]]), SETS[part][0]
            bars = {"x": values, "bins": edges, "weights": np.full(len(values), 100 / len(values)), "color": color}
            ax.hist(**bars, alpha=0.45, linewidth=0, label=label)
            ax.hist(**bars, histtype="step", linewidth=1.6)
        pairs = mannwhitneyu(both[unseen], both["forget"]).statistic / len(both[unseen]) / len(both["forget"])
        text = f"the forgotten image has the lower loss\nin {percent(pairs)} of pairs (no difference: 50 %)"
        write(ax, text, (0.5, 0.97), coordinates="axes fraction", ha="center", va="top")
        ax.set_title(shorten(name, 28), color=text_colour(name))
        ax.set(xscale="log", xlabel="loss, nats (log scale)", xlim=edges[[0, -1]])
        ax.set_xticks([1e-4, 0.01, 1], ["≤ 0.0001", "0.01", "1"])
        ax.set_xticks([], minor=True)
    axes[0].set_ylabel("% of the images")
    axes[0].set_ylim(0, 1.25 * axes[0].get_ylim()[1])
    legend_below(axes[0])
    return axes[0].figure


def distributions(values, xlabel, classes, ax=None):
    """The share of images with a lower entropy, and a mark at that of a uniform prediction, ln(`classes`).

    `values` is `{model: entropy of each image, nats}`, one line per model.
    """
    ax = axes_on(ax, 7, 3.2)
    for name, array in values.items():
        color, _, line = looks(values)[name]
        width = 2.8 if name == "Gold" else 1.8
        ax.ecdf(np.asarray(array), color=color, linestyle=line, linewidth=width, label=name)
    highest = np.log(classes)
    ax.axvline(highest, color="0.3", linestyle=":", linewidth=1.4)
    write(ax, f"uniform: ln {classes}", (highest, 0.04), (-4, 0), ha="right")
    ax.set(xlabel=xlabel, ylabel="share of images\nwith lower entropy")
    ax.set(xlim=(-0.03 * highest, 1.03 * highest), ylim=(0, 1.02))
    legend_right(ax)
    return ax.figure


# --- guarantees ---------------------------------------------------------------------------------------------------

COVERED = {"exact": "full", "last layer only": "bottom", "none": "none"}  # guarantee: how much of a marker is full


def guarantee_costs(points):
    """Test accuracy against the share of retraining that is paid, one line per technique; one panel per scenario.

    Args:
        points: columns scenario, technique, label, cost (images, % of retraining), accuracy (test, %) and guarantee,
            one of `COVERED`; the techniques Original and Gold are references.
    """
    figure, panels = by_scenario(points, 5.2, 4.2)
    for ax, _, rows in panels:
        guarantee_panel(rows, ax)
    look = {"color": "0.4", "marker": "o", "markersize": 8, "markerfacecoloralt": "white", "linestyle": ""}
    fills = [Line2D([], [], fillstyle=fill, label=f"guarantee: {name}", **look) for name, fill in COVERED.items()]
    handles = [*panels[0][0].get_legend_handles_labels()[0], *fills]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, columnspacing=1.2)
    return figure


def guarantee_panel(points, ax=None):
    """One scenario's panel of `guarantee_costs`."""
    ax, names = axes_on(ax, 5.2, 4.2), list(dict.fromkeys(points.technique))
    for name in names:
        rows, (color, marker, line) = points[points.technique == name], looks(names)[name]
        if name in ("Original", "Gold"):
            marker, line = "s" if name == "Original" else "D", ""
            ax.axhline(rows.accuracy.iloc[0], color=color, linestyle=":", linewidth=1.2, zorder=1)
        ax.plot(rows.cost, rows.accuracy, line, color=color, linewidth=1.3, zorder=2)
        look = {"color": color, "markerfacecoloralt": "white", "markersize": 8, "linestyle": "", "clip_on": False}
        for guarantee, part in rows.groupby("guarantee", sort=False):
            ax.plot(part.cost, part.accuracy, marker=marker, fillstyle=COVERED[guarantee], zorder=3, **look)
        ax.plot([], [], line or "", color=color, marker=marker, markersize=8, label=name)
        for row in rows[rows.label != ""].itertuples():
            write(ax, row.label, (row.cost, row.accuracy), (0, 7), ha="center", va="bottom", fontsize=8.5)
    ax.set(xlabel="images processed, % of retraining", ylabel="test accuracy, %", xlim=(-6, 112))
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.08 * (high - low))
    return ax.figure
