"""Gradient descent: what a generator of losses may yield, and the one loop that takes the steps.

Original is `learn` on all training images, Gold is `learn` on the retained ones, an unlearning method is any other
generator, and so is relearning. `drive` runs them all.
"""

import math
import time
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from . import store
from .devices import autocast, synchronised_time

# --- what a generator yields --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """What a method yields to start an optimiser with no momentum yet, this learning rate, decay and schedule.

    The same object yielded again continues its optimiser. `steps` is the length of the schedule; `constant` needs none.
    The optimiser holds every parameter of the model; a frozen one has no gradient, stays exactly as it is, and starts
    to move once it is unfrozen.
    """

    lr: float
    momentum: float = 0.9
    weight_decay: float = 0.0
    optimizer: str = "sgd"
    schedule: str = "constant"  # or "cosine" to 0 (or to `lr_end`), "onecycle" (a fifth up from 0, then down to 0)
    steps: int | None = None
    lr_end: float = 0.0

    def factor(self, step):
        """The share of `lr` at gradient step `step`, counted from 0."""
        if self.schedule == "constant":
            return 1.0
        steps = max(self.steps, 1)  # a phase of no steps is no error
        done = min(step / steps, 1.0)
        if self.schedule == "cosine":
            low = self.lr_end / self.lr
            return low + (1 - low) * (1 + math.cos(math.pi * done)) / 2
        if self.schedule == "onecycle":
            return min((step + 1) / steps / 0.2, (1 - done) / 0.8, 1.0)
        raise ValueError(f"schedule '{self.schedule}' is unknown: constant, cosine or onecycle")

    def start(self, model):
        """The optimiser and the scheduler of this phase."""
        parameters = list(model.parameters())
        if self.optimizer == "sgd":
            kind = torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay)
        elif self.optimizer == "adamw":
            kind = torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay, fused=True)
        else:
            raise ValueError(f"optimizer '{self.optimizer}' is unknown: sgd or adamw")
        return kind, torch.optim.lr_scheduler.LambdaLR(kind, self.factor)


@dataclass(frozen=True)
class EpochEnd:
    """What a method yields at the end of each of its epochs; `notes` (numbers or words) join that epoch's history."""

    notes: dict | None = None


class Diverged(ArithmeticError):
    """The loss became infinite or NaN."""


# --- training as a generator --------------------------------------------------------------------------------------


def descend(model, batches):
    """Steps down the cross-entropy (R): one epoch of `batches`."""
    for x, y in batches:
        yield cross_entropy(model(x), y)


def ascend(model, batches, s=1.0):
    """Steps up `s` times the cross-entropy (F): one epoch of `batches`; no step at s = 0."""
    for x, y in batches if s else ():
        yield -s * cross_entropy(model(x), y)


def learn(model, batches, *, epochs, plain_epochs=0, augment=True, first_epoch=0, **optimiser):
    """Train on `batches`: Original on all training images, Gold on the retained ones.

    Args:
        plain_epochs: the last epochs use the images without augmentation, so that they are memorised.
        first_epoch: where to resume after an interruption.
        optimiser: settings of the `Phase`: lr, momentum, weight_decay, optimizer, schedule.
    """
    yield Phase(**optimiser, steps=epochs * len(batches))
    for epoch in range(first_epoch, epochs):
        batches.augment = augment and epoch < epochs - plain_epochs
        yield from descend(model, batches)
        yield EpochEnd()


# --- the loop -----------------------------------------------------------------------------------------------------


@dataclass
class Trained:
    """What `train` and `unlearn` return.

    `history` has an entry for epoch 0, before the first step, if accuracies are tracked, and one per epoch: epoch, loss
    (mean over the steps), the method's notes, seconds, steps and images so far, tracked accuracies. `cost` has the
    total seconds (evaluation excluded), gradient steps and images processed.
    """

    model: nn.Module
    history: list[dict]
    cost: dict


def drive(events, model, processed, *, name, saved=None, checkpoint=None, track=None, progress=None, stop=None):
    """Run a generator that changes `model`: start its optimisers, take its steps, track, count.

    Args:
        events: yields a `Phase`, a loss to take one gradient step down, or an `EpochEnd`, in the order of events.
        processed: the counter of the batches that `events` uses.
        name: for messages.
        saved: what `Checkpoint.load` returned; its first `Phase` continues that optimiser.
        checkpoint: where the state is stored from time to time, at the end of an epoch.
        track: called with the model before the first step and after each epoch; what it returns joins the history and
            costs no training time.
        progress: called with one line of text after each epoch.
        stop: called before each step; once it returns true, the run ends with what it has reached.

    Raises:
        Diverged: a loss or a weight is not finite; the message has the epoch.
    """
    device = next(model.parameters()).device
    history, losses, phases = list(saved.history) if saved else [], [], {}
    if track and not history:
        history.append({"epoch": 0, **track(model)})
    epoch = history[-1]["epoch"] if history else 0
    seconds, steps = (history[-1].get(unit, 0) if history else 0 for unit in ("seconds", "steps"))
    optimizer, scheduler = Phase(lr=1e-3).start(model)
    started = synchronised_time(device)
    while True:
        with autocast(model):
            event = next(events, None)
        if event is None or (stop and stop()):
            break
        if isinstance(event, Phase):
            if id(event) not in phases:
                phases[id(event)] = event, *event.start(model)
                if saved and len(phases) == 1:
                    saved.restore_optimiser(*phases[id(event)][1:])
            _, optimizer, scheduler = phases[id(event)]
        elif isinstance(event, EpochEnd):
            seconds, epoch = seconds + synchronised_time(device) - started, epoch + 1
            loss = mean_loss(losses, f"{name} diverged in epoch {epoch}")
            cost = {"seconds": seconds, "steps": steps, "images": processed["images"]}
            history.append({"epoch": epoch, **loss, **(event.notes or {}), **cost, **(track(model) if track else {})})
            if checkpoint:
                checkpoint.save(model, optimizer, history)
            if progress:
                progress(f"epoch {epoch}" + (f", loss {loss['loss']:.3f}" if loss else ""))
            losses, started = [], synchronised_time(device)
        else:
            check_finite(event, f"{name} diverged in epoch {epoch + 1}")
            step(event, optimizer, scheduler)
            losses.append(event.detach())
            steps += 1
    seconds += synchronised_time(device) - started
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise Diverged(f"{name} diverged: the model has weights that are not finite")
    return Trained(model.eval(), history, {"seconds": seconds, "steps": steps, "images": processed["images"]})


def step(loss, optimizer, scheduler):
    """One gradient step down `loss`."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    torch.clear_autocast_cache()  # needed where a method trains another network, within the context of its own step


def mean_loss(losses, message):
    """`{"loss": mean}` of an epoch's losses, empty without any; raises `Diverged` if it is not finite."""
    if not losses:
        return {}
    mean = torch.stack(losses).mean().item()
    check_finite(mean, message)
    return {"loss": mean}


def check_finite(loss, message):
    """Raise `Diverged` for an infinite or NaN loss. A loss on a GPU is not waited for; its epoch's mean is checked."""
    if isinstance(loss, torch.Tensor):
        loss = 0.0 if loss.is_cuda else loss.item()
    if not math.isfinite(loss):
        raise Diverged(f"{message}: the loss is {loss}")


def train(
    model, batches, *, seed=0, batch_size=128, checkpoint=None, track=None, progress=None, name="training", **settings
):
    """Train `model` in place by `learn` and return it as `Trained`.

    Args:
        checkpoint: a `Checkpoint`; a call with the same settings resumes from it, and the caller removes it.
        track, progress, name: see `drive`.
        settings: of `learn`.

    Raises:
        Diverged: a loss is not finite; the message has the epoch.
    """
    batches = batches.reset(batch_size=batch_size, seed=seed, least=1 / 4)  # a last batch of 8 images broke some runs
    saved = checkpoint.load() if checkpoint else None
    if saved:
        model.load_state_dict(saved.weights)
        batches.epoch, batches.processed["images"] = saved.history[-1]["epoch"], saved.history[-1]["images"]
    torch.manual_seed(seed)
    events = learn(model.train(), batches, **settings, first_epoch=batches.epoch)
    watch = {"track": track, "progress": progress, "name": name}
    return drive(events, model, batches.processed, saved=saved, checkpoint=checkpoint, **watch)


def unlearn(
    method,
    original,
    split,
    settings=None,
    *,
    seed=0,
    batch_size=128,
    retain_limit=None,
    track=None,
    progress=None,
    stop=None,
):
    """Run `method` on a copy of `original` and return the result as `Trained`; `original` itself never changes.

    A method is a generator `method(model, split, *, ...)` that edits `model` in place and yields, in the order of
    events, a `Phase`, a loss to take one gradient step down, or an `EpochEnd`. It starts in training mode;
    `split.retain`, `.forget` and `.train` serve its batches.

    Args:
        method: such a function, a record of `methods`, or its name.
        settings: of the method, over its record's; checked before anything runs.
        retain_limit: an epoch over the retained images uses at most this many of them, drawn anew each time.
        track, progress, stop: see `drive`.

    Raises:
        ValueError: an unknown method, or a setting that it does not have or that is of the wrong type or range.
        Diverged: a loss is not finite; the message has the epoch.
    """
    from .methods import find  # the methods themselves use this module

    method = find(method)
    settings = method.check(settings or {})
    model = deepcopy(original).train()
    split = split.reset(seed=seed, batch_size=batch_size, retain_limit=retain_limit)
    torch.manual_seed(seed)
    events = method.function(model, split, **settings)
    trained = drive(events, model, split.processed, name=method.name, track=track, progress=progress, stop=stop)
    trained.model.requires_grad_(True)
    return trained


# --- interruptions ------------------------------------------------------------------------------------------------


@dataclass
class Checkpoint:
    """The state of a training in the file `path`, stored at the end of an epoch if `every` seconds have passed."""

    path: Path
    settings: dict
    every: float = 60.0
    stored: float = field(default_factory=time.monotonic)

    def save(self, model, optimizer, history):
        """Store weights, momentum buffers and history, unless that was done less than `every` seconds ago."""
        if time.monotonic() - self.stored < self.every:
            return
        state = optimizer.state_dict()["state"]
        buffers = {
            f"optimizer.{i}.{name}": value
            for i, entry in state.items()
            for name, value in entry.items()
            if isinstance(value, torch.Tensor)
        }
        weights = {f"model.{name}": value for name, value in model.state_dict().items()}
        store.save(self.path, self.settings, {}, {**weights, **buffers}, history=history)
        self.stored = time.monotonic()

    def load(self):
        """The `Saved` state; None where there is none with these settings."""
        found = store.load(self.path, self.settings)
        tensors = found and store.load_weights(self.path)
        if not tensors:
            return None
        parts = {"model": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = tensor
        return Saved(parts["model"], parts["optimizer"], found[0]["history"])


@dataclass
class Saved:
    """What a checkpoint holds: weights, the optimiser's buffers by `<parameter>.<name>`, the history so far."""

    weights: dict
    buffers: dict
    history: list[dict]

    def restore_optimiser(self, optimizer, scheduler):
        """Put buffers and learning rate back as they were."""
        state = {}
        for name, value in self.buffers.items():
            index, entry = name.split(".", 1)
            state.setdefault(int(index), {})[entry] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        scheduler.last_epoch = self.history[-1]["steps"]
        for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas):
            group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)
