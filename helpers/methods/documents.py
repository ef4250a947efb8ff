"""The methods of the two source documents: generators of losses in reading order (see `training` for the contract).

Sources: document A (ResNet-18, a random tenth of CIFAR-10: M1-M6, H1-H4), document B (ViT-Tiny, the class airplane:
fine-tuning, gradient ascent, 2-Stage) and fanchuan's winning entry to the NeurIPS 2023 unlearning challenge, of which
2-Stage is a small form. Notation: R is a gradient step down the cross-entropy (CE) of a retained batch, F a gradient
step up `s` times the CE of a forgotten batch; s is the ascent weight.
"""

import math
from dataclasses import replace
from itertools import islice

import torch
from torch.nn.functional import cross_entropy, log_softmax

from ..models import early_layers
from ..training import EpochEnd, Phase, ascend, descend
from .common import alternate, endless, train_last_layers

# --- 03 relearn the retained images -------------------------------------------------------------------------------


def retain_finetuning(model, split, *, epochs=100, lr=1e-3, weight_decay=5e-4, schedule="cosine"):
    """M1 (document A), and with a constant learning rate document B's fine-tuning: min CE(D_r)."""
    yield Phase(lr, weight_decay=weight_decay, schedule=schedule, steps=epochs * len(split.retain))
    for _ in range(epochs):
        yield from descend(model, split.retain)
        yield EpochEnd()


# --- 04 only the last layers of the network -----------------------------------------------------------------------


def selective_finetuning(model, split, *, epochs=100, lr=1e-3, weight_decay=5e-4):
    """M2 (document A): M1 that trains the last layers alone (of ResNet-18 layer4 + fc)."""
    layers, split = train_last_layers(model, split)
    yield from retain_finetuning(layers, split, epochs=epochs, lr=lr, weight_decay=weight_decay)


# --- 05 gradient ascent and reversal ------------------------------------------------------------------------------


def gradient_ascent(model, split, *, epochs=5, lr=1e-4, weight_decay=0.0):
    """Gradient ascent (document B): max CE(D_f), forgotten batches only."""
    yield Phase(lr, weight_decay=weight_decay)
    for _ in range(epochs):
        yield from ascend(model, split.forget)
        yield EpochEnd()


def gradient_reversal(model, split, *, epochs=60, s=1.0, lr=1e-3, weight_decay=5e-4):
    """M3 (document A): M2, then one epoch of F over the forget set, fresh optimiser, evaluation mode."""
    layers, split = train_last_layers(model, split)
    yield from retain_finetuning(layers, split, epochs=epochs, lr=lr, weight_decay=weight_decay)
    layers.eval()
    yield Phase(lr, weight_decay=weight_decay)
    yield from ascend(layers, split.forget, s)
    yield EpochEnd({"s": s})


# --- 06 and 07 alternate ------------------------------------------------------------------------------------------


def alternate_epochs(model, split, *, epochs=100, s=0.3, lr=1e-3, weight_decay=5e-4):
    """M4 (document A): M2 for half of the epochs, then each epoch is R over the retain set, F over the forget set."""
    layers, split = train_last_layers(model, split)
    yield from retain_finetuning(layers, split, epochs=epochs // 2, lr=lr, weight_decay=weight_decay)
    yield Phase(lr, weight_decay=weight_decay)
    for _ in range(epochs - epochs // 2):
        yield from descend(layers, split.retain)
        yield from ascend(layers, split.forget, s)
        yield EpochEnd({"s": s})


def alternate_batches(model, split, *, epochs=100, s=0.4, final=0, lr=1e-3, weight_decay=5e-4):
    """M5 (document A): epochs over the forget set, R then F at each batch; M6: then `final` epochs of R."""
    layers, split = train_last_layers(model, split)
    yield Phase(lr, weight_decay=weight_decay)
    for _ in range(epochs):
        yield from alternate(layers, split, s)
        yield EpochEnd({"s": s})
    for _ in range(final):
        yield from descend(layers, split.retain)
        yield EpochEnd({"s": 0.0})


# --- 08 two stages ------------------------------------------------------------------------------------------------


def kl_uniform(logits):
    """D_KL(u || p): how far the predictions are from uniform, in nats, mean over the batch."""
    return -math.log(logits.shape[1]) - log_softmax(logits.float(), 1).mean()


def contrast(z_f, z_r, tau):
    """-log softmax(z_f . sg(z_r)^T / tau), mean over all entries; at least log |B_r|, where the rows are constant."""
    with torch.autocast(z_f.device.type, enabled=False):
        return -log_softmax(z_f.float() @ z_r.detach().float().T / tau, 1).mean()


def two_stage(model, split, *, epochs=5, tau=1.15, lr=1e-4, weight_decay=0.0):
    """2-Stage (document B): one step down D_KL(u || p) on D_f; contrast(D_f, D_r) + CE(D_r) for each batch of D_f."""
    yield Phase(lr, weight_decay=weight_decay)
    x_f, _ = next(iter(split.forget))
    yield kl_uniform(model(x_f))
    for _ in range(epochs):
        for (x_f, _), (x_r, y_r) in zip(split.forget, endless(split.retain)):
            z_f, z_r = model(x_f), model(x_r[: len(x_f)])
            yield contrast(z_f, z_r, tau) + cross_entropy(z_r, y_r[: len(x_f)])
        yield EpochEnd()


def two_stage_full(
    model, split, *, rounds=8, tau=1.15, lr_uniform=5e-3, lr_contrast=3e-4, lr_retain=4e-3, batch_size=256
):
    """2-Stage's origin (fanchuan, NeurIPS 2023): D_KL(u || p) over D_f; rounds of [contrast over D_f; CE(D_r)].

    `batch_size` is that of the steps down CE(D_r); the other steps use the batches of the split.
    """
    retain = replace(split.retain, batch_size=batch_size)
    yield Phase(lr_uniform)
    for x_f, _ in split.forget:
        yield kl_uniform(model(x_f))
    yield EpochEnd()
    contrasting = Phase(lr_contrast, schedule="cosine", steps=rounds * len(split.forget), lr_end=1e-6)
    retaining = Phase(lr_retain, weight_decay=1e-2)
    for _ in range(rounds):
        yield contrasting
        for (x_f, _), (x_r, _) in zip(split.forget, endless(split.retain)):
            yield contrast(model(x_f), model(x_r), tau)
        yield retaining
        yield from descend(model, retain)
        yield EpochEnd()


# --- 09 hybrids: the whole network, s grows -----------------------------------------------------------------------


def linear(epoch, epochs):
    """epoch / epochs, with the epoch counted from 0."""
    return epoch / epochs


def quadratic(epoch, epochs):
    """(epoch / epochs)^2, which document A calls exponential."""
    return (epoch / epochs) ** 2


def exponential(epoch, epochs, k=5.0):
    """(exp(k epoch / epochs) - 1) / (exp(k) - 1): exponential growth from 0 to 1."""
    return math.expm1(k * epoch / epochs) / math.expm1(k)


GROWTH = {"linear": linear, "quadratic": quadratic, "exponential": exponential}


def scaled_ascent(model, split, *, epochs=50, s=0.6, growth="linear", final=0, lr=1e-3, weight_decay=5e-4):
    """H1, H2 (document A): M5's loop on all parameters with s_e = s growth(e, epochs); H2: then `final` epochs of R."""
    yield Phase(lr, weight_decay=weight_decay)
    for e in range(epochs):
        s_e = s * GROWTH[growth](e, epochs)
        yield from alternate(model, split, s_e)
        yield EpochEnd({"s": s_e})
    for _ in range(final):
        yield from descend(model, split.retain)
        yield EpochEnd({"s": 0.0})


def periodic_finetuning(model, split, *, epochs=50, s=1.0, every=10, final=10, lr=1e-3, weight_decay=5e-4):
    """H3 (document A): in epoch e R over D_r, with up to two F(s (e/epochs)^2) after each R while D_f lasts.

    Every `every`-th epoch is followed by one more epoch of R, the last epoch by `final` of them.
    """
    yield Phase(lr, weight_decay=weight_decay)
    for e in range(epochs):
        s_e = s * quadratic(e, epochs)
        forgotten = iter(split.forget)
        for x, y in split.retain:
            yield cross_entropy(model(x), y)
            if s_e:
                yield from ascend(model, islice(forgotten, 2), s_e)
        if (e + 1) % every == 0:
            yield from descend(model, split.retain)
        yield EpochEnd({"s": s_e})
    for _ in range(final):
        yield from descend(model, split.retain)
        yield EpochEnd({"s": 0.0})


def unfreezing(model, split, *, epochs=50, s=1.0, every=10, final=10, lr=1e-3, weight_decay=5e-4, frozen_share=0.3):
    """H4 (document A): H3 with the early layers (layer1, layer2) frozen for the first `frozen_share` of its epochs.

    Frozen as in M2: BatchNorm statistics included.
    """
    for part in early_layers(model):
        part.eval().requires_grad_(False)
    ended = 0
    settings = {"s": s, "every": every, "final": final, "lr": lr, "weight_decay": weight_decay}
    for event in periodic_finetuning(model, split, epochs=epochs, **settings):
        yield event
        if isinstance(event, EpochEnd):
            ended += 1
            if ended >= frozen_share * epochs:
                model.train().requires_grad_(True)
