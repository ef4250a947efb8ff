"""Audits of forgetting: attacks, comparisons with ensembles of retrained models, relearning, and what seeds can say.

A set is a pair `(logits, y)`, torch `(n, classes)` and `(n,)`. An ensemble is an array of `margin`s `(models, n)`: each
row one model, each column one image. Golds are models that never saw the forgotten images.
"""

import math
from itertools import combinations, islice

import numpy as np
import pandas as pd
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.svm import SVC
from torch.nn.functional import cross_entropy, log_softmax, logsigmoid, one_hot

from .methods import endless
from .metrics import GAP, accuracy, entropy, js_distance, losses, predict
from .training import EpochEnd, Phase
from .unlearning import unlearn

# --- what attacks look at, an image at a time ---------------------------------------------------------------------


def margin(logits, y):
    """phi = log p_y - log sum_{k != y} p_k = z_y - logsumexp_{k != y} z_k, in nats, float64 `(..., n)`.

    The logit-scaled confidence of LiRA (Carlini et al., 2022) and the margin of KLOM (Georgiev et al., 2024) are this
    one number. Pitfall: log p - log(1 - p) is the same on paper but infinite where p rounds to 1.

    Args:
        logits: `(..., n, classes)`, one or many models' on the same n images.
        y: their labels `(n,)`.
    """
    own = one_hot(y, logits.shape[-1]).bool()
    z = logits.double()
    return z.masked_fill(~own, 0).sum(-1) - z.masked_fill(own, -torch.inf).logsumexp(-1)


def confidence(logits, y):
    """p_y, float64 numpy `(n,)`."""
    return np.exp(-losses(logits, y))


def modified_entropy(logits, y):
    """-(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k), in nats, float64 `(n,)` (Song and Mittal, 2021).

    0 for a prediction that is sure and right, large for one that is sure and wrong. log(1 - p) of the likeliest class
    comes from its `margin`, since 1 - p may round to 0. Pitfall: each row has its own y, and it is log(1 - p) that goes
    with the other classes.
    """
    log_p, top = log_softmax(logits.double(), 1), logits.argmax(1)
    log_not_p = (-log_p.expm1()).log().scatter(1, top[:, None], logsigmoid(-margin(logits, top))[:, None])
    own = one_hot(y, logits.shape[1]).bool()
    return -torch.where(own, -log_p.expm1() * log_p, log_p.exp() * log_not_p).sum(1)


# --- attacks on one model -----------------------------------------------------------------------------------------

SIGNALS = {
    "correctness": lambda logits, y: logits.argmax(1) == y,
    "confidence": confidence,
    "entropy": lambda logits, y: entropy(logits),
    "modified entropy": modified_entropy,
    "probabilities": lambda logits, y: logits.double().softmax(1),
}


def mia_efficacy(retain, test, forget, **settings):
    """Percent of the forget set that each attack of `taken_for_unseen` takes for unseen (Fan et al., 2024: SalUn).

    SalUn's tables print the confidence's. Pitfall: weak; more than Gold's is not better; and where there is nothing to
    tell, it moves by tens of points from one draw or seed to the next, so never quote it from one.

    Args:
        retain, test, forget: sets `(logits, y)`.
        settings: of `taken_for_unseen`.
    """
    return {name: 100 * unseen.mean() for name, unseen in taken_for_unseen(retain, test, forget, **settings).items()}


def taken_for_unseen(retain, test, images, *, at_most=1000, seed=0):
    """Which images an attack takes for unseen, by what the attack looks at: {signal: bool `(n,)`}.

    A support vector machine (C = 3, gamma = 1 / features, rbf) learns to tell retained images (members) from as many
    test images (non-members). Five signals: correctness, confidence, entropy, modified entropy, probabilities. SalUn's
    code has the modified entropy wrong; here it is as published.

    Args:
        retain, test, images: sets `(logits, y)`.
        at_most: members and non-members used to fit, drawn at random, since the fit's time grows with their square.
    """
    rng = np.random.default_rng(seed)
    size = min(at_most, len(retain[1]), len(test[1]))
    drawn = [torch.from_numpy(rng.permutation(len(y))[:size]) for _, y in (retain, test)]
    fitted = [(logits[chosen], y[chosen]) for (logits, y), chosen in zip((retain, test), drawn)]
    taken = {}
    for name, signal in SIGNALS.items():
        x = [np.asarray(signal(*part), float).reshape(len(part[1]), -1) for part in (*fitted, images)]
        attack = SVC(C=3, gamma="auto", kernel="rbf").fit(np.concatenate(x[:2]), np.repeat([1, 0], size))
        taken[name] = attack.predict(x[2]) == 0
    return taken


def rmia(p, p_references, p_z, p_z_references, *, gamma=2.0, a=0.3):
    """Offline RMIA (Zarifzadeh et al., 2024): the share of unseen images z that x outdoes `gamma` times.

    score(x) = share of z with [p(x) / p_ref(x)] / [p(z) / p_ref(z)] >= gamma, float64 `(n,)`, high for members;
    p_ref = ((1 + a) mean p_out + (1 - a)) / 2, since references that never saw an image underrate its average.
    Pitfall: a model that is its own reference looks innocent: leave a Gold out of the references when it is the target.

    Args:
        p, p_z: the attacked model's `confidence`s of the targets `(n,)` and of the population `(m,)`.
        p_references, p_z_references: those of models that saw none of them, `(models, n)` and `(models, m)`.
        a: 0.3 is the paper's for CIFAR-10; 1 is no correction.
    """
    ratio, ratio_z = (
        np.asarray(own, float) / (((1 + a) * np.mean(references, axis=0) + (1 - a)) / 2)
        for own, references in ((p, p_references), (p_z, p_z_references))
    )
    return np.searchsorted(np.sort(ratio_z), ratio / gamma, side="right") / len(ratio_z)


def power(member_scores, other_scores):
    """How well scores tell members from others: AUC (0.5 = chance) and TPR at 1 % FPR, both from 0 to 1.

    TPR at 1 % FPR is the highest with at most 1 % of the others called members, without interpolation. Pitfall: with
    fewer than 100 others that means none of them; say how many there were.
    """
    scores = np.concatenate([np.ravel(member_scores), np.ravel(other_scores)])
    is_member = np.repeat([1, 0], [np.size(member_scores), np.size(other_scores)])
    fpr, tpr, _ = roc_curve(is_member, scores, drop_intermediate=False)
    return {"AUC": roc_auc_score(is_member, scores), "TPR at 1 % FPR": tpr[fpr <= 0.01].max()}


def streisand(forget, unseen):
    """Whether the forgotten images stand out, in either direction; takes their losses or entropies and unseen images'.

    `signed KS` is the Kolmogorov-Smirnov distance, above 0 where the forgotten images have the larger values
    (over-forgotten), below 0 where they have the smaller ones (remembered); `p` its p-value; `AUC` = max(A, 1 - A),
    A = P(forget > unseen). Pitfall: an attack's AUC below 0.5 is leakage too, which a one-sided test hides.
    """
    forget, unseen = np.asarray(forget, float), np.asarray(unseen, float)
    ks = stats.ks_2samp(forget, unseen)
    above = power(forget, unseen)["AUC"]
    return {"signed KS": -ks.statistic_sign * ks.statistic, "p": ks.pvalue, "AUC": max(above, 1 - above)}


def zrf(logits, random_logits):
    """1 - mean Jensen-Shannon divergence (nats) to an untrained network's predictions (Chundawat et al., 2023: ZRF).

    From 1 - ln 2 = 0.307 to 1. Pitfall: 1 is likeness to noise, not to Gold, whose own value is well below 1: a model
    made to guess on forgotten images scores best and stands out most.
    """
    return 1 - (js_distance(logits, random_logits) ** 2).mean().item()


# --- attacks on ensembles -----------------------------------------------------------------------------------------


def by_membership(margins, is_member):
    """Split shadows' margins into those of members and of non-members, each `(models / 2, n)`, from `(models, n)`.

    Raises:
        ValueError: not every image is a member of exactly half of the models.
    """
    margins, is_member = np.asarray(margins, float), np.asarray(is_member, bool)
    if (2 * is_member.sum(0) != len(margins)).any():
        raise ValueError(f"each image must be a member of exactly half of the {len(margins)} models")
    count = margins.shape[1]
    return margins.T[is_member.T].reshape(count, -1).T, margins.T[~is_member.T].reshape(count, -1).T


def u_lira_scores(unlearned, never, *, shared=False):
    """Log likelihood ratios ln N(phi; unlearned) - ln N(phi; never) of held-out models, two arrays `(models, n)`.

    Each image has a normal for models that were trained on it and then unlearned it, and one for models that never saw
    it. In turn, one model of each side is held out and judged by normals fitted to the rest: so both normals always
    rest on equally many models, and equal sides score alike. The larger side is cut to the smaller.

    Args:
        shared: one variance a side for all images, as Carlini et al. (2022) advise with fewer than about 64 models.

    Raises:
        ValueError: fewer than 3 models a side, or correctness in place of margins.
    """
    unlearned, never = np.asarray(unlearned, float), np.asarray(never, float)
    models = min(len(unlearned), len(never))
    if models < 3:
        raise ValueError(f"U-LiRA needs at least 3 models a side; there are {len(unlearned)} and {len(never)}")
    if all(np.isin(side, (0, 1)).all() for side in (unlearned, never)):
        raise ValueError("U-LiRA fits normals to margins: these are zeros and ones, as of right and wrong predictions")
    sides = unlearned[:models], never[:models]
    normals = [_normals_of_the_rest(side, shared) for side in sides]
    first, second = (stats.norm.logpdf(side, *normals[0]) - stats.norm.logpdf(side, *normals[1]) for side in sides)
    return first, second


def _normals_of_the_rest(side, shared):
    """Mean and standard deviation over all models but one, in turn, `(models, n)` each."""
    rest = len(side) - 1
    centred = side - side.mean(0)
    mean = -centred / rest
    variance = ((centred**2).sum(0) - centred**2 - rest * mean**2) / (rest - 1)
    if shared:
        variance = np.broadcast_to(variance.mean(1, keepdims=True), side.shape)
    return side.mean(0) + mean, np.sqrt(variance.clip(min=1e-12))


def u_lira(unlearned, never, *, shared=False):
    """U-LiRA (Hayes et al., 2024): can 'trained on, then unlearned' be told from 'never seen', image by image?

    Accuracy at likelihood ratio 1, AUC and TPR at 1 % FPR over all held-out models and images (see `u_lira_scores`),
    each from 0 to 1, and the number of models a side. Chance is 0.5, 0.5 and about 0.01. Pitfall: the *method* runs
    anew on every shadow, and the normals are fitted to margins, not to 0/1 correctness.

    Args:
        unlearned: margins `(models, n)` of models trained on the image that then unlearned it.
        never: of models that never saw it. The paper takes Golds; shadows that unlearned other images instead leave
            membership as the only difference.
    """
    first, second = u_lira_scores(unlearned, never, shared=shared)
    accuracy = (2 + np.sign(first).mean() - np.sign(second).mean()) / 4  # a tie is half right
    return {"accuracy": accuracy, **power(first, second), "models": len(first)}


DELTA = 1e-5  # of the competition's (epsilon, delta)


def epsilons(unlearned, retrained):
    """For each image the largest epsilon, nats `(n,)`, that a threshold attack proves between two ensembles `(N, n)`.

    epsilon = max ln((1 - delta - FPR) / FNR), ln((1 - delta - FNR) / FPR) over single and double thresholds: what lies
    between two cuts, one of which may be infinite, is called the side with the smaller range. As in the competition's
    code, perfect separation is infinite, a threshold at which just one of the rates is 0 does not count, and a side
    whose range is under 1 % of the other's is separated. All cuts between values are tried, not a grid.
    """
    a, b = np.asarray(unlearned, float), np.asarray(retrained, float)
    runs = len(a)
    union = np.sort(np.concatenate([a, b]), axis=0)
    ends = np.full((1, a.shape[1]), np.inf)
    cuts = np.concatenate([-ends, (union[1:] + union[:-1]) / 2, ends])  # (2N + 1, n)
    below_a, below_b = ((side[:, None] < cuts).sum(0) for side in (a, b))

    left, right = np.triu_indices(len(cuts), 1)
    range_a, range_b = np.ptp(a, axis=0), np.ptp(b, axis=0)
    inside_a, inside_b = below_a[right] - below_a[left], below_b[right] - below_b[left]
    narrow = range_b < range_a
    misses, alarms = runs - np.where(narrow, inside_b, inside_a), np.where(narrow, inside_a, inside_b)
    epsilon = np.maximum(_log_ratio(alarms, misses, runs), _log_ratio(misses, alarms, runs))
    epsilon[(misses == 0) != (alarms == 0)] = 0
    epsilon[(misses == 0) & (alarms == 0)] = np.inf
    smaller, larger = np.minimum(range_a, range_b), np.maximum(range_a, range_b)
    return np.where(smaller < 0.01 * larger, np.inf, epsilon.max(0).clip(min=0))


def _log_ratio(first, second, runs):
    """ln((1 - delta - first) / second) of rates given as counts, 0 where it is not defined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.log(1 - DELTA - first / runs) - np.log(second / runs), nan=0, posinf=0, neginf=0)


def forgetting_quality(unlearned, retrained):
    """F of the NeurIPS 2023 unlearning competition (Triantafillou et al., 2024): mean of 2^-floor(epsilon / 0.5).

    1 where no image's margin tells unlearned from retrained runs, 0 where every image's does; see `epsilons`. Beside F
    come N, the runs a side, and ln(N - 1), the largest epsilon short of perfect separation that N runs can show.
    Pitfall: F depends on N, and Gold against Gold does not score 1: give both, never compare across set-ups.

    Args:
        unlearned, retrained: margins `(N, n)` of the forgotten images.

    Raises:
        ValueError: the sides differ in N, or N < 3.
    """
    if len(unlearned) != len(retrained) or len(retrained) < 3:
        raise ValueError(
            f"forgetting quality needs equally many runs a side, at least 3; there are {len(unlearned)} unlearned and "
            f"{len(retrained)} retrained ones"
        )
    points = 2 ** -np.floor(epsilons(unlearned, retrained) / 0.5)
    return {"F": points.mean(), "N": len(retrained), "ln(N - 1)": np.log(len(retrained) - 1)}


def final_score(quality, own, gold):
    """The competition's score: F (RA / RA_Gold) (TA / TA_Gold); `own` and `gold` are `headline`s. Pitfall: as F's."""
    return quality["F"] * (own["RA"] / gold["RA"]) * (own["TA"] / gold["TA"])


def klom(unlearned, golds, *, bins=20, clip=100):
    """KL(unlearned || Gold) of histograms of margins, nats `(n,)`; report its P95 (Georgiev et al., 2024).

    Margins are clipped to +-`clip`; an image's bins are shared and span both ensembles; a Gold bin that is empty counts
    as 1e-5, so the most is ln(1e5) = 11.5. Pitfall: needs many models; with few, Gold against Gold is far from 0.

    Args:
        unlearned, golds: margins `(models, n)` and `(golds, n)`.
    """
    sides = [np.clip(np.asarray(side, float), -clip, clip) for side in (unlearned, golds)]
    low, high = np.min([side.min(0) for side in sides], 0), np.max([side.max(0) for side in sides], 0)
    width = np.where(high > low, high - low, 1)
    p, q = (_histograms(((side - low) / width * bins).astype(int).clip(max=bins - 1), bins) for side in sides)
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q.clip(min=1e-5)), 0).sum(1)


def _histograms(numbers, bins):
    """Share of each bin in each column of bin numbers `(models, n)`, as `(n, bins)`."""
    models, count = numbers.shape
    flat = (numbers + bins * np.arange(count)).ravel()
    return np.bincount(flat, minlength=bins * count).reshape(count, bins) / models


# --- distance to Gold ---------------------------------------------------------------------------------------------


def headline(retain, test, forget, **settings):
    """UA = 100 - forget accuracy, RA, TA (retain and test accuracy) and MIA (`mia_efficacy`, confidence), in percent.

    Takes sets `(logits, y)`. Pitfall: none of them is good when high; each is to equal Gold's.
    """
    return {
        "UA": 100 - accuracy(*forget),
        "RA": accuracy(*retain),
        "TA": accuracy(*test),
        "MIA": mia_efficacy(retain, test, forget, **settings)["confidence"],
    }


def average_gap(own, gold):
    """Mean of |UA - UA_Gold|, ..RA.., ..TA.., ..MIA.., in points, of two `headline`s (Fan et al., 2024).

    Pitfall: two Golds do not have 0 either: print the `floor` beside it.
    """
    return np.mean([abs(own[name] - gold[name]) for name in ("UA", "RA", "TA", "MIA")])


def tow(own, gold, forget="UA"):
    """Tug of war (Zhao et al., 2024): product over forget, retain, test of 1 - |difference to Gold| / 100; 1 is best.

    With `forget="MIA"` it is ToW-MIA. Pitfall: accuracies only; equal accuracies may hide different predictions.
    """
    return np.prod([1 - abs(own[name] - gold[name]) / 100 for name in (forget, "RA", "TA")])


# --- relearning ---------------------------------------------------------------------------------------------------


def relearning(model, split, *, steps, every, lr):
    """Down the cross-entropy of a forget batch joined to a retain batch; an epoch ends after every `every` steps."""
    yield Phase(lr)
    pairs = zip(endless(split.forget), endless(split.retain))
    for step, ((x_f, y_f), (x_r, y_r)) in enumerate(islice(pairs, steps), 1):
        yield cross_entropy(model(torch.cat([x_f, x_r])), torch.cat([y_f, y_r]))
        if step % every == 0:
            yield EpochEnd()


def relearn(model, split, *, steps=50, every=1, lr=1e-3, batch_size=128, seed=0):
    """The relearn curve: forget accuracy in percent while a copy of `model` is taught the forgotten images again.

    A table with columns step (from 0) and accuracy. Half of each step's images are retained ones, so that a forgotten
    class is not learnt by always naming it, nor normalised by its own statistics. Pitfall: give the curve, since the
    number of steps hangs on learning rate and tolerance; what says something is the distance to Gold's curve.
    """
    batches = split.sets[GAP[split.scenario][1]]

    def track(learner):
        return {"accuracy": accuracy(predict(learner, batches)[0], batches.y.cpu())}

    settings = {"seed": seed, "batch_size": batch_size, "steps": steps, "every": every, "lr": lr}
    history = unlearn(relearning, model, split, track=track, **settings).history
    curve = [track(model)["accuracy"], *(epoch["accuracy"] for epoch in history)]
    return pd.DataFrame({"step": every * np.arange(len(curve)), "accuracy": curve})


def steps_back(curve, original, tolerance=5):
    """First step at which the accuracy is back within `tolerance` percent of Original's; infinite if it never is."""
    back = curve.step[curve.accuracy >= (1 - tolerance / 100) * original]
    return back.min() if len(back) else np.inf


def anamnesis_index(unlearned_steps, gold_steps):
    """`steps_back` of the unlearned model over Gold's (Chundawat et al., 2023: AIN); ideal 1.

    Below 1 it remembers, above 1 it has been made to resist learning. NaN where Gold's steps are 0, since it is right
    about images it never saw, or infinite. Pitfall: in the random scenario Gold often starts within the tolerance.
    """
    return unlearned_steps / gold_steps if 0 < gold_steps < np.inf else np.nan


# --- what seeds allow to say --------------------------------------------------------------------------------------


def student(counts):
    """The two-sided 95 % quantile of Student's t for each number of seeds; NaN for one seed."""
    return np.where(counts > 1, stats.t.ppf(0.975, np.maximum(counts - 1, 1)), np.nan)


def half_width(stats):
    """Half the width of the 95 % interval (Student's t), from a table's columns std and count; NaN for one value."""
    return student(stats["count"]) * stats["std"] / np.sqrt(stats["count"])


def interval(values):
    """Mean over seeds and its 95 % interval (Student's t): mean, low, high; both ends NaN for one seed.

    Pitfall: the seeds' values must be independent: pairs of Golds are not, see `pair_interval`.
    """
    values = np.asarray(values, float)
    spread = values.std(ddof=1) if len(values) > 1 else np.nan
    half = student(len(values)) * spread / np.sqrt(len(values))
    return values.mean(), values.mean() - half, values.mean() + half


def pair_interval(values):
    """The `values` of all pairs in the order of `combinations`, their mean, its 95 % interval `low` to `high`.

    Of pairs of Golds that is the floor: what no method can be asked to beat.
    Pairs share members, so the error is the jackknife's over members (Efron and Stein, 1981) with Student's t, NaN for
    one pair. Pitfall: one pair is an anecdote.
    """
    values = np.asarray(values, float)
    count = (1 + math.isqrt(1 + 8 * len(values))) // 2  # so many members have that many pairs
    mean, half = values.mean(), np.nan
    if count > 2:
        pairs = np.array(list(combinations(range(count), 2)))
        without = np.array([values[(pairs != i).all(1)].mean() for i in range(count)])
        half = student(count) * np.sqrt((count - 1) * without.var())
    return {"values": values, "mean": mean, "low": mean - half, "high": mean + half}


def holm(p):
    """Holm's (1979) adjusted p-values, in the order of `p`."""
    p = np.asarray(p, float)
    order, count = np.argsort(p), len(p)
    adjusted = np.empty(count)
    adjusted[order] = np.maximum.accumulate((count - np.arange(count)) * p[order]).clip(max=1)
    return adjusted


def paired_tests(values):
    """Which methods differ: a paired t-test across seeds for each pair of methods.

    Columns first, second, difference (first - second, mean), low, high (its 95 % interval), p, and p (Holm), adjusted
    for all rows. Wilcoxon's test is not used: its p cannot fall below 2^(1 - seeds), 0.06 with 5. Pitfall: with few
    seeds, not significant does not mean equal.

    Args:
        values: a table, one row a seed and one column a method, of one metric.

    Raises:
        ValueError: fewer than 3 seeds, or a value missing.
    """
    if len(values) < 3:
        raise ValueError(f"a paired test needs at least 3 seeds; there are {len(values)}")
    if values.isna().any(axis=None):
        raise ValueError(f"no value at some seed for: {', '.join(map(str, values.columns[values.isna().any()]))}")
    rows = []
    for first, second in combinations(values, 2):
        difference = values[first] - values[second]
        p = stats.ttest_1samp(difference, 0).pvalue if difference.any() else 1.0
        rows.append((first, second, *interval(difference), p))
    table = pd.DataFrame(rows, columns=["first", "second", "difference", "low", "high", "p"])
    return table.assign(**{"p (Holm)": holm(table.p)})


def pareto(cost, gap):
    """Which points no other point beats in cost or gap without losing in the other, bool `(n,)`; NaN never is one."""
    cost, gap = np.asarray(cost, float), np.asarray(gap, float)
    no_worse = (cost[:, None] <= cost) & (gap[:, None] <= gap)
    better = (cost[:, None] < cost) | (gap[:, None] < gap)
    return ~(no_worse & better).any(0) & np.isfinite(cost) & np.isfinite(gap)
