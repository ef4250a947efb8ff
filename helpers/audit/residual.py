"""Residual knowledge: is a model right about the neighbourhood of a forgotten image more often than Gold is?"""

import numpy as np
import torch

from ..metrics import predict


def shares_right(model, batches, *, tau=0.03, draws=10, seed=0):
    """How often the model is right about each image with noise on it, share of `draws`, float64 numpy `(n,)`.

    The noise is uniform from -tau to tau per pixel and channel, in whole grey levels, the same for all models.

    Args:
        batches: unshuffled `Batches` of the images, such as `split.sets["forget"]`.
        tau: for pixels from 0 to 1.
    """
    images, level = batches.images[batches.index], round(255 * tau)
    generator = torch.Generator().manual_seed(seed)
    index, right = torch.arange(len(images), device=images.device), []
    for _ in range(draws):
        noise = torch.randint(-level, level + 1, images.shape, generator=generator, dtype=torch.int16)
        noisy = batches.reset(
            images=(images + noise.to(images.device)).clamp(0, 255).byte(), labels=batches.y, index=index
        )
        right.append((predict(model, noisy)[0].argmax(1) == batches.y.cpu()).numpy())
    return np.mean(right, axis=0)


def residual_knowledge(own, references):
    """Residual knowledge r_tau = P(model right on x + noise) / P(Gold right on x + noise) (Hsu et al., NeurIPS 2025).

    Pitfall: r of one image is often infinite or 0/0, since a Gold is never right about some images, in the class
    scenario about none. So r here is the ratio of the means over images, NaN if both are 0; beside it stands the
    percentage of images with r > 1. Two Golds reach more than 0 % too.

    Args:
        own: `shares_right` of the model, `(n,)`.
        references: those of Golds, `(Golds, n)`; of a Gold, those of the others.

    Returns:
        dict: `residual knowledge r`, and `residual knowledge, %` of the images with r > 1, means over the references.
    """
    own, references = np.asarray(own, float), np.atleast_2d(np.asarray(references, float))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = own.mean() / references.mean(1)
    return {"residual knowledge r": ratios.mean(), "residual knowledge, %": 100 * (own > references).mean()}
