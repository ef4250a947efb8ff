"""The driver: runs an unlearning method on a copy of a model, takes its steps, tracks and counts."""

import difflib
import time
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

from .literature import METHODS
from .training import Diverged, EpochEnd, Phase, autocast, check_finite, descend


@dataclass
class Unlearned:
    """What `unlearn` returns: the model, one dict an epoch, and the cost (seconds, gradient steps, images seen)."""

    model: nn.Module
    history: list[dict]
    cost: dict


def unlearn(
    method,
    original,
    split,
    *,
    seed=0,
    batch_size=128,
    retain_limit=None,
    track=None,
    progress=None,
    stop=None,
    **settings,
):
    """Run `method` on a copy of `original`; `original` itself is never changed.

    A method is a generator `method(model, split, *, ...)` that edits `model` in place and yields, in the order in which
    things happen, a `Phase` (a fresh optimiser; the same object again continues it), a loss to take one gradient step
    down, or an `EpochEnd`. It starts in training mode; `split.retain`, `.forget` and `.train` serve its batches.

    Args:
        method: such a function, or a display name from `METHODS`.
        retain_limit: a pass over the retained images sees at most this many of them, drawn afresh each time.
        track: called with the model at each epoch's end; what it returns joins the history and costs no time.
        progress: called with one line of text at each epoch's end.
        stop: asked before each gradient step; once it is true, the run ends there and leaves what it has reached.
        settings: handed to the method, over those in `METHODS`.

    Raises:
        ValueError: an unknown name.
        Diverged: a loss is not finite; says in which epoch.
    """
    function, defaults = find_method(method)
    model = deepcopy(original).train()
    device = next(model.parameters()).device
    split = split.fresh(seed=seed, batch_size=batch_size, retain_limit=retain_limit)
    history, cost, phases, losses = [], {"seconds": 0.0, "steps": 0}, {}, []
    optimizer, scheduler = Phase(lr=1e-3).start(model)
    torch.manual_seed(seed)
    started = time.perf_counter()
    happenings = function(model, split, **{**defaults, **settings})
    while True:
        with autocast(device):
            happening = next(happenings, None)
        if happening is None or (stop and stop()):
            break
        if isinstance(happening, Phase):
            if id(happening) not in phases:
                phases[id(happening)] = happening, *happening.start(model)
            _, optimizer, scheduler = phases[id(happening)]
        elif isinstance(happening, EpochEnd):
            mean_loss = torch.stack(losses).mean().item() if losses else float("nan")
            cost["seconds"] += time.perf_counter() - started
            if losses:
                check_finite(mean_loss, f"{function.__name__} diverged in epoch {len(history) + 1}")
            history.append({"epoch": len(history) + 1, "loss": mean_loss, **(happening.notes or {}),
                            **(track(model) if track else {})})  # fmt: skip
            if progress:
                progress(f"epoch {len(history)}" + (f"  loss {mean_loss:.3f}" if losses else ""))
            losses, started = [], time.perf_counter()
        else:
            check_finite(happening, f"{function.__name__} diverged in epoch {len(history) + 1}")
            descend(happening, optimizer, scheduler)
            losses.append(happening.detach())
            cost["steps"] += 1
    cost["seconds"] += time.perf_counter() - started
    cost["images"] = split.seen["images"]
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise Diverged(f"{function.__name__} diverged: the model has weights that are not finite")
    return Unlearned(model.eval().requires_grad_(True), history, cost)


def find_method(method):
    """The `(function, settings)` of a display name; a function of one's own comes without settings."""
    if callable(method):
        return method, {}
    if method not in METHODS:
        near = difflib.get_close_matches(str(method), METHODS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"method '{method}' is unknown: {hint}there are {', '.join(METHODS)}")
    return METHODS[method]
