"""The default data have something to forget: what a newcomer's first run must show, on three seeds."""

import numpy as np
import pytest
import torch

from helpers import paths
from helpers.audit import attacks
from helpers.datasets import load_data
from helpers.experiment import Experiment
from helpers.metrics import accuracy
from helpers.tuning import tuned

pytestmark = pytest.mark.slow  # it adds Golds and a third seed to the default run
SEEDS, GOLDS = (0, 1, 2), 5


@pytest.fixture(scope="module")
def open_experiment(default_run):
    """`open_experiment(scenario, seed)` on the default data and preset; it finds the models of the default run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "RUNS", default_run)
        data = load_data()

        def opened(scenario, seed):
            experiment = Experiment(data, scenario, seed=seed)
            experiment.report = lambda line: None
            return experiment

        yield opened


def accuracies(experiment, run):
    """Accuracy in percent on each set."""
    sets = experiment.split.sets
    return {name: accuracy(logits, sets[name].y.cpu()) for name, logits in run.logits.items()}


def golds(experiment):
    return [experiment.gold(number + 1) for number in range(GOLDS)]


def test_original_memorises_the_forgotten_images_beyond_what_golds_generalise_to(open_experiment):
    """On each seed by 6 points, and by 4 standard deviations of a seed's Golds, estimated from all seeds together."""
    surplus, variance = [], []
    for seed in SEEDS:
        e = open_experiment("random", seed)
        retrained = [accuracies(e, gold)["forget"] for gold in golds(e)]
        surplus.append(accuracies(e, e.original())["forget"] - np.mean(retrained))
        variance.append(np.var(retrained, ddof=1))
    assert min(surplus) >= 6 and min(surplus) >= 4 * np.sqrt(np.mean(variance)), (surplus, variance)


@pytest.mark.parametrize("seed", SEEDS)
def test_original_knows_the_class_and_the_methods_differ(open_experiment, seed):
    e = open_experiment("class", seed)
    assert accuracies(e, e.original())["forget"] >= 90 and accuracies(e, e.gold())["forget"] == 0
    runs = [*map(e.unlearn, e.methods), *tuned(e, e.published)]
    left = [accuracies(e, run)["forget"] for run in runs if not run.diverged]
    assert max(left) - min(left) >= 50, left


def scores(experiment, run, references):
    """RMIA scores of the forgotten images and of held-out ones, with Golds as reference models."""
    known = [gold for gold in references if gold is not run]
    sides = ("forget", experiment.scenario.held_out, experiment.scenario.test)
    y = {name: experiment.split.sets[name].y.cpu() for name in sides}
    own = [attacks.confidence(run.logits[name], y[name]) for name in sides]
    others = [[attacks.confidence(gold.logits[name], y[name]) for gold in known] for name in sides]
    return [attacks.rmia(own[i], others[i], own[2], others[2]) for i in (0, 1)]


def auc(found):
    """Area under the ROC curve of scores of members against those of others."""
    return attacks.roc_metrics(*found)["AUC"]


def together(found):
    """The mean score of each image over several models."""
    return [np.mean(side, axis=0) for side in zip(*found)]


def chance_deviation(members, others):
    """The standard deviation of the AUC of scores that say nothing (the Mann-Whitney statistic's, without ties)."""
    return np.sqrt((members + others + 1) / (12 * members * others))


def test_the_attack_finds_members_and_nothing_else(open_experiment):
    """RMIA finds the forgotten images in each Original, and in all seeds' Originals together with an AUC of 0.60.

    In Golds it finds nothing.
    """
    originals, retrained = [], [[] for _ in range(GOLDS)]
    for seed in SEEDS:
        e = open_experiment("random", seed)
        references = golds(e)
        originals.append(scores(e, e.original(), references))
        for found, gold in zip(retrained, references):
            found.append(scores(e, gold, references))
    deviation = chance_deviation(*map(len, originals[0]))
    assert all(auc(found) > 0.5 + 1.64 * deviation for found in originals), [auc(found) for found in originals]
    assert auc(together(originals)) >= 0.6
    assert abs(np.mean([auc(together(found)) for found in retrained]) - 0.5) < 1.64 * deviation


def test_the_attack_finds_nothing_where_membership_is_drawn_at_random(open_experiment):
    """Over 400 random divisions of the attacked images, the mean AUC lies within its interval of 0.5."""
    e = open_experiment("random", SEEDS[0])
    members, others = scores(e, e.original(), golds(e))
    pooled, generator, found = np.concatenate([members, others]), torch.Generator().manual_seed(0), []
    for _ in range(400):
        order = torch.randperm(len(pooled), generator=generator).numpy()
        found.append(auc([pooled[order[: len(members)]], pooled[order[len(members) :]]]))
    deviation = np.std(found, ddof=1)  # below chance_deviation, since scores are equal for many images
    assert abs(np.mean(found) - 0.5) <= 4 * deviation / np.sqrt(len(found)), np.mean(found)
