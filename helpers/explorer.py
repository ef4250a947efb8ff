"""Widgets over finished runs, and a page on which a method runs live; without a viewer, one static figure."""

import base64
import html
import io
import math
import os
import threading
from dataclasses import dataclass
from functools import cached_property, partial

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from . import notebook, plots, store
from .datasets import DIGITS, load_data
from .experiment import Experiment
from .methods import DOCUMENTS, METHODS, PUBLISHED, find
from .metrics import accuracy, entropy, js_distance, losses, predicted_shares
from .presets import PRESETS
from .results.rows import tidy
from .results.tables import gap_points
from .scenario import SCENARIOS
from .training import Diverged, unlearn


def watched():
    """Whether a person sees this kernel's widgets: in JupyterLab and Voila yes, under papermill or nbconvert no."""
    kernel = getattr(get_ipython(), "kernel", None)
    accepts_input = getattr(kernel, "_allow_stdin", False)  # false for a client that executes without a person
    in_voila = os.environ.get("SERVER_SOFTWARE", "").startswith("voila")
    return "UNLEARNING_PROGRESS" not in os.environ and (accepts_input or in_voila)


def explore(suite):
    """Show the explorer; without a viewer, one figure of the method that is nearest to Gold."""
    if watched():
        display(Explorer(suite).page)
    else:
        figure, alt = static(suite)
        notebook.save_figure(figure, suite, "17_explorer", alt)


def live(suite):
    """Show the page on which a method runs live; without a viewer, nothing."""
    if watched():
        display(Live(suite).page)


def static(suite):
    """One figure of all scenarios and its alternative text; trains Original, Gold and a method if they are missing."""
    figure = Figure(figsize=(11, 3.4 * len(suite)), layout="constrained")
    descriptions = []
    for e, part in zip(suite, figure.subfigures(len(suite), 1, squeeze=False)[:, 0]):
        e.original(), e.golds(), e.unlearn(e.methods[0])
        results = Results(e)
        view = View(results, results.points.set_index("method").gap[results.methods].idxmin())
        left, right = part.subfigures(1, 2)
        descriptions.append(f"{e.scenario.name}: " + accuracies(left, view) + "; " + certainty(right, view))
    return figure, ". ".join(descriptions)


# --- what is shown ------------------------------------------------------------------------------------------------


class Results:
    """The finished runs of one experiment, and what their panels share, each computed at most once."""

    def __init__(self, experiment):
        self.experiment = experiment
        self.runs = {run.name: run for run in experiment.finished()}
        self.methods = [name for name, run in self.runs.items() if run.kind == "method" and not run.diverged]

    @cached_property
    def points(self):
        """Gap to Gold and cost of each method."""
        reader = self.experiment.read_only()
        return gap_points(tidy([reader], [self.runs[name] for name in self.methods]))

    def embedding(self, name):
        """The t-SNE of a model's panel, stored under `runs/`."""
        run = self.runs[name]
        path = self.experiment.folder / "tsne" / f"{run.id}.safetensors"
        settings = {"features": run.features.double().sum().item()}
        stored = store.remember(path, settings, lambda: {"points": torch.from_numpy(plots.embed(run.features))})
        return stored["points"].numpy()


@dataclass
class View:
    """What the controls choose: results, a method, an epoch and a forgotten image (by default the last, the first)."""

    results: Results
    method: str = ""
    epoch: int | None = None
    image: int = 0

    def __post_init__(self):
        self.method = self.method or self.results.methods[0]
        self.run = self.results.runs[self.method]
        self.scenario = self.results.experiment.scenario
        self.three = [self.results.runs[name] for name in ("Original", "Gold", self.method)]

    def logits(self, run):
        """A model's predictions on the forgotten images."""
        return run.logits[self.scenario.compared]


def whole_sets(e, run):
    """`{set: accuracy in percent}` of a run on whole sets."""
    return {name: accuracy(run.logits[name], batches.y.cpu()) for name, batches in e.split.sets.items()}


def tracked(history):
    """`{set: accuracy by epoch}` of a history."""
    entries = {entry["epoch"]: entry["tracked"] for entry in history if "tracked" in entry}
    return dict(pd.DataFrame.from_dict(entries, orient="index").items())


def draw_curves(ax, e, history, gold, ends=None):
    """The tracked accuracies of a history with Gold's values on whole sets, and their legend."""
    plots.tracked_curves(tracked(history), ax, ends, gold)
    plots.sets_legend(ax, {name: len(batches.index) for name, batches in e.tracked.items()})


def accuracies(figure, view):
    """Tracked accuracies by epoch, with a line at the chosen one. Returns a description."""
    ax, results = figure.subplots(), view.results
    ends, gold = (whole_sets(results.experiment, run) for run in (view.run, results.runs["Gold"]))
    draw_curves(ax, results.experiment, view.run.history, gold, ends)
    epoch = view.run.epochs if view.epoch is None else view.epoch
    ax.axvline(epoch, color="0.4", linewidth=1, zorder=0)
    ax.set_title(f"{plots.shorten(view.method, 30)}: accuracy by epoch")
    values = {name: series.get(epoch, np.nan) for name, series in tracked(view.run.history).items()}
    return f"{view.method}, epoch {epoch}: " + ", ".join(f"{name} {value:.1f} %" for name, value in values.items())


def predictions(figure, view):
    """What the forgotten images are predicted as, one row per model."""
    ax, e = figure.subplots(), view.results.experiment
    shares = pd.DataFrame({run.name: predicted_shares(view.logits(run)) for run in view.three}).T
    plots.predicted_as(shares, e.data.classes, e.split.forget_classes, ax=ax)
    _, gold, _ = view.three
    agree = {run.name: view.logits(run).argmax(1) == view.logits(gold).argmax(1) for run in view.three if run != gold}
    agreement = ", ".join(f"{name} {plots.percent(same.double().mean().item())}" for name, same in agree.items())
    ax.set_title(f"{view.scenario.compared} images predicted as, %")
    ax.set_xlabel(f"same class as Gold: {agreement}")
    return f"Predicted classes of the {view.scenario.compared} images; the same as Gold's: {agreement}"


def certainty(figure, view):
    """The distribution of the entropy of predictions on the forgotten images."""
    values = {run.name: entropy(view.logits(run).double()).numpy() for run in view.three}
    compared, classes = view.scenario.compared, len(view.results.experiment.data.classes)
    plots.distributions(values, f"entropy, nats ({compared} images)", classes, figure.subplots())
    means = ", ".join(f"{name} {nats.mean():.2f}" for name, nats in values.items())
    return f"Mean entropy of predictions on the {compared} images, nats: {means}"


def loss_panels(figure, view):
    """Histograms of the loss on forgotten and unseen images."""
    sets = "forget", view.scenario.unseen
    y = {name: view.results.experiment.split.sets[name].y.cpu() for name in sets}
    values = {run.name: {name: losses(run.logits[name], y[name]) for name in sets} for run in view.three}
    plots.loss_histograms(values, view.scenario.unseen, figure.subplots(1, 3, sharey=True))
    medians = {name: " and ".join(f"{np.median(both[part]):.2g}" for part in sets) for name, both in values.items()}
    words = ", ".join(f"{name} {pair}" for name, pair in medians.items())
    return f"Median loss on forgotten and unseen images, nats: {words}"


def one_image(figure, view):
    """A forgotten image and three models' predictions; the first is the one on which method and Gold differ most.

    Of many classes, the ten that are most probable under one of the models are shown.
    """
    e, (_, gold, method) = view.results.experiment, view.three
    distances = js_distance(view.logits(method), view.logits(gold))
    chosen = distances.argsort(descending=True, stable=True)[view.image % len(distances)].item()
    batches, classes = e.split.sets[view.scenario.compared], e.data.classes
    index = batches.index[chosen].item()
    shares = pd.DataFrame({run.name: view.logits(run)[chosen].double().softmax(0).numpy() for run in view.three})
    shown = shares.loc[shares.max(axis=1).nlargest(10).index].sort_index(ascending=False)
    labels = [plots.shorten(classes[i], 14) for i in shown.index]
    picture, *panels = figure.subplots(1, 4)
    picture.imshow(batches.images[index].cpu().numpy(), interpolation="nearest")
    picture.set_axis_off()
    for ax, name, color in zip(panels, shown, (plots.ORIGINAL, plots.GOLD, plots.METHOD)):
        bars = ax.barh(range(len(shown)), shown[name], color=color, tick_label=labels)
        ax.bar_label(bars, fmt="%.2f", fontsize=9, padding=3)
        ax.set(xlim=(0, 1.25), xticks=[])
        ax.set_title(plots.shorten(name, 20), fontsize=11, color=plots.text_colour(name))
        ax.tick_params(axis="y", labelsize=9, labelfontfamily=plots.fonts_for(labels))
        ax.grid(visible=False)
    predicted = ", ".join(f"{name} {classes[i]}" for name, i in shares.idxmax().items())
    image = f"A forgotten {classes[batches.labels[index]]} (image {index})"
    return f"{image}. {predicted}; JSD to Gold {distances[chosen]:.3f}"


def tsne(figure, view):
    """t-SNE panels of the three models: retained images grey, forgotten ones orange."""
    axes = figure.subplots(1, 3)
    for ax, run in zip(axes, view.three):
        points = view.results.embedding(run.name)
        plots.embedding(points, view.results.experiment.panel_is_forgotten, run.name, ax)
    plots.legend_below(axes[0], markerscale=3)
    return "t-SNE of features under Original, Gold and the method: retained images grey, forgotten ones orange"


def cost(figure, view):
    """The mean gap to Gold against cost, one point per method, the chosen one in a ring."""
    ax, points = figure.subplots(), view.results.points
    plots.gap_panel(points, None, ax)
    chosen = points[points.method == view.method].iloc[0]
    place = plots.on_axes(points, ax).loc[chosen.name, ["cost", "gap"]]
    ring = {"markersize": 15, "markerfacecolor": "none", "markeredgecolor": "black", "markeredgewidth": 2}
    ax.plot(*place, "o", zorder=5, clip_on=False, **ring)
    plots.label_points(ax, plots.of_kind(points, "method"))
    plots.legend_right(ax)
    return f"{view.method}: mean gap to Gold {chosen.gap:.2f} points at {chosen.cost:.1f} % of the cost of retraining"


PANELS = {  # title of a tab: function, size in inches, margins of its axes
    "Accuracy": (accuracies, (8.6, 3.4), {"left": 0.08, "right": 0.75, "bottom": 0.17, "top": 0.9}),
    "Predictions": (predictions, (9.6, 2.9), {"left": 0.17, "right": 0.98, "bottom": 0.36, "top": 0.88}),
    "Certainty": (certainty, (8.6, 3.2), {"left": 0.1, "right": 0.75, "bottom": 0.18, "top": 0.97}),
    "Losses": (loss_panels, (9.6, 3.6), {"left": 0.07, "right": 0.98, "bottom": 0.26, "top": 0.9}),
    "Images": (one_image, (9.6, 2.9), {"left": 0.01, "right": 0.98, "bottom": 0.06, "top": 0.88, "wspace": 0.35}),
    "t-SNE": (tsne, (9.6, 3.7), {"left": 0.02, "right": 0.98, "bottom": 0.12, "top": 0.9}),
    "Gap and cost": (cost, (8.6, 4.0), {"left": 0.08, "right": 0.78, "bottom": 0.16, "top": 0.95}),
}


def picture(panel, view):
    """A panel as HTML, its description beneath it."""
    draw, size, margins = PANELS[panel]
    figure = Figure(figsize=size, layout="none", dpi=100)
    figure.subplots_adjust(**margins)
    description = draw(figure, view)
    return f"{image_tag(figure, description)}<p>{html.escape(description)}.</p>"


def image_tag(figure, alt):
    """A figure as an `<img>` that contains its pixels; drawn once, while `savefig` draws twice."""
    png = io.BytesIO()
    figure.set_dpi(100)
    FigureCanvasAgg(figure).print_png(png)
    pixels = base64.b64encode(png.getvalue()).decode()
    return f'<img src="data:image/png;base64,{pixels}" alt="{html.escape(alt)}" style="max-width: 100%">'


def accuracy_table(rows):
    """`{model: {set: percent}}` as an HTML table, one row per model."""
    table = pd.DataFrame(rows).T.add_suffix(" %")
    table = table.to_html(float_format="{:.1f}".format, border=0, col_space=110, justify="left")
    return f'<div style="line-height: 1.5">{table}</div>'


# --- the pages ----------------------------------------------------------------------------------------------------


class Explorer:
    """The page over finished runs: controls above, one tab per panel; only the visible tab is drawn, each view once."""

    def __init__(self, suite):
        self.opened, self.drawn, self.busy = {}, {}, False
        choices = {f"{e.data.title}, {e.preset_name}": suite for e in suite[:1]} | others(suite)
        self.data = widgets.Dropdown(options=choices, description="data")
        self.scenario = widgets.Dropdown(description="scenario", layout={"width": "14rem"})
        self.seed = widgets.Dropdown(description="seed", layout={"width": "10rem"})
        self.method = widgets.Dropdown(description="method")
        self.epoch = widgets.IntSlider(description="epoch", min=0, max=0)
        self.image = widgets.IntSlider(description="image", min=1, max=1)
        self.tabs = widgets.Tab([widgets.HTML() for _ in PANELS], titles=list(PANELS))
        self.table, self.offer = widgets.HTML(), widgets.VBox()
        chosen, shown = (self.data, self.scenario, self.seed), (self.method, self.epoch, self.image)
        first, second = (widgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in (chosen, shown))
        self.body = widgets.VBox([second, self.table, self.tabs])
        self.page = widgets.VBox([first, self.offer, self.body])
        steps = self.choose_data, self.choose_scenario, self.choose_experiment, self.choose_method, *[self.draw] * 3
        for control, step in zip((*chosen, *shown, self.tabs), steps):
            trait = "selected_index" if control is self.tabs else "value"
            control.observe(lambda _, step=step: self.update(step), trait)
        self.update(self.choose_data)

    def update(self, follow):
        """Do what follows from a changed control; changes that this makes to other controls start nothing."""
        if not self.busy:
            self.busy = True
            try:
                follow()
            finally:
                self.busy = False

    def choose_data(self):
        fill(self.scenario, [e.scenario.name for e in self.data.value])
        self.choose_scenario()

    def choose_scenario(self):
        self.chosen = next(e for e in self.data.value if e.scenario.name == self.scenario.value)
        fill(self.seed, self.chosen.complete_seeds(), self.chosen.seed)
        self.choose_experiment()

    def choose_experiment(self):
        experiment = self.chosen.with_seed(self.seed.value)
        key = self.data.label, self.scenario.value, self.seed.value
        if key not in self.opened or not self.opened[key].methods:
            self.opened[key] = Results(experiment)
        self.results = self.opened[key]
        is_ready = bool(self.results.methods)
        self.offer.children = [] if is_ready else [offer(experiment, lambda: self.update(self.choose_experiment))]
        if is_ready:
            fill(self.method, self.results.methods)
            self.image.max = len(experiment.split.sets[experiment.scenario.compared].index)
            self.choose_method()
        self.body.layout.display = None if is_ready else "none"

    def choose_method(self):
        view = View(self.results, self.method.value)
        self.epoch.max, self.epoch.value = view.run.epochs, view.run.epochs
        self.table.value = accuracy_table({run.name: whole_sets(self.results.experiment, run) for run in view.three})
        self.draw()

    def draw(self):
        """Draw the visible tab unless it shows this view already."""
        panel = list(PANELS)[self.tabs.selected_index or 0]
        parts = {"Accuracy": {"epoch": self.epoch.value}, "Images": {"image": self.image.value - 1}}.get(panel, {})
        key = self.data.label, self.scenario.value, self.seed.value, self.method.value, panel, *parts.values()
        if key not in self.drawn:
            self.drawn[key] = picture(panel, View(self.results, self.method.value, **parts))
        self.tabs.children[self.tabs.selected_index or 0].value = self.drawn[key]


def fill(control, options, otherwise=None):
    """Set the options of `control`; a value that is among them stays, else it is `otherwise` or the first."""
    value = control.value if control.value in options else options[0] if otherwise is None else otherwise
    control.options = options
    control.value = value


def others(suite):
    """`{title: suite}` of the embedded digits at each preset with finished runs, without `suite` itself."""
    found = {}
    for data in map(load_data, DIGITS):
        for preset in PRESETS:
            candidates = [Experiment(data, scenario, preset) for scenario in SCENARIOS]
            same = suite[0].data.identity == candidates[0].data.identity and suite[0].preset_name == preset
            finished = [] if same else [e for e in candidates if e.folder.is_dir() and e.finished()]
            found |= {f"{data.title}, {preset}": finished} if finished else {}
    return found


def offer(experiment, after):
    """A button that trains what is missing to explore an experiment and shows its progress, then calls `after`."""
    first = experiment.methods[0]
    button = widgets.Button(description="Train them", button_style="primary", icon="play")
    status = widgets.HTML()
    say(status, f"No finished runs. Train Original, Gold and {first} at the preset {experiment.preset_name}?")

    def work():
        experiment.report = partial(say, status)
        experiment.original(), experiment.golds(), experiment.unlearn(first)
        after()

    def start(_):
        button.disabled = True
        in_background(work, status)

    button.on_click(start)
    return widgets.VBox([status, button])


def say(status, line, bold=""):
    """Show a line of text in an HTML widget, after a name in bold."""
    status.value = f"<p><b>{html.escape(bold)}</b> {html.escape(line)}</p>"


def in_background(work, status):
    """Run `work` in a thread; an error is shown in `status` and raised."""

    def run():
        try:
            work()
        except Exception as error:
            say(status, f"{type(error).__name__}: {error}")
            raise

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


class Live:
    """The page on which a method runs: controls for its settings, run and stop, growing curves, the last run pale."""

    def __init__(self, suite):
        self.stopping, self.last, self.history = threading.Event(), [], []
        self.scenario = widgets.Dropdown(options={e.scenario.name: e for e in suite}, description="scenario")
        self.method = widgets.Dropdown(description="method")
        self.settings = widgets.VBox()
        self.run = widgets.Button(description="Run", button_style="primary", icon="play")
        self.stop = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.status, self.curves = widgets.HTML("<p>Nothing has run yet.</p>"), widgets.HTML()
        controls = [self.scenario, self.method, self.settings, widgets.HBox([self.run, self.stop]), self.status]
        left = widgets.VBox(controls, layout={"width": "32rem"})
        self.page = widgets.HBox([left, self.curves], layout={"flex_flow": "row wrap"})
        self.scenario.observe(lambda _: self.choose_scenario(), "value")
        self.method.observe(lambda _: self.choose_method(), "value")
        self.run.on_click(lambda _: self.start())
        self.stop.on_click(lambda _: self.stopping.set())
        self.choose_scenario()

    def choose_scenario(self):
        self.history = []  # runs of two scenarios are not comparable
        fill(self.method, methods_of(self.scenario.value))
        self.choose_method()

    def choose_method(self):
        name = self.method.value
        settings = self.scenario.value.settings(name).items()
        controls = [control(key, find(name).setting(key), value) for key, value in settings]
        self.settings.children = [made for made in controls if made]

    def start(self):
        self.stopping.clear()
        self.run.disabled, self.stop.disabled = True, False
        self.last, self.history = self.history, []
        say(self.status, "Starting from Original; it and Gold are trained first if they are missing.")
        self.thread = in_background(self.work, self.status)

    def work(self):
        """One run, in a thread; the buttons are reset in any case."""
        e, name = self.scenario.value, self.method.value
        settings = {**e.settings(name), **{made.description: made.value for made in self.settings.children}}
        e.report = partial(say, self.status)
        try:
            original, gold = e.original(), e.gold()
            whole = whole_sets(e, gold)
            driver = {"seed": e.seed, "stop": self.stopping.is_set, **e.preset["unlearning"]}
            driver["track"] = lambda model: self.add(e, name, whole, e.track(model))
            unlearn(name, original.model, e.split, settings, **driver)
            epochs, end = len(self.history) - 1, "stopped" if self.stopping.is_set() else "finished"
            say(self.status, f"{end} after {epochs} epoch{'s' * (epochs != 1)}.", name)
            ends = {"this run": self.history, "last run": self.last, "Gold": gold.history}
            self.status.value += accuracy_table({key: past[-1]["tracked"] for key, past in ends.items() if past})
        except Diverged as error:
            say(self.status, str(error))
        finally:
            self.run.disabled, self.stop.disabled = False, True

    def add(self, e, name, gold, measured):
        """Add an epoch to the curves and show them."""
        self.history.append({"epoch": len(self.history), "method": name, **measured})
        say(self.status, f"epoch {len(self.history) - 1}", name)
        self.curves.value = image_tag(*self.figure(e, gold))
        return measured

    def figure(self, e, gold):
        """This run, the last one pale, Gold's values on whole sets dashed."""
        figure = Figure(figsize=(7.8, 3.8), layout="constrained")
        ax, limits = figure.subplots(), []
        if self.last:
            plots.tracked_curves(tracked(self.last), ax, alpha=0.35, linestyle="-.")
            limits += ax.get_ylim()
        draw_curves(ax, e, self.history, gold)
        limits += ax.get_ylim()
        ax.set_ylim(min(limits), max(limits))
        ax.set_title(self.history[0]["method"] + (f"; pale: {self.last[0]['method']}, before" if self.last else ""))
        return figure, "Accuracy on tracked sets by epoch of the run in progress, the last run pale, Gold dashed"


def methods_of(e):
    """The methods that can run live: those of the preset, then those that were registered from outside the suite."""
    outside = [name for name in METHODS if name not in (*DOCUMENTS, *PUBLISHED)]
    return [*e.methods, *e.published, *(name for name in outside if e.scenario.name in METHODS[name].scenarios)]


def control(name, setting, value):
    """A widget for a setting of a method, within its range; None for a setting that may be anything."""
    look = {"description": name, "style": {"description_width": "7rem"}, "value": value}
    if setting.choices:
        return widgets.Dropdown(options=setting.choices, **look)
    if setting.kind in (bool, str):
        return (widgets.Checkbox if setting.kind is bool else widgets.Text)(**look)
    if setting.kind not in (int, float):
        return None
    low = setting.low if math.isfinite(setting.low) else min(0, 2 * value)
    if setting.kind is float and setting.above and low == 0:
        power = math.floor(math.log10(value))
        return widgets.FloatLogSlider(min=power - 2, max=power + 3, step=0.1, readout_format=".2g", **look)
    high = max(20 if setting.kind is int else 2.0, 2 * value)
    if setting.kind is float and 0 < value < 0.05:
        high = 20 * value
    high = setting.high if math.isfinite(setting.high) else high
    if setting.kind is int:
        return widgets.IntSlider(min=int(low), max=int(high), **look)
    return widgets.FloatSlider(min=low, max=high, step=(high - low) / 100, readout_format=".3g", **look)
