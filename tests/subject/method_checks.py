"""What the tests of the methods share: states, the order of events, single steps, labels of images."""

import scipy.stats
import torch

from helpers.training import EpochEnd, Phase


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(state, other, names=None):
    return all(torch.equal(state[name], other[name]) for name in names or state)


def order(events):
    """What a method yields as one word: P a phase, R a positive loss, F a negative one, | an epoch's end."""
    letter = {Phase: lambda phase: "P", EpochEnd: lambda end: "|", torch.Tensor: lambda loss: "R" if loss > 0 else "F"}
    return "".join(letter[type(event)](event) for event in events)


def step_by_step(method, model, split, lr=0.05, **settings):
    """Run a method with plain SGD; yield each loss and the images that the model had, before the step.

    With lr=0 the weights stay as they are.
    """
    inputs = []
    events = method(model, split, **settings)
    assert isinstance(next(events), Phase)  # copies of the model exist by now, and do not get the hook
    handle = model.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for event in events:
        if isinstance(event, torch.Tensor):
            handle.remove()
            yield event.item(), inputs.pop()
            optimizer.zero_grad()
            event.backward()
            optimizer.step()
            handle = model.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    handle.remove()


class Lookup(dict):
    """`{image: label}` of unaugmented images; `lookup.of(x)` are the labels of a batch."""

    def __init__(self, images, labels):
        super().__init__((image.numpy().tobytes(), label) for image, label in zip(images, labels))

    def of(self, x):
        return torch.stack([self[image.numpy().tobytes()] for image in x])


def images_of(batches):
    """All images of `batches` and their labels, in the order of `batches.index`."""
    return tuple(torch.cat(parts) for parts in zip(*batches.reset(shuffle=False)))


def divergence(q, p):
    """Mean D_KL(q || p) of rows of probabilities, in float64 by scipy."""
    return scipy.stats.entropy(q.detach().double().numpy(), p.detach().double().numpy(), axis=1).mean()
