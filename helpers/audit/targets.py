"""What limits Margin matching: its estimate of Gold's predictions, or the training towards them?

The same training runs towards three targets: Margin matching's own; one that is corrected by a network that never saw
the data; and the predictions of a third Gold, which no method has.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeCV

from ..messages import unknown
from ..methods.common import refuse
from ..methods.distil import match, unseen_logits, with_margins
from ..metrics import js_distance, predict
from .one_model import rmia_auc

TARGETS = ("own", "corrected", "Gold 3")
LENGTHS = (2, 6)  # epochs
PENALTIES = np.logspace(0, 6, 13)  # of the ridge regression; chosen by leave-one-out error on held-out images


def compare(experiment, lengths=LENGTHS):
    """One row per run: gap and Jensen-Shannon distance to Gold, RMIA, the target's own distance, the cost.

    First come Original, Gold 2 and Gold 3, whose distances to Gold are the floor. RMIA uses Gold and Gold 2, and Gold 3
    in place of an attacked one, so never the attacked model or its teacher. Three Golds are used, whatever the preset
    says.

    Args:
        lengths: the numbers of epochs; there is a run towards each of `TARGETS` for each.

    Raises:
        ValueError: the class scenario, in which all targets are the prediction without the class.
    """
    refuse(experiment.split, "class", "all targets are the prediction without the class")
    golds, split = [experiment.gold(number) for number in (1, 2, 3)], experiment.split
    y = {name: batches.y.cpu() for name, batches in split.sets.items()}

    def row(name, run, epochs=pd.NA):
        measured = experiment.measured(run)
        gaps = measured[measured.metric == "gap to Gold"].set_index("set").value
        return {
            "target": name,
            "epochs": epochs,
            "gap to Gold": gaps[list(experiment.scenario.gap)].mean(),
            "JSD to Gold": measured[measured.metric == "JSD to Gold"].value.item(),
            "RMIA AUC": rmia_auc(experiment, run, [gold for gold in golds if gold.id != run.id][:2], y),
            "% of retraining": 100 * run.cost["images"] / golds[0].cost["images"],
        }

    rows = [row("Original", experiment.original()), row("Gold 2", golds[1]), row("Gold 3 itself", golds[2])]
    predicted = predict(golds[0].model, replace(split.forget, shuffle=False))[0]
    for target in TARGETS:
        wanted = estimate(experiment, target, experiment.original().model, with_few_held_out(split))
        apart = js_distance(wanted, predicted).mean().item()
        rows += [{**row(target, towards(experiment, target, n), n), "target's JSD to Gold": apart} for n in lengths]
    return pd.DataFrame(rows).astype({"epochs": "Int64"}).sort_values("epochs", kind="stable", na_position="first")


def towards(experiment, target, epochs):
    """The run of Margin matching's training towards one of `TARGETS`."""

    def match_target(model, split, *, target="own", share=0.5, epochs=2, lr=0.02, weight_decay=5e-4):
        logits = estimate(experiment, target, model, with_few_held_out(split))
        yield from match(model, split, logits, share=share, epochs=epochs, lr=lr, weight_decay=weight_decay)

    return experiment.unlearn(f"Towards {target}, {epochs} epochs", match_target, target=target, epochs=epochs)


def with_few_held_out(split):
    """`split` with at most as many held-out images as forgotten ones: predictions for them are a cost, too."""
    held_out = split.validation
    return replace(split, validation=replace(held_out, index=held_out.index[: len(split.forget.index)]))


def estimate(experiment, target, model, split):
    """What a target predicts for the forgotten images: logits float32 `(n, classes)`.

    Raises:
        ValueError: an unknown target.
    """
    if target == "own":
        return unseen_logits(model, split)
    if target == "corrected":
        return corrected_logits(model, experiment.build(experiment.seed), split)
    if target == "Gold 3":
        return predict(experiment.gold(3).model, replace(split.forget, shuffle=False))[0]
    raise ValueError(f"target {unknown(target, TARGETS)}")


def corrected_logits(model, start, split):
    """`unseen_logits` of `model`, corrected by `start`: the network before training, which never saw the data.

    A ridge regression on `start`'s features learns, on held-out images, what `model` predicts for images that it never
    saw, and predicts that for the forgotten ones. The target is the mean of these log-probabilities and of the model's
    own; its margins are those of held-out images with the same rank.
    """
    forget, held_out = (replace(batches, shuffle=False) for batches in (split.forget, split.validation))
    own, unseen = (predict(model, batches)[0].log_softmax(1) for batches in (forget, held_out))
    x, x_h = (predict(start, batches)[1].double().numpy() for batches in (forget, held_out))
    ridge = RidgeCV(PENALTIES).fit(x_h, unseen.double().numpy())
    both = (own + own.new_tensor(ridge.predict(x))) / 2
    return with_margins(both, forget.y.cpu(), unseen, held_out.y.cpu(), order=both)
