"""The battery: every audit on every method, with shadows as replicates and Golds as the yardstick, as one tidy table.

In replicate k the attacked model is what a method left of shadow k. The targets that it forgot are members, the others,
which it never saw, are not: so every audit is judged on known truth. The Golds are attacked in each replicate too.
"""

from itertools import combinations

import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from . import audit
from .literature import IDEAS
from .metrics import accuracy, kit_mia, losses, predict
from .notebook import text
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
        """All audits of Original, Gold and the methods, with `COLUMNS`: rows of each replicate and of the ensemble.

        Gold's are the mean over Golds; `floor` has the mean distance of two Golds in every one of them.
        """
        golds = [self.golds(members) for members in self.is_member]
        rows = [(k, "Gold", *item) for k, found in enumerate(golds) for item in mean(found).items()]
        rows += [(k, "floor", *item) for k, found in enumerate(golds) for item in among(found).items()]
        rows += [(ENSEMBLE, "Gold", *item) for item in self.golds_as_ensemble().items()]
        for method in ("Original", *self.methods):
            runs = self.runs(method)
            if diverged := sum(bool(run.diverged) for run in runs):
                rows.append((ENSEMBLE, method, "diverged", diverged))
                continue
            for k, (run, members) in enumerate(zip(runs, self.is_member)):
                found = self.attack(run, members, self.experiment.golds)
                found |= mean([to_gold(found, gold) for gold in golds[k]]) | self.cost(run)
                rows += [(k, method, *item) for item in found.items()]
            rows += [(ENSEMBLE, method, *item) for item in self.ensemble(runs).items()]
        return pd.DataFrame(rows, columns=COLUMNS[1:]).assign(scenario=self.scenario)[COLUMNS]

    def sizes(self):
        """On how much the audit rests."""
        split = self.experiment.split
        return {
            "shadow models": len(self.shadows),
            "Golds": len(self.experiment.golds),
            "targets": len(self.y),
            "forgotten by each shadow": int(self.is_member[0].sum()),
            "retained": len(split.retain.index),
            "models a side in U-LiRA": len(self.shadows) // 2,
        }

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
    """Distances between the attacks on one model and those on a Gold."""
    return {
        "average gap": audit.average_gap(own, gold),
        "ToW": audit.tow(own, gold),
        "ToW-MIA": audit.tow(own, gold, forget="MIA"),
    }


def among(golds):
    """The mean distance of two Golds in each attack, and what `to_gold` says of them: the floor."""
    pairs = list(combinations(golds, 2))
    apart = [{metric: abs(one[metric] - other[metric]) for metric in one} for one, other in pairs]
    return mean(apart) | mean([to_gold(one, other) for one, other in pairs])


def mean(rows):
    """The mean of each entry of dicts with the same keys."""
    return pd.DataFrame(rows).mean().to_dict()


# --- reading the table --------------------------------------------------------------------------------------------

BOARD = {  # heading: (metric, digits)
    "UA": ("UA", 1),
    "RA": ("RA", 1),
    "TA": ("TA", 1),
    "MIA": ("MIA", 1),
    "average gap": ("average gap", 2),
    "RMIA AUC": ("RMIA AUC", 3),
    "U-LiRA AUC": ("U-LiRA AUC", 3),
    "forgetting quality": ("forgetting quality", 3),
    "KLOM, P95": ("KLOM, P95", 2),
    "ToW": ("ToW", 3),
    "% of retraining": ("images, % of retraining", 1),
}
HEAT = ["UA", "RA", "TA", "MIA", "MIA, correctness", "MIA, entropy", "MIA, modified entropy", "MIA, probabilities",
        "kit MIA", "RMIA AUC", "RMIA TPR at 1 % FPR", "Streisand KS", "Streisand AUC", "ZRF"]  # fmt: skip


def of(table, scenario):
    """One scenario's means and halves of their 95 % intervals over the replicates, by (method, metric)."""
    part = table[(table.scenario == scenario) & (table.metric != "diverged")]
    values = part.groupby(["method", "metric"], sort=False).value
    stats = values.agg(["mean", "std", "count"])
    return stats.assign(half=audit.student(stats["count"]) * stats["std"] / np.sqrt(stats["count"]))


def leaderboard(table, scenario):
    """Mean ± half the 95 % interval: Original, Gold (its average gap is the floor), then methods by average gap."""
    stats = of(table, scenario)
    gap = stats["mean"].xs("average gap", level="metric")
    methods = gap.drop(["Original", "floor"]).sort_values().index
    rows = {}
    for method in ("Original", "Gold", *methods):
        rows[method] = {
            heading: text(*stats.loc[key, ["mean", "half"]], digits)
            for heading, (metric, digits) in BOARD.items()
            if (key := ("floor" if (method, heading) == ("Gold", "average gap") else method, metric)) in stats.index
        }
    rows |= {method: {"UA": "diverged"} for method in diverged(table, scenario)}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(BOARD)).fillna("")


def diverged(table, scenario):
    """The methods that diverged on a shadow."""
    return list(table[(table.scenario == scenario) & (table.metric == "diverged")].method)


def heat(table, scenario):
    """What `plots.battery` takes: the means of the attacks on one model, and the floor of each."""
    means = of(table, scenario)["mean"].unstack("metric")[HEAT]
    methods = [method for method in dict.fromkeys(table.method) if method in means.index]
    models = ["Original", "Gold", *(method for method in methods if method not in ("Original", "Gold", "floor"))]
    return means.loc[models], means.loc["floor"]


def points(table):
    """What `plots.gap_against_cost` takes: scenario, method, gap, low, high, cost and group; `Gold 2` is the floor."""
    parts = []
    for scenario in dict.fromkeys(table.scenario):
        stats = of(table, scenario)
        gap = stats.xs("average gap", level="metric").rename(index={"floor": "Gold 2"})
        cost = stats["mean"].xs("images, % of retraining", level="metric")
        part = pd.DataFrame({"gap": gap["mean"], "low": gap["mean"] - gap.half, "high": gap["mean"] + gap.half})
        part = part.assign(scenario=scenario, cost=cost, group=part.index.map(IDEAS))
        parts.append(part.assign(low=part.low.clip(lower=0)).rename_axis("method").reset_index())
    return pd.concat(parts, ignore_index=True)


def replicates(table, scenario, metric):
    """A row a shadow, a column a method: what `audit.paired_tests` takes."""
    part = table[(table.scenario == scenario) & (table.metric == metric) & (table.shadow != ENSEMBLE)]
    return part.pivot_table(index="shadow", columns="method", values="value", sort=False).drop(columns="floor")


def verdict(table):
    """Computed sentences: who comes nearest to Gold, whether within the floor, at what cost, and what U-LiRA says."""
    lines = []
    for scenario in dict.fromkeys(table.scenario):
        stats = of(table, scenario)
        mean, half = stats["mean"], stats["half"]
        gaps = mean.xs("average gap", level="metric").drop(["Original", "floor"])
        best, floor = gaps.idxmin(), mean["floor", "average gap"]
        high = floor + half["floor", "average gap"]
        where = "within" if gaps[best] <= high else "above"
        line = (
            f"- {scenario}: the smallest average gap has **{best}**, {text(gaps[best], half[best, 'average gap'], 2)} "
            f"points at {mean[best, 'images, % of retraining']:.1f} % of retraining, {where} the floor of "
            f"{text(floor, half['floor', 'average gap'], 2)} (Original {mean['Original', 'average gap']:.2f})."
        )
        if (best, "U-LiRA AUC") in mean:
            line += f" U-LiRA tells what it left from never seen with an AUC of {mean[best, 'U-LiRA AUC']:.3f}"
            line += f" (Golds {mean['Gold', 'U-LiRA AUC']:.3f})." if ("Gold", "U-LiRA AUC") in mean else "."
        lines.append(line)
    display(Markdown("\n".join(lines)))
