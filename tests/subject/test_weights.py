"""Weights from elsewhere: what is accepted, and one line for each file that is not."""

import re
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from toys import Toy, equal, seeded

from helpers.experiment import Experiment
from helpers.models import build_model
from helpers.weights import load_weights, read_weights, refuse_chance

pytestmark = pytest.mark.usefixtures("float32", "runs_folder")


@dataclass
class Pickled:
    """An object of a class that PyTorch does not know."""

    value: int = 1


def experiment(data, network, **settings):
    return Experiment(data, "random", "smoke", model=network, image_size=8, forget_fraction=0.25, **settings)


@pytest.mark.parametrize("form", ["plain", "safetensors", "state_dict", "model", "module.", "_orig_mod."])
def test_common_forms_of_a_weights_file_are_accepted(form, tmp_path):
    model, file = seeded(Toy, 1), tmp_path / f"w.{'safetensors' if form == 'safetensors' else 'pth'}"
    state = model.state_dict()
    if form == "safetensors":
        save_file(state, file)
    elif form in ("state_dict", "model"):
        torch.save({form: state, "epoch": 3}, file)
    else:
        torch.save({form * (form != "plain") + name: value for name, value in state.items()}, file)
    assert equal(load_weights(seeded(Toy, 2), file, "toy", 4), model)


def changed(**tensors):
    """A state dict of the toy network with other tensors; None removes one."""
    state = {**Toy().state_dict(), **{name.replace("__", "."): value for name, value in tensors.items()}}
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Toy(classes=7).state_dict(), "are of 7 classes, the data have 4"),
        (changed(layer2__0__weight=None), "tensor 'layer2.0.weight' is missing"),
        (changed(layer1__0__weight=torch.zeros(4, 3, 5, 5)), "tensor 'layer1.0.weight' is (4, 3, 5, 5), the network's"),
        (changed(extra=torch.zeros(1)), "do not fit toy, which has no tensor 'extra'"),
        (changed(fc__bias=torch.tensor([0.0, float("nan"), 0, 0])), "NaN or infinite values in the tensor 'fc.bias'"),
        (changed(fc__bias=torch.tensor([0.0, float("inf"), 0, 0])), "NaN or infinite values in the tensor 'fc.bias'"),
        (Pickled(), "no readable PyTorch file of tensors alone (a pickled object could run code)"),
        ({"epoch": 3}, "no state dict"),
        ("text", "no readable PyTorch file"),
        (None, "do not exist"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(content, message, tmp_path):
    file, model = tmp_path / "w.pth", Toy()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if content == "text":
        file.write_text("hello")
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        load_weights(model, file, "toy", 4)
    assert "\n" not in str(refused.value) and "'w.pth'" in str(refused.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("change", [lambda value: value.to_sparse(), lambda value: value.to(torch.complex64)])
def test_a_kind_of_tensor_that_no_network_has_is_refused(change, tmp_path):
    state = Toy().state_dict()
    name = next(name for name, value in state.items() if value.ndim > 1)
    torch.save({**state, name: change(state[name])}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=f"a sparse or complex tensor '{name}'"):
        load_weights(Toy(), tmp_path / "w.pth", "toy", 4)


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"no header")
    with pytest.raises(ValueError, match="no complete safetensors file"):
        read_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_torchvisions_resnets_load_by_name_and_compute_the_same(name, tmp_path):
    """timm's networks of that name have the same tensors."""
    import torchvision

    theirs = seeded(lambda: getattr(torchvision.models, name)(num_classes=5), 1)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = load_weights(build_model(name, classes=5, image_size=32, seed=2), tmp_path / "w.pth", name, 5)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs.eval()(x), atol=1e-4)


# --- Original -----------------------------------------------------------------------------------------------------


def learnt(data):
    """A linear network that is right about the toy colours: each class has the largest logit for its own colour."""
    colours = torch.tensor([[200.0, 60, 60], [60, 200, 60], [60, 60, 200], [180, 180, 60]])
    x = (colours / 255 - data.train_x.float().div(255).mean((0, 1, 2))) / data.train_x.float().div(255).std((0, 1, 2))
    return 2 * x, -(x**2).sum(1)  # -|x - colour|^2 but for what all classes share


LINEAR = """
from torch import nn


def linear(classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))
"""


@pytest.fixture
def loaded(data, tmp_path):
    """`loaded(order)` is an experiment whose Original has its classes in that order."""

    def load(order=(0, 1, 2, 3), **settings):
        weight, bias = (tensor[list(order)] for tensor in learnt(data))
        (tmp_path / "net.py").write_text(LINEAR)
        torch.save({"2.weight": weight, "2.bias": bias}, tmp_path / "w.pth")
        return experiment(data, f"{tmp_path / 'net.py'}:linear", original=tmp_path / "w.pth", **settings)

    return load


def test_original_is_the_file_and_is_not_trained(loaded):
    e = loaded()
    run = e.original()
    assert run.cost == {"seconds": 0.0, "steps": 0, "images": 0} and not run.history
    assert torch.equal(run.model[2].weight, learnt(e.data)[0])
    assert "training" not in run.made_with and run.made_with["weights"] == e.weights_digest
    assert len(e.weights_digest) == 12 and run.made_with["model"]["name"] == "net.py:linear"
    assert e.measured(run).value.max() >= 95, "it is right about its images"


def test_another_file_is_another_original(loaded, data):
    first, second = loaded(), loaded()
    assert first.original().id == second.original().id
    weight, bias = learnt(data)
    torch.save({"2.weight": 1.5 * weight, "2.bias": 1.5 * bias}, second.weights_file)
    third = experiment(data, second.network_file, original=second.weights_file)
    assert third.original().id != first.original().id
    assert third.unlearn("Random labels").made_with["start"] == third.original().id


def test_another_order_of_the_classes_is_recognised(loaded):
    with pytest.raises(ValueError, match="another order of the classes gives 100 %") as refused:
        loaded(order=(1, 2, 3, 0)).original()
    assert "\n" not in str(refused.value) and "--normalise" in str(refused.value)


@pytest.mark.parametrize(("right", "refused"), [(28, True), (32, False)])
def test_an_original_that_hardly_beats_chance_is_refused(right, refused, data):
    """With four classes the limit is 33.3 %: chance, 25 %, and a ninth of the way to 100 %."""
    y = torch.arange(100) % 4
    wrong = (y + 1 + torch.arange(100) // 4 % 3) % 4
    predicted = torch.where(torch.arange(100) < right, y, wrong)
    logits = nn.functional.one_hot(predicted, 4).float()
    if right == 32:
        predicted[32:36] = y[32:36]
        logits = nn.functional.one_hot(predicted, 4).float()
        return refuse_chance(logits, y, data, "w.pth", 8)
    with pytest.raises(ValueError, match="right about 28.0 % .* guessing about 25.0 %: check the order"):
        refuse_chance(logits, y, data, "w.pth", 8)


def test_normalisation_is_that_of_the_data_unless_it_is_named(loaded, data):
    assert loaded().split.retain.mean == loaded(normalise="data").split.retain.mean != (0.5, 0.5, 0.5)
    assert loaded(normalise="half").split.retain.std == (0.5, 0.5, 0.5)
    assert loaded(normalise="imagenet").split.retain.mean == (0.485, 0.456, 0.406)
    by_class = Experiment(data, "class", "smoke", model=loaded().network_file, image_size=8)
    assert by_class.split.retain.mean == (0.5, 0.5, 0.5), "without an own Original the preset decides"


def test_defaults_leave_keys_as_they_were(data):
    e = Experiment(data, "random", "smoke", forget_fraction=0.25)
    same = Experiment(data, "random", "smoke", forget_fraction=0.25, original=None, normalise=None, own_methods=None)
    assert e._determines(0) == same._determines(0)
    assert e.preset["batches"] == {"image_size": 16} and e.preset["model"] == {"name": "resnet18"}
