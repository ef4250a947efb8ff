"""The battery: every audit on every method, with shadows as replicates and Golds as the yardstick, as one tidy table.

In replicate k the attacked model is what a method left of shadow k. The targets that it forgot are members, the others,
which it never saw, are not: so every audit is judged on known truth. The Golds are attacked in each replicate too.
"""

import numpy as np
import pandas as pd

from . import audit
from .metrics import accuracy, kit_mia, losses, predict
from .shadows import TARGETS, is_member, shadow, target_labels, target_logits

COLUMNS = ["scenario", "shadow", "method", "metric", "value"]
SEEN_AND_NOT = {"random": ("retain", "test"), "class": ("train retain", "test retain")}  # what attacks are fitted on
ENSEMBLE = -1  # in the column `shadow`: measured on all shadows together


class Battery:
    """An experiment's shadows and Golds, and what `methods` (display name -> settings) leave of the shadows.

    Raises:
        ValueError: fewer than 6 shadows or 2 Golds.
    """

    def __init__(self, experiment, methods):
        count = experiment.budget["audit"]["shadows"]
        if count < 6 or len(experiment.golds) < 2:
            raise ValueError(f"an audit needs 6 shadows and 2 Golds; there are {count} and {len(experiment.golds)}")
        self.experiment, self.methods, self.scenario = experiment, methods, experiment.scenario
        self.shadows = [shadow(experiment, number) for number in range(count)]
        self.is_member = np.array([is_member(experiment, number) for number in range(count)])  # (shadows, targets)
        self.y = target_labels(experiment.split)
        untrained = experiment.build(seed=experiment.seed + 99, weights=None)
        sets = experiment.split.sets
        self.untrained = target_logits(
            {name: predict(untrained, sets[name])[0] for name in TARGETS[self.scenario]}, self.scenario
        )

    def table(self):
        """All audits of Original, Gold and the methods, with `COLUMNS`: a row a replicate, and rows of the ensemble."""
        golds = [self.golds(members) for members in self.is_member]
        rows = [(k, "Gold", *row) for k, found in enumerate(golds) for row in among_golds(found).items()]
        rows += [(ENSEMBLE, "Gold", *row) for row in self.golds_as_ensemble().items()]
        for method in ("Original", *self.methods):
            runs = self.runs(method)
            if diverged := sum(bool(run.diverged) for run in runs):
                rows.append((ENSEMBLE, method, "diverged", diverged))
                continue
            for k, (run, members) in enumerate(zip(runs, self.is_member)):
                found = self.attack(run, members, self.experiment.golds)
                row = {**found, **mean(to_gold(found, gold) for gold in golds[k]), **self.cost(run)}
                rows += [(k, method, *item) for item in row.items()]
            rows += [(ENSEMBLE, method, *row) for row in self.ensemble(runs).items()]
        return pd.DataFrame(rows, columns=COLUMNS[1:]).assign(scenario=self.scenario)[COLUMNS]

    def runs(self, method):
        """What a method left of each shadow; the shadows themselves for Original."""
        if method == "Original":
            return [double.original for double in self.shadows]
        return [double.unlearned(method, **self.methods[method]) for double in self.shadows]

    def cost(self, run):
        """Images seen and seconds as a share of retraining's, in percent."""
        gold = self.experiment.gold.cost
        return {f"{unit}, % of retraining": 100 * run.cost[unit] / gold[unit] for unit in ("images", "seconds")}

    # --- one model ---

    def attack(self, run, members, references):
        """Every attack on a model that forgot the targets `members`; `references` never saw a target."""
        retain, test = self.seen_and_not(run)
        z = self.targets(run)
        forgotten, others = (z[members], self.y[members]), (z[~members], self.y[~members])
        efficacy = audit.mia_efficacy(retain, test, forgotten)
        scores = audit.rmia(
            audit.confidence(z, self.y),
            [audit.confidence(self.targets(model), self.y) for model in references],
            audit.confidence(*test),
            [audit.confidence(*self.seen_and_not(model)[1]) for model in references],
        )
        told = audit.power(scores[members], scores[~members])
        apart = audit.streisand(losses(*forgotten), losses(*others))
        return {
            "UA": 100 - accuracy(*forgotten),
            "RA": accuracy(*retain),
            "TA": accuracy(*test),
            "MIA": efficacy.pop("confidence"),
            **{f"MIA, {signal}": value for signal, value in efficacy.items()},
            "kit MIA": kit_mia(losses(*forgotten), losses(*others)),
            **{f"RMIA {name}": value for name, value in told.items()},
            "Streisand KS": apart["signed KS"],
            "Streisand AUC": apart["AUC"],
            "ZRF": audit.zrf(forgotten[0], self.untrained[members]),
        }

    def golds(self, members):
        """Every attack on each Gold, with the other Golds as references."""
        golds = self.experiment.golds
        return [self.attack(gold, members, [other for other in golds if other is not gold]) for gold in golds]

    def targets(self, run):
        """Logits of the targets."""
        return target_logits(run.logits, self.scenario)

    def seen_and_not(self, run):
        """`(logits, y)` of retained training images and of test images."""
        sets = self.experiment.split.sets
        return [(run.logits[name], sets[name].y.cpu()) for name in SEEN_AND_NOT[self.scenario]]

    # --- all shadows together ---

    def margins(self, runs):
        """Margins of the targets `(runs, targets)`."""
        return np.array([audit.margin(self.targets(run), self.y).numpy() for run in runs])

    def ensemble(self, runs):
        """Audits that compare models which unlearned an image with models, as many, that unlearned others instead."""
        return compare(*audit.by_membership(self.margins(runs), self.is_member))

    def golds_as_ensemble(self):
        """The same with Golds in place of models that unlearned: what never having seen an image looks like."""
        _, never = audit.by_membership(self.margins(self.runs("Original")), self.is_member)
        return compare(self.margins(self.experiment.golds), never)


def compare(unlearned, never):
    """U-LiRA, forgetting quality and KLOM of two ensembles of margins `(models, images)`; none with under 3 a side."""
    models = min(len(unlearned), len(never))
    if models < 3:
        return {}
    lira = audit.u_lira(unlearned, never, shared=models < 64)
    quality = audit.forgetting_quality(unlearned[:models], never[:models])
    return {
        **{f"U-LiRA {name}": value for name, value in lira.items() if name != "models"},
        "forgetting quality": quality["F"],
        "KLOM, P95": np.percentile(audit.klom(unlearned[:models], never[:models]), 95),
        "models a side": models,
    }


def to_gold(own, gold):
    """Distances of one model's attacks to a Gold's."""
    return {
        "average gap": audit.average_gap(own, gold),
        "ToW": audit.tow(own, gold),
        "ToW-MIA": audit.tow(own, gold, forget="MIA"),
    }


def among_golds(found):
    """The Golds' mean of every attack and, as their distance, that between two of them: the floor."""
    pairs = [to_gold(one, other) for i, one in enumerate(found) for other in found[:i]]
    return {**mean(found), **mean(pairs)}


def mean(rows):
    """The mean of each entry of dicts with the same keys."""
    return pd.DataFrame(list(rows)).mean().to_dict()
