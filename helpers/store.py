"""Models and other tensors on disk: one safetensors file each, with the settings that made it and checksums.

A file holds outputs (what a model predicted) and, under names that begin with `weights.`, a network's weights; its
metadata holds the record, JSON with the settings and whatever was measured on the way. A file is written atomically: a
process that is killed leaves the old file or the new one. It is used if its settings are the required ones and
its checksum is right; the weights have a checksum of their own, since they are rarely needed and large.
"""

import hashlib
import json
import os
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from . import paths
from .fingerprint import code_structure, key

WEIGHTS = "weights."
COPIES = os.name == "nt"  # Windows replaces and removes no file as long as tensors are mapped from it
RECIPES = paths.ROOT / "helpers" / "recipes.json"
PARTS = {  # what all models share: the modules whose code decides what training and measuring give
    "driver": ["training", "devices"],
    "batches": ["data"],
    "networks": ["models"],
    "measurement": ["metrics"],
}


# --- the code that all models share -------------------------------------------------------------------------------


def code_of(part):
    """Twelve hex digits of the code of one of `PARTS`."""
    files = [paths.ROOT / "helpers" / f"{module}.py" for module in PARTS[part]]
    return key([code_structure(file.read_text(encoding="utf-8")) for file in files])


@cache
def recipe():
    """`{part: number}` for a model's key; for code that no test has compared with that number, the code's own digits.

    `recipes.json` has for each part the number and the code that is known to give its results (see
    `tests/recipes.py`). So an edit that cannot change results keeps all models once the test has seen it, and an edit
    that no test has checked keeps none.
    """
    known = json.loads(RECIPES.read_text(encoding="utf-8"))
    current = {part: code_of(part) for part in PARTS}
    return {part: known[part]["number"] if known[part]["code"] == code else code for part, code in current.items()}


# --- files --------------------------------------------------------------------------------------------------------


def checksum(text, tensors):
    """SHA-256 of a text and of tensors: names, types, shapes and bytes."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def save(path, settings, outputs, weights=None, **record):
    """Write `path` with settings, record, outputs and, if given, weights.

    Raises:
        OSError: it could not be written; the old file is as it was.
    """
    weights = {WEIGHTS + name: tensor for name, tensor in (weights or {}).items()}
    record = {"settings": settings, "weights": checksum("", weights) if weights else None, **record}
    text = json.dumps(record)
    metadata = {"record": text, "sha256": checksum(text, outputs)}
    write_tensors(path, {**outputs, **weights}, metadata)


def write_tensors(path, tensors, metadata):
    """Write a safetensors file, completely or not at all.

    Raises:
        OSError: it could not be written; the old file is as it was.
    """
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}

    def write(file):
        try:
            save_file(tensors, file, metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    paths.replace_file(path, write)


def read_record(path):
    """The record of a file, its checksum not tested.

    Raises:
        OSError, SafetensorError, ValueError, KeyError, TypeError: the file is missing or damaged.
    """
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["record"])


def tensors_of(file, weights):
    """The weights in an open safetensors file, or else its outputs: mapped from it, or copied (see `COPIES`)."""
    names = [name for name in list(file.keys()) if name.startswith(WEIGHTS) == weights]
    return {name: file.get_tensor(name).clone() if COPIES else file.get_tensor(name) for name in names}


def load(path, settings):
    """`(record, outputs)` of the file at `path`; None where there is none with these settings, or a damaged one.

    The reason is printed, except where there is no file.
    """
    found, problem = _look(path, settings)
    if problem:
        print(f"{path.stem} {problem}")
    return found


def _look(path, settings):
    """What `load` returns, and what is wrong with the file, or an empty text."""
    if not path.exists():
        return None, ""
    try:
        with safe_open(path, "pt") as file:
            text, digest = (file.metadata()[name] for name in ("record", "sha256"))
            outputs = tensors_of(file, weights=False)
        if checksum(text, outputs) != digest:
            return None, "does not match its checksum"
        record = json.loads(text)
        if record["settings"] != json.loads(json.dumps(settings)):
            return None, "was made with other settings"
        return (record, outputs), ""
    except FileNotFoundError:
        return None, ""
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        return None, f"cannot be read ({type(error).__name__})"


def load_weights(path):
    """The weights in the file at `path`; None if they were not kept or are damaged, which is printed."""
    weights, problem = _look_at_weights(path)
    if problem:
        print(f"{path.stem} {problem}")
    return weights


def has_weights(path):
    """Whether the file at `path` holds weights that match their checksum."""
    return _look_at_weights(path)[0] is not None


def _look_at_weights(path):
    """What `load_weights` returns, and what is wrong with the weights, or an empty text."""
    try:
        with safe_open(path, "pt") as file:
            expected = json.loads(file.metadata()["record"])["weights"]
            weights = tensors_of(file, weights=True)
    except FileNotFoundError:
        return None, ""
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        return None, f"cannot be read ({type(error).__name__})"
    if not weights:
        return None, ""
    if checksum("", weights) != expected:
        return None, "has weights that do not match their checksum"
    return {name.removeprefix(WEIGHTS): tensor for name, tensor in weights.items()}, ""


@contextmanager
def lock(path):
    """Keep other processes from making `path` at the same time; prints a line if one of them already does.

    `FileLock` uses `fcntl`, on Windows `msvcrt`. Where a system has neither, the lock is a file that exists while it is
    held; after a process was killed, such a file must be removed by hand.
    """
    file = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file.acquire(timeout=0)
        except Timeout:
            print(f"{path.stem} is being made by another process: waiting for it")
            file.acquire()
    except OSError as error:
        raise OSError(f"could not write {paths.shown(path)}: {error.strerror}") from error
    try:
        yield
    finally:
        file.release()


def get_or_make(path, settings, make, usable=lambda path: True):
    """`(record, outputs)` of the file at `path`, made first if there is none with these settings.

    Of two processes that need the same file, one makes it and the other waits.

    Args:
        make: returns outputs, weights (or None) and a dict for the record.
        usable: a further test that an existing file must pass, such as that its weights are intact.
    """
    found, _ = _look(path, settings)
    if found is None or not usable(path):
        with lock(path):
            found, problem = _look(path, settings)
            if found is None or not usable(path):
                if problem:
                    print(f"{path.stem} {problem}: rebuilding it")
                outputs, weights, record = make()
                save(path, settings, outputs, weights, **record)
                found, problem = _look(path, settings)
                if problem:
                    raise OSError(f"{paths.shown(Path(path))} {problem} right after it was written")
    return found


def remember(path, settings, make):
    """The tensors at `path` if they were made with `settings`, else those that `make()` returns, stored there."""
    return get_or_make(path, settings, lambda: (make(), None, {}))[1]
