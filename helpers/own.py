"""Python files of a user's own: methods (`--methods-file`) and a network (`--model file.py:function`).

A file is imported as any Python module is, so its code runs. What it imports from its own folder works, but only the
file itself is part of a model's key.
"""

import inspect
import sys
import traceback
from contextlib import contextmanager
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import FunctionType

import torch
from torch import nn

from .fingerprint import code_without_words, file_digest, key
from .messages import suggestion
from .methods import METHODS, Method, register
from .methods.registry import check_record
from .models import evaluating, try_out
from .paths import split_function

FROM_FILES = {}  # name of a method in `METHODS` -> the file that it is from


class Loader(SourceFileLoader):
    """Reads the source each time: stored bytecode may be that of a file edited in the same second."""

    def get_code(self, name):
        return self.source_to_code(self.get_data(self.path), self.path)


def import_file(path, kind):
    """The module in a Python file; imported anew only if the file has changed.

    Args:
        kind: what the file is for, for messages: "methods file".

    Raises:
        ValueError: there is no such file, or its code raises an error; the message has the line.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise ValueError(f"{kind} '{path.name}' does not exist")
    try:
        return _imported(path, file_digest(path))
    except (Exception, SystemExit) as error:
        line = _line_of(error, path)
        place = f", line {line}" if line else ""
        raise ValueError(f"{kind} '{path.name}'{place}: {type(error).__name__}: {_first_line(error)}") from error


@cache
def _imported(path, digest):
    """The module in the file `path`, whose content has this digest."""
    name = f"own_{path.stem}_{key([str(path), digest])}"
    module = module_from_spec(spec_from_file_location(name, loader=Loader(name, str(path))))
    sys.modules[name] = module  # dataclasses look their module up
    try:
        with _importing_from(path.parent):
            module.__spec__.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _importing_from(folder):
    """Let imports find modules in `folder`, after all others."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _line_of(error, path):
    """The number of the last line of a file that an error passed through; None if there is none."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return lines[-1] if lines else None


def _first_line(error):
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return text.strip().splitlines()[0] if text.strip() else "no message"


# --- methods ------------------------------------------------------------------------------------------------------


def register_methods(path):
    """Register the methods in a file, in place of those that it held before; return their names.

    The file has a list `METHODS` of `Method` records and functions; or records, or else functions whose first arguments
    are `model, split`, at its top level. A function's name is its method's.

    Raises:
        ValueError: in one line, a file that does not exist or raises an error; one without a method; an unknown
            setting; a name that another method has.
    """
    path = Path(path).expanduser().absolute()
    module = import_file(path, "methods file")
    try:
        records = [_record(entry, path) for entry in _listed(module)]
        if not records:
            raise ValueError("it has no method: define a list METHODS of functions or Method records")
        names = [record.name for record in records]
        for number, name in enumerate(names):
            if name in names[:number] or (name in METHODS and FROM_FILES.get(name) != path):
                raise ValueError(f"the name '{name}' is in use by another method")
    except ValueError as error:
        raise ValueError(f"methods file '{path.name}': {error}") from None
    for name in [name for name, file in FROM_FILES.items() if file == path]:
        del METHODS[name], FROM_FILES[name]
    for record in records:
        FROM_FILES[register(record).name] = path
    return names


def _listed(module):
    """The records and functions that a module offers as methods."""
    listed = getattr(module, "METHODS", METHODS)
    if listed is not METHODS:  # not the registry, imported by the file
        if not isinstance(listed, list | tuple):
            raise ValueError(f"METHODS is a {type(listed).__name__}, not a list")
        return listed
    values = list(dict.fromkeys(value for value in vars(module).values() if isinstance(value, Method | FunctionType)))
    records = [value for value in values if isinstance(value, Method) and not _is_built_in(value)]
    return records or [value for value in values if inspect.isfunction(value) and _is_method(value, module)]


def _is_built_in(record):
    """Whether the registry has this very record, and not from a file."""
    return METHODS.get(record.name) is record and record.name not in FROM_FILES


def _is_method(function, module):
    """Whether a public generator function of the module begins with the arguments `model, split`."""
    arguments = list(inspect.signature(function).parameters)[:2]
    own = function.__module__ == module.__name__ and not function.__name__.startswith("_")
    return own and inspect.isgeneratorfunction(function) and arguments == ["model", "split"]


def _record(entry, path):
    """A checked `Method` of a record or a function."""
    record = Method(entry.__name__, entry, source=path.name) if inspect.isfunction(entry) else entry
    if not isinstance(record, Method) or not inspect.isfunction(record.function):
        raise ValueError(f"{entry!r} is neither a function nor a Method record of one")
    if len(inspect.signature(record.function).parameters) < 2:
        raise ValueError(f"{record.name}: its function needs the arguments model and split")
    check_record(record)
    return record


# --- a network ----------------------------------------------------------------------------------------------------


def is_own_network(name):
    """Whether a network's name is `file.py:function`."""
    return isinstance(name, str) and split_function(name)[1] != ""


def network_settings(name):
    """What determines a network of a user's own: the names of file and function, and the file's code.

    Raises:
        ValueError: the file does not exist or raises an error, or has no such function.
    """
    _builder(name)
    file, function = split_function(name)
    return {"name": f"{file.name}:{function}", "code": key(code_without_words(file.read_text(encoding="utf-8")))}


def _builder(name):
    """The function that `file.py:function` names."""
    file, function = split_function(name)
    module = import_file(file, "network file")
    found = getattr(module, function, None)
    if not callable(found):
        names = [other for other, value in vars(module).items() if callable(value)]
        raise ValueError(f"network file '{file.name}' has no function '{function}'{suggestion(function, names)}")
    return found


def build_network(name, classes, image_size, seed=0):
    """The network that the function in `file.py:function` returns for `classes` classes; the same for the same seed.

    Raises:
        ValueError: the function raises an error, or what it returns is no classifier of such images, in one line.
    """
    function, shown = _builder(name), f"network '{Path(name).name}'"
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = function(classes)
        if not isinstance(model, nn.Module):
            raise TypeError(f"it returned a {type(model).__name__}, not a torch.nn.Module")
        model = model.to(memory_format=torch.channels_last)
        try_out(model, classes, image_size)
        with evaluating(model):  # the suite's images lie channels last in memory
            model(torch.zeros(2, 3, image_size, image_size).to(memory_format=torch.channels_last))
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise ValueError(f"{shown} does not classify images of {image_size} pixels: {reason}") from error
    return model
