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

pytestmark = pytest.mark.slow  # it trains 24 models and runs each method of the class scenario on three seeds
SEEDS, GOLDS = (0, 1, 2), 5


@pytest.fixture(scope="module")
def open_experiment(tmp_path_factory):
    """`open_experiment(scenario, seed)` on the default data and preset; models are shared within this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "RUNS", tmp_path_factory.mktemp("runs"))
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


@pytest.mark.parametrize("seed", SEEDS)
def test_original_memorises_the_forgotten_images_beyond_what_golds_generalise_to(open_experiment, seed):
    e = open_experiment("random", seed)
    retrained = [accuracies(e, gold)["forget"] for gold in golds(e)]
    surplus = accuracies(e, e.original())["forget"] - np.mean(retrained)
    assert surplus >= 6 and surplus >= 4 * np.std(retrained, ddof=1), (surplus, retrained)


@pytest.mark.parametrize("seed", SEEDS)
def test_original_knows_the_class_and_the_methods_differ(open_experiment, seed):
    e = open_experiment("class", seed)
    assert accuracies(e, e.original())["forget"] >= 90 and accuracies(e, e.gold())["forget"] == 0
    runs = [*map(e.unlearn, e.methods), *tuned(e, e.published)]
    left = [accuracies(e, run)["forget"] for run in runs if not run.diverged]
    assert max(left) - min(left) >= 50, left


@pytest.mark.parametrize("seed", SEEDS)
def test_the_shadow_model_attack_finds_members_and_nothing_else(open_experiment, seed):
    """RMIA with Golds as shadow models: on Original it works, on Golds and on labels drawn at random it does not."""
    e = open_experiment("random", seed)
    references = golds(e)

    def scores(run):
        known = [gold for gold in references if gold is not run]
        sides = ("forget", e.scenario.held_out, e.scenario.test)
        y = {name: e.split.sets[name].y.cpu() for name in sides}
        own = [attacks.confidence(run.logits[name], y[name]) for name in sides]
        others = [[attacks.confidence(gold.logits[name], y[name]) for gold in known] for name in sides]
        return [attacks.rmia(own[i], others[i], own[2], others[2]) for i in (0, 1)]

    members, others = scores(e.original())
    assert attacks.roc_metrics(members, others)["AUC"] >= 0.6
    on_golds = [attacks.roc_metrics(*scores(gold))["AUC"] for gold in references]
    assert abs(np.mean(on_golds) - 0.5) < 0.05, on_golds

    pooled, generator = np.concatenate([members, others]), torch.Generator().manual_seed(seed)
    found = []
    for _ in range(400):
        order = torch.randperm(len(pooled), generator=generator).numpy()
        found.append(attacks.roc_metrics(pooled[order[: len(members)]], pooled[order[len(members) :]])["AUC"])
    half_width = 2.58 * np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - 0.5) <= half_width, np.mean(found)
