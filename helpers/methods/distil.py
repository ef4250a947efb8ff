"""Published methods that distil: the targets are predictions of Original, of a random network, or made from them."""

from copy import deepcopy
from dataclasses import replace

import torch
from torch.nn.functional import cosine_similarity, cross_entropy, one_hot

from ..metrics import predict
from ..models import last_linear
from ..training import EpochEnd, Phase, descend
from .common import (
    endless,
    error_rate,
    frozen,
    held_out_images,
    kl,
    mixed_batches,
    refuse,
    reinitialise,
    without_classes,
)


def bad_teacher(model, split, *, share=0.3, epochs=1, lr=1e-4):
    """Bad Teacher (Chundawat et al., AAAI 2023): min D_KL(q || p), q a random network's on D_f, else p0.

    One pass over D_f and a `share` of D_r, shuffled together; Adam.
    """
    good, bad = frozen(model), frozen(reinitialise(deepcopy(model)))
    is_forgotten = torch.zeros_like(split.train.labels, dtype=torch.bool)
    is_forgotten[split.forget.index] = True
    yield Phase(lr, optimizer="adamw")
    for batches in mixed_batches(split, is_forgotten, epochs, share):
        for x, forgotten in batches:
            yield kl(torch.where(forgotten[:, None], bad(x), good(x)), model(x))
        yield EpochEnd()


def scrub(model, split, *, gamma=0.99, alpha=0.001, T=4.0, msteps=2, epochs=3, lr=5e-4, weight_decay=5e-4):
    """SCRUB (Kurmanji et al., NeurIPS 2023): up D_KL(p0 || p) on D_f, down gamma CE + alpha D_KL(p0 || p) on D_r.

    Each epoch is a pass down, the first `msteps` of them after a pass up; the divergence at temperature T, times T^2.
    """
    teacher = frozen(model)
    yield Phase(lr, weight_decay=weight_decay)
    for epoch in range(epochs):
        if epoch < msteps:
            for x, _ in split.forget:
                yield -kl(teacher(x), model(x), T)
        for x, y in split.retain:
            logits = model(x)
            yield gamma * cross_entropy(logits, y) + alpha * kl(teacher(x), logits, T)
        yield EpochEnd()


def scrub_rewind(model, split, *, gamma=1.0, alpha=0.5, T=4.0, msteps=3, epochs=5, lr=5e-4, weight_decay=5e-4):
    """SCRUB+R (Kurmanji et al., NeurIPS 2023): SCRUB, then back to the epoch whose forget error is nearest a reference.

    The reference is the last model's error on held-out images of D_f's distribution; no Gold is used.
    """
    errors, states = [], []
    settings = {"T": T, "msteps": msteps, "epochs": epochs, "lr": lr, "weight_decay": weight_decay}
    for event in scrub(model, split, gamma=gamma, alpha=alpha, **settings):
        yield event
        if isinstance(event, EpochEnd):
            errors.append(error_rate(model, split.forget))
            states.append(deepcopy(model.state_dict()))
    reference = error_rate(model, held_out_images(split))
    epoch = min(range(len(errors)), key=lambda i: abs(errors[i] - reference))
    model.load_state_dict(states[epoch])
    yield EpochEnd({"rewound to": epoch + 1})


def regun(model, split, *, l_f=0.5, l_r=0.5, epochs=10, lr=0.01):
    """ReGUn (Mirlach et al., 2026), random scenario: min l_f D_KL(q || p) on D_f + l_r CE(D_r), D_f cycled.

    q is Original's mean prediction on as many held-out images, of the same classes as the batch.
    """
    refuse(split, "class", "Original recognises held-out images of the class too, so ReGUn has no reference")
    held_out = replace(split.validation, shuffle=False)
    p0, y_h = predict(model, held_out)[0].softmax(1).to(held_out.y.device), held_out.y
    if not torch.isin(split.forget.y, y_h).all():
        raise ValueError("ReGUn needs a validation image of each class that is to be forgotten")
    forgotten = endless(split.forget)
    yield Phase(lr)
    for _ in range(epochs):
        for (x_r, y_r), (x_f, y_f) in zip(split.retain, forgotten):
            drawn = torch.multinomial((y_f[:, None] == y_h).float(), 1).flatten()
            q = p0[drawn].mean(0).log().expand(len(y_f), -1)
            yield l_f * kl(q, model(x_f)) + l_r * cross_entropy(model(x_r), y_r)
        yield EpochEnd()


def delete(model, split, *, epochs=20, lr=1e-4, weight_decay=0.0):
    """DELETE (Zhou et al., CVPR 2025), class scenario: min D_KL(q || p) on D_f.

    q = softmax(z0 with z0_c = -inf for every forgotten class c).
    """
    refuse(split, "random", "DELETE removes the forgotten classes from the predictions")
    teacher = frozen(model)
    yield Phase(lr, weight_decay=weight_decay)
    for _ in range(epochs):
        for x, _ in split.forget:
            yield kl(without_classes(teacher(x), split.forget_classes), model(x))
        yield EpochEnd()


def trew(model, split, *, beta=10.0, T=0.1, epochs=5, lr=0.01, weight_decay=5e-4):
    """TREW (Ebrahimpour-Boroojeny et al., ICML 2026), class scenario: min D_KL(q || p) on D_f + CE(D_r), D_f cycled.

    q is DELETE's target, tilted towards the classes that resemble the image's own: q_k is proportional to
    p0_k exp(beta s_k), and 0 for a forgotten class; s are the `similarities` of the classes. The authors use beta = 10
    and reduce the head's weights by a PCA; its size and T were not to be found, so all components are kept here.
    """
    refuse(split, "random", "TREW removes the forgotten classes from the predictions")
    teacher, forgotten = frozen(model), endless(split.forget)
    tilt = beta * similarities(last_linear(teacher).weight, split.forget_classes, T)
    yield Phase(lr, weight_decay=weight_decay)
    for _ in range(epochs):
        for (x_r, y_r), (x_f, y_f) in zip(split.retain, forgotten):
            target = without_classes(teacher(x_f).float() + tilt[y_f], split.forget_classes)
            yield kl(target, model(x_f)) + cross_entropy(model(x_r), y_r)
        yield EpochEnd()


def similarities(weight, forget_classes, T):
    """Row c: the softmax of cos(w_c, w_k) / T over the classes k that are kept, float32 `(classes, classes)`.

    The rows w of the head's `weight` are centred, as by a PCA: what all rows share changes no prediction.
    """
    w = weight.detach().float() - weight.detach().float().mean(0)
    return without_classes(cosine_similarity(w[:, None], w[None], dim=2) / T, forget_classes).softmax(1)


def margin_matching(model, split, *, ranked=True, share=1.0, epochs=5, lr=0.02, weight_decay=5e-4):
    """Margin matching (this suite): min CE on D_r and D_f, D_f under the predictions of `unseen_logits`.

    The learning rate falls as a cosine. With `ranked=False` or `share=0` the method lacks one of its parts. The target
    was chosen among several by the gap to Gold on CIFAR-10 (preset `short`, seed 0): there it is chosen with Gold.
    Relatives that match forgotten images to unseen ones or to an estimate of Gold: A-AMU (Khan, 2025), AdaProb (Zhao et
    al., 2024), TMU (Niu et al., 2025), ReGUn, DMM (Georgiev et al., ICLR 2025).
    """
    logits = unseen_logits(model, split, ranked)
    yield from match(model, split, logits, share=share, epochs=epochs, lr=lr, weight_decay=weight_decay)


def match(model, split, logits, *, share, epochs, lr, weight_decay):
    """Min CE on D_r and D_f, shuffled together, D_f under the predictions `logits`, float32 `(n, classes)`."""
    labels = one_hot(split.train.labels, len(split.classes)).float()
    labels[split.forget.index] = logits.softmax(1).to(labels.device)
    rounds = list(mixed_batches(split, labels, epochs, share))
    yield Phase(lr, weight_decay=weight_decay, schedule="cosine", steps=sum(map(len, rounds)))
    for batches in rounds:
        yield from descend(model, batches)
        yield EpochEnd()


def unseen_logits(model, split, ranked=True):
    """An estimate of the predictions on D_f of a model that never saw D_f: logits float32 `(n, classes)`.

    They are Original's except for the true class: an image's margin z_y - logsumexp_{k != y} z_k becomes that of the
    held-out image of the same rank in its class, of a random rank if not `ranked`. The logits of forgotten classes (in
    the class scenario), and of a true class without held-out images, become -inf.
    """
    forget, held_out = (replace(batches, shuffle=False) for batches in (split.forget, split.validation))
    z, y = predict(model, forget)[0], forget.y.cpu()
    if split.forget_classes:
        return without_classes(z, split.forget_classes)
    z_h, y_h = predict(model, held_out)[0], held_out.y.cpu()
    return with_margins(z, y, z_h, y_h, z if ranked else None)


def with_margins(z, y, z_h, y_h, order=None):
    """Logits `z` `(n, classes)` with the margins of held-out images: in each class, the margin of the same rank.

    Ranks are those of the margins under the logits `order`; random if None. A class without held-out images gets -inf.
    """
    z = z.clone()
    for c in y.unique():
        wanted = margins(z_h[y_h == c], c)
        if not len(wanted):
            z[y == c, c] = -torch.inf
            continue
        own = margins(z[y == c], c)
        first = torch.randperm(len(own)) if order is None else margins(order[y == c], c).argsort()
        rank = (first.argsort() + 0.5) / len(own)
        z[y == c, c] += wanted.quantile(rank) - own
    return z


def margins(logits, c):
    """z_c - logsumexp_{k != c} z_k of each row."""
    others = torch.arange(logits.shape[1]) != c
    return logits[:, c] - logits[:, others].logsumexp(1)
