"""What limits Margin matching: its estimate of Gold's predictions, or the training towards them?

The same training runs towards three targets: Margin matching's own, one that a network corrects which never saw the
forgotten images, and the predictions of a third Gold, which no method has.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeCV

from ..methods.distil import match, unseen_logits, with_margins
from ..metrics import js_distance, predict
from .one_model import rmia_auc

TARGETS = ("own", "corrected", "Gold 3")
BRIEF, LONG = {"epochs": 2, "share": 0.5}, {"epochs": 6, "share": 0.5}
PENALTIES = np.logspace(0, 6, 13)  # of the ridge regression; chosen by leave-one-out error on held-out images


def runs_towards(experiment, **settings):
    """`{target: Run}` of Margin matching's training towards each of `TARGETS`, with these settings.

    Uses `Gold 3`, whatever the preset's number of Golds. Random scenario only: for a class all targets are the same.
    """

    def towards(model, split, *, target="own", share=0.5, epochs=2, lr=0.02, weight_decay=5e-4):
        split = replace(split, validation=first(split.validation, len(split.forget.index)))
        logits = estimate(experiment, target, model, split)
        yield from match(model, split, logits, share=share, epochs=epochs, lr=lr, weight_decay=weight_decay)

    experiment.gold(3)  # trained before: within a method's step it would be trained under that step's autocast
    length = settings.get("epochs", 2)
    return {t: experiment.unlearn(f"Towards {t}, {length} epochs", towards, target=t, **settings) for t in TARGETS}


def estimate(experiment, target, model, split):
    """What a target predicts for the forgotten images: logits float32 `(n, classes)`."""
    if target == "own":
        return unseen_logits(model, split)
    if target == "corrected":
        return corrected_logits(model, experiment.build(experiment.seed), split)
    return predict(experiment.gold(3).model, replace(split.forget, shuffle=False))[0]


def corrected_logits(model, start, split):
    """`unseen_logits` of `model`, corrected by `start`: the network as it was before it saw any image of the data.

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


def first(batches, count):
    """The first `count` images of `batches`."""
    return replace(batches, index=batches.index[:count])


def table(experiment, found):
    """One row per run: gap and Jensen-Shannon distance to Gold, RMIA, the target's own distance, the cost.

    First come Original, Gold 2 and Gold 3, whose distances to Gold are the floor. RMIA uses the three Golds, but never
    the attacked model.

    Args:
        found: of `runs_towards`.
    """
    golds, split = [experiment.gold(number) for number in (1, 2, 3)], experiment.split
    y = {name: batches.y.cpu() for name, batches in split.sets.items()}
    predicted = predict(golds[0].model, replace(split.forget, shuffle=False))[0]
    rows = {}
    for name, run in {
        "Original": experiment.original(),
        "Gold 2": golds[1],
        "Gold 3 itself": golds[2],
        **found,
    }.items():
        measured = experiment.measured(run)
        gaps = measured[measured.metric == "gap to Gold"].set_index("set").value
        rows[name] = {
            "gap to Gold": gaps[list(experiment.scenario.gap)].mean(),
            "JSD to Gold": measured[measured.metric == "JSD to Gold"].value.iloc[0],
            "RMIA AUC": rmia_auc(experiment, run, [gold for gold in golds if gold.id != run.id], y),
            "% of retraining": 100 * run.cost["images"] / golds[0].cost["images"],
        }
        if name in found:
            wanted = estimate(experiment, name, experiment.original().model, split)
            rows[name]["target's JSD to Gold"] = js_distance(wanted, predicted).mean().item()
    return pd.DataFrame(rows).T.rename_axis("target")
