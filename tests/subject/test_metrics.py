"""What is measured."""

import math
from copy import deepcopy

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.spatial.distance import jensenshannon
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit
from toys import equal

from helpers import devices
from helpers.data import make_split
from helpers.metrics import accuracy, entropy, js_distance, loss_attack, losses, measure, predict, predicted_shares
from helpers.models import build_model

pytestmark = pytest.mark.usefixtures("float32")


def random_logits(count, classes=10, scale=3.0, seed=0):
    return scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


# --- accuracy, entropy, distance ----------------------------------------------------------------------------------


def test_accuracy_by_hand():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, -1.0], [0.0, 5.0]])
    assert accuracy(logits, torch.tensor([0, 1, 1, 1])) == 75


def test_losses_by_hand():
    per_image = losses(torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), torch.tensor([0, 1]))
    assert per_image.tolist() == pytest.approx([math.log(2), math.log(4)]) and per_image.dtype == np.float64


@pytest.mark.parametrize("classes", [2, 10])
def test_entropy_of_uniform_predictions_is_log_k(classes):
    assert entropy(torch.full((3, classes), 7.0)).tolist() == pytest.approx([math.log(classes)] * 3)


def test_entropy_of_certain_predictions_is_zero():
    assert entropy(1e6 * torch.eye(4)).tolist() == [0, 0, 0, 0]


def test_entropy_agrees_with_scipy():
    logits = random_logits(50)
    assert np.allclose(entropy(logits), scipy.stats.entropy(logits.double().softmax(1).numpy(), axis=1), atol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_js_distance_agrees_with_scipy(scale):
    first, second = random_logits(100, scale=scale), random_logits(100, scale=scale, seed=1)
    p, q = (logits.double().softmax(1).numpy() for logits in (first, second))
    assert np.allclose(js_distance(first, second), jensenshannon(p, q, axis=1), atol=1e-7)


def test_js_distance_of_identical_predictions_is_exactly_zero():
    logits = torch.cat([random_logits(10_000), 1e4 * torch.eye(10), torch.zeros(1, 10)])
    assert (js_distance(logits, logits.clone()) == 0).all()


def test_js_distance_of_near_identical_predictions_is_finite_and_small():
    logits = random_logits(10_000)
    distance = js_distance(logits, logits + random_logits(10_000, scale=1e-7, seed=1))
    assert distance.isfinite().all() and distance.max() < 1e-5 and distance.dtype == torch.float64


def test_js_distance_of_disjoint_predictions_is_root_log_2():
    sure = 1e4 * torch.eye(3)
    assert js_distance(sure[:2], sure[1:]).tolist() == pytest.approx([math.sqrt(math.log(2))] * 2, abs=1e-12)


def test_js_distance_is_symmetric():
    first, second = random_logits(100), random_logits(100, seed=1)
    assert torch.allclose(js_distance(first, second), js_distance(second, first), atol=1e-12)


# --- membership inference -----------------------------------------------------------------------------------------


def normal(count, mean=0.0, seed=0):
    return np.random.default_rng(seed).normal(mean, 1, count)


def test_attack_is_at_chance_between_equals():
    assert loss_attack(normal(1000), normal(1000, seed=1)) == pytest.approx(0.5, abs=0.06)


def test_attack_separates_distant_losses():
    assert loss_attack(normal(200), normal(200, mean=20, seed=1)) == 1


def test_attack_gains_nothing_from_the_larger_side():
    assert loss_attack(normal(2000), normal(200, seed=1)) == pytest.approx(0.5, abs=0.12)


def test_attack_uses_the_whole_larger_side():
    """Only the first 200 of the larger side look like the other side: a cut from its front finds nothing."""
    members = np.concatenate([normal(200), normal(1800, mean=20)])
    assert loss_attack(members, normal(200, seed=1)) > 0.8


def test_attack_agrees_with_a_plain_recomputation():
    members, others = normal(80), normal(100, mean=1.0, seed=1)
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.choice(side, 80, replace=False) for side in (members, others)])
    y = np.array([1] * 80 + [0] * 80)
    right = []
    for fit, check in StratifiedShuffleSplit(n_splits=10, random_state=3).split(x, y):
        line = LogisticRegression().fit(x[fit, None], y[fit])
        is_called_member = line.coef_[0, 0] * x[check] + line.intercept_[0] > 0
        right.append((is_called_member == y[check]).mean())
    assert loss_attack(members, others, seed=3) == pytest.approx(np.mean(right), abs=1e-9)


# --- predictions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network, width", [("toy", 8), ("slim_vit", 12)])
def test_predictions_are_the_models_own(network, width, random_split, request):
    model, batches = request.getfixturevalue(network)().train(), random_split.sets["retain"]
    logits, features = predict(model, batches)
    assert logits.shape == (48, 4) and features.shape == (48, width) and model.training
    with torch.no_grad():
        own = model.eval()(batches.prepare(batches.images[batches.index]))
    assert torch.allclose(logits, own, atol=1e-5)


def test_class_token_is_the_vits_feature(slim_vit, random_split):
    model, batches = slim_vit().eval(), random_split.sets["forget"]
    with torch.no_grad():
        tokens = model.forward_features(batches.prepare(batches.images[batches.index]))
    assert torch.allclose(predict(model, batches)[1], tokens[:, 0], atol=1e-5)


@pytest.mark.parametrize("name, width", [("resnet18", 512), ("vit_tiny_patch16_224", 192)])
def test_features_of_the_real_networks(data, name, width):
    split = make_split(data, image_size=32)
    logits, features = predict(build_model(name, classes=4), split.sets["forget"])
    assert logits.shape == (6, 4) and features.shape == (6, width)


def test_the_head_computes_in_float32_even_under_bfloat16(toy, random_split, monkeypatch):
    monkeypatch.setattr(devices, "precision", lambda device, model=None: "bfloat16")
    model = toy()
    logits, features = predict(model, random_split.sets["retain"])
    assert logits.dtype == features.dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(logits, model.fc(features), atol=1e-6)


# --- measure ------------------------------------------------------------------------------------------------------


def values(table):
    """`{(set, metric): value}` of a table."""
    assert list(table.columns) == ["set", "metric", "value"]
    return {(row.set, row.metric): row.value for row in table.itertuples()}


def outputs_of(model, split):
    """`{set: logits}` of a model."""
    return {name: predict(model, batches)[0] for name, batches in split.sets.items()}


@pytest.mark.parametrize("scenario, compared", [("random_split", "forget"), ("class_split", "test forget")])
def test_every_metric_has_its_row(scenario, compared, toy, request):
    split = request.getfixturevalue(scenario)
    expected = {(name, "accuracy") for name in split.sets}
    expected |= {("forget", "retain-forget gap"), (compared, "entropy"), ("forget", "kit MIA")}
    outputs = outputs_of(toy(), split)
    assert values(measure(outputs, split)).keys() == expected
    expected |= {(name, "gap to Gold") for name in split.sets} | {(compared, "JSD to Gold")}
    table = measure(outputs, split, outputs_of(toy(1), split))
    assert values(table).keys() == expected and len(table) == len(expected) and table.value.notna().all()


@pytest.mark.parametrize("scenario", ["random_split", "class_split"])
def test_gold_has_no_gap_to_itself(scenario, toy, request):
    split = request.getfixturevalue(scenario)
    outputs = outputs_of(toy(), split)
    found = values(measure(outputs, split, outputs))
    assert {value for (_, metric), value in found.items() if "Gold" in metric} == {0}


def certain(batches, right):
    """Logits that name the right class for the first `right` images and the next class for the others."""
    guess = (batches.y + (torch.arange(len(batches.y)) >= right)) % 4
    return 20 * torch.nn.functional.one_hot(guess, 4).float()


def test_values_by_hand(class_split):
    sets = class_split.sets
    right = {"retain": 36, "forget": 4, "test retain": 15, "test forget": 10}
    gold = {"retain": 48, "forget": 0, "test retain": 24, "test forget": 0}
    outputs, gold_outputs = ({name: certain(sets[name], counts[name]) for name in sets} for counts in (right, gold))
    found = values(measure(outputs, class_split, gold_outputs))
    assert [found[name, "accuracy"] for name in sets] == [75, 25, 50, 100]
    assert [found[name, "gap to Gold"] for name in sets] == [25, 25, 30, 100]
    assert found["forget", "retain-forget gap"] == 50
    assert found["test forget", "JSD to Gold"] == pytest.approx(math.sqrt(math.log(2)), abs=1e-3)
    assert found["test forget", "entropy"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "scenario, unseen, other", [("random_split", "test", "validation"), ("class_split", "test forget", "test retain")]
)
def test_attack_compares_forgotten_with_unseen_images(scenario, unseen, other, request):
    sets = request.getfixturevalue(scenario).sets
    outputs = {name: certain(batches, len(batches.y)) for name, batches in sets.items()}
    wrong = {name: {**outputs, name: certain(sets[name], 0)} for name in (unseen, other)}
    attacked = [values(measure(wrong[name], request.getfixturevalue(scenario)))["forget", "kit MIA"] for name in wrong]
    assert attacked[0] == 1 and attacked[1] <= 0.5


@pytest.mark.parametrize("scenario", ["random_split", "class_split"])
def test_predictions_that_are_not_finite_name_the_set(scenario, toy, request):
    split = request.getfixturevalue(scenario)
    outputs = outputs_of(toy(), split)
    broken = {**outputs, "retain": outputs["retain"] * float("nan")}
    for arguments in ((broken, split), (outputs, split, broken)):
        with pytest.raises(ValueError, match="on the set 'retain' are not finite"):
            measure(*arguments)


def test_prediction_leaves_the_model_as_it_was(toy, random_split):
    model = toy().train()
    before = deepcopy(model)
    predict(model, random_split.sets["retain"])
    assert model.training and equal(model, before)


def test_predicted_shares_by_hand():
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 0], [0, 3, 1], [4, 1, 0]])
    assert predicted_shares(logits).tolist() == [50, 50, 0]
