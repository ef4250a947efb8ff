"""The battery: every audit on every method, with shadows as replicates and Golds as the yardstick, as one tidy table.

In replicate k the attacked model is what a method left of shadow k. The targets that it forgot are members, the others,
which it never saw, are not: so every audit is judged on known truth. The Golds are attacked in each replicate too.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from itertools import combinations

import numpy as np
import pandas as pd
import torch

from . import audit
from .literature import IDEAS
from .metrics import accuracy, js_distance, kit_mia, losses, predict
from .notebook import text
from .shadows import TARGETS, is_member, shadow, target_labels, target_logits

COLUMNS = ["scenario", "shadow", "method", "metric", "value"]
SEEN_AND_NOT = {"random": ("retain", "test"), "class": ("train retain", "test retain")}  # what attacks are fitted on
ENSEMBLE = -1  # in the column `shadow`: measured on all shadows together
JSD = "JSD to Gold"
TUNED_ON_GOLD = {"cifar10": ("Margin matching", "MM, any rank", "MM, no retained")}  # on which data which methods
DRAWS = 5  # attacks whose mean is MIA efficacy, each fitted on other images
FITTED_ON = 500  # of them at most, members and as many non-members


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
        """All audits of Original, the Golds and the methods, with `COLUMNS`: rows of each replicate and the ensemble's.

        A row such as `Gold 1 v. Gold 3` has the distance of these two in every audit, mean over the replicates.
        `uniform` is the distance of a prediction that knows nothing.
        """
        golds = [self.golds(members) for members in self.is_member]
        rows = [
            (k, f"Gold {i}", *item)
            for k, found in enumerate(golds)
            for i, attacks in enumerate(found, 1)
            for item in attacks.items()
        ]
        rows += [(ENSEMBLE, pair, *item) for pair, apart in self.pairs(golds).items() for item in apart.items()]
        rows += [(ENSEMBLE, "Gold", *item) for item in self.golds_as_ensemble().items()]
        knows_nothing = torch.zeros_like(self.untrained)
        rows += [(k, "uniform", JSD, self.jsd(knows_nothing, members)) for k, members in enumerate(self.is_member)]
        for method in ("Original", *self.methods):
            runs = self.runs(method)
            if diverged := sum(bool(run.diverged) for run in runs):
                rows.append((ENSEMBLE, method, "diverged", diverged))
                continue
            every = []
            for k, (run, members) in enumerate(zip(runs, self.is_member)):
                found = self.attack(run, members, self.experiment.golds)
                found |= mean([to_gold(found, gold) for gold in golds[k]]) | self.cost(run)
                found[JSD] = self.jsd(self.targets(run), members)
                rows += [(k, method, *item) for item in found.items()]
                every.append(found)
            ensemble = self.ensemble(runs)
            gold = mean([attacks for found in golds for attacks in found])
            if "forgetting quality" in ensemble:
                ensemble["final score"] = audit.final_score({"F": ensemble["forgetting quality"]}, mean(every), gold)
            rows += [(ENSEMBLE, method, *item) for item in ensemble.items()]
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
            "models a side in U-LiRA (Golds: as many as there are)": len(self.shadows) // 2,
            "models a side in forgetting quality and KLOM": min(len(self.shadows) // 2, len(self.retrained)),
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

    def attack(self, run, members, references, taken=None):
        """Every attack on a model that forgot the targets `members`; `references` never saw a target.

        `taken` is what the method of that name returns for the model, where it is known already.
        """
        retain, test = self.seen_and_not(run)
        z = self.targets(run)
        forgotten, others = (z[members], self.y[members]), (z[~members], self.y[~members])
        efficacy = {signal: 100 * often[members].mean() for signal, often in (taken or self.taken(run)).items()}
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
        return [
            self.attack(gold, members, [other for other in golds if other is not gold], taken)
            for gold, taken in zip(golds, self.golds_taken)
        ]

    def taken(self, run):
        """How often each target is taken for unseen, {signal: share of `DRAWS` attacks `(targets,)`}.

        One attack moves by tens of points with the images that it is fitted on, where there is little to tell.
        """
        retain, test = self.seen_and_not(run)
        targets = (self.targets(run), self.y)
        attack = partial(audit.taken_for_unseen, retain, test, targets, at_most=FITTED_ON)
        # support vector machines compute outside the interpreter's lock
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            attacks = list(pool.map(lambda seed: attack(seed=seed), range(DRAWS)))
        return {signal: np.mean([attack[signal] for attack in attacks], axis=0) for signal in audit.SIGNALS}

    @cached_property
    def golds_taken(self):
        """The same for each Gold, whichever of the targets a shadow forgot."""
        return [self.taken(gold) for gold in self.experiment.golds]

    def pairs(self, found):
        """`Gold 1 v. Gold 2` and so on: how far two Golds lie apart, mean over the replicates' `found` attacks."""
        apart = {}
        for i, j in combinations(range(len(self.experiment.golds)), 2):
            one, other = (self.targets(self.experiment.golds[n]) for n in (i, j))
            distances = mean([distance(golds[i], golds[j]) for golds in found])
            apart[f"Gold {i + 1} v. Gold {j + 1}"] = {**distances, JSD: js_distance(one, other).mean().item()}
        return apart

    def jsd(self, logits, members):
        """Jensen-Shannon distance of predictions on the targets `members` to those of the Golds, mean over both."""
        golds = [js_distance(logits[members], self.targets(gold)[members]) for gold in self.experiment.golds]
        return torch.stack(golds).mean().item()

    def targets(self, run):
        """Logits of the targets."""
        return target_logits(run.logits, self.scenario)

    def seen_and_not(self, run):
        """`(logits, y)` of retained training images and of test images."""
        sets = self.experiment.split.sets
        return [(run.logits[name], sets[name].y.cpu()) for name in SEEN_AND_NOT[self.scenario]]

    def luck(self, table, method, seeds=(1, 2, 3)):
        """Whose luck a method's average gap hangs on: its standard deviation, in points, over draws of one kind alone.

        Evaluation: the images on which the attack is fitted, for one model and one draw of them (the table has the mean
        over `DRAWS`). Unlearning: the method's shuffling and draws, from one shadow. Training: the table's replicates,
        each another training and another forget set.
        """
        members, golds = self.is_member[0], self.experiment.golds
        found_on_golds = self.golds(members)

        def judged_once(seed):
            own, *others = (self.headline(run, members, seed) for run in (self.runs(method)[0], *golds))
            return np.mean([audit.average_gap(own, gold) for gold in others])

        def unlearned(seed):
            found = self.attack(self.shadows[0].unlearned(method, seed=seed, **self.methods[method]), members, golds)
            return np.mean([audit.average_gap(found, gold) for gold in found_on_golds])

        gaps = {
            "evaluation, one draw": [judged_once(seed) for seed in seeds],
            "unlearning": [unlearned(seed) for seed in seeds],
            "training and forget set": replicates(table, self.scenario, "average gap")[method],
        }
        rows = {source: (len(values), np.std(values, ddof=1)) for source, values in gaps.items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["draws", "standard deviation, points"])

    def headline(self, run, members, seed):
        """UA, RA, TA and MIA of a model that forgot the targets `members`, the attack fitted on that seed's draw."""
        forgotten = (self.targets(run)[members], self.y[members])
        return audit.headline(*self.seen_and_not(run), forgotten, seed=seed, at_most=FITTED_ON)

    # --- all shadows together ---

    def margins(self, runs):
        """Margins of the targets `(runs, targets)`."""
        return np.array([audit.margin(self.targets(run), self.y).numpy() for run in runs])

    def ensemble(self, runs):
        """U-LiRA against models that unlearned other images; forgetting quality and KLOM against `retrained`."""
        unlearned, never = audit.by_membership(self.margins(runs), self.is_member)
        return u_lira(unlearned, never) | likeness(unlearned, self.retrained)

    def golds_as_ensemble(self):
        """The yardsticks: Golds, and for likeness shadows that never saw an image, in the place of the unlearned.

        Nothing for fewer than 3 Golds, which are no ensemble, and in the class scenario: see `retrained`.
        """
        if len(self.experiment.golds) < 3 or self.scenario == "class":
            return {}
        return u_lira(self.margins(self.experiment.golds), self.never) | likeness(self.never, self.retrained)

    @cached_property
    def never(self):
        """Margins of the shadows that never saw a target, `(shadows / 2, targets)`."""
        return audit.by_membership(self.margins(self.runs("Original")), self.is_member)[1]

    @cached_property
    def retrained(self):
        """Margins of models that never saw a target, `(models, targets)`: Golds, `never` where these are fewer than 3.

        In the class scenario none instead: shadows that never saw an image of the class know the class from others.
        """
        if len(self.experiment.golds) < 3:
            return self.never if self.scenario == "random" else self.never[:0]
        return self.margins(self.experiment.golds)


def u_lira(unlearned, never):
    """U-LiRA of two ensembles of margins `(models, images)`, one variance for all images below 64 models a side."""
    found = audit.u_lira(unlearned, never, shared=min(len(unlearned), len(never)) < 64)
    return {f"U-LiRA {name}": value for name, value in found.items()}


def likeness(unlearned, retrained):
    """Forgetting quality and the 95th percentile of KLOM, of equally many models of each ensemble of margins.

    Nothing where there is no retrained model.
    """
    models = min(len(unlearned), len(retrained))
    if not models:
        return {}
    quality = audit.forgetting_quality(unlearned[:models], retrained[:models])
    klom = np.percentile(audit.klom(unlearned[:models], retrained[:models]), 95)
    return {"forgetting quality": quality["F"], "KLOM, P95": klom, "models a side": models}


def to_gold(own, gold):
    """Distances between the attacks on one model and those on a Gold."""
    return {
        "average gap": audit.average_gap(own, gold),
        "ToW": audit.tow(own, gold),
        "ToW-MIA": audit.tow(own, gold, forget="MIA"),
    }


def distance(one, other):
    """How far two models' attacks lie apart in each, and what `to_gold` says of them."""
    return {metric: abs(one[metric] - other[metric]) for metric in one} | to_gold(one, other)


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
    JSD: (JSD, 3),
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
    """One scenario's means and halves of their 95 % intervals over the replicates, by (method, metric).

    All replicates share the Golds and the retained images, and two of them share the targets out: the intervals are
    those of other forget sets and trainings, given these Golds and these images.

    The method `Gold` is the mean over Golds, its interval over them, none for two; `floor` is the distance of two
    Golds, its interval that of `audit.pair_interval`.
    """
    part = table[(table.scenario == scenario) & (table.metric != "diverged")]
    is_pair, is_gold = part.method.str.contains(" v. "), part.method.str.fullmatch(r"Gold \d+")
    golds = part[is_gold].groupby(["method", "metric"], sort=False).value.mean().reset_index()
    values = pd.concat([part[~is_pair & ~is_gold], golds.assign(method="Gold")])
    stats = values.groupby(["method", "metric"], sort=False).value.agg(["mean", "std", "count"])
    stats = stats.assign(half=audit.half_width(stats))
    stats = stats.assign(half=stats.half.where(stats["count"] > 2))
    floors = part[is_pair].groupby("metric", sort=False).value.apply(audit.pair_interval).unstack()
    floors = floors.assign(half=floors.high - floors["mean"], method="floor").set_index("method", append=True)
    return pd.concat([stats[["mean", "half"]], floors[["mean", "half"]].swaplevel().astype(float)])


def methods_of(stats):
    """The methods of what `of` returned that did not diverge, by average gap."""
    return list(stats["mean"].xs("average gap", level="metric").drop(["Original", "floor"]).sort_values().index)


def labelled(method, data):
    """A method's name, with a warning where something of it was chosen by the gap to Gold on these data."""
    return f"{method} (tuned on Gold)" if method in TUNED_ON_GOLD.get(data, ()) else method


def leaderboard(table, scenario, data=""):
    """Mean ± half of the 95 % interval's width: Original, Gold (its distances are the floor), methods by average gap.

    What was not measured has no column. `data` is the collection's name, see `labelled`.
    """
    stats = of(table, scenario)
    rows = {}
    for method in ("Original", "Gold", *methods_of(stats)):
        sources = (method, "floor") if method == "Gold" else (method,)
        rows[method] = {
            heading: text(*stats.loc[there[0], ["mean", "half"]], digits)
            for heading, (metric, digits) in BOARD.items()
            if (there := [(source, metric) for source in sources if (source, metric) in stats.index])
        }
    rows |= {method: {"UA": "diverged"} for method in diverged(table, scenario)}
    rows = {labelled(method, data): row for method, row in rows.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(BOARD)).dropna(axis=1, how="all").fillna("")


def diverged(table, scenario):
    """The methods that diverged on a shadow."""
    return list(table[(table.scenario == scenario) & (table.metric == "diverged")].method)


def heat(table, scenario):
    """What `plots.battery` takes: the means of the attacks on one model, and the floor of each.

    That is 0.5 points at least, for AUCs, KS and ZRF 0.005.
    Few Golds may agree exactly, and then any distance would be infinitely many of theirs.
    """
    stats = of(table, scenario)
    means = stats["mean"].unstack("metric")[HEAT]
    methods = [method for method in dict.fromkeys(table.method) if method in methods_of(stats)]
    least = pd.Series([0.5 if name[:2] in ("UA", "RA", "TA") or name[:3] == "MIA" else 0.005 for name in HEAT], HEAT)
    return means.loc[["Original", "Gold", *methods]], means.loc["floor"].clip(lower=least)


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


def floors(table):
    """The floor of the average gap with its 95 % interval, for each scenario, as `audit.pair_interval` gives it."""
    pairs = table[table.method.str.contains(" v. ") & (table.metric == "average gap")]
    return {scenario: audit.pair_interval(part.value) for scenario, part in pairs.groupby("scenario")}


def replicates(table, scenario, metric):
    """A row a shadow, a column a method: what `audit.paired_tests` takes."""
    part = table[(table.scenario == scenario) & (table.metric == metric) & (table.shadow != ENSEMBLE)]
    part = part[~part.method.str.fullmatch(r"Gold \d+")]
    return part.pivot_table(index="shadow", columns="method", values="value", sort=False)


def paired(table, scenario, metric="average gap"):
    """`audit.paired_tests` over the shadows: of each method against the one with the smallest mean.

    Adjusted for all pairs of methods, since the same numbers chose that one.
    """
    values = replicates(table, scenario, metric)[methods_of(of(table, scenario))]
    best = values.mean().idxmin()
    tests = audit.paired_tests(values[[name for name in values if name != best] + [best]])  # best is never first
    return tests[tests.second == best].reset_index(drop=True)


def conclusions(table, data="", dear=10.0):
    """Markdown, computed: who comes nearest to Gold, whether within the floor, at what cost, and what U-LiRA says.

    `data` as in `leaderboard`. Who costs more than `dear` percent of retraining is named apart.
    """
    lines = []
    for scenario in dict.fromkeys(table.scenario):
        stats = of(table, scenario)
        mean, half = stats["mean"], stats["half"]
        for metric, digits in (("average gap", 2), (JSD, 3)):
            found = mean.xs(metric, level="metric")[methods_of(stats)]
            best, floor = found.idxmin(), mean["floor", metric]
            high = floor + np.nan_to_num(half["floor", metric])
            tests = paired(table, scenario, metric)
            equal = [f"**{labelled(name, data)}**" for name in tests["first"][tests["p (Holm)"] >= 0.05]]
            cost = mean[best, "images, % of retraining"]
            lines.append(
                f"- {scenario}, {metric}: the smallest has **{labelled(best, data)}**, "
                f"{text(found[best], half[best, metric], digits)} "
                f"at {cost:.1f} % of retraining, {'within' if found[best] <= high else 'above'} the floor's interval, "
                f"{text(floor, half['floor', metric], digits)} (Original {mean['Original', metric]:.{digits}f}"
                + (f", a uniform prediction {mean['uniform', metric]:.{digits}f}" if metric == JSD else "")
                + "). Not told from it by paired tests: " + (", ".join(equal) or "none") + "."
            )  # fmt: skip
            affordable = found[mean.xs("images, % of retraining", level="metric")[found.index] <= dear]
            if cost > dear and len(affordable):
                cheap = affordable.idxmin()
                lines[-1] += (
                    f" At no more than {dear:g} %: **{labelled(cheap, data)}**, "
                    f"{text(found[cheap], half[cheap, metric], digits)}."
                )
            if mean["Original", metric] <= high:
                lines[-1] += " Original, untouched, lies within it too: here this measure proves nothing."
        told = mean.xs("U-LiRA AUC", level="metric")
        best = told[methods_of(stats)].sub(0.5).abs().idxmin()
        golds = f", Golds {told['Gold']:.3f}" if "Gold" in told else ""
        lines.append(
            f"- {scenario}, U-LiRA: nearest to chance is **{labelled(best, data)}** with an AUC of {told[best]:.3f} "
            f"(Original {told['Original']:.3f}{golds})."
        )
        if abs(told["Original"] - 0.5) < 0.05:
            lines[-1] += " It hardly finds the members of the untouched Original either: here it proves nothing."
    return "\n".join(lines)
