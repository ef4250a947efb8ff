"""Retained copies of forgotten images: hand-made ones are found, other images are not."""

from dataclasses import replace

import pytest
import torch

from helpers.data import make_split
from helpers.results.certificate import class_counts, forgotten_lines
from helpers.results.duplicates import NEAR, near_duplicates, nearest_retained, thumbnails


@pytest.fixture
def copied():
    """40 random images of 16 pixels; 0 to 3 are forgotten. 10 is 0; 11 and 12 are 1, brighter by 4 and by 6."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(20, 230, (40, 8, 8, 1), generator=generator).repeat_interleave(2, 1).repeat_interleave(2, 2)
    x = x.expand(-1, -1, -1, 3).clone()
    x[10], x[11], x[12] = x[0], x[1] + 4, x[1] + 6
    x[13] = x[2].flip(1)  # a mirror image is no copy for this measure
    return x.to(torch.uint8)


@pytest.fixture
def split(copied, data):
    data = replace(data, train_x=copied, train_y=torch.arange(40) % 4)
    return make_split(data, forget_index=torch.tensor([0, 1, 2, 3]), image_size=8)


def test_the_nearest_retained_image_and_its_difference(split):
    table = nearest_retained(split).set_index("forgotten")
    assert table.retained[[0, 1]].tolist() == [10, 11]
    assert table.difference[0] == 0 and table.difference[1] == pytest.approx(4)
    assert table.identical.tolist() == [True, False, False, False]
    assert (table.difference[[2, 3]] > 3 * NEAR).all()


def test_copies_are_counted(split):
    found = near_duplicates(split)
    assert found.forgotten.tolist() == [0, 1] and found.retained.tolist() == [10, 11]


def test_blocks_change_nothing(split, monkeypatch):
    from helpers.results import duplicates

    whole = nearest_retained(split)
    monkeypatch.setattr(duplicates, "BLOCK", 3)
    assert nearest_retained(split).equals(whole)


def test_identical_means_all_pixels_not_the_thumbnail(split):
    """A pair of pixels exchanged within a cell of the thumbnail leaves the thumbnail as it is."""
    split.train.images[10, 0, 0] = 0
    split.train.images[0, 0, 1] = 0
    found = near_duplicates(split)
    assert not found.identical.any()


def test_thumbnails_are_means_of_grey_levels():
    x = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    x[0, :2, :2] = torch.tensor([30, 60, 90], dtype=torch.uint8)
    small = thumbnails(x)
    assert small.shape == (1, 64) and small[0, 0] == 60 and small[0, 1:].sum() == 0


def test_the_certificate_has_classes_and_copies(split, data):
    from types import SimpleNamespace

    e = SimpleNamespace(split=split, data=data)
    assert class_counts(e) == {name: (1, 10) for name in "abcd"}
    text = "\n".join(forgotten_lines(e, near_duplicates(split)))
    assert "a: 1 of 10; b: 1 of 10" in text and "1 of the forgotten images have a retained image" in text
    assert "1 more have one that differs by at most 5 of 255" in text
