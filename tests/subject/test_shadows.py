"""Shadow models: which targets are members of which, what a shadow is trained on, and that nothing else changes."""

import numpy as np
import pytest
import torch
from toys import equal

from helpers.audit import shadows
from helpers.audit.shadows import (
    is_member,
    memorisation,
    missing_models,
    shadow,
    target_images,
    target_index,
    target_labels,
    target_logits,
    training_jobs,
    unlearn_shadow,
)
from helpers.datasets import load_data
from helpers.experiment import Experiment
from helpers.metrics import predict
from helpers.presets import PRESETS

pytestmark = pytest.mark.usefixtures("runs_folder")


@pytest.fixture(params=["random", "class"])
def experiment(request, monkeypatch):
    """A scenario on 240 digits with an empty store."""
    audit = {"audit": {"shadows": 4, "methods": ["Gradient ascent"]}}
    monkeypatch.setitem(PRESETS["smoke"], request.param, {**PRESETS["smoke"][request.param], **audit})
    return Experiment(load_data("clean-digits"), request.param, "smoke")


def held_out(split):
    return split.sets[split.scenario.held_out]


def test_every_target_is_a_member_of_half_of_the_shadows(experiment):
    """Shadows 2j and 2j + 1 have complementary halves, pairs differ, seeds differ, and a second call is equal."""
    halves = np.array([is_member(experiment, number) for number in range(4)])
    assert (halves.sum(0) == 2).all() and (halves[0] == ~halves[1]).all() and (halves[0] != halves[2]).any()
    assert (halves[3] == is_member(experiment, 3)).all()
    assert abs(halves[0].sum() - halves[1].sum()) <= 1
    other = np.array([is_member(experiment.with_seed(1), number) for number in range(4)])
    assert (other.sum(0) == 2).all() and (other[0] != halves[0]).any()


def test_targets_are_forgotten_images_and_as_many_held_out_ones(experiment):
    """Members of Original first; labels and images are those at these positions; no Gold saw one of them."""
    split, index = experiment.split, target_index(experiment.split)
    forgotten = split.forget.index.tolist()
    assert index.tolist()[: len(forgotten)] == forgotten
    others = (index[len(forgotten) :] - len(split.train.images)).tolist()
    unseen = held_out(split).index.tolist()
    assert 0 < len(others) <= min(len(forgotten), len(unseen) / 2) and set(others) <= set(unseen)
    assert torch.equal(target_labels(split), torch.cat([split.train.labels, held_out(split).labels])[index])
    assert torch.equal(target_images(split), torch.cat([split.train.images, held_out(split).images])[index])
    assert set(index.tolist()).isdisjoint(split.retain.index.tolist())


def test_a_shadow_is_trained_once_although_its_weights_are_not_stored(experiment, monkeypatch):
    """Its methods start from the model in memory."""
    from helpers import experiment as module

    trained, train = [], module.train
    monkeypatch.setattr(module, "train", lambda *args, **options: trained.append(1) or train(*args, **options))
    assert not shadow(experiment, 1).keeps_weights("Original", "shadow")
    original, ascended = unlearn_shadow(experiment, 1)
    assert trained == [1] and ascended.cost["steps"]
    assert original.model is original.model and not original.model.training


def test_a_shadow_is_trained_on_the_retained_images_and_its_half(experiment):
    """Its training set is retain and its members, its forget set the members; held-out images contain no target."""
    one = shadow(experiment, 1)
    index, members = target_index(experiment.split), is_member(experiment, 1)
    assert one.split.forget.index.tolist() == index[members].tolist()
    assert one.split.retain.index.tolist() == experiment.split.retain.index.tolist()
    assert one.split.train.index.tolist() == [*experiment.split.retain.index.tolist(), *index[members].tolist()]
    assert one.original().cost["images"] == len(one.split.train.index) * one.preset["training"]["epochs"]
    held_out_left = set((one.split.validation.index + len(experiment.split.train.images)).tolist())
    assert held_out_left and held_out_left.isdisjoint(index.tolist())
    last = one.split.forget.index[-1]
    its_image = held_out(experiment.split).images[last - len(experiment.split.train.images)]
    assert torch.equal(one.split.forget.images[last], its_image)


def test_shadows_are_models_of_their_own_and_the_experiment_stays_as_it_was(experiment):
    """Other weights in other files, stored and found again; the experiment keeps its split, its Original, its Golds."""
    before, settings = experiment.original(), dict(experiment.split_settings)
    first, second = shadow(experiment, 0), shadow(experiment, 1)
    models = [before, first.original(), second.original()]
    assert len({run.id for run in models}) == 3 and [run.kind for run in models] == ["original", "shadow", "shadow"]
    weights = [torch.cat([p.flatten() for p in run.model.parameters()]) for run in models]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])
    assert [gold.id for gold in first.golds()] == [gold.id for gold in experiment.golds()]
    assert experiment.original() is before and experiment.split_settings == settings
    assert experiment.complete_seeds() == [0]
    again = shadow(experiment, 0).read_only()
    assert equal(again.original().model, models[1].model)
    assert first.unlearn("Gradient ascent").made_with["start"] == first.original().id


def test_seeds_share_no_shadow(experiment):
    """Each seed's shadows have seeds of their own, apart from those of Original and of the Golds."""
    numbers = range(4)
    seeds = [[shadow(e, n).seed for n in numbers] for e in (experiment, experiment.with_seed(1))]
    assert len({*seeds[0], *seeds[1]}) == 8 and seeds[0] == [shadows.SEED + n for n in numbers]
    assert shadow(experiment, 0).original().id != shadow(experiment.with_seed(1), 0).original().id


def test_target_logits_are_those_of_the_targets(experiment):
    """In the order of `target_index`, members first."""
    run, split, index = shadow(experiment, 0).original(), experiment.split, target_index(experiment.split)
    images = torch.cat([split.train.images, held_out(split).images])
    batches = split.retain.reset(images=images, labels=images[:, 0, 0, 0].long(), index=index, shuffle=False)
    assert torch.allclose(target_logits(run.logits, split.scenario), predict(run.model, batches)[0], atol=2e-2)


def test_an_unknown_shadow_is_refused(experiment):
    """One line with the number and the valid ones."""
    with pytest.raises(ValueError, match="shadow 4.*the preset has shadows 0 to 3"):
        shadow(experiment, 4)


def test_models_are_trained_one_by_one(experiment):
    """Every job makes its own model and no other; another experiment finds them all without training."""
    names = ["original", "gold", "gold-2", "shadow-0", "shadow-1", "shadow-2", "shadow-3"]
    jobs = training_jobs(experiment, shadows=True)
    assert list(jobs) == names == missing_models(experiment, shadows=True)
    jobs["gold-2"]()
    assert missing_models(experiment, shadows=True) == [name for name in names if name != "gold-2"]
    jobs["original"](), jobs["gold"](), jobs["shadow-3"]()
    assert missing_models(experiment, shadows=True) == names[3:-1] and missing_models(experiment) == []
    reader = Experiment(experiment.data, experiment.scenario.name, "smoke").read_only()
    assert reader.original().name == "Original" and [gold.name for gold in reader.golds()] == ["Gold", "Gold 2"]
    last = shadow(reader, 3)
    assert last.original().made_with["split"]["shadow"] == 3
    assert last.unlearn("Gradient ascent").made_with["start"] == last.original().id


def test_memorisation_needs_all_shadow_models_and_compares_members_with_the_others(experiment):
    """By hand for one image: the log-odds of its label, mean over the two shadows of each side."""
    originals = [shadow(experiment, number).original() for number in range(3)]
    assert memorisation(experiment) is None
    originals.append(shadow(experiment, 3).original())
    found = memorisation(experiment)
    assert found.shape == (len(experiment.split.forget.index),)
    y, sides = target_labels(experiment.split)[2], {True: [], False: []}
    for number, run in enumerate(originals):
        p = target_logits(run.logits, experiment.scenario)[2].double().softmax(0)
        sides[bool(is_member(experiment, number)[2])].append(float(p[y].log() - (1 - p[y]).log()))
    assert found[2] == pytest.approx(np.mean(sides[True]) - np.mean(sides[False]), abs=1e-4)
    assert memorisation(experiment.derive(preset={**experiment.preset, "audit": {"shadows": 0, "methods": []}})) is None
