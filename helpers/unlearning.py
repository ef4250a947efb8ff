"""The driver: runs an unlearning method on a copy of a model, takes its steps, tracks and counts."""

import ast
import difflib
import inspect
import textwrap
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

from .literature import METHODS
from .training import Diverged, EpochEnd, Phase, autocast, check_finite, descend, now


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
    started = now(device)
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
            cost["seconds"] += now(device) - started
            if losses:
                check_finite(mean_loss, f"{function.__name__} diverged in epoch {len(history) + 1}")
            history.append({"epoch": len(history) + 1, "loss": mean_loss, **(happening.notes or {}),
                            **(track(model) if track else {})})  # fmt: skip
            if progress:
                progress(f"epoch {len(history)}" + (f"  loss {mean_loss:.3f}" if losses else ""))
            losses, started = [], now(device)
        else:
            check_finite(happening, f"{function.__name__} diverged in epoch {len(history) + 1}")
            descend(happening, optimizer, scheduler)
            losses.append(happening.detach())
            cost["steps"] += 1
    cost["seconds"] += now(device) - started
    cost["images"] = split.seen["images"]
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise Diverged(f"{function.__name__} diverged: the model has weights that are not finite")
    return Unlearned(model.eval().requires_grad_(True), history, cost)


def source_of(method):
    """A method's source and that of all it reaches in its module and the suite's methods: code and plain values.

    Without comments and docstrings, so that who explains a method better does not run it again.
    """
    ours, found, waiting = {method.__module__, "helpers.methods", "helpers.literature"}, {}, {"": method}
    while waiting:
        name, value = waiting.popitem()
        if isinstance(value, dict):
            waiting |= {f"{name}[{entry!r}]": value[entry] for entry in value}
        elif isinstance(value, bool | int | float | str | tuple):
            found[name] = f"{name} = {value!r}"
        elif inspect.isfunction(value) and value.__module__ in ours and value not in found:
            found[value] = _code(value)
            reached = {n: value.__globals__[n] for n in _names(value.__code__) if n in value.__globals__}
            waiting |= reached | inspect.getclosurevars(value).nonlocals
        elif inspect.isclass(value) and value.__module__ in ours:
            parts = {f"{name}.{part}": function for part, function in vars(value).items()}
            waiting |= {part: f for part, f in parts.items() if inspect.isfunction(f) and _is_written(f)}
    return "\n\n".join(sorted(found.values()))


def _is_written(function):
    """Whether it stands in a file or a cell; those that a dataclass gets do not."""
    return function.__code__.co_filename != "<string>"


def _code(function):
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _names(code):
    """The names that a code object and those within it look up."""
    inner = [name for constant in code.co_consts if inspect.iscode(constant) for name in _names(constant)]
    return [*code.co_names, *inner]


def find_method(method):
    """The `(function, settings)` of a display name; a function of one's own comes without settings."""
    if callable(method):
        return method, {}
    if method not in METHODS:
        near = difflib.get_close_matches(str(method), METHODS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"method '{method}' is unknown: {hint}there are {', '.join(METHODS)}")
    return METHODS[method]
