"""The networks, their weights, and the part of each that selective methods train."""

import logging
from contextlib import contextmanager
from textwrap import shorten

import timm
import torch
from safetensors import SafetensorError
from timm.layers import set_fused_attn
from torch import nn
from torch.nn.functional import linear
from torchvision.models import resnet18

from .training import pick_device, precision

logging.getLogger("huggingface_hub").setLevel("ERROR")  # silent about a download's retries: its end says what is wrong
KIT = "https://storage.googleapis.com/unlearning-challenge/weights_resnet18_cifar10.pth"


def build_model(name="resnet18", *, classes=10, image_size=32, patch_size=16, weights=None, seed=0):
    """A classifier with a fresh head for `classes` classes; the same seed gives the same initial weights.

    Args:
        name: `resnet18` (torchvision's, 7x7 stem and all, as document A) or any timm model, such as
            `vit_tiny_patch16_224` (document B).
        image_size, patch_size: of timm's networks that are made for one size; torchvision's takes any.
        weights: None for a random start; `"imagenet"` for timm's pretrained weights; `"kit"` for the unlearning
            starting kit's CIFAR-10 ResNet-18; or the path of a local weights file of either kind.

    Raises:
        ConnectionError: weights that had to be downloaded could not be.
        ValueError: an unknown name, a network that does not take such images or has no last linear layer, or a weights
            file that does not fit it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "resnet18":
            model = resnet18(weights=None, num_classes=classes)
            leave_out_padding(model.layer4)
            if weights:
                load_kit_weights(model, weights)
        else:
            model = _timm_model(name, classes, image_size, patch_size, weights)
    return model.to(memory_format=torch.channels_last)


class OnePixelConv2d(nn.Conv2d):
    """A square convolution that, where its output is one pixel, multiplies only by the taps that meet the image.

    On a 1x1 map a 3x3 kernel padded by 1 is its centre tap, on a 2x2 map with stride 2 four of its nine. The others get
    gradient 0, so that weight decay and momentum act on them as ever.
    """

    def forward(self, x):
        if max(x.shape[-2:]) + 2 * self.padding[0] - self.kernel_size[0] >= self.stride[0]:  # more than one pixel
            return super().forward(x)
        top, left = self.padding
        weight = self.weight[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        x = x[:, :, : weight.shape[2], : weight.shape[3]]
        return linear(x.flatten(1), weight.flatten(1), self.bias)[:, :, None, None]


def leave_out_padding(layer):
    """Make the convolutions of `layer` `OnePixelConv2d`: same weights, same names, nine tenths less arithmetic."""
    for module in layer.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = OnePixelConv2d


def _timm_model(name, classes, image_size, patch_size, weights):
    device = pick_device()  # on a CPU the fused kernel's bfloat16 backward takes half the step
    set_fused_attn(device.type != "cpu" or precision(device) == "float32")
    settings = {"num_classes": classes}
    made_for = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if made_for and made_for.fixed_input_size:
        settings |= {"img_size": image_size}
    if name.startswith("vit_"):
        settings |= {"img_size": image_size, "patch_size": patch_size}
    if weights:
        settings |= {"pretrained": True}
        if weights != "imagenet":
            settings |= {"pretrained_cfg_overlay": {"file": str(weights)}}
    try:
        model = timm.create_model(name, **settings)
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


def try_out(model, classes, image_size):
    """Raise an error unless `model` takes such images and its last linear layer maps features to logits."""
    with evaluating(model), inputs_of(last_linear(model)) as features:
        logits = model(torch.zeros(2, 3, image_size, image_size))
    if logits.shape != (2, classes) or features[0].ndim != 2:
        raise ValueError(f"its output is {tuple(logits.shape)} and its features are {tuple(features[0].shape)}")


def _names_in(file):
    """The tensor names of a local weights file."""
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


def tail(model):
    """The part that selective methods train, as one network that shares its weights with `model`.

    ResNets: layer4 + fc (of ResNet-18 75 % of the parameters, document A). ViT: the last quarter of its blocks, norm
    and head.

    Raises:
        ValueError: another kind of network, in which these parts are not known.
    """
    if is_vit(model):
        blocks = model.blocks[-len(model.blocks) // 4 :]
        return nn.Sequential(*blocks, model.norm, ClassToken(), model.head)
    refuse_other_networks(model)
    pool = model.avgpool if hasattr(model, "avgpool") else model.global_pool
    return nn.Sequential(model.layer4, pool, nn.Flatten(), model.fc)


def refuse_other_networks(model):
    """Raise ValueError unless `model` is a network whose tail and early part are known."""
    if not (is_vit(model) or is_resnet(model)):
        raise ValueError(
            f"{type(model).__name__} has no known tail or early part: M2 to M6, H4, CF-k and EU-k need a ResNet or a "
            "ViT with a class token; the other methods take any network"
        )


def early(model):
    """The part that H4 freezes at first: layer1 and layer2, for a ViT the patches' embedding and half of its blocks."""
    if is_vit(model):
        return [model.patch_embed, *model.blocks[: len(model.blocks) // 2]]
    refuse_other_networks(model)
    return [model.layer1, model.layer2]


def last_linear(model):
    """The classification layer; its input is what this suite calls a model's features."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layer, and so no features: take a network with one")
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
