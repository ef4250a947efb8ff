"""Gradient descent: the training loop, and what it shares with the driver of the unlearning methods."""

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from . import runs


def pick_device():
    """CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def precision(device):
    """bfloat16 where the hardware multiplies it, else float32."""
    device = torch.device(device)
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "float32"


def autocast(device):
    """The context in which networks compute here: bfloat16 autocast or nothing."""
    device = torch.device(device)
    return torch.autocast(device.type, torch.bfloat16) if precision(device) == "bfloat16" else nullcontext()


class Diverged(ArithmeticError):
    """The loss became infinite or NaN."""


@dataclass(frozen=True)
class Phase:
    """What a method yields to (re)start its optimiser: fresh momentum, this learning rate, decay and schedule.

    `steps` is the length of the schedule; `constant` needs none. The optimiser holds every parameter of the model;
    those that are frozen have no gradient and are left exactly as they are, and start to move once thawed.
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


def now(device):
    """The clock in seconds, once the device has done all that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def check_finite(loss, what):
    """Raise `Diverged` for an infinite or NaN loss; one that is on a GPU is not waited for, its epoch's mean is."""
    if isinstance(loss, torch.Tensor):
        loss = 0.0 if loss.is_cuda else loss.item()
    if not math.isfinite(loss):
        raise Diverged(f"{what}: the loss is {loss}")


def descend(loss, optimizer, scheduler):
    """One gradient step down `loss`."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()


def train(
    model,
    batches,
    *,
    epochs,
    batch_size=128,
    plain_epochs=0,
    augment=True,
    seed=0,
    checkpoint=None,
    track=None,
    progress=None,
    clock=time.perf_counter,
    **optimiser,
):
    """Train `model` in place on `batches` and return its history, one dict an epoch.

    Args:
        plain_epochs: the last epochs see the images without augmentation, so that they are learnt by heart.
        checkpoint: path, without suffix, of the state kept after each epoch; a call with the same settings resumes
            from it, and the caller removes it.
        track: called with the model after each epoch; what it returns joins the history and costs no training time.
        progress: called with one line of text after each epoch.
        optimiser: settings of the `Phase`: lr, momentum, weight_decay, optimizer, schedule.

    Raises:
        Diverged: the loss is not finite; says in which epoch.
    """
    device = next(model.parameters()).device
    batches = batches.fresh(batch_size=batch_size, seed=seed, least=1 / 4)  # of 8 images it broke some trainings
    phase = Phase(**optimiser, steps=epochs * len(batches))
    optimizer, scheduler = phase.start(model)
    settings = {"epochs": epochs, "batch_size": batch_size, "plain_epochs": plain_epochs, "augment": augment,
                "seed": seed, "images": len(batches.index), **optimiser}  # fmt: skip
    history = resume(checkpoint, settings, model, optimizer, scheduler, batches)
    model.train()
    for epoch in range(len(history), epochs):
        started, total = clock(), torch.zeros((), device=device)
        batches.augment = augment and epoch < epochs - plain_epochs
        for x, y in batches:
            with autocast(device):
                loss = cross_entropy(model(x), y)
            check_finite(loss, f"training diverged in epoch {epoch + 1} of {epochs}")
            descend(loss, optimizer, scheduler)
            total += loss.detach()
        mean_loss = total.item() / len(batches)
        check_finite(mean_loss, f"training diverged in epoch {epoch + 1} of {epochs}")
        cost = {"seconds": clock() - started, "steps": (epoch + 1) * len(batches), "images": batches.seen["images"]}
        history.append({"epoch": epoch + 1, "loss": mean_loss, **cost})
        if track:
            history[-1] |= track(model)
        if checkpoint:
            keep(checkpoint, settings, model, optimizer, history)
        if progress:
            progress(f"epoch {epoch + 1}/{epochs}  loss {mean_loss:.3f}  {history[-1]['seconds']:.0f} s")
    model.eval()
    return history


def keep(checkpoint, settings, model, optimizer, history):
    """Write model, momentum buffers and history; what `resume` reads."""
    state = optimizer.state_dict()["state"]
    buffers = {f"optimizer.{i}.{name}": value for i, entry in state.items() for name, value in entry.items()
               if isinstance(value, torch.Tensor)}  # fmt: skip
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    runs.save(checkpoint, settings, {**weights, **buffers}, history=history)


def resume(checkpoint, settings, model, optimizer, scheduler, batches):
    """Put everything back as `keep` left it and return the history; an empty one where there is nothing to resume."""
    saved = runs.load(checkpoint, settings) if checkpoint else None
    if not saved:
        return []
    tensors, record = saved
    history = record["history"]
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    state = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, entry = name.split(".", 2)
            state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    scheduler.last_epoch = history[-1]["steps"]
    for group, factor in zip(optimizer.param_groups, scheduler.lr_lambdas):
        group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)
    batches.passes, batches.seen["images"] = len(history), history[-1]["images"]
    return history


@dataclass(frozen=True)
class EpochEnd:
    """What a method yields at the end of each of its epochs; `notes` (numbers or words) join that epoch's history."""

    notes: dict | None = None
