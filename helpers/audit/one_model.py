"""Every attack on a single model that needs no shadow models, with Gold's value as the target."""

import torch

from ..metrics import loss_attack, losses
from . import attacks


def attack(e, run, references, untrained):
    """Every attack on one model, `{attack: value}`; notebook 12 explains them.

    Args:
        references: Golds, never the attacked model itself. Without any there is no RMIA and no attack on the class.
        untrained: logits of an untrained network on the forgotten images, for ZRF.
    """
    y = {name: batches.y.cpu() for name, batches in e.split.sets.items()}
    retain, test, forget, unseen = (
        (run.logits[name], y[name]) for name in ("retain", e.scenario.test, "forget", e.scenario.unseen)
    )
    stands_out = attacks.streisand(losses(*forget), losses(*unseen))
    found = {
        "loss attack": loss_attack(losses(*forget), losses(*unseen)),
        "MIA efficacy, %": 100 * attacks.unseen_shares(retain, test, forget)["confidence"].mean(),
    }
    if references:
        found["RMIA AUC"] = rmia_auc(e, run, references, y)
    if references and e.split.forget_classes:
        near = attacks.nearest_class(
            torch.stack([r.logits[e.scenario.unseen] for r in references]), e.split.forget_classes
        )
        found["class attack"] = attacks.class_attack(unseen[0], test[0][test[1] == near])
    return found | {
        "Streisand KS": stands_out["signed KS"],
        "Streisand AUC": stands_out["AUC"],
        "ZRF": attacks.zrf(forget[0], untrained),
    }


def rmia_auc(e, run, references, y):
    """How well RMIA separates the forgotten from the unseen images, with the test images as population."""
    member, other, population = (
        [attacks.confidence(model.logits[name], y[name]) for model in (run, *references)]
        for name in ("forget", e.scenario.unseen, e.scenario.test)
    )
    scores = [attacks.rmia(p, known, population[0], population[1:]) for p, *known in (member, other)]
    return attacks.roc_metrics(*scores)["AUC"]
