"""Networks and splits that the tests of the subject share."""

import pytest

from helpers.training import train


@pytest.fixture(params=["toy", "slim_vit"])
def network(request):
    """`network(seed)` builds the toy convolutional network, then the slim vision transformer."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["random_split", "class_split"])
def split(request):
    """The split of each scenario."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def trained(toy, random_split):
    """A toy network that has learnt the training images."""
    model = toy()
    train(model, random_split.train, epochs=8, batch_size=8, lr=0.05)
    return model
