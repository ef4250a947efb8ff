"""Published methods that push away: they raise the loss on the forgotten images while they retain the others."""

import math

import torch
from torch.nn.functional import cross_entropy, log_softmax, normalize

from ..training import EpochEnd, Phase
from .common import endless, mean_gradient, with_gradient


def neggrad_plus(model, split, *, alpha=0.95, epochs=5, lr=0.01, weight_decay=5e-4):
    """NegGrad+ (Kurmanji et al., NeurIPS 2023): min alpha CE(D_r) - (1 - alpha) CE(D_f), forgotten batches cycled."""
    yield Phase(lr, weight_decay=weight_decay)
    forgotten = endless(split.forget)
    for _ in range(epochs):
        for (x_r, y_r), (x_f, y_f) in zip(split.retain, forgotten):
            yield alpha * cross_entropy(model(x_r), y_r) - (1 - alpha) * cross_entropy(model(x_f), y_f)
        yield EpochEnd()


def ugradsl_plus(model, split, *, p=0.95, alpha=-0.2, epochs=5, lr=0.01, weight_decay=5e-4):
    """UGradSL+ (Di et al., ICLR 2026): min p CE(D_r) - (1 - p) CE(D_f, smoothed labels), forgotten batches cycled.

    The smoothed label of an image of class y is (1 - alpha) y + alpha / K with a *negative* alpha: the step up is
    stronger by abs(alpha) and pulls the prediction towards uniform. With alpha = 0 it is NegGrad+, whose defaults these
    are. Differs from the source: alpha is one number, not one for each image from the density of retained images
    around it, and batches are averaged, not summed.
    """
    yield Phase(lr, weight_decay=weight_decay)
    forgotten = endless(split.forget)
    for _ in range(epochs):
        for (x_r, y_r), (x_f, y_f) in zip(split.retain, forgotten):
            yield p * cross_entropy(model(x_r), y_r) - (1 - p) * smoothed_cross_entropy(model(x_f), y_f, alpha)
        yield EpochEnd()


def smoothed_cross_entropy(logits, y, alpha):
    """Cross-entropy to the labels (1 - alpha) y + alpha / K, mean over the batch; alpha may be negative."""
    uniform = -log_softmax(logits.float(), 1).mean(1).mean()
    return (1 - alpha) * cross_entropy(logits, y) + alpha * uniform


def sfr_on(model, split, *, steps=1500, every=5, alpha=25.0, lam=0.5, gamma=1.0, clip=7.0, lr=0.01, weight_decay=5e-4):
    """SFR-on (Huang et al., NeurIPS 2024): steps down CE(D_r); before every fifth one up alpha_t sum_i w_i l_i on D_f.

    w_i is proportional to l_i^-lam, alpha_t falls from alpha to 0 as a cosine; the step up moves only weights whose
    mean squared gradients on D_f and D_r have F_f / F_r >= gamma, and its gradient's norm is clipped.
    """
    fisher_f, fisher_r = (mean_gradient(model, batches, 2) for batches in (split.forget, split.retain))
    parameters, forgotten = list(model.parameters()), endless(split.forget)
    masks = [(f + 1e-15) / (r + 1e-15) >= gamma for f, r in zip(fisher_f, fisher_r)]
    yield Phase(lr, weight_decay=weight_decay, schedule="cosine", steps=steps + -(-steps // every))
    for step, (x, y) in zip(range(steps), endless(split.retain)):
        if step % every == 0:
            x_f, y_f = next(forgotten)
            losses = cross_entropy(model(x_f).float(), y_f, reduction="none")
            w = normalize(1 / (losses.detach() ** lam + 1e-15), p=1, dim=0)
            loss = -alpha * (1 + math.cos(math.pi * step / steps)) / 2 * (w * losses).sum()
            gradient = [g * mask for g, mask in zip(torch.autograd.grad(loss, parameters), masks)]
            norm = torch.stack([g.norm() for g in gradient]).norm()
            yield with_gradient(loss, parameters, [g * (clip / (norm + 1e-6)).clamp(max=1) for g in gradient])
        yield cross_entropy(model(x), y)
        if (step + 1) % len(split.retain) == 0 or step + 1 == steps:
            yield EpochEnd()
