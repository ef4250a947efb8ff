"""A scenario on one data set, at one preset and seed: its split, and its models, each trained at most once.

A model is found again under `runs/` by what determines it. Verbs train what is missing; no property trains.
"""

import inspect
import os
import platform
import subprocess
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError

from . import devices, methods, own, paths, store
from .data import SPLIT_SEED, class_numbers, make_split
from .datasets import load_data, read_forget_list, subset
from .fingerprint import file_digest
from .messages import report_progress
from .metrics import accuracy, measure, predict
from .models import build_model
from .parameters import check, checked
from .presets import NORMALISATIONS, PRESETS
from .training import Checkpoint, Diverged, train, unlearn
from .weights import load_weights, refuse_chance


class MissingRun(LookupError):
    """A run is not under `runs/`, and this experiment may not train."""


@dataclass
class Run:
    """A trained or unlearned model and what was measured on it.

    `history` and `cost` are those of `training.Trained`; `logits` are the predictions on each measured set, float32
    `(n, classes)`; `features` those of the t-SNE panel, float32 `(m, width)`. A method that diverged has the reason in
    `diverged` and no predictions.
    """

    id: str  # 12 hex digits that change with anything that determines the model
    name: str
    kind: str  # original, gold, method or shadow
    scenario: str
    seed: int
    settings: dict  # of a method, complete; empty for the others
    made_with: dict  # everything that determines the model
    history: list[dict]
    cost: dict
    environment: dict  # device, threads, versions
    logits: dict[str, torch.Tensor]
    features: torch.Tensor | None
    load_model: object = field(repr=False)
    diverged: str = ""
    settings_origin: str = ""

    @cached_property
    def model(self):
        """The network in evaluation mode, loaded when it is first used."""
        return self.load_model()

    @property
    def epochs(self):
        """How many epochs it ran."""
        return self.history[-1]["epoch"] if self.history else 0


class Experiment:
    """One scenario: `original()`, `gold()` and `unlearn(name)` return its runs.

    Args:
        preset: a name from `PRESETS`.
        seed: of initial weights and shuffling. The split has its own seed and is the same for all.
        forget_class: in the class scenario, a class or a list of classes, by name or index; by default the first.
        forget_index: in the random scenario, the training images to forget (see `datasets.read_forget_list`).
        model: the name of a timm model, `file.py:function` (see `own`), or settings of `build_model`, instead of the
            preset's network.
        image_size: side in pixels of the network's input instead of the preset's.
        flip: whether mirror images augment, if the data allow it.
        start: `fresh`, each method starts from Original; `chain`, in the random scenario each of the preset's methods
            starts from the model that the one before it left, as in document A's notebook.
        original: a weights file from which Original is loaded instead of trained (see `weights`).
        normalise: a name from `presets.NORMALISATIONS` instead of the preset's; with `original` by default "data".
        own_methods: a file with methods of a user's own (see `own`), which join the preset's.

    Raises:
        ValueError: an unknown scenario, preset, start or class, a forget set that the scenario does not accept, or a
            file that cannot be used.
    """

    def __init__(
        self,
        data,
        scenario,
        preset="quick",
        seed=0,
        *,
        forget_class=None,
        forget_fraction=0.1,
        forget_index=None,
        model=None,
        image_size=None,
        flip=True,
        start="fresh",
        original=None,
        normalise=None,
        own_methods=None,
    ):
        check("scenarios", [scenario])
        self.preset_name, self.start, self.seed = check("preset", preset), check("start", start), check("seed", seed)
        self.preset = dict(PRESETS[preset][scenario])
        self._change_input(image_size, flip, check("normalise", normalise or (original and "data")))
        self._change_network(model, image_size)
        self.own_methods = []
        if own_methods:
            self._add_methods(own.register_methods(own_methods), scenario)
        self.data = subset(data, self.preset.get("images"))
        self.device = devices.pick_device()
        self.report, self.may_train, self.role, self.golds_from, self.memo = report_progress, True, "", None, {}
        self.own_request = forget_class is not None or forget_index is not None or forget_fraction != 0.1
        forgotten, described = self._forgotten(scenario, data, forget_class, forget_fraction, forget_index)
        self.split_settings = {"scenario": scenario, "seed": SPLIT_SEED, **described}
        self.split = make_split(
            self.data,
            scenario,
            **forgotten,
            evaluate_at_most=self.preset["evaluation"]["final"],
            device=self.device,
            **self.preset["batches"],
        )
        self.scenario = self.split.scenario
        self.folder = paths.RUNS / "models" / f"{self.data.name}-{self.data.identity}" / scenario
        self.weights_file = original and Path(original).expanduser()
        if original:
            self._load_own_weights()  # a file that does not fit is refused now
            self.weights_digest = file_digest(self.weights_file)[:12]

    def _change_input(self, image_size, flip, normalise):
        """Change what a run may change of the preset's batches."""
        batches = dict(self.preset["batches"])
        if image_size:
            batches["image_size"] = image_size
        if not flip:
            batches["flip"] = False
        if normalise:
            batches = {name: value for name, value in batches.items() if name not in ("mean", "std")}
            batches |= NORMALISATIONS[normalise]
        self.preset["batches"] = batches

    def _change_network(self, model, image_size):
        """Put another network in place of the preset's, or another size of its input."""
        self.own_network = bool(model or image_size)
        self.network_file = model if own.is_own_network(model) else None
        if isinstance(model, str):
            named = own.network_settings(model) if self.network_file else {"name": model}
            self.preset["model"] = {**named, "image_size": self.preset["batches"]["image_size"]}
        elif model:
            self.preset["model"] = model
        elif image_size:
            self.preset["model"] = {**self.preset["model"], "image_size": image_size}

    def _add_methods(self, names, scenario):
        """Let methods run, be tuned and be audited beside the preset's, in the scenarios that they are for."""
        self.own_methods = names = [name for name in names if scenario in methods.METHODS[name].scenarios]
        audit = self.preset["audit"]
        self.preset["methods"] = {**self.preset["methods"], **{name: {} for name in names}}
        self.preset["audit"] = {**audit, "methods": [*audit["methods"], *names]}

    def _forgotten(self, scenario, data, forget_class, forget_fraction, forget_index):
        """What is forgotten, as arguments of `make_split` and as part of a model's key."""
        if scenario == "class":
            if forget_index is not None:
                raise ValueError("a list of images to forget needs the scenario random; class forgets forget_class")
            numbers = class_numbers(self.data, forget_class)
            return {"forget_class": numbers}, {"forget_class": list(numbers)}
        if forget_index is None:
            return {"forget_fraction": forget_fraction}, {"forget_fraction": forget_fraction}
        if self.data is not data:
            raise ValueError(
                f"preset {self.preset_name} uses part of the images: a list of images needs another preset"
            )
        return {"forget_index": forget_index}, {"forget": store.key(forget_index.tolist())}

    # --- models ---

    def original(self):
        """The `Run` trained on all images, or loaded: from a user's file, or the starting kit's checkpoint.

        Raises:
            ValueError: loaded weights are hardly better than chance on the test images.
        """
        kind = self.role or "original"
        if not (self.loads_original or self.downloads_original):
            return self._trained("Original", kind, self.split.train, self.seed)
        weights = self.weights_digest if self.loads_original else self.preset["original"]

        def make():
            model = self._load_own_weights(test=True) if self.loads_original else self.build(weights=weights)
            return model, {"history": [], "cost": {"seconds": 0.0, "steps": 0, "images": 0}}

        return self._run("Original", kind, {"weights": weights, **self._determines(self.seed)}, make)

    def _load_own_weights(self, test=False):
        """The network with the weights in the user's file; with `test`, refused if it is no better than chance."""
        model = load_weights(self.build(weights=None), self.weights_file, self.network, len(self.data.classes))
        if test:
            sets = [batches for name, batches in self.split.sets.items() if name not in ("retain", "forget")]
            logits, y = (torch.cat(parts) for parts in zip(*((predict(model, b)[0], b.y.cpu()) for b in sets)))
            refuse_chance(logits, y, self.data, self.weights_file, self.preset["batches"]["image_size"])
        return model

    def gold(self, number=1):
        """The `Run` of a model retrained without the forgotten images; number 1 shares Original's initial weights."""
        if self.golds_from:
            return self.golds_from.gold(number)
        name = "Gold" if number == 1 else f"Gold {number}"
        return self._trained(name, "gold", self.split.retain, self.seed + 1000 * (number - 1))

    def golds(self):
        """The `Run`s of all Golds of the preset."""
        return [self.gold(number + 1) for number in range(self.preset["golds"])]

    def unlearn(self, name, function=None, /, *, unlearning_seed=None, **settings):
        """The `Run` that a method leaves: one of the registry by its name, or your function under a name of yours.

        Args:
            unlearning_seed: of the method's shuffling and draws alone, if it is not to be the experiment's seed.
            settings: over the preset's settings of the method.

        Raises:
            ValueError: an unknown method or setting, a setting of the wrong type or range, or a reserved name.
        """
        methods.check_name(name)
        method = methods.find(function or name)
        origin = "set in the call" if settings else self.settings_origin(name)
        settings = method.check({**self._preset_settings(name), **settings})
        start = self._start(name)
        made_with = {
            **self._determines(self.seed),
            "training": self.preset["training"],
            "unlearning": self.preset["unlearning"],
            "method": method.function.__name__,
            "code": store.key(methods.source_of(method.function)),
            "settings": settings,
            "start": start.id,
        }
        if unlearning_seed is not None:
            made_with["unlearning seed"] = unlearning_seed
        is_own = function or name in own.FROM_FILES
        noted = {"started_from": start.name, **({"own": inspect.getsource(method.function)} if is_own else {})}

        def make():
            try:
                trained = unlearn(
                    replace(method, name=name),
                    start.model,
                    self.split,
                    settings,
                    seed=self.seed if unlearning_seed is None else unlearning_seed,
                    track=self.track,
                    progress=self._progress(name),
                    **self.preset["unlearning"],
                )
            except Diverged as error:
                return None, {"diverged": str(error), "history": [], "cost": {}, **noted}
            return trained.model, {"history": trained.history, "cost": trained.cost, **noted}

        return replace(self._run(name, "method", made_with, make), settings=settings, settings_origin=origin)

    @property
    def methods(self):
        """The names of the documents' methods that this preset runs in this scenario, and of a user's own."""
        return list(self.preset["methods"])

    @property
    def published(self):
        """The names of the methods published since that this preset runs in this scenario."""
        known = methods.METHODS
        return [name for name in self.preset["published"] if self.scenario.name in known[name].scenarios]

    def settings(self, name):
        """The complete settings with which this preset runs a method."""
        return methods.find(name).check(self._preset_settings(name))

    def _preset_settings(self, name):
        return {**self.preset["methods"], **self.preset["published"]}.get(name, {})

    def settings_origin(self, name):
        """Where a method's settings come from, in words."""
        for part in ("methods", "published"):
            if self.preset[part].get(name):
                return f"preset {self.preset_name}, chosen for {self.preset['written_for'][part]}"
        return f"defaults ({methods.METHODS[name].source})" if name in methods.METHODS else "defaults of the function"

    def build(self, seed=0, **changes):
        """The preset's network for these classes, untrained unless `weights` are among its settings."""
        settings, classes = {**self.preset["model"], **changes}, len(self.data.classes)
        if self.network_file:
            return own.build_network(self.network_file, classes, settings["image_size"], seed).to(self.device)
        return build_model(**settings, classes=classes, seed=seed).to(self.device)

    @property
    def network(self):
        """The network's name, and its depth where that is not the name's."""
        depth = self.preset["model"].get("depth")
        return self.preset["model"]["name"] + (f" cut to {depth} blocks" if depth else "")

    @cached_property
    def precision(self):
        """The type of number in which the network computes here."""
        return devices.precision(self.device, self.build(weights=None))

    def fetch(self):
        """Download the weights that Original and Gold start from, where the preset names any.

        Raises:
            ConnectionError: they could not be downloaded.
        """
        for weights in (self.preset["model"].get("weights"), self.downloads_original and self.preset["original"]):
            if weights:
                self.build(weights=weights)

    @property
    def downloads_original(self):
        """Whether Original is a checkpoint from elsewhere, made from these data for this network."""
        official = self.data.title == "CIFAR-10 (official)" and not self.own_network
        return "original" in self.preset and official and not self.role and not self.weights_file

    @property
    def loads_original(self):
        """Whether Original's weights are in a file of the user's; shadow models are trained."""
        return bool(self.weights_file) and not self.role

    # --- the same experiment, changed ---

    def derive(self, **changes):
        """A copy with these attributes changed, which shares no run with this one."""
        other = copy(self)
        other.memo = {}
        other.__dict__.pop("panel", None)
        vars(other).update(changes)
        return other

    def with_seed(self, seed):
        """The same experiment, on the same split, at another seed."""
        return self if seed == self.seed else self.derive(seed=seed)

    def read_only(self):
        """The same experiment, which raises `MissingRun` where it would have to train, and reports nothing."""
        return self.derive(may_train=False, report=lambda line: None)

    # --- what is under runs/ ---

    def finished(self):
        """The `Run`s that exist already: Original, Golds, the preset's methods, own ones (the newest of each name)."""
        reader, found = self.read_only(), []
        with suppress(MissingRun):
            found += [reader.original(), *reader.golds()]
        for name in [*self.methods, *self.published]:
            with suppress(MissingRun):
                found.append(reader.unlearn(name))
        with suppress(MissingRun):
            found += reader._own_runs()
        return found

    def _own_runs(self):
        """The newest `Run` of each own method that started where it would start now."""
        newest = {}
        for record in self._records():
            made_with = record["settings"]
            name = record["name"]
            if "own" not in record or name in self.methods:  # a methods file's are among the preset's
                continue
            if made_with["unlearning"] == self.preset["unlearning"] and made_with["start"] == self._start(name).id:
                run = self._run(name, "method", made_with, None)
                newest[name] = replace(run, settings=made_with["settings"], settings_origin="own method")
        return list(newest.values())

    def _records(self):
        """The record of each readable model of this data and scenario, the newest last."""
        found = []
        for file in self.folder.glob("*.safetensors"):
            with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError):  # damaged, or gone meanwhile
                found.append((file.stat().st_mtime, store.read_record(file)))
        return [record for _, record in sorted(found, key=lambda pair: pair[0])]

    def complete_seeds(self):
        """This seed, and those for which Original, the Golds and all the preset's methods exist."""
        seeds = {record["settings"].get("seed") for record in self._records() if record["name"] == "Original"}
        return sorted([self.seed, *(seed for seed in seeds - {self.seed, None} if self._is_complete(seed))])

    def _is_complete(self, seed):
        reader = self.with_seed(seed).read_only()
        try:
            _ = reader.original(), reader.golds(), [reader.unlearn(name) for name in reader.methods]
        except MissingRun:
            return False
        return True

    # --- where a method starts ---

    def _start(self, name):
        """The run that a method starts from."""
        chained = self.start == "chain" and self.scenario.name == "random" and name in self.methods
        return self._before(name) if chained else self.original()

    def _before(self, name):
        """In a chain: what the last method before `name` left that did not diverge; Original for the first."""
        earlier = map(self.unlearn, reversed(self.methods[: self.methods.index(name)]))
        return next((run for run in earlier if not run.diverged), self.original())

    def cost(self, run):
        """What a run cost, `{"seconds", "steps", "images"}`; in a chain with all methods between Original and it."""
        if run.kind != "method" or self._start(run.name).kind != "method":
            return run.cost
        before = self.cost(self._start(run.name))
        return {unit: before[unit] + value for unit, value in run.cost.items()}

    # --- making and storing ---

    def _determines(self, seed):
        """What determines every model of this experiment."""
        return {
            "data": self.data.identity,
            "split": self.split_settings,
            "model": self.preset["model"],
            "batches": self.preset["batches"],
            "evaluation": self.preset["evaluation"],
            "seed": seed,
            "precision": self.precision,
            "recipe": store.recipe(),
        }

    def _trained(self, name, kind, batches, seed):
        made_with = {"trained on": "retain" if kind == "gold" else "train", **self._determines(seed)}
        made_with["training"] = self.preset["training"]

        def make():
            checkpoint = Checkpoint(self._path(name, made_with).with_suffix(".partial"), made_with)
            model = self.build(seed)
            watch = {"track": self.track, "progress": self._progress(name), "name": f"training {name}"}
            trained = train(model, batches, seed=seed, checkpoint=checkpoint, **watch, **self.preset["training"])
            checkpoint.path.unlink(missing_ok=True)
            return trained.model, {"history": trained.history, "cost": trained.cost}

        return self._run(name, kind, made_with, make)

    def _path(self, name, made_with):
        readable = "".join(c if c.isalnum() else "-" for c in name.lower())
        return self.folder / f"{readable}-seed{made_with['seed']}-{store.key(made_with)}.safetensors"

    def _run(self, name, kind, made_with, make):
        """The run that was made with this, from memory, from `runs/`, or made now by `make` and stored."""
        made_with = {"name": name, **made_with}
        path = self._path(name, made_with)
        if path not in self.memo:
            model, made = None, []

            def make_once():
                made.append(make())
                return made[0]

            if self.may_train:
                found = store.get_or_make(path, made_with, lambda: self._measured(name, kind, make_once))
                if not made:
                    self.report(f"{self.scenario.name}: {name}, found in runs/")
                elif kind in ("original", "shadow"):  # others start from it, even if its weights are not stored
                    model = made[0][0].eval()
            else:
                found = store.load(path, made_with)
                if not found:
                    raise MissingRun(name)
            record, outputs = found
            self.memo[path] = Run(
                id=store.key(made_with),
                name=name,
                kind=kind,
                scenario=self.scenario.name,
                seed=self.seed,
                settings={},
                made_with=made_with,
                history=record["history"],
                cost=record["cost"],
                environment=record["environment"],
                logits={n: outputs[f"logits {n}"] for n in self.scenario.sets if f"logits {n}" in outputs},
                features=outputs.get("features"),
                load_model=cache(lambda: model or self._load_model(path, made_with, record, kind, make)),
                diverged=record.get("diverged", ""),
            )
        return self.memo[path]

    def _measured(self, name, kind, make, keep=None):
        """Arguments of `store.save`: outputs of the model that `make` returns, weights if they are kept, record."""
        model, record = make()
        outputs = {} if model is None else self._outputs(model)
        if kind == "method" and not all(tensor.isfinite().all() for tensor in outputs.values()):
            outputs, record["diverged"] = {}, f"{name} diverged: its predictions are not finite"
        keep = self.keeps_weights(name, kind) if keep is None else keep
        weights = model.state_dict() if model is not None and keep else None
        return outputs, weights, {"name": name, "kind": kind, "environment": environment(self), **record}

    def keeps_weights(self, name, kind):
        """Whether a model's weights are stored: all, those that notebooks use, or none (`presets`: keep_weights).

        `delivered`: those that a report on a request to forget delivers (see `forget`); Gold 2 is only compared.
        """
        kept = self.preset.get("keep_weights", "all")
        if kept == "delivered":
            return name != "Gold 2"
        if kept != "used":
            return kept == "all"
        if self.role:
            return kind == "shadow" and self.split_settings.get("shadow") == 0
        return kind in ("original", "gold") or name in (*self.methods, *self.preset["audit"]["methods"])

    def stored_bytes(self):
        """The size of all weights that a whole run of this experiment stores."""
        names = ["Original", *self.methods, *self.published]
        kept = sum(self.keeps_weights(name, "original" if name == "Original" else "method") for name in names)
        kept += self.preset["golds"]
        if self.preset.get("keep_weights", "all") == "all":
            kept += self.preset["audit"]["shadows"] * (1 + len(self.preset["audit"]["methods"]))
        return kept * sum(tensor.nbytes for tensor in self.build(weights=None).state_dict().values())

    def _load_model(self, path, made_with, record, kind, make):
        """The network of a stored run; rebuilt if its weights were not kept or are damaged."""
        weights = store.load_weights(path)
        if weights is None:
            name = made_with["name"]
            if record.get("diverged") or not self.may_train or make is None:
                raise MissingRun(f"the weights of {name}" + (f": {record['diverged']}" if "diverged" in record else ""))
            store.get_or_make(
                path, made_with, lambda: self._measured(name, kind, make, keep=True), usable=store.has_weights
            )
            weights = store.load_weights(path)
        model = self.build(weights=None)
        model.load_state_dict(weights)
        return model.eval()

    def _progress(self, name):
        return lambda line: self.report(f"{self.scenario.name}: {name}, {line}")

    # --- measurements ---

    def _outputs(self, model):
        self.report(f"{self.scenario.name}: evaluating")
        logits = {f"logits {name}": predict(model, batches)[0] for name, batches in self.split.sets.items()}
        return {**logits, "features": predict(model, self.panel)[1]}

    def measured(self, run):
        """`metrics.measure` of a run, against Gold if the preset retrains any; computed once for each."""
        key = "measured", run.id
        if key not in self.memo:
            gold = self.gold().logits if self.preset["golds"] else None
            self.memo[key] = measure(run.logits, self.split, gold)
        return self.memo[key]

    @cached_property
    def panel(self):
        """The images of the t-SNE panels, the same for every model: up to 320 retained, then as many forgotten ones."""
        size = min(320, len(self.split.forget.index), len(self.split.retain.index))
        index = torch.cat([sample(self.split.retain.index, size), sample(self.split.forget.index, size)])
        return replace(self.split.retain.reset(), index=index, shuffle=False, batch_size=500)

    @property
    def panel_is_forgotten(self):
        """Which images of the panel are forgotten, bool numpy `(m,)`."""
        return np.isin(self.panel.index.cpu(), self.split.forget.index.cpu())

    @property
    def tracked(self):
        """The part of each tracked set on which accuracy is measured after every epoch, always the same images."""
        at_most = self.preset["evaluation"]["tracked"]
        sets = {name: self.split.sets[name] for name in self.scenario.tracked}
        return {name: replace(batches, index=sample(batches.index, at_most)) for name, batches in sets.items()}

    def track(self, model):
        """Accuracies in percent on the tracked images, for a history."""
        return {"tracked": {name: accuracy(predict(model, b)[0], b.y.cpu()) for name, b in self.tracked.items()}}

    @property
    def output(self):
        """The folder for this run's figures and tables: that of the command line's job, else one of its own."""
        if folder := os.environ.get("UNLEARNING_OUTPUT"):
            return paths.ROOT / folder
        return paths.RUNS / "interactive" / f"{self.data.name}-{self.preset_name}" / f"seed{self.seed}"


def open_experiments(parameters):
    """One `Experiment` per scenario of a run's parameters (`parameters.PARAMETERS`).

    Raises:
        ValueError: a parameter has the wrong type or value, or does not fit the data; in one line.
    """
    values = checked(parameters)
    data = load_data(values.pop("data"), size=values["image_size"] or 32)
    scenarios, listed = values.pop("scenarios"), values.pop("forget_list")
    index = read_forget_list(listed, data) if listed else None
    return [Experiment(data, name, **values, forget_index=index if name == "random" else None) for name in scenarios]


def sample(index, at_most):
    """At most that many entries of `index`, always the same ones; all of them for None."""
    order = torch.randperm(len(index), generator=torch.Generator().manual_seed(SPLIT_SEED))
    return index if at_most is None else index[order[:at_most].to(index.device)]


def environment(experiment):
    """What results depend on besides settings: device, threads, precision, versions, the commit of the code."""
    packages = ("torch", "torchvision", "timm", "numpy", "scikit-learn")
    return {
        "device": devices.describe(experiment.device),
        "threads": torch.get_num_threads(),
        "precision": experiment.precision,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "commit": commit(),
    }


@cache
def commit():
    """The commit of the code, with a note if files were changed since."""
    command = [
        "git",
        "-C",
        str(paths.ROOT),
        "describe",
        "--always",
        "--abbrev=12",
        "--exclude=*",
        "--dirty= with changes",
    ]
    try:
        answer = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError):
        return "not under git"
    return answer.stdout.strip()
