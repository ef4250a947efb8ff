"""What is measured: accuracies, entropy, distance to Gold, membership inference and cost, as one tidy table."""

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from torch.nn.functional import cross_entropy, log_softmax

from .devices import autocast
from .models import evaluating, inputs_of, last_linear


def predict(model, batches):
    """Logits float32 `(n, classes)` and features float32 `(n, width)` of unshuffled `batches`, in evaluation mode.

    Features are the input of the last linear layer: ResNet-18's pooled maps, the ViT's class token. That layer is
    computed in float32 whatever the precision of the rest, so that losses near 0 keep their digits.
    """
    head = last_linear(model)
    device = head.weight.device
    with evaluating(model), inputs_of(head) as inputs:
        for x, _ in batches:
            with autocast(model):
                model(x)
        features = torch.cat(inputs).float()
        with torch.autocast(device.type, enabled=False):
            return head(features).cpu(), features.cpu()


def accuracy(logits, y):
    """Share of right predictions in percent."""
    return 100 * (logits.argmax(1) == y).double().mean().item()


def entropy(logits):
    """Entropy of each prediction in nats, float64 `(n,)`; at most ln(classes)."""
    log_p = log_softmax(logits.double(), 1)
    return -(log_p.exp() * log_p).sum(1)


def js_distance(logits, other):
    """Jensen-Shannon distance of each pair of predictions, float64 `(n,)`: 0 to sqrt(ln 2) = 0.8326.

    The square root of the divergence, natural logarithm, as `scipy.spatial.distance.jensenshannon`; clamped at 0 since
    near-identical pairs would give the root of a tiny negative number.
    """
    least = torch.finfo(torch.float64).min / 4  # in place of -inf, a prediction of 0
    log_p, log_q = (log_softmax(values.double(), 1).clamp(min=least) for values in (logits, other))
    apart = log_q - log_p
    above_p, above_q = (
        np.log(2) - torch.logaddexp(torch.zeros_like(apart), a) for a in (apart, -apart)
    )  # log p/m, q/m
    divergence = (log_p.exp() * above_p + log_q.exp() * above_q).sum(1) / 2
    return divergence.clamp(min=0).sqrt()


def loss_attack(member_losses, unseen_losses, seed=0):
    """The starting kit's membership inference: accuracy of a logistic regression on the loss; 0.5 is chance.

    Both sides are cut to the same size at random; accuracy is the mean over 10 stratified splits, as in the kit. NaN
    where a side has fewer than 10 images.
    """
    rng = np.random.default_rng(seed)
    size = min(len(member_losses), len(unseen_losses))
    if size < 10:  # a tenth of each side is held out
        return float("nan")
    sides = [rng.choice(np.asarray(losses, float), size, replace=False) for losses in (member_losses, unseen_losses)]
    losses, is_member = np.concatenate(sides)[:, None], np.repeat([1, 0], size)
    splits = StratifiedShuffleSplit(n_splits=10, random_state=seed)
    return cross_val_score(LogisticRegression(), losses, is_member, cv=splits, scoring="accuracy").mean()


def predicted_shares(logits):
    """Percent of the images that are predicted as each class, numpy `(classes,)`."""
    return 100 * np.bincount(logits.argmax(1), minlength=logits.shape[1]) / len(logits)


def losses(logits, y):
    """Cross-entropy of each image, float64 `(n,)`."""
    return cross_entropy(logits.double(), y, reduction="none").numpy()


def measure(logits, split, gold_logits=None):
    """A model's metrics on the split's sets, a table with columns set, metric, value.

    Accuracies and the retain-forget gap are in percent (points). `kit MIA` is `loss_attack` on the forgotten images
    against unseen ones of the same distribution. With Gold's logits: the mean Jensen-Shannon distance to its
    predictions on forgotten images, and the distance of each accuracy to its accuracy.

    Args:
        logits, gold_logits: `{set: (n, classes)}`.

    Raises:
        ValueError: predictions that are not finite.
    """
    scenario, labels = split.scenario, {name: batches.y.cpu() for name, batches in split.sets.items()}
    for model, made in (("the model", logits), ("Gold", gold_logits or {})):
        for name, values in made.items():
            if not values.isfinite().all():
                raise ValueError(f"the predictions on the set '{name}' are not finite: {model} has diverged")
    accuracies = {name: accuracy(values, labels[name]) for name, values in logits.items()}
    compared = scenario.compared
    attack = loss_attack(*(losses(logits[name], labels[name]) for name in ("forget", scenario.unseen)))
    rows = [(name, "accuracy", value) for name, value in accuracies.items()]
    rows.append(("forget", "retain-forget gap", accuracies["retain"] - accuracies["forget"]))
    rows.append((compared, "entropy", entropy(logits[compared]).mean().item()))
    rows.append(("forget", "kit MIA", attack))
    if gold_logits:
        rows.append((compared, "JSD to Gold", js_distance(logits[compared], gold_logits[compared]).mean().item()))
        for name, value in accuracies.items():
            rows.append((name, "gap to Gold", abs(value - accuracy(gold_logits[name], labels[name]))))
    return pd.DataFrame(rows, columns=["set", "metric", "value"])
