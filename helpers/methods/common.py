"""What several unlearning methods share: loops over batches, the frozen backbone, teachers, labels, gradients."""

from copy import deepcopy
from dataclasses import replace
from itertools import repeat

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from ..models import evaluating, inputs_of, trained_layers
from ..training import ascend

# --- loops over batches -------------------------------------------------------------------------------------------


def endless(batches):
    """Epoch after epoch of `batches`, without end."""
    while True:
        yield from batches


def alternate(model, split, s):
    """One epoch over the forget set: R(a retained batch), then F(a forgotten batch, s); at s = 0 only R."""
    forgotten = split.forget if s else repeat(None, len(split.forget))
    for batch, (x_r, y_r) in zip(forgotten, endless(split.retain)):
        yield cross_entropy(model(x_r), y_r)
        if batch:
            yield from ascend(model, [batch], s)


def mixed_batches(split, labels, epochs, share=1.0):
    """For each epoch the batches of D_f and of `share` of D_r (of its samples per epoch), shuffled together.

    The targets are `labels`, `(N, ...)`, one entry per training image.
    """
    for epoch in range(epochs):
        order = torch.randperm(len(split.retain.index))[: round(share * split.retain.samples_per_epoch)]
        index = torch.cat([split.forget.index, split.retain.index[order.to(split.retain.index.device)]])
        yield replace(split.train, index=index, labels=labels, epoch=epoch)


def only(batches, chosen):
    """The images of `batches` for which `chosen`, bool `(n,)`, holds."""
    return replace(batches, index=batches.index[chosen])


# --- frozen backbone ----------------------------------------------------------------------------------------------


def train_last_layers(model, split, max_bytes=4e9):
    """Freeze the backbone, BatchNorm statistics included; return the trained layers and a split of their inputs.

    The frozen backbone has the same output for an image in every epoch: it is computed once, when the image is first
    used, and stored. If all outputs need more than `max_bytes`, the model itself and the split of images are returned.
    `models.trained_layers` defines the trained layers.
    """
    layers = trained_layers(model)
    model.eval().requires_grad_(False)
    layers.train().requires_grad_(True)
    outputs = BackboneOutputs(model, layers, split.retain)
    total = len(split.retain.index) + len(split.forget.index)
    if total * outputs[split.retain.index[:1]].nbytes > max_bytes:
        return model, split
    retain, forget = (replace(batches, images=outputs) for batches in (split.retain, split.forget))
    return layers, replace(split, retain=retain, forget=forget)


class BackboneOutputs:
    """The inputs of `layers`, the trained layers of `model`, for the images of `batches`; each is computed once."""

    def __init__(self, model, layers, batches):
        self.model, self.layers, self.batches, self.outputs = model, layers, batches, None
        self.computed = torch.zeros(len(batches.images), dtype=torch.bool, device=batches.index.device)

    def __getitem__(self, index):
        new = index[~self.computed[index]]
        if len(new):
            with evaluating(self.model), inputs_of(self.layers[0]) as caught:
                self.model(self.batches.prepare(self.batches.images[new]))
            (found,) = caught
            if self.outputs is None:
                layout = torch.channels_last if found.ndim == 4 else torch.contiguous_format
                size = len(self.computed), *found.shape[1:]
                self.outputs = torch.empty(size, dtype=found.dtype, device=found.device, memory_format=layout)
            self.outputs[new], self.computed[new] = found, True
        return self.outputs[index]


# --- teachers and targets -----------------------------------------------------------------------------------------


def frozen(model):
    """A copy of `model` in evaluation mode without gradients: a teacher."""
    return deepcopy(model).eval().requires_grad_(False)


def kl(teacher, student, T=1.0):
    """T^2 D_KL(softmax(teacher / T) || softmax(student / T)) of logits, in nats, mean over the batch."""
    q = (teacher.float() / T).softmax(1)
    return T**2 * kl_div(log_softmax(student.float() / T, 1), q, reduction="batchmean")


def wrong_labels(split):
    """Labels of all training images, int64 `(N,)`: those of D_f are wrong, drawn once.

    A wrong label is never the true one and, in the class scenario, never a forgotten class.
    """
    labels, y, classes = split.train.labels.clone(), split.forget.y, len(split.classes)
    others = (y[:, None] + torch.arange(1, classes, device=y.device)) % classes  # from the next class on
    others = others[~split.is_forgotten_class(others)].view(len(y), -1)
    drawn = torch.randint_like(y, others.shape[1])
    labels[split.forget.index] = others.gather(1, drawn[:, None]).flatten()
    return labels


def without_classes(logits, classes):
    """`logits` `(n, classes)` with -inf for these class numbers, so that their probability is 0."""
    return logits.index_fill(1, torch.tensor(classes, device=logits.device), -torch.inf)


def held_out_images(split):
    """Validation images of D_f's distribution: in the class scenario those of the forgotten classes.

    Raises:
        ValueError: there are none.
    """
    held_out = split.validation
    if split.forget_classes:
        held_out = only(held_out, split.is_forgotten_class(held_out.y))
        if not len(held_out.index):
            raise ValueError("no validation image is of a forgotten class: there is nothing to compare with")
    return held_out


def error_rate(model, batches):
    """Share of wrong predictions in evaluation mode."""
    with evaluating(model):
        return torch.cat([model(x).argmax(1) != y for x, y in batches]).float().mean().item()


def refuse(split, scenario, why):
    """Raise a `ValueError` in the scenario in which a method is not defined."""
    if split.scenario.name == scenario:
        raise ValueError(f"not for the {scenario} scenario: {why}")


# --- weights and gradients ----------------------------------------------------------------------------------------


def reinitialise(module):
    """Draw all weights anew, at every depth; a ViT's class token and positions from N(0, 0.02^2)."""
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
        else:
            for parameter in part.parameters(recurse=False):
                nn.init.normal_(parameter, std=0.02)
    return module


def mean_gradient(model, batches, power=1):
    """Mean over one epoch of each batch's gradient of the CE to that power, beside the parameters; evaluation mode."""
    parameters, count = list(model.parameters()), 0
    total = [torch.zeros_like(parameter) for parameter in parameters]
    with evaluating(model), torch.enable_grad():
        for x, y in batches:
            for entry, g in zip(total, torch.autograd.grad(cross_entropy(model(x).float(), y), parameters)):
                entry += len(y) * g**power
            count += len(y)
    return [entry / count for entry in total]


def with_gradient(loss, parameters, gradient):
    """A loss of the same value whose gradient is `gradient`."""
    return loss.detach() + sum(((p - p.detach()) * g).sum() for p, g in zip(parameters, gradient))
