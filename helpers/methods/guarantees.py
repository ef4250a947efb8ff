"""Unlearning with a guarantee: SISA, rewinding, and a certified Newton step on the last layer.

These are no generators of losses that start from any Original: SISA and rewinding change how Original is trained, and
the certificate is about a head on features that do not change. `build(seed)` returns a network with initial weights,
`training` are the settings of `training.train`.
"""

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import normalize, one_hot

from ..metrics import predict
from ..training import Saved, train
from .common import only


def small_network(classes, seed=0, width=16, size=16):
    """Three convolutions with stride 2 on images of `size` pixels, and a linear head: trains in a second on digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths, layers = (3, width, 2 * width, 4 * width), [nn.AdaptiveAvgPool2d(size)]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


@dataclass(frozen=True)
class Outcome:
    """A model's name, its kind (original, gold or method), its logits on each set, and what it cost."""

    name: str
    kind: str
    logits: dict
    cost: dict


def outcome(split, name, predictor, cost, kind="method"):
    """The `Outcome` of what `predictor` maps unshuffled `Batches` to: logits `(n, classes)`.

    Of the cost, steps and images count; seconds differ from run to run, and none of these models is stored.
    """
    logits = {part: predictor(batches).float() for part, batches in split.sets.items()}
    return Outcome(name, kind, logits, {unit: cost[unit] for unit in ("steps", "images")})


# --- SISA ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sisa:
    """An ensemble of which each model saw one shard of the images, and what the last training of shards cost."""

    parts: list  # `Batches`, one per shard
    models: list[nn.Module]
    trained: tuple[int, ...]  # the shards that were trained last
    cost: dict  # seconds, steps, images


def sisa(build, batches, shards, *, seed=0, shard=None, **training):
    """SISA (Bourtoule et al., IEEE S&P 2021): one model per shard of the images, each with a seed of its own.

    The paper also divides each shard into slices, to retrain less of it; not here. Normalisation counts as public.

    Args:
        shard: int64 `(N,)`, the shard of each training image; drawn at random, by the image's number alone, if None.

    Raises:
        ValueError: a shard has fewer than 2 images.
    """
    if shard is None:
        generator = torch.Generator().manual_seed(seed)
        shard = torch.randperm(len(batches.labels), generator=generator) % shards
    parts = [only(batches, shard.to(batches.index.device)[batches.index] == k) for k in range(shards)]
    return _trained(build, parts, [None] * shards, range(shards), seed, training)


def sisa_forget(ensemble, index, build, *, seed=0, **training):
    """The ensemble without the images `index`: only models whose shard held one of them are trained, from scratch.

    On a CPU equal, bit for bit, to `sisa` without these images: no other shard, order or initial weight changes.
    """
    parts = [only(part, ~torch.isin(part.index, index)) for part in ensemble.parts]
    hit = [k for k, part in enumerate(parts) if len(part.index) < len(ensemble.parts[k].index)]
    return _trained(build, parts, ensemble.models, hit, seed, training)


def _trained(build, parts, models, hit, seed, training):
    """The ensemble of `models`, those of the shards `hit` trained anew."""
    models, cost = list(models), dict.fromkeys(("seconds", "steps", "images"), 0)
    for k in hit:
        if len(parts[k].index) < 2:
            raise ValueError(f"shard {k} has fewer than 2 images: use fewer shards")
        number = 1000 * seed + k
        done = train(build(number), parts[k], seed=number, name=f"shard {k}", **training)
        models[k], cost = done.model, {unit: cost[unit] + done.cost[unit] for unit in cost}
    return Sisa(parts, models, tuple(hit), cost)


def sisa_predict(ensemble, batches):
    """log of the models' mean probability, float32 `(n, classes)`."""
    return torch.stack([predict(model, batches)[0].softmax(1) for model in ensemble.models]).mean(0).log()


def share_of_shards_hit(shards, removed):
    """1 - (1 - 1/S)^m: the expected share of S shards that m random images are in."""
    return 1 - (1 - 1 / shards) ** removed


# --- rewinding ----------------------------------------------------------------------------------------------------


@dataclass
class Tape:
    """Takes the place of a `Checkpoint` in `train`: keeps the states at the end of these epochs in memory.

    `start` is the `Saved` state from which a training resumes; None starts it anew.
    """

    epochs: tuple[int, ...] = ()
    start: Saved | None = None
    states: dict = field(default_factory=dict)

    def save(self, model, optimizer, history):
        """Keep weights, the optimiser's buffers and the history, if this epoch is one of `epochs`."""
        if history[-1]["epoch"] in self.epochs:
            weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
            buffers = {
                f"{i}.{name}": value.detach().clone()
                for i, entry in optimizer.state_dict()["state"].items()
                for name, value in entry.items()
                if isinstance(value, torch.Tensor)
            }
            self.states[history[-1]["epoch"]] = Saved(weights, buffers, list(history))

    def load(self):
        """The state to start from."""
        return self.start


def rewind(build, tape, epoch, retain, *, seed=0, **training):
    """Rewind-to-delete (Mu & Klabjan, NeurIPS 2025): finish training from its state at the end of `epoch` on D_r alone.

    Weights, momentum and the share of the schedule that is done are those of Original's own run, kept by `tape`; epoch
    0 is retraining, the last epoch is Original. The paper's certificate needs descent on all images at once, a bounded
    loss landscape and noise on the weights: it does not hold here.

    Returns:
        `Trained`; its cost counts the images after the rewind.
    """
    start = None
    if epoch:
        batches = retain.reset(batch_size=training.get("batch_size", 128), least=1 / 4)  # as `train` divides them
        begun = {"epoch": epoch, "steps": epoch * len(batches), "images": 0, "seconds": 0.0}
        start = replace(tape.states[epoch], history=[begun])
    return train(build(seed), retain, seed=seed, checkpoint=Tape(start=start), name="rewinding", **training)


# --- a certified head ---------------------------------------------------------------------------------------------
# x: features float64 (n, d), rows of norm 1; y: +1 for an image's class and -1 for the others (n, K); w, b: (d, K).
# The loss is sum_i log(1 + exp(-y_ik w_k.x_i)) + lam n / 2 |w_k|^2 + b_k.w_k, summed over K one-vs-rest classifiers.


def head_data(model, batches, classes):
    """Features of `model`, float64 with rows of norm 1, and labels +1 or -1, for unshuffled `batches`."""
    batches = replace(batches, shuffle=False, augment=False, limit=None)
    x = normalize(predict(model, batches)[1].double())
    return x, 2.0 * one_hot(batches.y.cpu(), classes).double() - 1


def head_gradient(w, x, y, lam, b=0.0):
    """The gradient of the loss, `(d, K)`."""
    return x.T @ (-y * torch.sigmoid(-y * (x @ w))) + lam * len(x) * w + b


def newton_direction(w, gradient, x, lam):
    """H_k^-1 gradient_k for each class k, `(d, K)`; H is the Hessian of the loss at `w` on the images `x`."""
    p = torch.sigmoid(x @ w)
    hessian = torch.einsum("nd,nk,ne->kde", x, p * (1 - p), x) + lam * len(x) * torch.eye(len(w), dtype=w.dtype)
    return torch.linalg.solve(hessian, gradient.T[..., None])[..., 0].T


def fit_head(x, y, lam, b=0.0, tolerance=1e-9):
    """The head at the minimum of the loss: Newton's method until the gradient's norm is below `tolerance`.

    Raises:
        ArithmeticError: it is not below it after 100 steps.
    """
    w = torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype)
    gradient = head_gradient(w, x, y, lam, b)
    for _ in range(100):
        if gradient.norm() < tolerance:
            return w
        step, size = newton_direction(w, gradient, x, lam), 1.0
        while (after := head_gradient(w - size * step, x, y, lam, b)).norm() > gradient.norm() and size > 1e-6:
            size /= 2
        w, gradient = w - size * step, after
    raise ArithmeticError(f"the head did not converge: the gradient's norm is {gradient.norm():.1e}; raise lam")


def remove_from_head(w, x, y, lam, removed):
    """Certified removal (Guo et al., ICML 2020): one Newton step w + H^-1 Delta, and a bound on what it leaves.

    Delta is the gradient of the removed images' losses, with their share of the regularisation; H is of those that
    remain. What is left is the gradient of the loss on them, at most |X|_2 |H^-1 Delta| |X H^-1 Delta| / 4 for one
    classifier; here the root of the sum of squares over all K, the norm for the whole head.

    Args:
        removed: bool `(n,)`.

    Returns:
        The new head and the bound; bounds of removals one after the other add up.
    """
    kept = x[~removed]
    step = newton_direction(w, head_gradient(w, x[removed], y[removed], lam), kept, lam)
    largest = torch.linalg.eigvalsh(kept.T @ kept)[-1].clamp(min=0).sqrt()
    return w + step, (largest / 4 * (step.norm(dim=0) * (kept @ step).norm(dim=0)).norm()).item()


def remove_in_turn(w, x, y, lam, removed, steps=200):
    """`remove_from_head` image by image, or in that many groups if there are more: the new head, the sum of bounds."""
    kept, total = torch.ones_like(removed), 0.0
    images = removed.nonzero().flatten()
    for group in images.tensor_split(min(steps, len(images))):
        chosen = torch.zeros_like(removed).index_fill(0, group, True)
        w, bound = remove_from_head(w, x[kept], y[kept], lam, chosen[kept])
        kept, total = kept & ~chosen, total + bound
    return w, total


def removal_budget(sigma, epsilon=1.0, delta=1e-4):
    """sigma epsilon / sqrt(2 ln(1.5 / delta)): up to this sum of bounds a removal is (epsilon, delta)-certified.

    The head must have been trained with b drawn from N(0, sigma^2): the noise hides what a Newton step leaves.
    """
    return sigma * epsilon / math.sqrt(2 * math.log(1.5 / delta))
