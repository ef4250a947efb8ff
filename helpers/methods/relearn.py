"""Published methods that relearn: they train on the retained images, from Original's weights or from part of them."""

from functools import partial

import torch
from torch.nn.functional import cross_entropy, normalize

from ..data import crop_and_flip
from ..models import blocks, inputs_of, last_linear
from ..training import EpochEnd, Phase, descend
from .common import reinitialise
from .documents import retain_finetuning
from .edit_weights import negate_first


def l1_sparse(model, split, *, alpha=5e-4, epochs=10, lr=0.01, weight_decay=5e-4):
    """l1-sparse (Jia et al., NeurIPS 2023): min CE(D_r) + alpha (1 - t/T) |theta|_1 in epoch t of T."""
    yield Phase(lr, weight_decay=weight_decay)
    for t in range(epochs):
        for loss in descend(model, split.retain):
            yield loss + alpha * (1 - t / epochs) * sum(p.abs().sum() for p in model.parameters())
        yield EpochEnd()


def last_blocks(model, split, *, k=2, reset=False, epochs=10, lr=0.01, weight_decay=5e-4, schedule="constant"):
    """CF-k (Goel et al., 2022): min CE(D_r) over the last k blocks; EU-k: these re-initialised first.

    Blocks are ResNet-18's four layers and fc, or a ViT's blocks and its norm with the head (`models.blocks`). The rest
    is frozen, its BatchNorm statistics included.
    """
    model.eval().requires_grad_(False)
    for block in blocks(model)[-k:]:
        block.train().requires_grad_(True)
        if reset:
            reinitialise(block)
    yield from retain_finetuning(model, split, epochs=epochs, lr=lr, weight_decay=weight_decay, schedule=schedule)


def contrastive_finetuning(
    model, split, *, lam=1.0, tau=0.1, negate=False, epochs=50, lr=0.05, lr_end=1e-4, weight_decay=5e-4
):
    """CoUn (Khalil et al., NeurIPS 2025): min CE(D_r) + lam InfoNCE of two weak views of D_r; NoT+CL: W1 <- -W1 first.

    The features are the classification layer's inputs, the views random crops padded with the mean colour (and mirror
    images where these keep their label); CE sees the first view. The authors tune lam in 0.1 to 6 and use tau <= 0.3,
    lr 0.01 to 0.1, cosine to 1e-4.
    """
    if negate:
        negate_first(model)
    view = partial(crop_and_flip, generator=None, flip=split.retain.flip)
    yield Phase(lr, weight_decay=weight_decay, schedule="cosine", steps=epochs * len(split.retain), lr_end=lr_end)
    for _ in range(epochs):
        for x, y in split.retain:
            views = [view(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for _ in range(2)]
            with inputs_of(last_linear(model)) as features:
                logits, _ = (model(x) for x in views)
            split.processed["images"] += len(y)  # the second view
            yield cross_entropy(logits, y) + lam * info_nce(*features, tau)
        yield EpochEnd()


def info_nce(a, b, tau):
    """Symmetric InfoNCE of features `(B, width)`: the cosine of a_i and b_i against that of a_i and the other b_j."""
    with torch.autocast(a.device.type, enabled=False):
        similarity = normalize(a.float()) @ normalize(b.float()).T / tau
    same = torch.arange(len(a), device=a.device)
    return (cross_entropy(similarity, same) + cross_entropy(similarity.T, same)) / 2
