"""Shadow models: trained like Original on known subsets, to fit membership audits and to judge them.

The targets are the forgotten images, on which Original was trained, and held-out images of the same distribution, which
it never saw. Each shadow is trained on the retained images and on its own half of the targets, and then forgets that
half. Shadows 2j and 2j + 1 split the targets between them, so that every target is a member of exactly half of the
shadows. No Gold saw any target: one set of Golds serves all shadows.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from ..data import SPLIT_SEED
from ..experiment import MissingRun
from ..tuning import tuned
from . import attacks

SEED, SEEDS_APART = 10_000, 1000  # of the first shadow of seed 0; between the first shadows of two seeds


def shadow(experiment, number):
    """An experiment like this one whose Original is shadow `number`, and whose forget set is that shadow's members.

    It measures the sets of `experiment`; see `target_logits`.
    """
    if number not in range(experiment.preset["audit"]["shadows"]):
        last = experiment.preset["audit"]["shadows"] - 1
        raise ValueError(f"shadow {number} is unknown: the preset has shadows 0 to {last}")
    split = experiment.split
    non_members = split.sets[split.scenario.held_out]
    images = torch.cat([split.train.images, non_members.images])
    labels = torch.cat([split.train.labels, non_members.labels])
    targets, retain = target_index(split).to(split.retain.index.device), split.retain.index
    members = targets[torch.from_numpy(is_member(experiment, number)).to(targets.device)]
    untouched = ~torch.isin(split.validation.index + len(split.train.images), targets)

    def batches(index):
        return replace(split.train, images=images, labels=labels, index=index)

    own = replace(
        split,
        train=batches(torch.cat([retain, members])),
        retain=batches(retain),
        forget=batches(members),
        validation=replace(split.validation, index=split.validation.index[untouched]),
    )
    return experiment.derive(
        role="shadow",
        seed=SEED + SEEDS_APART * experiment.seed + number,
        split=own,
        split_settings={**experiment.split_settings, "shadow": number},
        golds_from=experiment,
    )


def targets_of(members, non_members):
    """The targets in order: the members of Original, then as many non-members, but half of these at most.

    The other half stays held out, for methods that use such images.
    """
    return torch.cat([members, non_members[: min(len(members), len(non_members) // 2)]])


def target_index(split):
    """Positions of the targets in the training images followed by the test images, int64 `(targets,)`."""
    members, non_members = (split.sets[name].index.cpu() for name in ("forget", split.scenario.held_out))
    return targets_of(members, len(split.train.images) + non_members)


def target_images(split):
    """The targets' images, uint8 `(targets, size, size, 3)`."""
    non_members = split.sets[split.scenario.held_out]
    index = target_index(split).to(split.train.images.device)
    return torch.cat([split.train.images, non_members.images])[index]


def target_logits(logits, scenario):
    """The targets' part of `{set: logits}`, float32 `(targets, classes)`."""
    return targets_of(logits["forget"], logits[scenario.held_out])


def target_labels(split):
    """The targets' labels, int64 `(targets,)`."""
    return targets_of(*(split.sets[name].y.cpu() for name in ("forget", split.scenario.held_out)))


def is_member(experiment, number):
    """The targets that shadow `number` is trained on, bool `(targets,)`: a random half; the next has the other half."""
    count = len(target_index(experiment.split))
    order = np.random.default_rng([SPLIT_SEED, SEEDS_APART * experiment.seed + number // 2]).permutation(count)
    mine = order[: count // 2] if number % 2 == 0 else order[count // 2 :]
    return np.isin(np.arange(count), mine)


def memorisation(experiment):
    """How much each forgotten image is memorised: `attacks.memorisation` by the preset's shadow models.

    Returns:
        nats, float64 `(forgotten images,)`; None unless the preset has shadow models and all are under `runs/`.
    """
    numbers = range(experiment.preset["audit"]["shadows"])
    try:
        runs = [shadow(experiment, number).read_only().original() for number in numbers]
    except MissingRun:
        return None
    if not runs:
        return None
    split, y = experiment.split, target_labels(experiment.split)
    margins = [attacks.margin(target_logits(run.logits, split.scenario), y).numpy() for run in runs]
    members = [is_member(experiment, number) for number in numbers]
    return attacks.memorisation(margins, members)[: len(split.forget.index)]


def unlearn_shadow(experiment, number):
    """The runs of shadow `number`: itself, and the result of each method under audit on it."""
    one = shadow(experiment, number)
    return [one.original(), *tuned(one, experiment.preset["audit"]["methods"])]


def training_jobs(experiment, shadows=False):
    """The models that can be trained before the notebooks run, each by itself: name -> the function that trains it.

    `original`, `gold`, `gold-2` and so on; with `shadows` also `shadow-0` and so on, each with all methods under audit.
    """
    jobs = {"original": experiment.original}
    for number in range(1, experiment.preset["golds"] + 1):
        jobs["gold" if number == 1 else f"gold-{number}"] = partial(experiment.gold, number)
    for number in range(experiment.preset["audit"]["shadows"] if shadows else 0):
        jobs[f"shadow-{number}"] = partial(unlearn_shadow, experiment, number)
    return jobs


def missing_models(experiment, shadows=False):
    """The names of `training_jobs` of which a model is not under `runs/`."""
    missing = []
    for name, make in training_jobs(experiment.read_only(), shadows).items():
        try:
            make()
        except MissingRun:
            missing.append(name)
    return missing
