"""All audits of all methods in one tidy table: shadow models are the replicates, Golds the reference.

In replicate k the attacked model is the result of a method on shadow k. The targets that it forgot are members, the
targets that it never saw are non-members, so every audit is checked against known membership. The Golds are attacked in
each replicate too.
"""

from functools import cached_property
from itertools import combinations

import numpy as np
import pandas as pd
import torch

from ..metrics import accuracy, js_distance, loss_attack, losses, predict
from ..results.leaderboard import COLUMNS, ENSEMBLE, JSD, STRATA, in_stratum, replicates
from ..results.rows import runs_table
from . import attacks
from .shadows import is_member, shadow, target_labels, target_logits


class Battery:
    """The audits of one experiment: its shadow models, its Golds, and the results of methods on the shadows.

    Args:
        methods: `{name: settings}`, settings over the preset's.
        functions: `{name: function}` for those of `methods` that are not in the registry.

    Raises:
        ValueError: fewer than 6 shadows or 2 Golds.
    """

    def __init__(self, experiment, methods, functions=None):
        count, golds = experiment.preset["audit"]["shadows"], experiment.preset["golds"]
        if count < 6 or golds < 2:
            raise ValueError(
                f"an audit needs 6 shadow models and 2 Golds, and preset {experiment.preset_name} has {count} and "
                f"{golds}; preset audit has enough"
            )
        self.experiment, self.scenario = experiment, experiment.scenario
        self.methods, self.functions = methods, functions or {}
        self.golds = experiment.golds()
        self.shadows = [shadow(experiment, number) for number in range(count)]
        self.is_member = np.array([is_member(experiment, number) for number in range(count)])  # (shadows, targets)
        self.y = target_labels(experiment.split)
        untrained, sets = experiment.build(seed=experiment.seed + 99, weights=None), experiment.split.sets
        outputs = {name: predict(untrained, sets[name])[0] for name in ("forget", self.scenario.held_out)}
        self.untrained = target_logits(outputs, self.scenario)

    def table(self):
        """All audits of Original, the Golds and the methods, with the leaderboard's `COLUMNS`.

        Rows of each replicate have its shadow's number and the id of the attacked run (see `run_table`), rows of all
        shadows together have `ENSEMBLE` and no id. A row of kind
        `pair`, such as `Gold 1 v. Gold 3`, has the distance of these two in an audit, mean over the replicates. Kind
        `reference` is a uniform prediction; the others are original, gold and method.
        """
        attacked = [
            [found | self.by_stratum(gold, k) for gold, found in zip(self.golds, self.attacked_golds(members))]
            for k, members in enumerate(self.is_member)
        ]
        rows = [
            (k, "gold", f"Gold {i}", *item)
            for k, found in enumerate(attacked)
            for i, values in enumerate(found, 1)
            for item in values.items()
        ]
        rows += [
            (ENSEMBLE, "pair", pair, *item) for pair, apart in self.pairs(attacked).items() for item in apart.items()
        ]
        rows += [(ENSEMBLE, "gold", "Gold", *item) for item in self.golds_as_ensemble().items()]
        uniform = torch.zeros_like(self.untrained)
        rows += [(k, "reference", "uniform", JSD, self.jsd(uniform, m)) for k, m in enumerate(self.is_member)]
        for method in ("Original", *self.methods):
            rows += self.rows_of(method, attacked)
        table = pd.DataFrame(rows, columns=["shadow", "kind", "method", "metric", "value"])
        ids = {(k, name): run.id for k, name, _, run in self.attacked_runs()}
        table["run"] = [ids.get(place, "") for place in zip(table.shadow, table.method)]
        return table.assign(scenario=self.scenario.name, seed=self.experiment.seed)[COLUMNS]

    def attacked_runs(self):
        """`(replicate, name in the table, experiment, run)` of each attacked model."""
        for k in range(len(self.shadows)):
            for number, gold in enumerate(self.golds, 1):
                yield k, f"Gold {number}", self.experiment, gold
        for method in ("Original", *self.methods):
            for k, (one, run) in enumerate(zip(self.shadows, self.runs(method))):
                yield k, method, one, run

    def run_table(self):
        """One row per attacked model, with `results.rows.RUN_COLUMNS`."""
        return runs_table({run.id: (e, run) for _, _, e, run in self.attacked_runs()}.values())

    def rows_of(self, method, attacked):
        """The rows of a method: of each replicate and of the ensemble; one row if it diverged on a shadow."""
        kind, runs = "original" if method == "Original" else "method", self.runs(method)
        if diverged := sum(bool(run.diverged) for run in runs):
            return [(ENSEMBLE, kind, method, "diverged", diverged)]
        rows, every = [], []
        for k, (run, members) in enumerate(zip(runs, self.is_member)):
            found = self.attack(run, members, self.golds) | self.by_stratum(run, k)
            found |= mean([gaps_to_gold(found, gold) for gold in attacked[k]]) | self.cost(run)
            found[JSD] = self.jsd(self.targets(run), members)
            rows += [(k, kind, method, *item) for item in found.items()]
            every.append(found)
        ensemble, gold = self.ensemble(runs), mean([values for found in attacked for values in found])
        if "forgetting quality" in ensemble:
            quality = {"F": ensemble["forgetting quality"]}
            ensemble["final score"] = attacks.final_score(quality, mean(every), gold)
        return rows + [(ENSEMBLE, kind, method, *item) for item in ensemble.items()]

    def sizes(self):
        """The numbers of models and images behind the audit."""
        split = self.experiment.split
        return {
            "shadow models": len(self.shadows),
            "Golds": len(self.golds),
            "targets": len(self.y),
            "forgotten by each shadow": int(self.is_member[0].sum()),
            "retained": len(split.retain.index),
            "models per side in U-LiRA (Golds: all)": len(self.shadows) // 2,
            "models per side in forgetting quality": min(len(self.shadows) // 2, len(self.retrained)),
        }

    def runs(self, method):
        """The results of a method on each shadow; for Original the shadows themselves."""
        if method == "Original":
            return [one.original() for one in self.shadows]
        return [self.unlearn(one, method) for one in self.shadows]

    def unlearn(self, one, method, seed=None):
        """The result of a method on one of the shadows; `seed` is that of the unlearning alone."""
        return one.unlearn(method, self.functions.get(method), unlearning_seed=seed, **self.methods[method])

    def cost(self, run):
        """Images processed and seconds as a share of retraining's, in percent."""
        gold = self.golds[0].cost
        return {f"{unit}, % of retraining": 100 * run.cost[unit] / gold[unit] for unit in ("images", "seconds")}

    # --- one model ---

    def attack(self, run, members, references, unseen_shares=None):
        """Every attack on a model that forgot the targets `members`; `references` never saw a target.

        `unseen_shares` is the result of the method of that name, if it has been computed already.
        """
        retain, test = self.retain_and_test(run)
        z = self.targets(run)
        forgotten, unseen = (z[members], self.y[members]), (z[~members], self.y[~members])
        efficacy = {
            signal: 100 * share[members].mean() for signal, share in (unseen_shares or self.unseen_shares(run)).items()
        }
        scores = attacks.rmia(
            attacks.confidence(z, self.y),
            [attacks.confidence(self.targets(model), self.y) for model in references],
            attacks.confidence(*test),
            [attacks.confidence(*self.retain_and_test(model)[1]) for model in references],
        )
        found = attacks.roc_metrics(scores[members], scores[~members])
        apart = attacks.streisand(losses(*forgotten), losses(*unseen))
        return {
            "UA": 100 - accuracy(*forgotten),
            "RA": accuracy(*retain),
            "TA": accuracy(*test),
            "MIA": efficacy.pop("confidence"),
            **{f"MIA, {signal}": value for signal, value in efficacy.items()},
            "kit MIA": loss_attack(losses(*forgotten), losses(*unseen)),
            **{f"RMIA {name}": value for name, value in found.items()},
            "Streisand KS": apart["signed KS"],
            "Streisand AUC": apart["AUC"],
            "ZRF": attacks.zrf(forgotten[0], self.untrained[members]),
            **self.class_attack(unseen[0], *test),
        }

    def class_attack(self, unseen, logits, y):
        """The attack on the forgotten class by unseen images of it and test images of the others, as a dict.

        Empty in the random scenario.
        """
        if not self.experiment.split.forget_classes:
            return {}
        return {"class attack": attacks.class_attack(unseen, logits[y == self.nearest])}

    @cached_property
    def nearest(self):
        """The number of the class that Golds predict most often for the forgotten one."""
        logits = torch.stack([self.targets(gold) for gold in self.golds])
        return attacks.nearest_class(logits, self.experiment.split.forget_classes)

    def by_stratum(self, run, k):
        """UA in each third of the targets that shadow `k` forgot, from the least to the most memorised.

        Other shadows decide which these are, without k and its pair: see `attacks.memorisation`. An empty third, of
        fewer than three targets, has no value.
        """
        others, z = [n for n in range(len(self.shadows)) if n // 2 != k // 2], self.targets(run)
        memorised = attacks.memorisation(self.margins_of_shadows[others], self.is_member[others])
        members = np.flatnonzero(self.is_member[k])
        thirds = np.array_split(members[memorised[members].argsort()], len(STRATA))
        parts = {in_stratum("UA", name): part for name, part in zip(STRATA, thirds) if len(part)}
        return {metric: 100 - accuracy(z[part], self.y[part]) for metric, part in parts.items()}

    def attacked_golds(self, members):
        """Every attack on each Gold, with the other Golds as references."""
        golds = self.golds
        return [
            self.attack(gold, members, [other for other in golds if other is not gold], shares)
            for gold, shares in zip(golds, self.unseen_shares_of_golds)
        ]

    def unseen_shares(self, run):
        """`attacks.unseen_shares` of the targets."""
        return attacks.unseen_shares(*self.retain_and_test(run), (self.targets(run), self.y))

    @cached_property
    def unseen_shares_of_golds(self):
        """`unseen_shares` of each Gold; the same for all replicates."""
        return [self.unseen_shares(gold) for gold in self.golds]

    def pairs(self, found):
        """`Gold 1 v. Gold 2` and so on: the distance of two Golds, mean over the replicates' `found` attacks."""
        apart = {}
        for i, j in combinations(range(len(self.golds)), 2):
            one, other = (self.targets(self.golds[n]) for n in (i, j))
            distances = mean([distance(golds[i], golds[j]) for golds in found])
            apart[f"Gold {i + 1} v. Gold {j + 1}"] = {**distances, JSD: js_distance(one, other).mean().item()}
        return apart

    def jsd(self, logits, members):
        """Jensen-Shannon distance of predictions on the targets `members` to those of the Golds, mean over both."""
        golds = [js_distance(logits[members], self.targets(gold)[members]) for gold in self.golds]
        return torch.stack(golds).mean().item()

    def targets(self, run):
        """Logits of the targets."""
        return target_logits(run.logits, self.scenario)

    def retain_and_test(self, run):
        """`(logits, y)` of retained training images and of test images."""
        sets = self.experiment.split.sets
        return [(run.logits[name], sets[name].y.cpu()) for name in ("retain", self.scenario.test)]

    def variance_by_source(self, table, method, seeds=(1, 2, 3)):
        """The standard deviation of a method's average gap, in points: one kind of seed varies alone, or all vary.

        Evaluation: the images on which the attack is fitted, for one model and one draw of them (the table has the mean
        over `attacks.DRAWS`). Unlearning: the method's shuffling and draws, from one shadow. All: the table's
        replicates, each with another training, forget set and unlearning seed.
        """
        members, golds, first = self.is_member[0], self.golds, self.shadows[0]
        attacked_golds = self.attacked_golds(members)

        def evaluated(seed):
            own, *others = (self.standard_metrics(run, members, seed) for run in (self.unlearn(first, method), *golds))
            return np.mean([attacks.average_gap(own, gold) for gold in others])

        def unlearned(seed):
            found = self.attack(self.unlearn(first, method, seed), members, golds)
            return np.mean([attacks.average_gap(found, gold) for gold in attacked_golds])

        gaps = {
            "evaluation, one draw": [evaluated(seed) for seed in seeds],
            "unlearning": [unlearned(seed) for seed in seeds],
            "all seeds and the forget set": replicates(table, self.scenario.name, "average gap")[method],
        }
        rows = {source: (len(values), np.std(values, ddof=1)) for source, values in gaps.items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["draws", "standard deviation, points"])

    def standard_metrics(self, run, members, seed):
        """UA, RA, TA and MIA of a model that forgot the targets `members`, the attack fitted on that seed's draw."""
        forgotten = (self.targets(run)[members], self.y[members])
        return attacks.standard_metrics(*self.retain_and_test(run), forgotten, seed=seed, at_most=attacks.FITTED_ON)

    # --- all shadows together ---

    def margins(self, runs):
        """Margins of the targets `(runs, targets)`."""
        return np.array([attacks.margin(self.targets(run), self.y).numpy() for run in runs])

    def ensemble(self, runs):
        """U-LiRA against models that unlearned other images; forgetting quality against `retrained`."""
        unlearned, held_out = attacks.by_membership(self.margins(runs), self.is_member)
        return u_lira(unlearned, held_out) | distance_to_retrained(unlearned, self.retrained)

    def golds_as_ensemble(self):
        """The reference values: Golds, and for the distance to Golds shadows that never saw an image, as unlearned.

        Empty for fewer than 3 Golds, which are no ensemble, and in the class scenario: see `retrained`.
        """
        if len(self.golds) < 3 or self.experiment.split.forget_classes:
            return {}
        return u_lira(self.margins(self.golds), self.held_out) | distance_to_retrained(self.held_out, self.retrained)

    @cached_property
    def held_out(self):
        """Margins of the shadows that never saw a target, `(shadows / 2, targets)`."""
        return attacks.by_membership(self.margins_of_shadows, self.is_member)[1]

    @cached_property
    def margins_of_shadows(self):
        """Margins of the shadows before they unlearn, `(shadows, targets)`."""
        return self.margins(self.runs("Original"))

    @cached_property
    def retrained(self):
        """Margins of models that never saw a target, `(models, targets)`: Golds, or `held_out` with fewer than 3 Golds.

        In the class scenario none then: shadows that never saw an image have learnt the class from others.
        """
        if len(self.golds) < 3:
            return self.held_out[:0] if self.experiment.split.forget_classes else self.held_out
        return self.margins(self.golds)


def u_lira(unlearned, held_out):
    """U-LiRA of two ensembles of margins `(models, images)`, one variance for all images below 64 models per side."""
    found = attacks.u_lira(unlearned, held_out, shared=min(len(unlearned), len(held_out)) < 64)
    return {f"U-LiRA {name}": value for name, value in found.items()}


def distance_to_retrained(unlearned, retrained):
    """Forgetting quality of equally many models of each ensemble of margins; empty if there is no retrained model."""
    models = min(len(unlearned), len(retrained))
    if not models:
        return {}
    quality = attacks.forgetting_quality(unlearned[:models], retrained[:models])
    return {"forgetting quality": quality["F"], "models per side": models}


def gaps_to_gold(own, gold):
    """Average gap, ToW and ToW-MIA between the attacks on one model and those on a Gold, and the gap by stratum."""
    strata = {in_stratum("UA gap", name): in_stratum("UA", name) for name in STRATA}
    return {
        "average gap": attacks.average_gap(own, gold),
        "ToW": attacks.tow(own, gold),
        "ToW-MIA": attacks.tow(own, gold, forget="MIA"),
        **{gap: abs(own[ua] - gold[ua]) for gap, ua in strata.items()},
    }


def distance(one, other):
    """The distance of two models in each attack, and their `gaps_to_gold`."""
    return {metric: abs(one[metric] - other[metric]) for metric in one} | gaps_to_gold(one, other)


def mean(rows):
    """The mean of each entry of dicts with the same keys."""
    return pd.DataFrame(rows).mean().to_dict()
