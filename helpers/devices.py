"""The device that computes, and in which precision."""

import platform
import time
from contextlib import nullcontext

import torch
from torch import nn


def pick_device():
    """CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def precision(device, model=None):
    """bfloat16 where the hardware multiplies it, else float32.

    On a CPU a `model` with depthwise convolutions computes in float32, in which these are faster.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type != "cpu" or not torch.cpu._is_avx512_bf16_supported():
        return "float32"
    modules = model.modules() if model is not None else ()
    return "float32" if any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in modules) else "bfloat16"


def autocast(model):
    """The context in which `model` computes: bfloat16 autocast or nothing."""
    device = next(model.parameters()).device
    return torch.autocast(device.type, torch.bfloat16) if precision(device, model) == "bfloat16" else nullcontext()


def synchronised_time(device):
    """The clock in seconds, after the device has finished all work that was queued."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def describe(device):
    """What the seconds of a run were measured on: `x86_64 cpu` or a GPU's name."""
    device = torch.device(device)
    return torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} {device.type}"
