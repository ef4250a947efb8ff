"""Published methods that edit weights: they change chosen weights directly; some of them then relearn."""

import warnings
from dataclasses import replace
from functools import partial

import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import nn
from torch.distributions import Categorical
from torch.func import functional_call, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..models import evaluating, is_vit
from ..training import EpochEnd, Phase, descend
from .common import mean_gradient
from .documents import retain_finetuning


def negate_first(model):
    """W <- -W in the first layer: ResNet-18's first convolution, a ViT's patch embedding."""
    with torch.no_grad():
        next(part for part in model.modules() if isinstance(part, (nn.Conv2d, nn.Linear))).weight.neg_()


def weight_negation(model, split, *, epochs=50, lr=0.05, lr_end=1e-4, weight_decay=5e-4):
    """NoT (Khalil et al., CVPR 2025): W1 <- -W1, then min CE(D_r). The authors use lr 0.01 to 0.1, cosine to 1e-4."""
    negate_first(model)
    yield Phase(lr, weight_decay=weight_decay, schedule="cosine", steps=epochs * len(split.retain), lr_end=lr_end)
    for _ in range(epochs):
        yield from descend(model, split.retain)
        yield EpochEnd()


def transposed_kernels(model, split, *, epochs=3, lr=1e-3, weight_decay=5e-4):
    """CT (toshi_k, NeurIPS 2023 challenge): transpose every convolution's kernels (last two axes), then min CE(D_r).

    In a ViT the patch embedding is the only convolution.
    """
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Conv2d):
                part.weight.copy_(part.weight.mT.clone())
    yield from retain_finetuning(model, split, epochs=epochs, lr=lr, weight_decay=weight_decay)


def small_gradients(model, split, *, share=0.3, slow=0.1, epochs=5, lr=1e-3, weight_decay=5e-4):
    """MSG (Kookmin, NeurIPS 2023 challenge): redraw weights with small abs(grad[CE(D_r) - CE(D_f)]), then min CE(D_r).

    Of each convolution (of a ViT each linear layer too) the `share` with the smallest ones is drawn anew, weights
    without a gradient (see `salun`) not counted; after that the gradient of the others is scaled by `slow`. CE(D_r) is
    of as many images as D_f has. The one-cycle schedule gives the warm-up and the linear decay of the learning rate.
    """
    subset = replace(split.retain, limit=len(split.forget.index))
    gradients = zip(model.parameters(), mean_gradient(model, subset), mean_gradient(model, split.forget))
    kinds = (nn.Conv2d, nn.Linear) if is_vit(model) else nn.Conv2d
    kernels = {id(part.weight) for part in model.modules() if isinstance(part, kinds)}
    hooks = []
    for weight, g_r, g_f in gradients:
        if id(weight) in kernels:
            size = (g_r - g_f).abs().flatten()
            small = size.where(size > 0, torch.inf).topk(round(share * int((size > 0).sum())), largest=False).indices
            redrawn = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
            redrawn = redrawn.index_fill(0, small, True).view(weight.shape)
            weight.data = torch.where(redrawn, redrawn_weight(weight), weight.data)
            hooks.append(weight.register_hook(partial(torch.mul, torch.where(redrawn, 1.0, slow))))
    yield from retain_finetuning(model, split, epochs=epochs, lr=lr, weight_decay=weight_decay, schedule="onecycle")
    for hook in hooks:
        hook.remove()


def redrawn_weight(weight):
    """New values for a convolution (He, fan out) or a ViT's linear layer (N(0, 0.02^2))."""
    fresh = torch.empty_like(weight)
    return nn.init.kaiming_normal_(fresh, mode="fan_out") if weight.ndim == 4 else nn.init.normal_(fresh, std=0.02)


def ssd(model, split, *, alpha=10.0, lam=1.0):
    """SSD (Foster et al., AAAI 2024): theta <- min(lam I_D / I_f, 1) theta wherever I_f > alpha I_D.

    I is the mean squared gradient on all training images (D) and on D_f, at theta0 in evaluation mode.
    """
    everywhere, forgotten = (mean_gradient(model, batches, 2) for batches in (split.train, split.forget))
    for p, i_d, i_f in zip(model.parameters(), everywhere, forgotten):
        p.data = torch.where(i_f > alpha * i_d, (lam * i_d / i_f).clamp(max=1) * p.data, p.data)
    yield EpochEnd()


def fisher_forgetting(model, split, *, alpha=1e-6, most=1e3):
    """Fisher forgetting (Golatkar et al., CVPR 2020): theta <- theta + alpha^(1/2) F^(-1/4) n, n ~ N(0, 1).

    F is the diagonal Fisher information on D_r, from labels drawn from the model's own predictions: their scores have
    mean 0, so a batch of B has E[B g^2] = F. 1/F is cut at `most`. This is the paper's formula; the authors' code uses
    F^(-1/2), averages it over a filter and gives norm layers and head noise of their own.
    """
    drawn = ((x, Categorical(logits=model(x).float()).sample()) for x, _ in split.retain)
    size = split.retain.samples_per_epoch / len(split.retain)
    for p, g2 in zip(model.parameters(), mean_gradient(model, drawn, 2)):
        p.data += alpha**0.5 * (1 / (size * g2)).clamp(max=most) ** 0.25 * torch.randn_like(p)
    yield EpochEnd()


def influence(model, split, *, alpha=1.0, damping=1e-3, images=1000, iterations=10):
    """Influence unlearning, a Newton step (Koh & Liang, ICML 2017; Izzo et al., AISTATS 2021; Jia et al., 2023).

    theta <- theta + alpha (H + damping)^-1 (N_f / N) (grad CE(D_f) - grad CE(D_r)): what leaving D_f out changes, to
    first order. H is the Gauss-Newton matrix on some images of D_r, inverted by conjugate gradients.
    """
    g_f, g_r = (mean_gradient(model, batches) for batches in (split.forget, split.retain))
    share = len(split.forget.index) / len(split.train.index)
    flat = share * torch.cat([(f - r).flatten() for f, r in zip(g_f, g_r)])
    batches = list(replace(split.retain, limit=min(images, split.retain.samples_per_epoch)))

    def curvature(v):
        split.processed["images"] += sum(len(y) for _, y in batches)
        v = torch.from_numpy(v).to(flat).flatten()
        return (gauss_newton(model, batches, v) + damping * v).cpu().numpy()

    operator = LinearOperator((len(flat), len(flat)), curvature, dtype="float32")
    step = torch.from_numpy(cg(operator, flat.cpu().numpy(), maxiter=iterations)[0]).to(flat)
    for p, part in zip(model.parameters(), step.split([p.numel() for p in model.parameters()])):
        p.data += alpha * part.view_as(p)
    yield EpochEnd()


def gauss_newton(model, batches, v):
    """J^T (diag p - p p^T) J v, mean over the images: the CE's curvature, never negative; `v` and it `(weights,)`."""
    names, parameters = zip(*((name, p.detach()) for name, p in model.named_parameters()))
    weights, total = dict(zip(names, parameters)), torch.zeros_like(v)
    direction = {n: part.view_as(p) for n, p, part in zip(names, parameters, v.split([p.numel() for p in parameters]))}
    count = sum(len(y) for _, y in batches)
    with evaluating(model), torch.autocast(v.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
        for x, _ in batches:
            outputs = partial(functional_call, model, args=(x,))
            with warnings.catch_warnings():  # raised inside torch, about its own code
                warnings.simplefilter("ignore", FutureWarning)
                logits, moved = jvp(outputs, (weights,), (direction,))
            p = logits.softmax(1)
            (product,) = vjp(outputs, weights)[1](p * moved - p * (p * moved).sum(1, keepdim=True))
            total += torch.cat([product[name].flatten() for name in names]) / count
    return total
