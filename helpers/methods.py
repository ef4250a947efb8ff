"""Unlearning methods: generators of losses in reading order, run by `unlearn` (see there for the contract).

Sources: document A (ResNet-18, a random tenth of CIFAR-10: M1-M6, H1-H4), document B (ViT-Tiny, the class airplane:
fine-tuning, gradient ascent, 2-Stage) and fanchuan's winning entry to the NeurIPS 2023 unlearning challenge, which
2-Stage is a small form of. Notation: R is a step down the cross-entropy (CE) of a retained batch, F a step up `s` times
the CE of a forgotten batch; `e` counts epochs from 0, `E` is their number.
"""

import math
from dataclasses import replace
from itertools import islice, repeat

import torch
from torch.nn.functional import cross_entropy, log_softmax

from .models import early, evaluating, inputs_of, tail
from .training import EpochEnd, Phase

# --- vocabulary ---------------------------------------------------------------------------------------------------


def learn(model, batches):
    """R for each batch of one pass: down the cross-entropy."""
    for x, y in batches:
        yield cross_entropy(model(x), y)


def ascend(model, batches, s=1.0):
    """F for each batch of one pass: up `s` times the cross-entropy; none at s = 0."""
    for x, y in batches if s else ():
        yield -s * cross_entropy(model(x), y)


def endless(batches):
    """Pass after pass over `batches`."""
    while True:
        yield from batches


def alternate(model, split, s):
    """One pass over the forget set: R(a retained batch), then F(a forgotten batch, s); at s = 0 only R."""
    forgotten = split.forget if s else repeat(None, len(split.forget))
    for batch, (x_r, y_r) in zip(forgotten, endless(split.retain)):
        yield cross_entropy(model(x_r), y_r)
        if batch:
            yield from ascend(model, [batch], s)


def tail_only(model, split, at_most=4e9):
    """Freeze all but the tail, BatchNorm statistics included; return the tail and a split of the trunk's outputs.

    The frozen trunk gives an image the same output every time: it is computed when an image is first served, and kept.
    Where these would take more than `at_most` bytes the split stays one of images. See `models.tail` for the tail.
    """
    network = tail(model)
    model.eval().requires_grad_(False)
    network.train().requires_grad_(True)
    outputs = TrunkOutputs(model, network, split.retain)
    total = len(split.retain.index) + len(split.forget.index)
    if total * outputs[split.retain.index[:1]].nbytes > at_most:
        return model, split
    return network, replace(
        split, retain=replace(split.retain, images=outputs), forget=replace(split.forget, images=outputs)
    )


class TrunkOutputs:
    """What goes into `network`, the tail of `model`, for the images of `batches`; each is computed when asked for."""

    def __init__(self, model, network, batches):
        self.model, self.network, self.batches, self.outputs = model, network, batches, None
        self.there = torch.zeros(len(batches.images), dtype=torch.bool, device=batches.index.device)

    def __getitem__(self, index):
        new = index[~self.there[index]]
        if len(new):
            with evaluating(self.model), inputs_of(self.network[0]) as caught:
                self.model(self.batches.prepare(self.batches.images[new]))
            (found,) = caught
            if self.outputs is None:
                layout = torch.channels_last if found.ndim == 4 else torch.contiguous_format
                size = len(self.there), *found.shape[1:]
                self.outputs = torch.empty(size, dtype=found.dtype, device=found.device, memory_format=layout)
            self.outputs[new], self.there[new] = found, True
        return self.outputs[index]


def kl_uniform(logits):
    """D_KL(u || p): how far the predictions are from uniform, in nats, mean over the batch."""
    return -math.log(logits.shape[1]) - log_softmax(logits.float(), 1).mean()


def contrast(z_f, z_r, tau):
    """-log softmax(z_f . sg(z_r)^T / tau), mean over all entries; at least log |B_r|, where the rows are constant."""
    with torch.autocast(z_f.device.type, enabled=False):
        return -log_softmax(z_f.float() @ z_r.detach().float().T / tau, 1).mean()


# --- 03 relearn what is retained ----------------------------------------------------------------------------------


def retain_finetuning(model, split, *, epochs=100, lr=1e-3, weight_decay=5e-4, schedule="cosine"):
    """M1 (document A), and with a constant learning rate document B's fine-tuning: min CE(D_r)."""
    yield Phase(lr, weight_decay=weight_decay, schedule=schedule, steps=epochs * len(split.retain))
    for _ in range(epochs):
        yield from learn(model, split.retain)
        yield EpochEnd()


# --- 04 only the last part of the network -------------------------------------------------------------------------


def selective_finetuning(model, split, *, epochs=100, lr=1e-3, weight_decay=5e-4):
    """M2 (document A): M1 where only the tail (layer4 + fc) trains."""
    tail, split = tail_only(model, split)
    yield from retain_finetuning(tail, split, epochs=epochs, lr=lr, weight_decay=weight_decay)


# --- 05 push away -------------------------------------------------------------------------------------------------


def gradient_ascent(model, split, *, epochs=5, lr=1e-4, weight_decay=0.0):
    """Gradient ascent (document B): max CE(D_f), forgotten batches only."""
    yield Phase(lr, weight_decay=weight_decay)
    for _ in range(epochs):
        yield from ascend(model, split.forget)
        yield EpochEnd()


def gradient_reversal(model, split, *, epochs=60, s=1.0, lr=1e-3, weight_decay=5e-4):
    """M3 (document A): M2, then one pass of F over the forget set, fresh optimiser, evaluation mode."""
    tail, split = tail_only(model, split)
    yield from retain_finetuning(tail, split, epochs=epochs, lr=lr, weight_decay=weight_decay)
    tail.eval()
    yield Phase(lr, weight_decay=weight_decay)
    yield from ascend(tail, split.forget, s)
    yield EpochEnd({"s": s})


# --- 06 and 07 alternate ------------------------------------------------------------------------------------------


def alternate_epochs(model, split, *, epochs=100, s=0.3, lr=1e-3, weight_decay=5e-4):
    """M4 (document A): M2 for E/2 epochs, then E/2 times [R over the retain set; F over the forget set]."""
    tail, split = tail_only(model, split)
    yield from retain_finetuning(tail, split, epochs=epochs // 2, lr=lr, weight_decay=weight_decay)
    yield Phase(lr, weight_decay=weight_decay)
    for _ in range(epochs - epochs // 2):
        yield from learn(tail, split.retain)
        yield from ascend(tail, split.forget, s)
        yield EpochEnd({"s": s})


def alternate_batches(model, split, *, epochs=100, s=0.4, final=0, lr=1e-3, weight_decay=5e-4):
    """M5 (document A): E passes over the forget set, R then F at each step; M6: then `final` epochs of R."""
    tail, split = tail_only(model, split)
    yield Phase(lr, weight_decay=weight_decay)
    for _ in range(epochs):
        yield from alternate(tail, split, s)
        yield EpochEnd({"s": s})
    for _ in range(final):
        yield from learn(tail, split.retain)
        yield EpochEnd({"s": 0.0})


# --- 08 two stages ------------------------------------------------------------------------------------------------


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


def two_stage_full(model, split, *, rounds=8, tau=1.15, lr_uniform=5e-3, lr_contrast=3e-4, lr_retain=4e-3,
                   batch_size=256):  # fmt: skip
    """2-Stage's origin (fanchuan, NeurIPS 2023): D_KL(u || p) over D_f; rounds of [contrast over D_f; CE(D_r)]."""
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
        yield from learn(model, retain)
        yield EpochEnd()


# --- 09 hybrids: the whole network, s grows -----------------------------------------------------------------------


def linear(e, E):
    """e / E."""
    return e / E


def square(e, E):
    """(e / E)^2, which document A calls exponential."""
    return (e / E) ** 2


def exponential(e, E, k=5.0):
    """(exp(k e / E) - 1) / (exp(k) - 1): what the word says."""
    return math.expm1(k * e / E) / math.expm1(k)


GROWTH = {"linear": linear, "square": square, "exponential": exponential}


def scaled_ascent(model, split, *, epochs=50, s=0.6, growth="linear", final=0, lr=1e-3, weight_decay=5e-4):
    """H1, H2 (document A): M5's loop on all parameters with s_e = s growth(e/E); H2: then `final` epochs of R."""
    yield Phase(lr, weight_decay=weight_decay)
    for e in range(epochs):
        s_e = s * GROWTH[growth](e, epochs)
        yield from alternate(model, split, s_e)
        yield EpochEnd({"s": s_e})
    for _ in range(final):
        yield from learn(model, split.retain)
        yield EpochEnd({"s": 0.0})


def periodic_finetuning(model, split, *, epochs=50, s=1.0, every=10, final=10, lr=1e-3, weight_decay=5e-4):
    """H3 (document A): each epoch R over D_r with up to two F(s (e/E)^2) after each while D_f lasts; R-epochs between.

    Every `every`-th epoch is followed by one more epoch of R, the last one by `final` of them.
    """
    yield Phase(lr, weight_decay=weight_decay)
    for e in range(epochs):
        s_e = s * square(e, epochs)
        forgotten = iter(split.forget)
        for x, y in split.retain:
            yield cross_entropy(model(x), y)
            if s_e:
                yield from ascend(model, islice(forgotten, 2), s_e)
        if (e + 1) % every == 0:
            yield from learn(model, split.retain)
        yield EpochEnd({"s": s_e})
    for _ in range(final):
        yield from learn(model, split.retain)
        yield EpochEnd({"s": 0.0})


def thawing(model, split, *, epochs=50, thaw=0.3, **settings):
    """H4 (document A): H3 with the early part (layer1, layer2) frozen for the first `thaw` of its epochs.

    Frozen as in M2: BatchNorm statistics included.
    """
    for part in early(model):
        part.eval().requires_grad_(False)
    ended = 0
    for happening in periodic_finetuning(model, split, epochs=epochs, **settings):
        yield happening
        if isinstance(happening, EpochEnd):
            ended += 1
            if ended >= thaw * epochs:
                model.train().requires_grad_(True)


DOCUMENTS = {  # display name: (function, settings); the signature's defaults are the documents' settings
    "M1 Retain FT": (retain_finetuning, {}),
    "M2 Selective FT": (selective_finetuning, {}),
    "M3 Reversal": (gradient_reversal, {}),
    "M4 Per epoch": (alternate_epochs, {}),
    "M5 Per batch": (alternate_batches, {}),
    "M6 Per batch + FT": (alternate_batches, {"s": 0.5, "final": 5}),
    "H1 Linear": (scaled_ascent, {}),
    "H2 Square + FT": (scaled_ascent, {"s": 0.8, "growth": "square", "final": 10}),
    "H3 Periodic FT": (periodic_finetuning, {}),
    "H4 Thawing": (thawing, {}),
    "Fine-tuning": (retain_finetuning, {"epochs": 5, "lr": 1e-4, "weight_decay": 0.0, "schedule": "constant"}),
    "Gradient ascent": (gradient_ascent, {}),
    "2-Stage": (two_stage, {}),
    "2-Stage full": (two_stage_full, {}),
}
