"""Targets of Margin matching: what each predicts, and what the training towards it costs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.audit import targets
from helpers.datasets import load_data
from helpers.experiment import Experiment
from helpers.methods.distil import unseen_logits
from helpers.metrics import predict

pytestmark = pytest.mark.usefixtures("runs_folder")


def margin(logits, y):
    z = logits.double().numpy()
    return np.array([row[c] - np.log(np.exp(np.delete(row, c)).sum()) for row, c in zip(z, y.tolist())])


@pytest.fixture
def experiment():
    return Experiment(load_data("clean-digits"), "random", "smoke")


def test_the_corrected_target_has_the_margins_of_held_out_images(trained, toy, random_split):
    """In each class; a network that predicts as the model does on unseen images changes which image has which."""
    forget, held_out = (replace(b, shuffle=False) for b in (random_split.forget, random_split.validation))
    corrected = targets.corrected_logits(trained, toy(7), random_split)
    own = unseen_logits(trained, random_split)
    unseen = margin(predict(trained, held_out)[0], held_out.y)
    for c in range(4):
        mine, theirs = (forget.y == c).numpy(), (held_out.y == c).numpy()
        levels = (np.arange(mine.sum()) + 0.5) / mine.sum()
        assert np.sort(margin(corrected, forget.y)[mine]) == pytest.approx(
            np.quantile(unseen[theirs], levels), abs=1e-4
        )
    rest = torch.ones_like(own).scatter(1, forget.y[:, None], 0).bool()
    assert not torch.allclose(own[rest], corrected[rest])


def test_a_correction_by_the_model_itself_keeps_its_predictions_of_unseen_images(trained, toy, random_split):
    """The ridge on the model's own features reproduces its log-probabilities on the images that it was fitted on."""
    alike = replace(random_split, forget=replace(random_split.validation, shuffle=False))
    corrected = targets.corrected_logits(trained, trained, alike).softmax(1)
    own = predict(trained, alike.forget)[0].softmax(1)
    other = targets.corrected_logits(trained, toy(7), alike).softmax(1)
    assert (corrected - own).abs().mean() < 0.005 < 0.01 < (other - own).abs().mean()


def test_the_third_gold_is_the_oracle_and_each_run_trains_equally_long(experiment):
    found = targets.compare(experiment, lengths=(1,))
    assert list(found.target) == ["Original", "Gold 2", "Gold 3 itself", *targets.TARGETS]
    assert found.epochs[3:].eq(1).all() and found.epochs[:3].isna().all()
    found = found.set_index("target")
    oracle = found["target's JSD to Gold"]["Gold 3"]
    assert oracle == pytest.approx(found["JSD to Gold"]["Gold 3 itself"], abs=1e-3)
    runs = {target: targets.towards(experiment, target, 1) for target in targets.TARGETS}
    seen = {name: run.cost["images"] for name, run in runs.items()}
    forgotten, held_out = len(experiment.split.forget.index), len(experiment.split.validation.index)
    assert seen["own"] - seen["Gold 3"] == min(forgotten, held_out)
    assert seen["corrected"] - seen["own"] == forgotten + min(forgotten, held_out)
    assert len({run.history[-1]["steps"] for run in runs.values()}) == 1
    for target, run in runs.items():
        share = 100 * run.cost["images"] / experiment.gold().cost["images"]
        assert found["% of retraining"][target] == pytest.approx(share)


def test_an_unknown_target_and_the_class_scenario_are_refused_in_one_line(experiment):
    with pytest.raises(ValueError, match="^target 'gold 3' is unknown: one of own, corrected, Gold 3"):
        targets.estimate(experiment, "gold 3", experiment.original().model, experiment.split)
    with pytest.raises(ValueError, match="^not for the class scenario: "):
        targets.compare(Experiment(load_data("clean-digits"), "class", "smoke"))
