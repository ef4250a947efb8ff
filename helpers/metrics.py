"""What is measured: accuracies, entropy, distance to Gold, membership inference and cost, as one tidy table."""

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from torch.nn.functional import cross_entropy, log_softmax

from .models import evaluating, inputs_of, last_linear
from .training import autocast

# Where predictions on forgotten data are compared with Gold's, and the sets that the attack tells apart.
FORGOTTEN = {"random": "forget", "class": "test forget"}
MEMBERS = {"random": ("forget", "test"), "class": ("train forget", "test forget")}
GAP = {"random": ("retain", "forget"), "class": ("train retain", "train forget")}


def predict(model, batches):
    """Logits float32 `(n, classes)` and features float32 `(n, width)` of unshuffled `batches`, in evaluation mode.

    Features are the input of the last linear layer: ResNet-18's pooled maps, the ViT's class token. That layer is
    computed in float32 whatever the rest runs in, so that losses near 0 keep their digits.
    """
    head = last_linear(model)
    device = head.weight.device
    with evaluating(model), inputs_of(head) as inputs:
        for x, _ in batches:
            with autocast(device):
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
    log_p, log_q = log_softmax(logits.double(), 1), log_softmax(other.double(), 1)
    apart = log_q - log_p
    above_p, above_q = (
        np.log(2) - torch.logaddexp(torch.zeros_like(apart), a) for a in (apart, -apart)
    )  # log p/m, q/m
    divergence = (log_p.exp() * above_p + log_q.exp() * above_q).sum(1) / 2
    return divergence.clamp(min=0).sqrt()


def kit_mia(member_losses, other_losses, seed=0):
    """The starting kit's attack: how well a logistic regression on the loss tells members from others; 0.5 = chance.

    Both sides are cut to the same size at random; accuracy is the mean over 10 stratified splits, as in the kit. NaN
    where a side has fewer than 10 images.
    """
    rng = np.random.default_rng(seed)
    size = min(len(member_losses), len(other_losses))
    if size < 10:  # a tenth of each side is held out
        return float("nan")
    sides = [rng.choice(np.asarray(losses, float), size, replace=False) for losses in (member_losses, other_losses)]
    losses, is_member = np.concatenate(sides)[:, None], np.repeat([1, 0], size)
    splits = StratifiedShuffleSplit(n_splits=10, random_state=seed)
    return cross_val_score(LogisticRegression(), losses, is_member, cv=splits, scoring="accuracy").mean()


def predicted_shares(logits):
    """Percent of the images that are predicted as each class, numpy `(classes,)`."""
    return 100 * np.bincount(logits.argmax(1), minlength=logits.shape[1]) / len(logits)


def losses(logits, y):
    """Cross-entropy of each image, float64 `(n,)`."""
    return cross_entropy(logits.double(), y, reduction="none").numpy()


def evaluate(model, split, gold=None):
    """Measure `model` on each of the split's sets: a tidy table with columns set, metric, value.

    Accuracies and the retain-forget gap are in percent (points). With a `gold` model: the mean Jensen-Shannon distance
    to it on the forgotten images, and the distance of each accuracy to its accuracy.
    """
    outputs = {name: predict(model, batches)[0] for name, batches in split.sets.items()}
    gold_outputs = gold and {name: predict(gold, batches)[0] for name, batches in split.sets.items()}
    return measure(outputs, split, gold_outputs)


def measure(outputs, split, gold_outputs=None):
    """`evaluate` for logits that are already there: `{set: logits}`."""
    labels = {name: batches.y.cpu() for name, batches in split.sets.items()}
    for model, made in (("the model", outputs), ("Gold", gold_outputs or {})):
        for name, logits in made.items():
            if not logits.isfinite().all():
                raise ValueError(f"the predictions on the set '{name}' are not finite: {model} has diverged")
    accuracies = {name: accuracy(logits, labels[name]) for name, logits in outputs.items()}
    rows = [(name, "accuracy", value) for name, value in accuracies.items()]
    retain, forget = GAP[split.scenario]
    rows.append((forget, "retain-forget gap", accuracies[retain] - accuracies[forget]))
    forgotten = FORGOTTEN[split.scenario]
    rows.append((forgotten, "entropy", entropy(outputs[forgotten]).mean().item()))
    members, others = MEMBERS[split.scenario]
    attack = kit_mia(*(losses(outputs[name], labels[name]) for name in (members, others)))
    rows.append((f"{members} v. {others}", "kit MIA", attack))
    if gold_outputs:
        distance = js_distance(outputs[forgotten], gold_outputs[forgotten]).mean().item()
        rows.append((forgotten, "JSD to Gold", distance))
        for name, value in accuracies.items():
            rows.append((name, "gap to Gold", abs(value - accuracy(gold_outputs[name], labels[name]))))
    return pd.DataFrame(rows, columns=["set", "metric", "value"])
