"""Weights from elsewhere: read from a file without running any code in it, and checked before they are used."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment

from .messages import suggestion
from .models import last_linear
from .results.flags import chance_limit

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # what training scripts put around the weights
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile


def read_weights(path):
    """The tensors in a safetensors file or a PyTorch file, `{name: tensor}`, on the CPU.

    `{"state_dict": ...}` and the others of `WRAPPERS` are unwrapped, the prefixes in `PREFIXES` removed.

    Raises:
        ValueError: in one line, a file that does not exist or holds anything but tensors by name.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"weights '{path.name}' do not exist")
    try:
        is_safe = path.suffix == ".safetensors"
        found = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, depending on what is in the file
        if is_safe:
            raise ValueError(f"weights '{path.name}' are no complete safetensors file: save them again") from error
        raise ValueError(
            f"weights '{path.name}' are no readable PyTorch file of tensors alone (a pickled object could run code): "
            "save model.state_dict()"
        ) from error
    for wrapper in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not found or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError(f"weights '{path.name}' are no state dict: save model.state_dict() alone")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def load_weights(model, path, name, classes):
    """Load the weights in a file into `model`, all of them and nothing else; return it in evaluation mode.

    Args:
        name: of the network, for messages.
        classes: how many the data have.

    Raises:
        ValueError: in one line, see `read_weights`; weights of another number of classes or another architecture; a
            tensor with NaN or infinite values.
    """
    found, own, shown = read_weights(path), model.state_dict(), f"weights '{Path(path).name}'"
    head = last_linear(model)
    head = next(f"{part}.weight" for part, module in model.named_modules() if module is head)
    if head in found and found[head].shape[1:] == own[head].shape[1:] and len(found[head]) != classes:
        raise ValueError(f"{shown} are of {len(found[head])} classes, the data have {classes}")
    for tensor, value in own.items():
        if tensor not in found and not tensor.endswith("num_batches_tracked"):  # old files lack these
            problem = f"tensor '{tensor}' is missing{suggestion(tensor, found)}"
        elif tensor in found and found[tensor].shape != value.shape:
            problem = f"tensor '{tensor}' is {tuple(found[tensor].shape)}, the network's is {tuple(value.shape)}"
        else:
            continue
        raise ValueError(f"{shown} do not fit {name}: {problem}; --model names their network")
    if unused := [tensor for tensor in found if tensor not in own]:
        raise ValueError(f"{shown} do not fit {name}, which has no tensor '{unused[0]}'; --model names their network")
    for tensor, value in found.items():
        if value.layout != torch.strided or value.is_complex():
            raise ValueError(f"{shown} have a sparse or complex tensor '{tensor}', which no network here uses")
        if not value.isfinite().all():
            raise ValueError(f"{shown} have NaN or infinite values in the tensor '{tensor}'")
    model.load_state_dict({**own, **found})
    return model.eval()


def refuse_chance(logits, y, data, file, image_size):
    """Refuse a loaded Original that is hardly better on test images than guessing, with a hint at the likely reason.

    Args:
        logits, y: predictions and labels of test images, `(n, classes)` and `(n,)`.
        data: the `Data`, for the order of its classes.
        file: the weights file, for the message.
        image_size: of the network's input, pixels.

    Raises:
        ValueError: the accuracy is at most `results.flags.chance_limit`.
    """
    right, classes = logits.argmax(1) == y, len(data.classes)
    accuracy = 100 * right.double().mean().item()
    if accuracy > chance_limit(classes):
        return
    counts = torch.bincount(y * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)
    reordered = 100 * counts[linear_sum_assignment(counts, maximize=True)].sum().item() / len(y)
    order = f"the order of the classes (here: {', '.join(data.classes[:3])}{', ...' * (classes > 3)})"
    hint = f"another order of the classes gives {reordered:.0f} %" if reordered > 50 else f"check {order}"
    raise ValueError(
        f"Original from '{Path(file).name}' is right about {accuracy:.1f} % of the test images, and guessing about "
        f"{100 / classes:.1f} %: {hint}, the normalisation (--normalise) and the input size (--image-size, now "
        f"{image_size})"
    )
