"""Retained images that are the same as a forgotten one, or nearly: what they teach remains after forgetting."""

import hashlib

import pandas as pd
import torch
from torch.nn.functional import adaptive_avg_pool2d

NEAR = 5.0  # grey levels of 0 to 255: in CIFAR-10, JPEG at quality 20 makes 4.1 at most, a shift by one pixel about 9
SIDE = 8  # of the thumbnails, pixels
BLOCK = 256  # forgotten images that are compared at a time


def thumbnails(images):
    """Grey thumbnails of uint8 images `(n, size, size, 3)`, float32 `(n, SIDE * SIDE)`, 0 to 255."""
    parts = (adaptive_avg_pool2d(part.float().mean(-1)[:, None], SIDE).flatten(1) for part in images.split(1000))
    return torch.cat(list(parts))


def nearest_retained(split):
    """For each forgotten image the retained one that is most like it.

    The difference is the mean absolute difference of two grey thumbnails of 8x8 pixels, in grey levels of 0 to 255: it
    finds copies in other quality, brightness or size, but no shifted, turned or mirrored ones. Pitfall: images with
    little contrast differ little, so look at the pairs.

    Returns:
        Table with columns forgotten and retained (indices of training images), difference, and identical (whether all
        pixels are equal).
    """
    forget, retain = (batches.index.cpu() for batches in (split.forget, split.retain))
    images = split.train.images
    small, others = (thumbnails(images[index.to(images.device)]).cpu() for index in (forget, retain))
    blocks = [torch.cdist(block, others, p=1).min(1) for block in small.split(BLOCK)]
    nearest = retain[torch.cat([block.indices for block in blocks])]
    table = pd.DataFrame({
        "forgotten": forget,
        "retained": nearest,
        "difference": torch.cat([block.values for block in blocks]) / SIDE**2,
    })  # fmt: skip
    copies = dict(zip(digests(images, retain), retain.tolist()))
    copy_of = pd.Series([copies.get(digest) for digest in digests(images, forget)], dtype=float)
    return table.assign(retained=copy_of.fillna(table.retained).astype(int), identical=copy_of.notna())


def digests(images, index):
    """A digest of the pixels of each of these images."""
    for part in index.split(1000):
        for image in images[part.to(images.device)].cpu().numpy():
            yield hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def near_duplicates(split):
    """The rows of `nearest_retained` that are identical or differ by at most `NEAR`, the most alike first."""
    table = nearest_retained(split)
    return table[table.identical | (table.difference <= NEAR)].sort_values("difference", ignore_index=True)
