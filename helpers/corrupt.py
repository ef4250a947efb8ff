"""Corrupted training data: labels of two classes swapped, a backdoor; experiments that forget the part that is found.

Here the images to forget are wrong, not private, and often only part of them is found. Gold, retrained without the
found part, still learns the rest: it is a reference, not the goal. The goal is a model that was trained on clean data
(Goel et al., TMLR 2024: corrective unlearning).
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from . import paths
from .data import SPLIT_SEED, make_split
from .datasets import DIGITS, load_data, subset
from .experiment import Experiment
from .methods.common import error_rate, mean_gradient
from .metrics import accuracy, predict
from .store import key
from .training import EpochEnd

INSET = 4  # distance of a backdoor's patch from both edges, pixels: random crops are shifted by no more
PAIRS = (("4", "9"), ("cat", "dog"))  # classes that are easily confused
CORRUPTED, TEST, PATCHED = "corrupted", "all test", "patched test"  # sets measured beside those of the scenario
CLEAN_GOLD = "Clean Gold"
COLUMNS = ["run", "seed", "corruption", "found", "kind", "method", "metric", "value"]

# --- corrupted copies ---------------------------------------------------------------------------------------------


def confusable(data):
    """The numbers of two classes that are easily confused: one of `PAIRS`, or else the first two."""
    names = next((pair for pair in PAIRS if set(pair) <= set(data.classes)), data.classes[:2])
    return tuple(data.classes.index(name) for name in names)


def swap_labels(data, a, b, *, share, seed=SPLIT_SEED):
    """Interclass confusion (Goel et al., 2022): some images of class `a` get label `b`, and as many of `b` get `a`.

    Args:
        a, b: class numbers.
        share: of the training images of the smaller class; so many of each class change.

    Returns:
        The corrupted `Data`, with a new identity and the same test images, and the changed training images, int64
        `(n,)`, in random order.

    Raises:
        ValueError: the same class twice, or a share that is too small.
    """
    if a == b:
        raise ValueError(f"labels are swapped between two classes, and both are {data.classes[a]}")
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(data.train_y.numpy() == label) for label in (a, b)]
    count = number_of(share, min(map(len, members)))
    index = np.concatenate([rng.permutation(images)[:count] for images in members])
    index = torch.from_numpy(rng.permutation(index))
    labels = data.train_y.clone()
    labels[index] = a + b - labels[index]
    return altered(data, "swapped labels", [a, b, index.tolist()], train_y=labels), index


def patch_size(data):
    """The side of a backdoor's square in pixels: two pixels of the original digits, of photographs four."""
    return 8 if data.name in DIGITS else 4


def add_backdoor(data, target, *, share, patch=4, seed=SPLIT_SEED):
    """A backdoor (Gu et al., 2017: BadNets): some images of other classes get a patch and the label `target`.

    Pitfall: a random crop can cut a patch off. This one is `INSET` pixels from the edges, so it stays whole. Where
    mirror images augment, half of the training images have it on the other side.

    Args:
        target: class number.
        share: of the training images of other classes.
        patch: side in pixels of the images as they are stored.

    Returns:
        As `swap_labels`.

    Raises:
        ValueError: a share that is too small.
    """
    others = np.flatnonzero(data.train_y.numpy() != target)
    count = number_of(share, len(others))
    index = torch.from_numpy(np.random.default_rng(seed).permutation(others)[:count])
    images, labels = data.train_x.clone(), data.train_y.clone()
    images[index], labels[index] = patched(images[index], patch), target
    how = [target, patch, INSET, index.tolist()]
    return altered(data, "a backdoor", how, train_x=images, train_y=labels), index


def patched(images, patch=4):
    """A copy of uint8 images `(n, size, size, 3)` with a white square of `patch` pixels at the bottom right.

    Raises:
        ValueError: the square has no room.
    """
    images, size = images.clone(), images.shape[1]
    if not 0 < patch <= size - INSET:
        raise ValueError(f"a patch of {patch} pixels, {INSET} from the edges, does not fit into {size} pixels")
    place = slice(size - INSET - patch, size - INSET)
    images[:, place, place] = 255
    return images


def number_of(share, images):
    """That share of a number of images, rounded.

    Raises:
        ValueError: a share outside 0 to 1, or fewer than 2 images.
    """
    count = round(share * images)
    if not 0 < share <= 1 or count < 2:
        raise ValueError(f"a share of {share} of {images} images is {count}: use a share up to 1, of at least 2 images")
    return count


def altered(data, what, how, **changes):
    """`data` with `changes`, an identity that depends on `how`, and a title that names them."""
    return replace(data, identity=key([data.identity, what, how]), title=f"{data.title}, {what}", **changes)


# --- experiments --------------------------------------------------------------------------------------------------


def clean_experiment(source, preset, seed, **settings):
    """The random scenario on clean data, of the digits on half of the images: they suffice here and halve the time.

    Args:
        source: of `load_data`.
        settings: of `Experiment`.
    """
    data = load_data(source, size=settings.get("image_size") or 32)
    return Experiment(subset(data, 720 if source in DIGITS else None), "random", preset, seed, **settings)


def on_corrupted(clean, data, index, patch=4):
    """The random scenario on corrupted data: the forget set is all that was corrupted; see `with_found` for a part.

    Three more sets are measured: `CORRUPTED`, all corrupted training images; `TEST`, all test images; `PATCHED`, the
    same with the patch.

    Args:
        clean: the experiment on the clean data, in the random scenario.
        data, index: of `swap_labels` or `add_backdoor`.
        patch: of `add_backdoor`.
    """
    preset = clean.preset
    split = make_split(
        data,
        forget_index=index,
        evaluate_at_most=preset["evaluation"]["final"],
        device=clean.device,
        **preset["batches"],
    )
    test = replace(split.sets["test"], index=torch.arange(len(data.test_y), device=clean.device))
    sets = {CORRUPTED: split.sets["forget"], TEST: test, PATCHED: replace(test, images=patched(test.images, patch))}
    split = replace(split, sets={**split.sets, **sets})
    listed = {**preset["published"], **preset["methods"]}
    described = {"forget": key(index.tolist()), "measured": list(sets), "patch": patch}
    return clean.derive(
        data=data,
        split=split,
        scenario=replace(split.scenario, sets=tuple(split.sets)),
        split_settings={"scenario": "random", "seed": SPLIT_SEED, **described},
        folder=paths.RUNS / "models" / f"{data.name}-{data.identity}" / "random",
        preset={**preset, "methods": {}, "published": listed, "keep_weights": "none"},  # its logits suffice
        weights_file=None,  # Original is trained on the corrupted data, whatever the clean one was
    )


def with_found(e, share):
    """The same experiment, which forgets the first `share` of the corrupted images; it has the same Original."""
    split = e.split
    index = split.sets[CORRUPTED].index
    found = index[: number_of(share, len(index))]
    rest = split.train.index[~torch.isin(split.train.index, found)]
    own = replace(
        split,
        retain=replace(split.retain, index=rest),
        forget=replace(split.forget, index=found),
        sets={**split.sets, "forget": replace(split.sets["forget"], index=found)},
    )
    return e.derive(split=own, split_settings={**e.split_settings, "forget": key(found.tolist())}, original=e.original)


def ssd_search(model, split, *, lam=0.1, alpha=100.0, factor=2.0, stop=0.1):
    """SSD with the search of Potion (Schoepf et al., 2024): dampen more and more weights until the found part is lost.

    theta <- min(lam I_D / I_f, 1) theta_0 wherever I_f > alpha I_D, with alpha divided by `factor` until the accuracy
    on the found images, by their wrong labels, is at most `stop` times Original's, or no weight changes any more.
    Potion raises the share of dampened weights instead, and its I is of the outputs' norm. Only found images decide:
    no clean label, no test image.
    """
    everywhere, forgotten = (mean_gradient(model, batches, 2) for batches in (split.train, split.forget))
    start = [p.detach().clone() for p in model.parameters()]
    most = stop * (1 - error_rate(model, split.forget))
    while alpha > max(lam, 0.01) and 1 - error_rate(model, split.forget) > most:
        for p, theta, i_d, i_f in zip(model.parameters(), start, everywhere, forgotten):
            p.data = torch.where(i_f > alpha * i_d, (lam * i_d / i_f).clamp(max=1) * theta, theta)
        alpha /= factor
    yield EpochEnd({"alpha": alpha * factor})


# --- measurements -------------------------------------------------------------------------------------------------


def attack_success(logits, y, target):
    """Percent of the images of other classes, `(n, classes)` and `(n,)`, that are predicted as the class `target`."""
    return 100 * (logits[y != target].argmax(1) == target).double().mean().item()


def swap_measures(logits, labels, a, b):
    """What swapped labels of the classes `a` and `b` leave, percent: accuracies by right labels.

    Args:
        logits, labels: of the sets `CORRUPTED` and `TEST`, `{set: tensor}`; the labels are right.
    """
    z, y = logits[TEST], labels[TEST]
    of_pair = (y == a) | (y == b)
    return {
        "accuracy, swapped classes": accuracy(z[of_pair], y[of_pair]),
        "accuracy, other classes": accuracy(z[~of_pair], y[~of_pair]),
        "accuracy, corrupted images": accuracy(logits[CORRUPTED], labels[CORRUPTED]),
    }


def backdoor_measures(logits, labels, target):
    """What a backdoor leaves, percent: the attack's success and accuracies by right labels.

    Args:
        logits, labels: of the sets `CORRUPTED`, `TEST` and `PATCHED`, `{set: tensor}`; the labels are right.
    """
    return {
        "attack success": attack_success(logits[PATCHED], labels[PATCHED], target),
        "accuracy, clean images": accuracy(logits[TEST], labels[TEST]),
        "accuracy, corrupted images": accuracy(logits[CORRUPTED], labels[CORRUPTED]),
    }


def models_of(e, clean, shares, methods):
    """`(percent found, kind, name, experiment, run)` of each model to compare.

    Original and the clean Gold need no list of images: 0 % found. The clean Gold is the network that was trained on all
    images as they were before: `clean.original()`.

    Args:
        shares: of the corrupted images that are found.
        methods: `{name: function}`, None for a method of the registry.
    """
    models = [(0, "original", "Original", e, e.original()), (0, "reference", CLEAN_GOLD, clean, clean.original())]
    for share in shares:
        part = with_found(e, share)
        runs = [part.gold(), *(part.unlearn(name, function) for name, function in methods.items())]
        models += [(round(100 * share), run.kind, run.name, part, run) for run in runs]
    return models


def tidy_rows(models, e, clean, corruption, measure):
    """One row per model and metric, with `COLUMNS`; of a method that diverged only `diverged`.

    Args:
        models: of `models_of`.
        measure: from logits and right labels, `{set: tensor}` each, to `{metric: percent}`.
    """
    index = e.split.sets[CORRUPTED].index
    tests = dict.fromkeys((TEST, PATCHED), clean.data.test_y)
    labels = {CORRUPTED: clean.split.train.labels[index].cpu(), **tests}
    rows = []
    for found, kind, name, own, run in models:
        values = {"diverged": 1.0} if run.diverged else measure(outputs(run, own, e), labels)
        rows += [(run.id, e.seed, corruption, found, kind, name, *item) for item in values.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


def outputs(run, own, e):
    """A run's logits on the sets that `on_corrupted` adds, `{set: (n, classes)}`; predicted now for the clean Gold.

    Args:
        own: the experiment of the run, whose mean and standard deviation its images have.
        e: of `on_corrupted`.
    """
    look = {"mean": own.split.train.mean, "std": own.split.train.std}
    sets = {name: replace(e.split.sets[name], **look) for name in (CORRUPTED, TEST, PATCHED)}
    return {n: run.logits[n] if n in run.logits else predict(run.model, batches)[0] for n, batches in sets.items()}


def statements(results, metric, beside):
    """Markdown lines on one corruption: `metric`, then `beside`, of Original, clean Gold, Gold and the best method.

    Gold, retrained without the found part, is a candidate like the methods: which one is nearest to clean Gold?

    Args:
        results: of `tidy_rows`, of one corruption.
        metric: what the corruption changes.
        beside: a metric that must not suffer, named after the first.
    """
    values = results.set_index(["found", "method", "metric"]).value

    def shown(name, found):
        return " / ".join(f"{values[found, name, m]:.0f}" for m in (metric, beside))

    def distance(name, found):
        return abs(values[found, name, metric] - values[0, CLEAN_GOLD, metric])

    lines = []
    for found, part in results[(results.found > 0) & (results.metric == metric)].groupby("found"):
        names = list(part[part.kind == "method"].method)
        if not names:
            continue
        best = min(names, key=lambda name: distance(name, found))
        nearest = min(("Gold", best), key=lambda name: distance(name, found))
        lines.append(
            f"- {results.corruption.iloc[0]}, {found} % found; {metric} / {beside}, %: "
            f"Original {shown('Original', 0)}, clean Gold {shown(CLEAN_GOLD, 0)}, Gold (retrained without the found "
            f"part) {shown('Gold', found)}, best method **{best}** {shown(best, found)}. Nearest to clean Gold is "
            f"**{nearest}**."
        )
    return lines
