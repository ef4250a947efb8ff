"""Shadow models: doubles of Original whose members are known, on which membership audits are fitted and judged.

The targets are the forgotten images, which Original was trained on, and held-out images of the same distribution, which
it never saw. Each shadow is trained on the retained images and its own half of the targets, and then forgets that half.
Shadows 2j and 2j + 1 share the targets out between them, so that every target is a member of exactly half of the
shadows. No Gold saw any target: one set of Golds serves all shadows.
"""

from copy import copy
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from .data import SPLIT_SEED
from .experiment import Experiment, NotThere
from .tuning import tuned

SEED = 10_000  # of the first shadow's weights and shuffling; Original's and the Golds' seeds are smaller
TARGETS = {"random": ("forget", "validation"), "class": ("train forget", "test forget")}  # members of Original, others


class Double(Experiment):
    """A shadow's experiment: all is its own but the Golds."""

    @property
    def golds(self):
        return self.target.golds


def shadow(experiment, number):
    """An experiment like this one whose `original` is shadow `number`, and whose forget set is that shadow's members.

    What it measures are the sets of `experiment`; see `target_logits`.
    """
    if number not in range(experiment.budget["audit"]["shadows"]):
        raise ValueError(f"shadow {number}: the budget has shadows 0 to {experiment.budget['audit']['shadows'] - 1}")
    double, split = copy(experiment), experiment.split
    double.__class__, double.target = Double, experiment
    for kept in ("original", "panel"):  # what the experiment has computed of its own
        double.__dict__.pop(kept, None)
    double.budget = {setting: value for setting, value in experiment.budget.items() if setting != "original"}
    double.seed = SEED + number
    double.split_settings = {**experiment.split_settings, "shadow": number}

    others = split.sets[TARGETS[split.scenario][1]]
    images = torch.cat([split.train.images, others.images])
    labels = torch.cat([split.train.labels, others.labels])
    targets, retain = target_index(split).to(split.retain.index.device), split.retain.index
    members = targets[torch.from_numpy(is_member(experiment, number)).to(targets.device)]
    untouched = ~torch.isin(split.validation.index + len(split.train.images), targets)

    def batches(index):
        return replace(split.train, images=images, labels=labels, index=index)

    double.split = replace(
        split,
        train=batches(torch.cat([retain, members])),
        retain=batches(retain),
        forget=batches(members),
        validation=replace(split.validation, index=split.validation.index[untouched]),
    )
    return double


def joined(members, others):
    """The targets' order: the members of Original, then as many others, but half of these at most.

    The other half stays held out, for methods that use such images.
    """
    return torch.cat([members, others[: min(len(members), len(others) // 2)]])


def target_index(split):
    """Positions of the targets in the training images followed by the test images, int64 `(targets,)`."""
    members, others = (split.sets[name].index.cpu() for name in TARGETS[split.scenario])
    return joined(members, len(split.train.images) + others)


def target_images(split):
    """The targets' images, uint8 `(targets, size, size, 3)`."""
    others = split.sets[TARGETS[split.scenario][1]]
    index = target_index(split).to(split.train.images.device)
    return torch.cat([split.train.images, others.images])[index]


def target_logits(logits, scenario):
    """The targets' part of `{set: logits}`, float32 `(targets, classes)`."""
    return joined(*(logits[name] for name in TARGETS[scenario]))


def target_labels(split):
    """The targets' labels, int64 `(targets,)`."""
    return joined(*(split.sets[name].y.cpu() for name in TARGETS[split.scenario]))


def is_member(experiment, number):
    """Which targets shadow `number` is trained on, bool `(targets,)`: a random half, and the rest for the next one."""
    count = len(target_index(experiment.split))
    order = np.random.default_rng([SPLIT_SEED, number // 2]).permutation(count)
    mine = order[: count // 2] if number % 2 == 0 else order[count // 2 :]
    return np.isin(np.arange(count), mine)


def trainings(experiment, shadows=False):
    """What is trained before the notebooks are run, each by itself: name -> the function that makes it.

    `original`, `gold`, `gold-2` and so on; with `shadows` also `shadow-0` and so on: a shadow and what the methods
    under audit leave of it.
    """
    jobs = {"original": lambda: experiment.original}
    for number in range(experiment.budget["golds"]):
        jobs["gold" if number == 0 else f"gold-{number + 1}"] = partial(experiment.retrained, number)
    for number in range(experiment.budget["audit"]["shadows"] if shadows else 0):
        jobs[f"shadow-{number}"] = partial(forgetful, experiment, number)
    return jobs


def forgetful(experiment, number):
    """Shadow `number`, and what each method under audit leaves of it."""
    double = shadow(experiment, number)
    return [double.original, *tuned(double, experiment.budget["audit"]["methods"])]


def still_to_train(experiment, shadows=False):
    """Those names of `trainings` of which a model is not under `runs/`."""
    seeker, missing = experiment.looking(), []
    for name, make in trainings(seeker, shadows).items():
        try:
            make()
        except NotThere:
            missing.append(name)
    return missing
