"""Shadow models: who is a member of what, what a shadow is trained on, and that nobody else is disturbed."""

import numpy as np
import pytest
import torch

from helpers import runs
from helpers.budgets import BUDGETS
from helpers.data import load_data
from helpers.experiment import Experiment
from helpers.metrics import predict
from helpers.shadows import (
    TARGETS,
    is_member,
    shadow,
    still_to_train,
    target_index,
    target_labels,
    target_logits,
    trainings,
)


@pytest.fixture(params=["random", "class"])
def experiment(request, tmp_path, monkeypatch):
    """A scenario on 240 digits with an empty store."""
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("UNLEARNING_PROGRESS", str(tmp_path / "progress"))
    monkeypatch.setitem(BUDGETS["smoke"][request.param], "audit", {"shadows": 4, "methods": ["Gradient ascent"]})
    return Experiment(load_data("digits"), request.param, "smoke")


def test_every_target_is_a_member_of_half_of_the_shadows(experiment):
    """Shadows 2j and 2j + 1 share the targets; pairs differ, and a second look gives the same halves."""
    halves = np.array([is_member(experiment, number) for number in range(4)])
    assert (halves.sum(0) == 2).all() and (halves[0] == ~halves[1]).all() and (halves[0] != halves[2]).any()
    assert (halves[3] == is_member(experiment, 3)).all()
    assert abs(halves[0].sum() - halves[1].sum()) <= 1


def test_targets_are_forgotten_images_and_as_many_held_out_ones(experiment):
    """Members of Original first; the labels are those of the images at these positions; no Gold saw one of them."""
    split, index = experiment.split, target_index(experiment.split)
    forgotten = split.forget.index.tolist()
    assert index.tolist()[: len(forgotten)] == forgotten
    others = index[len(forgotten) :] - len(split.train.images)
    held_out = split.sets[TARGETS[experiment.scenario][1]].index.tolist()
    assert 0 < len(others) <= min(len(forgotten), len(held_out) / 2) and set(others.tolist()) <= set(held_out)
    labels = torch.cat([split.train.labels, split.sets[TARGETS[experiment.scenario][1]].labels])
    assert torch.equal(target_labels(split), labels[index])
    assert set(index.tolist()).isdisjoint(split.retain.index.tolist())


def test_a_shadow_is_trained_on_the_retained_images_and_its_half(experiment, monkeypatch):
    """Its training set is retain and its members; its forget set is the members; the images are the targets' own."""
    double = shadow(experiment, 1)
    index, mine = target_index(experiment.split), is_member(experiment, 1)
    assert double.split.forget.index.tolist() == index[mine].tolist()
    assert double.split.retain.index.tolist() == experiment.split.retain.index.tolist()
    trained = []
    train = "helpers.experiment.train"
    monkeypatch.setattr(train, lambda model, batches, **_: trained.append(batches) or [{"epoch": 1, "loss": 0.0,
                        "seconds": 1.0, "steps": 1, "images": 1}])  # fmt: skip
    _ = double.original
    wanted = experiment.split.retain.index.tolist() + index[mine].tolist()
    assert sorted(trained[-1].index.tolist()) == sorted(wanted)
    left = set((double.split.validation.index + len(experiment.split.train.images)).tolist())
    assert left and left.isdisjoint(index.tolist()), "what methods may use as held out holds targets"
    test_x = experiment.split.sets[TARGETS[experiment.scenario][1]].images
    last = double.split.forget.index[-1]
    assert torch.equal(double.split.forget.images[last], test_x[last - len(experiment.split.train.images)])


def test_shadows_are_models_of_their_own_and_disturb_nothing(experiment):
    """Other weights in other files, kept and found again; the experiment keeps its split, its Original, its Golds."""
    before, settings = experiment.original, dict(experiment.split_settings)
    first, second = shadow(experiment, 0), shadow(experiment, 1)
    weights = [run.model.state_dict() for run in (before, first.original, second.original)]
    name = next(iter(weights[0]))
    assert not torch.equal(weights[0][name], weights[1][name]) and not torch.equal(weights[1][name], weights[2][name])
    assert first.golds is experiment.golds
    assert experiment.original is before and experiment.split_settings == settings
    assert experiment.seeds_there() == [0]
    again = shadow(experiment, 0).original
    assert all(torch.equal(value, weights[1][name]) for name, value in again.model.state_dict().items())
    assert first.unlearned("Gradient ascent").settings["start"] == first.original.settings


def test_target_logits_are_those_of_the_targets(experiment):
    """In the order of `target_index`, members first."""
    double = shadow(experiment, 0)
    run = double.original
    images = torch.cat([experiment.split.train.images, experiment.split.sets[TARGETS[experiment.scenario][1]].images])
    index = target_index(experiment.split)
    batches = experiment.split.retain.fresh(images=images, labels=images[:, 0, 0, 0].long(), index=index, shuffle=False)
    assert torch.allclose(target_logits(run.logits, experiment.scenario), predict(run.model, batches)[0], atol=2e-2)


def test_an_unknown_shadow_is_refused(experiment):
    """One line that names the number and the valid ones."""
    with pytest.raises(ValueError, match="shadow 4: the budget has shadows 0 to 3"):
        shadow(experiment, 4)


def test_models_are_trained_one_by_one(experiment):
    """Every job makes its own model and no other; the experiment then finds them all and trains nothing."""
    names = ["original", "gold", "gold-2", "shadow-0", "shadow-1", "shadow-2", "shadow-3"]
    jobs = trainings(experiment, shadows=True)
    assert list(jobs) == names == still_to_train(experiment, shadows=True)
    jobs["gold-2"]()
    assert still_to_train(experiment, shadows=True) == [name for name in names if name != "gold-2"]
    jobs["original"](), jobs["gold"](), jobs["shadow-3"]()
    assert still_to_train(experiment, shadows=True) == names[3:-1] and still_to_train(experiment) == []
    one = Experiment(experiment.data, experiment.scenario, "smoke")
    one._may_make = False
    assert one.original.name == "Original" and [gold.name for gold in one.golds] == ["Gold", "Gold 2"]
    last = shadow(one, 3)
    assert last.original.settings["split"]["shadow"] == 3
    assert last.unlearned("Gradient ascent").settings["start"] == last.original.settings
