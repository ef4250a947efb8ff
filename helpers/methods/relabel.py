"""Published methods that relabel: they train on forgotten images, or images like them, under other labels."""

from dataclasses import replace
from itertools import zip_longest

import torch
from torch.nn.functional import cross_entropy, normalize

from ..data import Batches
from ..training import EpochEnd, Phase, descend
from .common import endless, frozen, mean_gradient, mixed_batches, refuse, with_gradient, wrong_labels


def random_labels(model, split, *, epochs=3, lr=1e-4):
    """Random labels, "Amnesiac" (Graves et al., AAAI 2021): min CE on D_r and D_f, D_f under wrong labels; Adam."""
    yield Phase(lr, optimizer="adamw")
    for batches in mixed_batches(split, wrong_labels(split), epochs):
        yield from descend(model, batches)
        yield EpochEnd()


def salun(model, split, *, share=0.5, epochs=10, lr=0.013, weight_decay=5e-4):
    """SalUn (Fan et al., ICLR 2024): random labels; after every step theta <- M theta + (1 - M) theta0.

    M holds the `share` of all weights with the largest abs(gradient of CE(D_f)) at theta0. Weights without a gradient,
    such as kernel taps that only ever see padding (of ResNet-18 at 32 pixels more than half), are not counted.
    """
    saliency = [gradient.abs() for gradient in mean_gradient(model, split.forget)]
    every = torch.cat([entry[entry > 0] for entry in saliency])
    threshold = every.kthvalue(min(round((1 - share) * len(every)) + 1, len(every))).values
    kept = [(p, entry < threshold, p.detach().clone()) for p, entry in zip(model.parameters(), saliency)]
    yield Phase(lr, weight_decay=weight_decay)
    for batches in mixed_batches(split, wrong_labels(split), epochs):
        for loss in descend(model, batches):
            yield loss
            for p, mask, original in kept:
                p.data = torch.where(mask, original, p.data)
        yield EpochEnd()


def munba(model, split, *, epochs=10, lr=0.01, weight_decay=5e-4):
    """MUNBa (Wu & Harandi, ICCV 2025): steps along the `bisector` of the gradients of CE on D_r and on D_f mislabelled.

    The two losses bargain; Nash's solution weighs each gradient by the inverse of its norm, so that neither dominates.
    An epoch over D_r takes such a step for each batch of D_f and steps down CE(D_r) for the rest. The authors draw
    labels anew for each batch, the true one among them; here they are wrong and drawn once, as in SalUn.
    """
    parameters, forget = list(model.parameters()), replace(split.forget, labels=wrong_labels(split))
    yield Phase(lr, weight_decay=weight_decay)
    for _ in range(epochs):
        for retained, forgotten in zip_longest(split.retain, forget):
            losses = [cross_entropy(model(x), y) for x, y in filter(None, (retained, forgotten))]
            if len(losses) == 2:
                gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
                losses = [with_gradient(sum(losses), parameters, bisector(*gradients))]
            yield from losses
        yield EpochEnd()


def bisector(g_r, g_f):
    """The unit vector with the same positive inner product with both unit gradients; lists of tensors.

    The authors' closed form, g_r / norm(g_r) + g_f / norm(g_f) over sqrt(1 + cos), divides by g_r . g_f; with their
    clip at norm 1 it is this vector. For opposite gradients there is none: g_r + 0.1 g_f, cut to norm 1, as theirs.
    """

    def norm(vector):
        return torch.stack([part.norm() for part in vector]).norm()

    size_r, size_f = (norm(vector).clamp(min=1e-12) for vector in (g_r, g_f))
    middle = [r / size_r + f / size_f for r, f in zip(g_r, g_f)]
    if (length := norm(middle)) > 1e-3:
        return [part / length for part in middle]
    careful = [r + 0.1 * f for r, f in zip(g_r, g_f)]
    length = norm(careful).clamp(min=1)
    return [part / length for part in careful]


def unsir(model, split, *, steps=40, noise_lr=0.1, penalty=0.1, lr_impair=0.02, lr_repair=0.01):
    """UNSIR (Tarun et al., TNNLS 2023), class scenario: an epoch on D_r and noise labelled as D_f, one epoch on D_r.

    The noise N, one batch of it, is learnt by Adam on Original: min -CE(N, c) + penalty mean sum N^2, where the labels
    c are the forgotten classes in turn. Both epochs with Adam.
    """
    refuse(split, "random", "UNSIR learns noise that stands for a class")
    x_f, y_f = next(iter(split.forget))
    classes = y_f.new_tensor(split.forget_classes)
    c = classes[torch.arange(len(y_f), device=y_f.device) % len(classes)]
    noise = confusing_noise(frozen(model), x_f, c, split.processed, steps=steps, lr=noise_lr, penalty=penalty)
    yield Phase(lr_impair, optimizer="adamw")
    for x, y in split.retain:
        split.processed["images"] += len(noise)
        yield cross_entropy(model(torch.cat([noise, x])), torch.cat([c, y]))
    yield EpochEnd()
    yield Phase(lr_repair, optimizer="adamw")
    yield from descend(model, split.retain)
    yield EpochEnd()


def confusing_noise(teacher, x, c, processed, *, steps, lr, penalty):
    """Noise of the shape of `x` on which the cross-entropy to the labels `c` is large."""
    noise = torch.randn_like(x).requires_grad_()
    optimizer = torch.optim.Adam([noise], lr)
    for _ in range(steps):
        loss = penalty * noise.square().flatten(1).sum(1).mean() - cross_entropy(teacher(noise).float(), c)
        (noise.grad,) = torch.autograd.grad(loss, noise)
        optimizer.step()
        processed["images"] += len(x)
    return noise.detach()


def amun(model, split, *, eps=0.04, steps=50, epochs=10, lr=0.01, weight_decay=5e-4):
    """AMUN (Ebrahimpour-Boroojeny et al., ICML 2025): min CE on D_r, D_f and the nearest adversarial images of D_f.

    These carry the wrong label that Original gives them.
    """
    images, wrong, _ = nearest_adversaries(frozen(model), split.forget, eps=eps, steps=steps)
    if not len(images):
        raise ValueError("AMUN found no adversarial image: raise eps or steps")
    share = len(images) / (len(split.forget.index) + split.retain.samples_per_epoch)
    size = max(round(share * split.train.batch_size), 1)
    index = torch.arange(len(images), device=wrong.device)
    adversaries = endless(Batches(images, wrong, index, batch_size=size, processed=split.processed))
    yield Phase(lr, weight_decay=weight_decay)
    for batches in mixed_batches(split, split.train.labels, epochs):
        for (x, y), (x_a, y_a) in zip(batches, adversaries):
            yield cross_entropy(model(torch.cat([x, x_a])), torch.cat([y, y_a]))
        yield EpochEnd()


def nearest_adversaries(teacher, batches, *, eps=0.04, steps=50, doublings=12):
    """L2-PGD on each image until `teacher` predicts another label: `(images, wrong labels, radii)`.

    The radius of pixels in 0 to 1 starts at `eps` and doubles after every `steps` steps of a tenth of it; an image
    that keeps its label after all doublings is left out.
    """
    found = []
    mean, std = (torch.tensor(v, device=batches.index.device)[:, None, None] for v in (batches.mean, batches.std))
    for x, y in batches:
        clean, labels, active = x * std + mean, y.clone(), torch.arange(len(x), device=x.device)
        images, radius = clean.clone(), torch.full((len(x), 1, 1, 1), eps, device=x.device)
        for step in range(doublings * steps + 1):
            probe = images[active].requires_grad_()
            logits = teacher((probe - mean) / std).float()
            batches.processed["images"] += len(probe)
            labels[active] = logits.argmax(1)
            right = labels[active] == y[active]
            if not right.any():
                break
            (ascent,) = torch.autograd.grad(cross_entropy(logits, y[active], reduction="sum"), probe)
            active, ascent = active[right], ascent[right]
            if step and step % steps == 0:
                radius[active] *= 2
            moved = images[active] + radius[active] / 10 * normalize(ascent.flatten(1)).view_as(ascent) - clean[active]
            norm = moved.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
            images[active] = (clean[active] + moved * (radius[active] / norm).clamp(max=1)).clamp(0, 1)
        missed = labels != y
        found.append([((images - mean) / std)[missed], labels[missed], radius.flatten()[missed]])
    return tuple(torch.cat(parts) for parts in zip(*found))
