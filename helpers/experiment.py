"""A scenario on one data set, at one budget and seed: its split, and its models, each trained at most once.

What `runs/` holds is found again by the settings that made it; whoever asks first trains, a notebook or the suite.
"""

import difflib
import inspect
import json
import os
import platform
import re
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from . import runs
from .budgets import BUDGETS
from .data import SPLIT_SEED, class_number, make_split
from .metrics import accuracy, measure, predict
from .models import build_model
from .training import Diverged, pick_device, precision, train
from .unlearning import find_method, source_of, unlearn

TRACKED = {"random": ("retain", "forget", "validation"), "class": ("train retain", "train forget", "test retain")}
SCENARIOS = ("random", "class")
STARTS = ("fresh", "chain")
YARDSTICK = r"Original|Gold( \d+)?"  # the names of what methods are compared with
COLUMNS = ["scenario", "seed", "method", "epoch", "set", "metric", "value"]


def check(scenario, budget, start):
    """Refuse a scenario, budget or start that there is not, naming the nearest one that there is."""
    asked = ("scenario", scenario, SCENARIOS), ("budget", budget, [*BUDGETS]), ("start", start, STARTS)
    for name, value, valid in asked:
        if value not in valid:
            near = difflib.get_close_matches(str(value), valid, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ValueError(f"{name} = {value!r}: one of {', '.join(valid)}{hint}")


class NotThere(LookupError):
    """A run does not lie under `runs/`, and making it was not asked for."""


@dataclass
class Run:
    """A trained or unlearned model as `runs/` keeps it.

    `history` has one dict an epoch; `cost` has seconds (evaluation excluded), steps and images; `logits` are
    those of each measured set, float32 `(n, classes)`; `features` those of the t-SNE panel, float32 `(m, width)`.
    A method that diverged says so in `diverged` and has nothing else.
    """

    name: str
    settings: dict
    history: list[dict]
    cost: dict
    machine: str
    logits: dict[str, torch.Tensor]
    features: torch.Tensor
    load_model: object = field(repr=False)
    diverged: str = ""

    @property
    def model(self):
        return self.load_model()


class Experiment:
    """One scenario: `split`, `original`, `golds`, and `unlearned(name)` for each method; `table` measures them.

    Args:
        budget: a name from `BUDGETS`.
        seed: of initial weights and shuffling. The split has its own seed and is the same for all.
        forget_index: in the random scenario, forget these training images (see `data.read_forget_list`).
        model: settings of `build_model` instead of the budget's, such as `{"name": "mobilenetv3_small_050"}`.
        start: `fresh`, each method starts from Original; `chain`, in the random scenario each of the budget's methods
            starts from the model that the one before it in the table left, as document A's notebook did.
    """

    def __init__(
        self,
        data,
        scenario,
        budget="quick",
        seed=0,
        *,
        forget_class=None,
        forget_fraction=0.1,
        forget_index=None,
        model=None,
        start="fresh",
    ):
        check(scenario, budget, start)
        if scenario == "class" and forget_index is not None:
            raise ValueError("forget_index = a list: only the scenario random takes one; class forgets forget_class")
        self.budget = BUDGETS[budget][scenario] | ({"model": model} if model else {})
        self.data = head(data, self.budget.get("images"))
        self.scenario, self.budget_name, self.seed, self.start = scenario, budget, seed, start
        self.device = pick_device()
        self.say = say  # told one line now and then while something is made
        self._may_make = True
        if scenario == "random" and forget_index is not None:
            if self.data is not data:
                raise ValueError(f"budget {budget} takes part of the images only: a list of images needs another one")
            forgotten, described = {"forget_index": forget_index}, {"forget": runs.key(forget_index.tolist())}
        elif scenario == "random":
            forgotten = described = {"forget_fraction": forget_fraction}
        else:
            forgotten = described = {"forget_class": class_number(data, forget_class)}
        self.split_settings = {"scenario": scenario, "seed": SPLIT_SEED, **described}
        self.split = make_split(
            self.data,
            scenario,
            **forgotten,
            seed=SPLIT_SEED,
            evaluate_at_most=self.budget["evaluation"]["final"],
            device=self.device,
            **self.budget["batches"],
        )
        self.folder = runs.RUNS / "models" / f"{self.data.name}-{self.data.identity}" / scenario

    # --- models ---

    def fetch(self):
        """Download the weights that Original and Gold start from, where the budget names any.

        Raises:
            ConnectionError: they could not be.
        """
        for weights in (self.budget["model"].get("weights"), self.downloads_original and self.budget["original"]):
            if weights:
                self.build(weights=weights)

    @cached_property
    def original(self):
        """The model trained on everything; at `published` on the official CIFAR-10, the starting kit's checkpoint."""
        if self.downloads_original:
            return self._downloaded("Original")
        return self._trained("Original", self.split.train, self.seed)

    @property
    def downloads_original(self):
        """Whether Original is a checkpoint from elsewhere, made from these data for this network."""
        own_network = self.budget["model"] != BUDGETS[self.budget_name][self.scenario]["model"]
        return "original" in self.budget and self.data.title == "CIFAR-10 (official)" and not own_network

    @cached_property
    def golds(self):
        """Models that never saw the forgotten images. The first starts from Original's initial weights."""
        return [self.retrained(number) for number in range(self.budget["golds"])]

    @property
    def gold(self):
        return self.golds[0]

    def retrained(self, number):
        """One of the Golds, counted from 0."""
        name = f"Gold {number + 1}" if number else "Gold"
        return self._trained(name, self.split.retain, self.seed + 1000 * number)

    def unlearned(self, name, method=None, *, seed=None, **settings):
        """The model that a method leaves: one of the budget's by name, or your own function under a name of yours.

        Args:
            seed: of the unlearning alone, its shuffling and draws, where it is not to be the experiment's.
        """
        function, defaults = find_method(method or name)
        if re.fullmatch(YARDSTICK, name) or " v. " in name:
            raise ValueError(
                f"a method cannot be called '{name}': Original, Gold and ' v. ' name what it is compared with"
            )
        settings = {**defaults, **(self.settings(name) if method is None else {}), **settings}
        start = self._start(name)
        described = {
            "role": "unlearned",
            **self._common(self.seed),
            "training": self.budget["training"],
            "unlearning": self.budget["unlearning"],
            "method": function.__name__,
            "code": runs.key(source_of(function)),
            "settings": settings,
            "start": start.settings,
        }
        if method is not None:
            described["source"] = inspect.getsource(function)
        if seed is not None:
            described["unlearning seed"] = seed

        def make():
            try:
                result = unlearn(
                    function,
                    start.model,
                    self.split,
                    seed=self.seed if seed is None else seed,
                    track=self.track,
                    progress=lambda line: self.say(f"{self.scenario}: {name}  {line}"),
                    **self.budget["unlearning"],
                    **settings,
                )
            except Diverged as error:
                return {}, {"diverged": str(error), "history": [], "cost": {}}
            return result.model.state_dict(), {"history": result.history, "cost": result.cost}

        return self._kept(name, described, make)

    @property
    def methods(self):
        """The names of the documents' methods that this budget runs in this scenario."""
        return list(self.budget["methods"])

    @property
    def literature(self):
        """The names of the published methods beyond the documents that this budget runs in this scenario."""
        return list(self.budget["literature"])

    def settings(self, name):
        """The budget's settings of a method, over the method's own defaults."""
        return {**self.budget["methods"], **self.budget["literature"]}.get(name, {})

    def looking(self):
        """The same experiment, which finds what lies under `runs/`, makes nothing (`NotThere`) and says nothing."""
        seeker = copy(self)
        seeker._may_make, seeker.say = False, lambda line: None
        return seeker

    def there(self):
        """The `Run`s that lie under `runs/` already: Original, Golds, the budget's methods, own ones; trains none.

        Of an own method that was edited, the newest.
        """
        seeker, found = self.looking(), []
        with suppress(NotThere):
            found += [seeker.original, *seeker.golds]
        for name in self.methods:
            with suppress(NotThere):
                found.append(seeker.unlearned(name))
        with suppress(NotThere):
            found += seeker._own_methods()
        return found

    def _own_methods(self):
        """The newest `Run` of each method of one's own that started where it would start now."""
        newest = {}
        for name, settings in self._records():
            if "source" in settings and settings.get("unlearning") == self.budget["unlearning"]:
                start = json.loads(json.dumps(self._start(name).settings))
                if settings.get("start") == start:
                    with suppress(NotThere):
                        newest[name] = self._kept(name, settings, None)
        return list(newest.values())

    def _records(self):
        """Name and settings of each model under `runs/`, the newest last, without those that cannot be read."""
        found = []
        for file in self.folder.glob("*.json"):
            if not file.name.endswith((".partial.json", ".outputs.json")):
                with suppress(OSError, ValueError, KeyError, TypeError):  # damaged, or gone meanwhile
                    record = json.loads(file.read_text())
                    found.append((file.stat().st_mtime, record["name"], record["settings"]))
        return [(name, settings) for _, name, settings in sorted(found, key=lambda record: record[0])]

    def _start(self, name):
        """The run that a method starts from."""
        chained = self.start == "chain" and self.scenario == "random" and name in self.methods
        return self._before(name) if chained else self.original

    def _before(self, name):
        """In a chain: what the last method before `name` left that did not diverge, Original for the first."""
        earlier = map(self.unlearned, reversed(self.methods[: self.methods.index(name)]))
        return next((run for run in earlier if not run.diverged), self.original)

    def _common(self, seed):
        return {
            "data": self.data.identity,
            "split": self.split_settings,
            "model": self.budget["model"],
            "batches": self.budget["batches"],
            "seed": seed,
            "precision": precision(self.device),
        }

    def _settings(self, role, seed):
        """What determines Original or a Gold."""
        downloaded = role == "original" and self.downloads_original
        made = {"weights": self.budget["original"]} if downloaded else {"training": self.budget["training"]}
        return {"role": role, **self._common(seed), **made}

    def build(self, seed=0, **changes):
        """The budget's network for these classes, untrained unless `weights` are among its settings."""
        settings = {**self.budget["model"], **changes}
        return build_model(**settings, classes=len(self.data.classes), seed=seed).to(self.device)

    def _trained(self, name, batches, seed):
        role = "original" if name == "Original" else "retrained"
        settings = self._settings(role, seed)

        def make():
            model = self.build(seed)
            history = train(
                model,
                batches,
                seed=seed,
                checkpoint=self._path(name, settings).with_suffix(".partial"),
                track=self.track,
                progress=lambda line: self.say(f"{self.scenario}: {name}  {line}"),
                **self.budget["training"],
            )
            last = history[-1]
            seconds = sum(epoch["seconds"] for epoch in history)
            cost = {"seconds": seconds, "steps": last["steps"], "images": last["images"]}
            return model.state_dict(), {"history": history, "cost": cost}

        return self._kept(name, settings, make)

    def _downloaded(self, name):
        settings, weights = self._settings("original", self.seed), self.budget["original"]

        def make():
            nothing = {"seconds": 0.0, "steps": 0, "images": 0}
            return self.build(weights=weights).state_dict(), {"history": [], "cost": nothing}

        return self._kept(name, settings, make)

    def _path(self, name, settings):
        readable = "".join(c if c.isalnum() else "-" for c in name.lower())
        return self.folder / f"{readable}-seed{settings['seed']}-{runs.key(settings)}"

    def _kept(self, name, settings, make):
        """The run with these settings from `runs/`, or made and kept there; its outputs in a file beside it."""
        path, reused = self._path(name, settings), True
        if not self._may_make:
            if record := runs.load_record(path, settings):
                return self._run(name, settings, record)
            raise NotThere(name)

        def make_it():
            nonlocal reused
            reused = False
            weights, made = make()
            return weights, {"name": name, "machine": self.machine, **made}

        record = runs.once(path, settings, make_it)
        for leftover in path.parent.glob(f"{path.name}.partial*"):
            leftover.unlink(missing_ok=True)
        if reused:
            self.say(f"{self.scenario}: {name}  reused from runs/")
        return self._run(name, settings, record)

    def _run(self, name, settings, record):
        """The `Run` of a record that lies under `runs/`."""
        path = self._path(name, settings)

        def load_model():
            tensors, _ = runs.load(path, settings)
            model = self.build(weights=None)
            model.load_state_dict(tensors)
            return model.eval()

        if diverged := record.get("diverged", ""):
            return Run(name, settings, [], {}, record["machine"], {}, None, load_model, diverged)
        asked = {"weights": record["sha256"], "evaluation": self.budget["evaluation"]}
        if self._may_make:
            outputs = runs.remember(path.with_suffix(".outputs"), asked, lambda: self._outputs(load_model()))
        elif kept := runs.load(path.with_suffix(".outputs"), asked):
            outputs = kept[0]
        else:
            raise NotThere(name)
        if settings["role"] == "unlearned" and not all(tensor.isfinite().all() for tensor in outputs.values()):
            said = f"{name} diverged: its predictions are not finite"
            return Run(name, settings, [], {}, record["machine"], {}, None, load_model, said)
        logits = {name.removeprefix("logits "): t for name, t in outputs.items() if name.startswith("logits ")}
        history, cost = record["history"], record["cost"]
        return Run(name, settings, history, cost, record["machine"], logits, outputs["features"], load_model)

    # --- measurements ---

    @property
    def machine(self):
        """What the seconds were measured on."""
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name()}, {precision(self.device)}"
        threads = torch.get_num_threads()
        return (
            f"{platform.machine()} {self.device.type}, {threads} thread{'s' * (threads > 1)}, {precision(self.device)}"
        )

    def _outputs(self, model):
        self.say(f"{self.scenario}: evaluating")
        logits = {f"logits {name}": predict(model, batches)[0] for name, batches in self.split.sets.items()}
        return {**logits, "features": predict(model, self.panel)[1]}

    @cached_property
    def panel(self):
        """The images of the t-SNE panels, the same for every model: up to 320 retained, then as many forgotten ones."""
        size = min(320, len(self.split.forget.index), len(self.split.retain.index))
        index = torch.cat([sample(self.split.retain.index, size), sample(self.split.forget.index, size)])
        return replace(self.split.retain.fresh(), index=index, shuffle=False, batch_size=500)

    @property
    def panel_is_forgotten(self):
        """Which images of the panel are forgotten, bool numpy `(m,)`."""
        return np.isin(self.panel.index.cpu(), self.split.forget.index.cpu())

    def track(self, model):
        """Accuracies in percent on part of some sets, for a history."""
        at_most = self.budget["evaluation"]["tracked"]
        sets = {name: self.split.sets[name] for name in TRACKED[self.scenario]}
        sets = {name: replace(batches, index=sample(batches.index, at_most)) for name, batches in sets.items()}
        return {"tracked": {name: accuracy(predict(model, b)[0], b.y.cpu()) for name, b in sets.items()}}

    def table(self, methods=None):
        """One tidy table (scenario, seed, method, epoch, set, metric, value) of Original, the Golds and `methods`.

        `methods` are names or `Run`s, all of the budget's by default. Metrics of an epoch are tracked on part of a set
        and named so; those of the finished model carry its number of epochs. A diverged method has one row: it says so.
        """
        chosen = self.methods if methods is None else methods
        unlearned = [run if isinstance(run, Run) else self.unlearned(run) for run in chosen]
        return pd.concat([self._rows(run) for run in (self.original, *self.golds, *unlearned)], ignore_index=True)

    def _rows(self, run):
        if run.diverged:
            return pd.DataFrame([(self.scenario, self.seed, run.name, 0, "", "diverged", 1.0)], columns=COLUMNS)
        rows = [
            (entry["epoch"], name, "tracked accuracy", value)
            for entry in run.history
            for name, value in entry.get("tracked", {}).items()
        ]
        rows += [
            (entry["epoch"], "", metric, entry[metric])
            for entry in run.history
            for metric in ("loss", "s")
            if metric in entry
        ]
        measured = measure(run.logits, self.split, self.gold.logits)
        rows += [(len(run.history), row.set, row.metric, row.value) for row in measured.itertuples()]
        for unit, value in run.cost.items():
            rows.append((len(run.history), "", unit, value))
            rows.append((len(run.history), "", f"{unit}, % of retraining", 100 * value / self.gold.cost[unit]))
        table = pd.DataFrame(rows, columns=["epoch", "set", "metric", "value"])
        return table.assign(scenario=self.scenario, seed=self.seed, method=run.name)[COLUMNS]

    def with_seed(self, seed):
        """The same experiment, on the same split, at another seed."""
        if seed == self.seed:
            return self
        other = copy(self)
        other.seed = seed
        for made in ("original", "golds"):  # what this one has computed
            other.__dict__.pop(made, None)
        return other

    def seeds_there(self):
        """This seed and those for which Original, the Golds and all the budget's methods lie under `runs/`."""
        seeds = {settings.get("seed") for name, settings in self._records() if name == "Original"} - {self.seed}
        return sorted([self.seed, *filter(self._is_complete, seeds)])

    def _is_complete(self, seed):
        seeker = self.looking().with_seed(seed)
        try:
            _ = seeker.original, seeker.golds, [*map(seeker.unlearned, seeker.methods)]
        except NotThere:
            return False
        return True


def sample(index, at_most):
    """At most that many entries of `index`, always the same ones; all of them for None."""
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(SPLIT_SEED))
    return index if at_most is None else index[order[:at_most].to(index.device)]


def head(data, images):
    """`data` cut to a random `images` training and test images; all of them for None, or where there are no more."""
    if images is None or max(len(data.train_y), len(data.test_y)) <= images:
        return data
    rng = np.random.default_rng(SPLIT_SEED)
    train, test = (torch.from_numpy(rng.permutation(len(y))[:images]) for y in (data.train_y, data.test_y))
    cut = {"train_x": data.train_x[train], "train_y": data.train_y[train]}
    cut |= {"test_x": data.test_x[test], "test_y": data.test_y[test]}
    return replace(data, **cut, identity=f"{data.identity}-{images}")


def say(line):
    """Tell whoever waits what is going on: the suite through a file, a person in JupyterLab through a changing line."""
    if file := os.environ.get("UNLEARNING_PROGRESS"):
        with open(file, "a") as progress:
            progress.write(line + "\n")
    else:
        print(f"\r{line:<100}", end="", flush=True)
