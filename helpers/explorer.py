"""Notebook 13: widgets over what has been run, and a method that runs live; where no one watches, one figure."""

import base64
import html
import inspect
import io
import os
import re
import threading
from dataclasses import dataclass
from functools import cached_property

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from IPython import get_ipython
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from . import plots, runs
from .budgets import BUDGETS
from .data import load_data
from .experiment import SCENARIOS, TRACKED, YARDSTICK, Experiment
from .literature import METHODS
from .methods import GROWTH
from .metrics import FORGOTTEN, accuracy, entropy, js_distance, predicted_shares
from .notebook import gap_points
from .training import Diverged
from .unlearning import find_method, unlearn


def watched():
    """Whether a person sees this kernel's widgets: in JupyterLab and Voila yes, under papermill or nbconvert no."""
    kernel = getattr(get_ipython(), "kernel", None)
    can_be_asked = getattr(kernel, "_allow_stdin", False)  # a client that executes without a person says no
    return "UNLEARNING_PROGRESS" not in os.environ and (
        can_be_asked or os.environ.get("SERVER_SOFTWARE", "").startswith("voila")
    )


def explore(suite):
    """Show the explorer; where no one watches, one figure of the method that ends nearest to Gold."""
    if watched():
        display(Explorer(suite).page)
    else:
        plots.keep(*static(suite))


def live(suite):
    """Show the page on which a method runs live; where no one watches, nothing."""
    if watched():
        display(Live(suite[0]).page)


def static(suite):
    """One figure, the name of its data, its own name and its alternative text; trains Original and Gold if need be."""
    figure = Figure(figsize=(11, 3.4 * len(suite)), layout="constrained")
    told = []
    for e, part in zip(suite, figure.subfigures(len(suite), 1, squeeze=False)[:, 0]):
        e.original, e.golds, e.unlearned(e.methods[0])
        view = View(Results(e))
        name = view.results.points.set_index("method").gap[view.results.methods].idxmin()
        view = View(view.results, name)
        left, right = part.subfigures(1, 2)
        told.append(f"{e.scenario}: " + accuracies(left, view) + "; " + certainty(right, view))
    return figure, suite[0].data.name, "13_explorer", ". ".join(told)


# --- what is shown ------------------------------------------------------------------------------------------------


class Results:
    """What has been run of one experiment, and what its panels share, each computed at most once."""

    def __init__(self, experiment):
        self.experiment = experiment
        self.runs = {run.name: run for run in experiment.there()}
        self.methods = [n for n, run in self.runs.items() if not re.fullmatch(YARDSTICK, n) and not run.diverged]
        self.forgotten = FORGOTTEN[experiment.scenario]
        self.embeddings = {}

    @property
    def ready(self):
        """Whether there is something to explore."""
        return bool(self.methods)

    @cached_property
    def points(self):
        return gap_points(self.experiment.table([self.runs[name] for name in self.methods]))

    def embedding(self, name):
        """The t-SNE of a model's panel, kept under `runs/`."""
        if name not in self.embeddings:
            run, e = self.runs[name], self.experiment
            asked = {"features": runs.key({"sum": run.features.double().sum().item(), "settings": run.settings})}
            path = e.folder / "tsne" / asked["features"]
            kept = runs.remember(path, asked, lambda: {"points": torch.from_numpy(plots.embed(run.features))})
            self.embeddings[name] = kept["points"].numpy()
        return self.embeddings[name]


@dataclass
class View:
    """What the controls choose: results, a method, an epoch and a forgotten image (None and 0: the last, the first)."""

    results: Results
    method: str = ""
    epoch: int | None = None
    image: int = 0

    def __post_init__(self):
        self.method = self.method or self.results.methods[0]
        self.run = self.results.runs[self.method]

    @property
    def three(self):
        """Original, Gold and the method, with their colours."""
        names = ["Original", "Gold", self.method]
        return [(self.results.runs[n], color) for n, color in zip(names, (plots.ORIGINAL, plots.GOLD, plots.METHOD))]

    def logits(self, run):
        """A model's logits on the forgotten images."""
        return run.logits[self.results.forgotten]


def accuracies(figure, view):
    """Tracked accuracies by epoch, a line at the chosen one; Gold's dashed. Returns a description."""
    axis, e = figure.subplots(), view.results.experiment
    draw_history(axis, e, view.run.history, view.results.runs["Gold"])
    epoch = view.epoch or len(view.run.history)
    axis.axvline(epoch, color="0.4", linewidth=1, zorder=0)
    axis.set_title(f"{view.method}: accuracy by epoch")
    values = view.run.history[epoch - 1].get("tracked", {}) if view.run.history else {}
    return f"{view.method}, epoch {epoch}: " + ", ".join(f"{n} {v:.1f} %" for n, v in values.items())


def draw_history(axis, e, history, gold=None, **style):
    """The tracked accuracies of a history, one line a set; dashed lines are those of a finished `gold`."""
    for name in TRACKED[e.scenario]:
        tracked = [(entry["epoch"], entry["tracked"][name]) for entry in history if "tracked" in entry]
        color, marker = plots.SETS[name], plots.MARKERS[name]
        axis.plot(*zip(*tracked), color=color, marker=marker, markersize=5, label=name, **style) if tracked else None
        if gold and gold.history:
            axis.axhline(gold.history[-1]["tracked"][name], color=color, linestyle="--", linewidth=1, zorder=0)
    axis.set(xlabel="epoch (dashed: Gold)", ylabel="accuracy, %", ylim=(-3, 103))
    plots.whole_epochs(axis)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def predictions(figure, view):
    """What the forgotten images are predicted as, a row a model."""
    axis, classes = figure.subplots(), view.results.experiment.data.classes
    shares = np.array([predicted_shares(view.logits(run)) for run, _ in view.three])
    names = [run.name for run, _ in view.three]
    axis.imshow(shares, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(shares):
        axis.text(column, row, f"{value:.0f}", ha="center", va="center", color="white" if value < 60 else "black")
    axis.set_xticks(range(len(classes)), classes, rotation=35, ha="right")
    axis.set_yticks(range(3), names)
    axis.grid(visible=False)
    gold = view.logits(view.results.runs["Gold"]).argmax(1)
    same = {run.name: 100 * (view.logits(run).argmax(1) == gold).double().mean().item() for run, _ in view.three}
    axis.set_title(f"{view.results.forgotten} images predicted as, %")
    agreement = ", ".join(f"{name} {same[name]:.0f} %" for name in names if name != "Gold")
    axis.set_xlabel(f"same class as Gold: {agreement}")
    return f"Predicted classes of the {view.results.forgotten} images; the same as Gold's: {agreement}"


def certainty(figure, view):
    """Histograms of the entropy and of the highest probability of each forgotten image's prediction."""
    axes, means = figure.subplots(1, 2), []
    for run, color in view.three:
        logits = view.logits(run).double()
        nats, top = entropy(logits).numpy(), logits.softmax(1).max(1).values.numpy()
        highest = np.log(logits.shape[1])
        for axis, values, limit in zip(axes, (nats, top), (highest, 1)):
            axis.hist(values, np.linspace(0, limit, 21), histtype="step", linewidth=2, color=color, label=run.name,
                      weights=np.full(len(values), 100 / len(values)))  # fmt: skip
        means.append(f"{run.name} {nats.mean():.2f}")
    axes[0].set(xlabel="entropy, nats", ylabel=f"% of the {view.results.forgotten} images")
    axes[1].set(xlabel="highest probability")
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return f"Mean entropy of predictions on the {view.results.forgotten} images, nats: " + ", ".join(means)


def one_image(view):
    """A forgotten image and what the three models say; the first is the one on which method and Gold differ most."""
    e, (_, gold, method) = view.results.experiment, [run for run, _ in view.three]
    apart = js_distance(view.logits(method), view.logits(gold))
    chosen = apart.argsort(descending=True, stable=True)[view.image % len(apart)].item()
    batches, classes = e.split.sets[view.results.forgotten], e.data.classes
    index = batches.index[chosen].item()
    label = classes[batches.labels[index]]
    bars, said = "", []
    for run, color in view.three:
        p = view.logits(run)[chosen].double().softmax(0).tolist()
        rows = "".join(BAR.format(name=html.escape(n), color=color, width=100 * v, value=v) for n, v in zip(classes, p))
        name = f"<caption><b>{html.escape(run.name)}</b></caption>"
        bars += f'<table style="margin: 0 0.8em; line-height: 1.4">{name}{rows}</table>'
        said.append(f"{run.name} {classes[int(np.argmax(p))]}")
    said = f"A forgotten {label} (image {index}). {', '.join(said)}; JSD to Gold {apart[chosen]:.3f}"
    png = io.BytesIO()
    Image.fromarray(batches.images[index].cpu().numpy()).save(png, "PNG")
    look = "width: 170px; height: 170px; image-rendering: pixelated"
    return f'<div style="display: flex; flex-wrap: wrap">{tag(png, said, look)}{bars}</div>', said


BAR = (
    '<tr><td style="text-align: right; padding-right: 0.5em">{name}</td><td style="width: 100px">'
    '<div style="background: {color}; border: 1px solid #888; height: 0.7em; width: {width:.1f}%"></div></td>'
    "<td>{value:.2f}</td></tr>"
)


def tsne(figure, view):
    """t-SNE panels of the three models: retained images grey, forgotten ones red."""
    is_forgotten = view.results.experiment.panel_is_forgotten
    for axis, (run, _) in zip(figure.subplots(1, 3), view.three):
        points = view.results.embedding(run.name)
        for label, part, color in (
            ("retained", ~is_forgotten, plots.RETAINED),
            ("forgotten", is_forgotten, plots.FORGOTTEN),
        ):
            axis.scatter(*points[part].T, s=6, color=color, alpha=0.65, linewidths=0, label=label)
        axis.set(xticks=[], yticks=[], title=run.name)
    figure.legend(*axis.get_legend_handles_labels(), loc="lower center", ncols=2, markerscale=3)
    return "t-SNE of features under Original, Gold and the method: retained images grey, forgotten ones red"


def cost(figure, view):
    """The mean gap to Gold against cost, a point a method, the chosen one ringed."""
    axis, points = figure.subplots(), view.results.points.set_index("method")
    methods = points.loc[view.results.methods]
    methods = methods.assign(cost=plots.cost_axis(axis, methods.cost))
    axis.scatter(methods.cost, methods.gap, color=plots.METHOD, s=40, edgecolors="white", zorder=3)
    axis.plot(methods.cost[view.method], methods.gap[view.method], "o", markersize=14, markerfacecolor="none",
              markeredgecolor="black", markeredgewidth=2)  # fmt: skip
    axis.axhline(points.gap["Original"], color=plots.ORIGINAL, linestyle=":", label="Original, untouched")
    if "Gold 2" in points.index:
        axis.axhspan(0, points.gap["Gold 2"], color=plots.GOLD, alpha=0.35, linewidth=0, label="floor: a second Gold")
    axis.set(ylabel="mean accuracy gap to Gold, points", ylim=(0, 1.15 * max(points.gap.max(), 0.1)))
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plots.label_points(axis, methods)
    gap, price = points.gap[view.method], points.cost[view.method]
    return f"{view.method}: mean gap to Gold {gap:.2f} points, at {price:.1f} % of the images that retraining saw"


PANELS = {  # title of a tab: what draws it, its size in inches, the margins of its axes
    "Accuracy": (accuracies, (8.6, 3.4), {"left": 0.08, "right": 0.8, "bottom": 0.17, "top": 0.9}),
    "Predictions": (predictions, (8.6, 2.9), {"left": 0.17, "right": 0.98, "bottom": 0.33, "top": 0.88}),
    "Certainty": (certainty, (9.6, 3.2), {"left": 0.08, "right": 0.8, "bottom": 0.18, "top": 0.97}),
    "Images": (one_image, None, None),
    "t-SNE": (tsne, (9.6, 3.7), {"left": 0.02, "right": 0.98, "bottom": 0.12, "top": 0.9}),
    "Gap and cost": (cost, (8.6, 3.8), {"left": 0.08, "right": 0.72, "bottom": 0.16, "top": 0.97}),
}


def picture(panel, view):
    """A panel as HTML, its description beneath it."""
    draw, size, margins = PANELS[panel]
    if size is None:
        markup, said = draw(view)
    else:
        figure = Figure(figsize=size, layout="none")
        said = draw(figure, view)
        figure.subplots_adjust(**margins)
        markup = image_tag(figure, said)
    return markup + f"<p>{html.escape(said)}.</p>"


def image_tag(figure, alt):
    """A figure as an `<img>` that carries its own pixels; drawn once, where `savefig` draws twice."""
    png = io.BytesIO()
    figure.set_dpi(100)
    FigureCanvasAgg(figure).print_png(png)
    return tag(png, alt, "max-width: 100%")


def tag(png, alt, style):
    """An `<img>` with its pixels and an alternative text."""
    pixels = base64.b64encode(png.getvalue()).decode()
    return f'<img src="data:image/png;base64,{pixels}" alt="{html.escape(alt)}" style="{style}">'


# --- the pages ----------------------------------------------------------------------------------------------------


class Explorer:
    """The page over what has been run: controls above, a tab a panel; only the tab in view is drawn, each view once."""

    def __init__(self, suite):
        self.opened, self.drawn = {}, {}
        choices = {f"{e.data.title}, {e.budget_name}": suite for e in suite[:1]} | others(suite)
        self.data = widgets.Dropdown(options=choices, description="data")
        self.scenario = widgets.Dropdown(description="scenario", layout={"width": "14rem"})
        self.seed = widgets.Dropdown(description="seed", layout={"width": "10rem"})
        self.method = widgets.Dropdown(description="method")
        self.epoch = widgets.IntSlider(description="epoch", min=1, max=1)
        self.image = widgets.IntSlider(description="image", min=1, max=1, continuous_update=True)
        self.tabs = widgets.Tab([widgets.HTML() for _ in PANELS], titles=list(PANELS))
        self.table, self.offer = widgets.HTML(), widgets.VBox()
        first = widgets.HBox([self.data, self.scenario, self.seed], layout={"flex_flow": "row wrap"})
        second = widgets.HBox([self.method, self.epoch, self.image], layout={"flex_flow": "row wrap"})
        self.body = widgets.VBox([second, self.table, self.tabs])
        self.page = widgets.VBox([first, self.offer, self.body])
        self.busy = False
        for control, trait, follow in (
            (self.data, "value", self.choose_data),
            (self.scenario, "value", self.choose_seeds),
            (self.seed, "value", self.choose_experiment),
            (self.method, "value", self.choose_method),
            (self.epoch, "value", self.draw),
            (self.image, "value", self.draw),
            (self.tabs, "selected_index", self.draw),
        ):
            control.observe(lambda _, follow=follow: self.update(follow), trait)
        self.update(self.choose_data)

    def update(self, follow):
        """Do what follows from a changed control; what it changes in other controls on the way is no news."""
        if not self.busy:
            self.busy = True
            try:
                follow()
            finally:
                self.busy = False

    @property
    def experiment(self):
        return next(e for e in self.data.value if e.scenario == self.scenario.value).with_seed(self.seed.value)

    def choose_data(self):
        fill(self.scenario, [e.scenario for e in self.data.value])
        self.choose_seeds()

    def choose_seeds(self):
        first = next(e for e in self.data.value if e.scenario == self.scenario.value)
        fill(self.seed, first.seeds_there(), first.seed)
        self.choose_experiment()

    def choose_experiment(self):
        key = self.data.label, self.scenario.value, self.seed.value
        if key not in self.opened or not self.opened[key].ready:
            self.opened[key] = Results(self.experiment)
        self.results = self.opened[key]
        ready = self.results.ready
        self.body.layout.display = None if ready else "none"
        self.offer.children = [] if ready else [offer(self.experiment, lambda: self.update(self.choose_experiment))]
        if ready:
            fill(self.method, self.results.methods)
            self.image.max = len(self.experiment.split.sets[self.results.forgotten].index)
            self.choose_method()

    def choose_method(self):
        view = View(self.results, self.method.value)
        epochs = max(len(view.run.history), 1)
        self.epoch.max, self.epoch.value = epochs, epochs
        self.table.value = compare(view)
        self.draw()

    def draw(self):
        """Draw the tab in view unless it shows this already."""
        panel = list(PANELS)[self.tabs.selected_index or 0]
        parts = {"Accuracy": {"epoch": self.epoch.value}, "Images": {"image": self.image.value - 1}}.get(panel, {})
        key = self.data.label, self.scenario.value, self.seed.value, self.method.value, panel, *parts.values()
        if key not in self.drawn:
            self.drawn[key] = picture(panel, View(self.results, self.method.value, **parts))
        target = self.tabs.children[self.tabs.selected_index or 0]
        if target.value != self.drawn[key]:
            target.value = self.drawn[key]


def fill(control, options, otherwise=None):
    """Give `control` its options; its value stays where it can, else it is `otherwise` or the first."""
    value = control.value if control.value in options else options[0] if otherwise is None else otherwise
    control.options = options
    control.value = value


def others(suite):
    """`{title: suite}` of the digits at the budgets with something under `runs/`, without what `suite` is."""
    digits, found = load_data("digits"), {}
    for budget in BUDGETS:
        candidates = [Experiment(digits, scenario, budget) for scenario in SCENARIOS]
        same = suite[0].data.identity == candidates[0].data.identity and suite[0].budget_name == budget
        there = [] if same else [e for e in candidates if e.there()]
        found |= {f"{digits.title}, {budget}": there} if there else {}
    return found


def compare(view):
    """The final accuracies of the three models, percent, as an HTML table."""
    labels = {name: batches.y.cpu() for name, batches in view.results.experiment.split.sets.items()}
    rows = {run.name: {n: accuracy(run.logits[n], y) for n, y in labels.items()} for run, _ in view.three}
    return accuracy_table(rows)


def accuracy_table(rows):
    """Percentages as HTML, a row a model, a column a set."""
    table = pd.DataFrame(rows).T.add_suffix(" %")
    table = table.to_html(float_format="{:.1f}".format, border=0, col_space=110, justify="left")
    return f'<div style="line-height: 1.5">{table}</div>'


def offer(experiment, after):
    """A button that trains what is missing to explore an experiment, with its progress; then calls `after`."""
    first = experiment.methods[0]
    button = widgets.Button(description="Train them", button_style="primary", icon="play")
    words = f"Nothing has been run here yet. Train Original, Gold and {first} at the budget {experiment.budget_name}?"
    status = widgets.HTML(f"<p>{words}</p>")

    def work():
        experiment.say = lambda line: setattr(status, "value", f"<p>{html.escape(line)}</p>")
        experiment.original, experiment.golds, experiment.unlearned(first)
        after()

    def start(_):
        button.disabled = True
        in_background(work, status)

    button.on_click(start)
    return widgets.VBox([status, button])


def in_background(work, status):
    """Run `work` in a thread; what goes wrong is shown in `status` and raised."""

    def run():
        try:
            work()
        except Exception as error:
            status.value = f"<p>{type(error).__name__}: {html.escape(str(error))}</p>"
            raise

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


class Live:
    """The page on which a method runs: its settings as sliders, run and stop, curves that grow, the last run beside."""

    def __init__(self, experiment):
        self.experiment, self.stopping, self.last, self.history = experiment, threading.Event(), [], []
        self.method = widgets.Dropdown(options=[n for n in METHODS if n in experiment.methods], description="method")
        self.sliders = widgets.VBox()
        self.run = widgets.Button(description="Run", button_style="primary", icon="play")
        self.stop = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.status, self.curves = widgets.HTML("<p>Nothing has run yet.</p>"), widgets.HTML()
        buttons = widgets.HBox([self.run, self.stop])
        left = widgets.VBox([self.method, self.sliders, buttons, self.status], layout={"width": "32rem"})
        self.page = widgets.HBox([left, self.curves], layout={"flex_flow": "row wrap"})
        self.method.observe(lambda _: self.choose(), "value")
        self.run.on_click(lambda _: self.start())
        self.stop.on_click(lambda _: self.stopping.set())
        self.choose()

    def choose(self):
        function, defaults = find_method(self.method.value)
        settings = {**defaults, **self.experiment.settings(self.method.value)}
        self.sliders.children = sliders(function, settings)

    def start(self):
        self.stopping.clear()
        self.run.disabled, self.stop.disabled = True, False
        self.last, self.history = self.history, []
        self.status.value = "<p>Starting from Original; it and Gold are trained first if they are not there.</p>"
        self.thread = in_background(self.work, self.status)

    def work(self):
        """One run, in a thread: whatever happens, the buttons come back."""
        e, name = self.experiment, self.method.value
        settings = {**e.settings(name), **{slider.description: slider.value for slider in self.sliders.children}}
        e.say = lambda line: setattr(self.status, "value", f"<p>{html.escape(line)}</p>")
        try:
            original = e.original.model
            self.note(name, e.track(original))
            unlearn(name, original, e.split, seed=e.seed, stop=self.stopping.is_set, **e.budget["unlearning"],
                    track=lambda model: self.note(name, e.track(model)), **settings)  # fmt: skip
            epochs, end = len(self.history) - 1, "stopped" if self.stopping.is_set() else "finished"
            words = f"<p><b>{name}</b> {end} after {epochs} epoch{'s' * (epochs != 1)}.</p>"
            self.status.value = words + self.comparison()
        except Diverged as error:
            self.status.value = f"<p>{html.escape(str(error))}</p>"
        finally:
            self.run.disabled, self.stop.disabled = False, True

    def note(self, name, measured):
        """Add an epoch to the curves and show them."""
        self.history.append({"epoch": len(self.history), "method": name, **measured})
        self.status.value = f"<p><b>{name}</b> epoch {len(self.history) - 1}</p>"
        self.curves.value = image_tag(*self.figure())
        return measured

    def figure(self):
        """This run solid, the last one pale, Gold dashed."""
        figure = Figure(figsize=(7.4, 3.8), layout="constrained")
        axis = figure.subplots()
        draw_history(axis, self.experiment, self.history, self.experiment.gold)
        legend = axis.get_legend_handles_labels()
        draw_history(axis, self.experiment, self.last, alpha=0.35, linestyle="-.")
        axis.legend(*legend, loc="center left", bbox_to_anchor=(1, 0.5))
        axis.set_title(self.history[0]["method"] + (f"; pale: {self.last[0]['method']}, before" if self.last else ""))
        return figure, "Accuracy on tracked sets by epoch of the run in progress, the last run pale, Gold dashed"

    def comparison(self):
        """The end of this run, of the last one and of Gold, percent on the tracked sets, as an HTML table."""
        ends = {"this run": self.history, "last run": self.last, "Gold": self.experiment.gold.history}
        rows = {name: history[-1]["tracked"] for name, history in ends.items() if history}
        return accuracy_table(rows)


def sliders(function, settings):
    """A slider for each numeric setting of a method, at its value in `settings` or in the signature."""
    made = []
    for name, parameter in inspect.signature(function).parameters.items():
        value = settings.get(name, parameter.default)
        look = {"description": name, "style": {"description_width": "7rem"}}
        if name == "growth":
            made.append(widgets.Dropdown(options=list(GROWTH), value=value, **look))
        elif name.startswith("lr"):
            made.append(widgets.FloatLogSlider(value, min=-6, max=0, step=0.25, readout_format=".1e", **look))
        elif type(value) is int:
            made.append(widgets.IntSlider(value, min=1 if value else 0, max=max(20, 2 * value), **look))
        elif type(value) is float:
            most = 20 * value if 0 < value < 0.05 else max(2.0, 2 * value)
            made.append(widgets.FloatSlider(value, min=0, max=most, step=most / 40, readout_format=".3g", **look))
    return made
