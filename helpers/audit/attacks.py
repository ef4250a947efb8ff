"""Attacks on one model and on ensembles of models, and distances to Gold.

A set is a pair `(logits, y)` of tensors `(n, classes)` and `(n,)`. An ensemble is an array of `margin`s `(models, n)`:
one row per model, one column per image. Members are images that the model was trained on, non-members are not. Golds
are models that never saw the forgotten images.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC
from torch.nn.functional import log_softmax, logsigmoid, one_hot

from ..metrics import accuracy, entropy, js_distance, losses

# --- what attacks look at, image by image --------------------------------------------------------------------------


def margin(logits, y):
    """phi = log p_y - log sum_{k != y} p_k = z_y - logsumexp_{k != y} z_k, in nats, float64 `(..., n)`.

    This is the logit-scaled confidence of LiRA (Carlini et al., 2022). Pitfall: log p - log(1 - p) is equal in exact
    arithmetic but infinite where p rounds to 1.

    Args:
        logits: `(..., n, classes)`, of one model or of several models on the same n images.
        y: labels of the images, `(n,)`.
    """
    own = one_hot(y, logits.shape[-1]).bool()
    z = logits.double()
    return z.masked_fill(~own, 0).sum(-1) - z.masked_fill(own, -torch.inf).logsumexp(-1)


def confidence(logits, y):
    """p_y, float64 numpy `(n,)`."""
    return np.exp(-losses(logits, y))


def modified_entropy(logits, y):
    """-(1 - p_y) log p_y - sum_{k != y} p_k log(1 - p_k), in nats, float64 `(n,)` (Song and Mittal, 2021).

    It is 0 for a prediction that is confident and right, and large for one that is confident and wrong. log(1 - p) of
    the likeliest class is computed from its `margin`, since 1 - p may round to 0. Pitfall: each row has its own y, and
    the factor of the other classes is log(1 - p).
    """
    log_p, top = log_softmax(logits.double(), 1), logits.argmax(1)
    log_not_p = (-log_p.expm1()).log().scatter(1, top[:, None], logsigmoid(-margin(logits, top))[:, None])
    own = one_hot(y, logits.shape[1]).bool()
    return -torch.where(own, -log_p.expm1() * log_p, log_p.exp() * log_not_p).sum(1)


# --- attacks on one model -----------------------------------------------------------------------------------------

DRAWS = 5  # attacks whose mean is the MIA efficacy, each fitted on other images
FITTED_ON = 500  # members in the fit of one attack, at most, and as many non-members
SIGNALS = {
    "confidence": confidence,
    "entropy": lambda logits, y: entropy(logits),
    "modified entropy": modified_entropy,
    "probabilities": lambda logits, y: logits.double().softmax(1),
}


def unseen_shares(retain, test, images):
    """How often each image is classified as unseen, `{signal: share of DRAWS attacks (n,)}`, see `predicted_unseen`.

    Where members and non-members hardly differ, a single attack depends on the images in its fit by tens of points.
    """
    attack = partial(predicted_unseen, retain, test, images, at_most=FITTED_ON)
    # support vector machines compute outside the interpreter's lock
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        found = list(pool.map(lambda seed: attack(seed=seed), range(DRAWS)))
    return {signal: np.mean([shares[signal] for shares in found], axis=0) for signal in SIGNALS}


def mia_efficacy(retain, test, forget, **settings):
    """Percent of the forget set that each attack of `predicted_unseen` classifies as unseen (Fan et al., 2024: SalUn).

    SalUn's tables print the value of the signal confidence. Pitfall: the attack is weak; a value above Gold's is not
    better; and where members and non-members hardly differ, it varies by tens of points between draws and seeds, so do
    not quote it from one of them.

    Args:
        retain, test, forget: sets `(logits, y)`.
        settings: of `predicted_unseen`.
    """
    return {name: 100 * unseen.mean() for name, unseen in predicted_unseen(retain, test, forget, **settings).items()}


def predicted_unseen(retain, test, images, *, at_most=1000, seed=0):
    """Which images an attack classifies as unseen, by the signal that it uses: {signal: bool `(n,)`}.

    A support vector machine (C = 3, gamma = 1 / features, rbf) is fitted to separate retained images (members) from as
    many test images (non-members). Four signals: confidence, entropy, modified entropy, probabilities. SalUn's fifth,
    whether the prediction is right, repeats UA. SalUn's code computes the modified entropy wrongly.

    Args:
        retain, test, images: sets `(logits, y)`.
        at_most: members and non-members in the fit, drawn at random, since its time grows with their square.
    """
    rng = np.random.default_rng(seed)
    size = min(at_most, len(retain[1]), len(test[1]))
    drawn = [torch.from_numpy(rng.permutation(len(y))[:size]) for _, y in (retain, test)]
    fitted = [(logits[chosen], y[chosen]) for (logits, y), chosen in zip((retain, test), drawn)]
    unseen = {}
    for name, signal in SIGNALS.items():
        x = [np.asarray(signal(*part), float).reshape(len(part[1]), -1) for part in (*fitted, images)]
        attack = SVC(C=3, gamma="auto", kernel="rbf").fit(np.concatenate(x[:2]), np.repeat([1, 0], size))
        unseen[name] = attack.predict(x[2]) == 0
    return unseen


def rmia(p, p_references, p_z, p_z_references, *, gamma=2.0, a=0.3):
    """Offline RMIA (Zarifzadeh et al., 2024): the share of unseen images z whose ratio x exceeds `gamma` times.

    score(x) = share of z with [p(x) / p_ref(x)] / [p(z) / p_ref(z)] >= gamma, float64 `(n,)`, high for members;
    p_ref = ((1 + a) mean p_out + (1 - a)) / 2 corrects for the references: they never saw an image, so they give it
    less confidence than models with and without it do on average. Pitfall: a model that is its own reference is not
    attacked: leave a Gold out of the references when it is the target.

    Args:
        p, p_z: `confidence`s of the attacked model on the targets `(n,)` and on the population `(m,)`.
        p_references, p_z_references: those of models that saw none of them, `(models, n)` and `(models, m)`.
        a: 0.3 as in the paper for CIFAR-10; 1 means no correction.
    """
    ratio, ratio_z = (
        np.asarray(own, float) / (((1 + a) * np.mean(references, axis=0) + (1 - a)) / 2)
        for own, references in ((p, p_references), (p_z, p_z_references))
    )
    return np.searchsorted(np.sort(ratio_z), ratio / gamma, side="right") / len(ratio_z)


def roc_metrics(member_scores, other_scores):
    """How well scores separate members from non-members: AUC (0.5 = chance) and TPR at 1 % FPR, both from 0 to 1.

    TPR at 1 % FPR is the highest rate with at most 1 % of the non-members called members, without interpolation.
    Pitfall: with fewer than 100 non-members it allows no false positive at all; print how many there were.

    Args:
        member_scores, other_scores: of members and of non-members, any shape; high means member.
    """
    scores = np.concatenate([np.ravel(member_scores), np.ravel(other_scores)])
    is_member = np.repeat([1, 0], [np.size(member_scores), np.size(other_scores)])
    fpr, tpr, _ = roc_curve(is_member, scores, drop_intermediate=False)
    return {"AUC": roc_auc_score(is_member, scores), "TPR at 1 % FPR": tpr[fpr <= 0.01].max()}


def streisand(forget, unseen):
    """Whether the forgotten images stand out from unseen ones, in either direction, by their losses or entropies.

    `signed KS` is the Kolmogorov-Smirnov distance, positive where the forgotten images have the larger values
    (over-forgotten), negative where they have the smaller ones (remembered); `p` is its p-value; `AUC` is
    max(A, 1 - A) with A = P(forget > unseen). Pitfall: an AUC below 0.5 is leakage too; a one-sided test misses it.

    Args:
        forget, unseen: one value per image, `(n,)` and `(m,)`.
    """
    forget, unseen = np.asarray(forget, float), np.asarray(unseen, float)
    ks = stats.ks_2samp(forget, unseen)
    above = roc_metrics(forget, unseen)["AUC"]
    return {"signed KS": -ks.statistic_sign * ks.statistic, "p": ks.pvalue, "AUC": max(above, 1 - above)}


def zrf(logits, random_logits):
    """1 - mean Jensen-Shannon divergence (nats) to an untrained network's predictions (Chundawat et al., 2023: ZRF).

    From 1 - ln 2 = 0.307 to 1. Pitfall: 1 means predictions like an untrained network's, not like Gold's, whose own
    value is well below 1. A model that guesses on forgotten images has the best score and stands out most.
    """
    return 1 - (js_distance(logits, random_logits) ** 2).mean().item()


def nearest_class(logits, forgotten):
    """The class that models who never saw the `forgotten` classes predict most often for images of these.

    Args:
        logits: of Golds on images of the forgotten classes, `(..., classes)`.
        forgotten: class numbers; they are never the answer.
    """
    allowed = logits.clone()
    allowed[..., list(forgotten)] = -torch.inf
    return allowed.argmax(-1).flatten().bincount().argmax().item()


def class_attack(forgotten, nearest, *, at_most=500, seed=0):
    """How well unseen images of a forgotten class are separated from those of its `nearest_class`, by all logits.

    The cross-validated accuracy of a support vector machine on equally many images of each; 0.5 is chance, and
    noise can be below; NaN with fewer
    than 5. Simplified from MIA-NN (Ebrahimpour-Boroojeny et al., 2026). Pitfall: Gold separates them too, since it has
    learnt features from other classes: only the distance to Gold's value says something about forgetting.

    Args:
        forgotten, nearest: logits of one model, `(n, classes)` and `(m, classes)`.
        at_most: images per side.
    """
    rng = np.random.default_rng(seed)
    size = min(len(forgotten), len(nearest), at_most)
    if size < 5:
        return float("nan")
    x = np.concatenate([side[torch.from_numpy(rng.permutation(len(side))[:size])] for side in (forgotten, nearest)])
    x, y = (x - x.mean(0)) / (x.std(0) + 1e-6), np.repeat([1, 0], size)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed).split(x, y)
    return np.mean([(SVC().fit(x[fitted], y[fitted]).predict(x[rest]) == y[rest]).mean() for fitted, rest in folds])


# --- attacks on ensembles -----------------------------------------------------------------------------------------


def memorisation(margins, is_member):
    """How much each image is memorised: its mean margin under models trained on it minus that under the others.

    Feldman and Zhang (2020) use accuracies; margins need fewer models. Pitfall: the models that are attacked must not
    be among these, since their own noise would decide which image counts as memorised.

    Args:
        margins, is_member: of shadow models `(models, n)`; each image is a member of half of them.

    Returns:
        nats, float64 `(n,)`.
    """
    members, others = by_membership(margins, is_member)
    return members.mean(0) - others.mean(0)


def by_membership(margins, is_member):
    """Split margins of shadow models, `(models, n)`, into members' and non-members', each `(models / 2, n)`.

    Raises:
        ValueError: not every image is a member of exactly half of the models.
    """
    margins, is_member = np.asarray(margins, float), np.asarray(is_member, bool)
    if (2 * is_member.sum(0) != len(margins)).any():
        raise ValueError(f"each image must be a member of exactly half of the {len(margins)} models")
    count = margins.shape[1]
    return margins.T[is_member.T].reshape(count, -1).T, margins.T[~is_member.T].reshape(count, -1).T


def u_lira_scores(unlearned, held_out, *, shared=False):
    """Log likelihood ratios ln N(phi; unlearned) - ln N(phi; held out) of left-out models, two arrays `(models, n)`.

    Each image has two normal distributions: of the margins of models that were trained on it and unlearned it, and of
    models that never saw it. In turn, one model per side is left out and scored by the normals fitted to the others.
    So both normals always rest on equally many models, and equal sides have equal scores. The larger side is cut to the
    smaller.

    Args:
        unlearned, held_out: margins `(models, n)`, see `u_lira`.
        shared: one variance per side for all images, as Carlini et al. (2022) advise below about 64 models.

    Raises:
        ValueError: fewer than 3 models per side, or correctness instead of margins.
    """
    unlearned, held_out = np.asarray(unlearned, float), np.asarray(held_out, float)
    models = min(len(unlearned), len(held_out))
    if models < 3:
        raise ValueError(f"U-LiRA needs at least 3 models per side; there are {len(unlearned)} and {len(held_out)}")
    if all(np.isin(side, (0, 1)).all() for side in (unlearned, held_out)):
        raise ValueError("U-LiRA fits normals to margins: these are zeros and ones, as of right and wrong predictions")
    sides = unlearned[:models], held_out[:models]
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


def u_lira(unlearned, held_out, *, shared=False):
    """U-LiRA (Hayes et al., 2024): can 'trained on, then unlearned' be separated from 'never seen', image by image?

    Accuracy at likelihood ratio 1, AUC and TPR at 1 % FPR over all left-out models and images (see `u_lira_scores`),
    each from 0 to 1, and the number of models per side. Chance is 0.5, 0.5 and about 0.01. Pitfall: the *method* must
    run anew on every shadow model, and the normals are fitted to margins, not to 0/1 correctness.

    Args:
        unlearned: margins `(models, n)` of models that were trained on the image and then unlearned it.
        held_out: margins of models that never saw it. The paper uses Golds; with shadow models that unlearned other
            images, membership is the only difference.
    """
    first, second = u_lira_scores(unlearned, held_out, shared=shared)
    accuracy = (2 + np.sign(first).mean() - np.sign(second).mean()) / 4  # a tie is half right
    return {"accuracy": accuracy, **roc_metrics(first, second), "models": len(first)}


DELTA = 1e-5  # of the competition's (epsilon, delta)
REACH = 2.0  # nats by which an interval may differ from the range of the narrower side, as in the competition


def epsilons(unlearned, retrained):
    """For each image the largest epsilon, nats `(n,)`, of a threshold attack between two ensembles `(N, n)`.

    epsilon = max ln((1 - delta - FPR) / FNR), ln((1 - delta - FNR) / FPR) over the thresholds of `_one_threshold` and
    the intervals of `_intervals`, which are the families of the competition's code (google-deepmind's
    unlearning_evaluation). As there, perfect separation is infinite, a threshold at which only one of the rates is 0
    does not count, and a side whose range is under 1 % of the other's is separated. All thresholds of a family are
    tried, where that code tries a grid of 0.01 nats. Pitfall: an estimate without an interval, the largest over many
    thresholds, so it is positive between equal ensembles, too; see `quality_of_equals`.
    """
    a, b = np.asarray(unlearned, float), np.asarray(retrained, float)
    runs = len(a)
    swap = np.median(b, axis=0) > np.median(a, axis=0)
    high, low = np.where(swap, b, a), np.where(swap, a, b)
    misses, alarms = (np.concatenate(counts) for counts in zip(_one_threshold(high, low), _intervals(high, low)))
    epsilon = np.maximum(_log_ratio(alarms, misses, runs), _log_ratio(misses, alarms, runs))
    epsilon[(misses == 0) != (alarms == 0)] = 0
    epsilon[(misses == 0) & (alarms == 0)] = np.inf
    smaller, larger = np.sort([np.ptp(a, axis=0), np.ptp(b, axis=0)], axis=0)
    return np.where(smaller < 0.01 * larger, np.inf, epsilon.max(0).clip(min=0))


def _cuts(high, low):
    """The places between sorted values, `(2N + 1, n)`: where each starts and ends, how many of each side are below."""
    union, edge = np.sort(np.concatenate([high, low]), axis=0), np.full((1, high.shape[1]), np.inf)
    start, end = np.concatenate([-edge, union]), np.concatenate([union, edge])
    return start, end, *((side[:, None] < end).sum(0) for side in (high, low))


def _one_threshold(high, low):
    """Misses and alarms if values at or above a threshold are assigned to `high`, the side with the larger median."""
    _, _, below_high, below_low = _cuts(high, low)
    return below_high, len(low) - below_low


def _intervals(high, low):
    """Misses and alarms if values in an interval are assigned to the side with the smaller range.

    The interval covers about that range: its upper end is within `REACH` of that side's largest value, and its width
    within `REACH` of that range. Others prove nothing here; all pairs of thresholds would prove more by chance.
    """
    start, end, *below = _cuts(high, low)
    narrow_is_low = np.ptp(low, axis=0) <= np.ptp(high, axis=0)
    narrow = np.where(narrow_is_low, low, high)
    top, width = narrow.max(0), np.ptp(narrow, axis=0)
    i, j = np.triu_indices(len(end), 1)  # the lower end lies in (start[i], end[i]], the upper one in [start[j], end[j])
    least, most = np.maximum(start[j], top - REACH), np.minimum(end[j], top + REACH)
    allowed = (least < end[j]) & (least <= top + REACH)
    allowed &= (least - end[i] <= width + REACH) & (most - start[i] > width - REACH)
    inside_high, inside_low = (counts[j] - counts[i] for counts in below)
    misses = len(low) - np.where(narrow_is_low, inside_low, inside_high)
    alarms = np.where(narrow_is_low, inside_high, inside_low)
    return np.where(allowed, misses, len(low)), np.where(allowed, alarms, len(low))


def _log_ratio(first, second, runs):
    """ln((1 - delta - first) / second) of rates given as counts; 0 where it is not defined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.log(1 - DELTA - first / runs) - np.log(second / runs), nan=0, posinf=0, neginf=0)


def forgetting_quality(unlearned, retrained):
    """F of the NeurIPS 2023 unlearning competition (Triantafillou et al., 2024): mean of 2^-floor(epsilon / 0.5).

    1 where no margin separates unlearned from retrained runs, 0 where the margin of every image does; see `epsilons`.
    Also returned: N, the runs per side, and ln(N - 1), the largest epsilon short of perfect separation that N runs can
    show. Pitfall: F depends on N, and equal groups do not reach 1 (`quality_of_equals`): do not compare across set-ups.

    Args:
        unlearned, retrained: margins `(N, n)` of the forgotten images.

    Raises:
        ValueError: the sides differ in N, or N < 3.
    """
    if len(unlearned) != len(retrained) or len(retrained) < 3:
        raise ValueError(
            f"forgetting quality needs equally many runs per side, 3 or more; there are {len(unlearned)} unlearned and "
            f"{len(retrained)} retrained ones"
        )
    points = 2 ** -np.floor(epsilons(unlearned, retrained) / 0.5)
    return {"F": points.mean(), "N": len(retrained), "ln(N - 1)": np.log(len(retrained) - 1)}


def quality_of_equals(runs, images=2000):
    """The forgetting quality of two equal groups of so many runs, by simulation: mean over images with normal margins.

    The value that a perfect method reaches on average; it is far below 1 where runs are few.
    """
    return forgetting_quality(*np.random.default_rng(0).normal(size=(2, runs, images)))["F"]


def final_score(quality, own, gold):
    """The competition's score: F (RA / RA_Gold) (TA / TA_Gold); `own` and `gold` are `standard_metrics`.

    Pitfall: as F's.
    """
    return quality["F"] * (own["RA"] / gold["RA"]) * (own["TA"] / gold["TA"])


# --- distance to Gold ---------------------------------------------------------------------------------------------


def standard_metrics(retain, test, forget, **settings):
    """UA = 100 - forget accuracy, RA, TA (retain and test accuracy) and MIA (`mia_efficacy`, confidence), in percent.

    Pitfall: a high value of any of them is not good by itself; each should equal Gold's.

    Args:
        retain, test, forget: sets `(logits, y)`.
        settings: of `predicted_unseen`.
    """
    return {
        "UA": 100 - accuracy(*forget),
        "RA": accuracy(*retain),
        "TA": accuracy(*test),
        "MIA": mia_efficacy(retain, test, forget, **settings)["confidence"],
    }


def average_gap(own, gold):
    """Mean of |UA - UA_Gold|, |RA - RA_Gold|, |TA - TA_Gold| and |MIA - MIA_Gold|, in points (Fan et al., 2024).

    Pitfall: it is not 0 between two Golds either: print the floor beside it.

    Args:
        own, gold: `standard_metrics` of the model and of Gold.
    """
    return np.mean([abs(own[name] - gold[name]) for name in ("UA", "RA", "TA", "MIA")])


def tow(own, gold, forget="UA"):
    """Tug of war (Zhao et al., 2024): product over forget, retain, test of 1 - |difference to Gold| / 100; 1 is best.

    With `forget="MIA"` it is ToW-MIA. Pitfall: it compares accuracies only, not predictions.
    """
    return np.prod([1 - abs(own[name] - gold[name]) / 100 for name in (forget, "RA", "TA")])
