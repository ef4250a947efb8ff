"""Folders of the suite, and files that no reader ever sees half written. Imports no torch."""

import os
import re
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS, FIGURES = (ROOT / (os.environ.get(f"UNLEARNING_{name.upper()}") or name) for name in ("runs", "figures"))


def replace_file(path, write):
    """Call `write(temporary path)`, then move the finished file to `path`, so that no reader sees half of it.

    Raises:
        OSError: the file could not be written; the message has the path and the reason.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        write(Path(temporary))
        with open(temporary, "r+b") as file:  # Windows flushes no file that is open for reading
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"could not write {shown(path)}: {error.strerror or error}") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def replace_text(path, text):
    """Write `text` to `path` in UTF-8 and with the same line ends on all systems, completely or not at all."""
    replace_file(path, lambda file: file.write_text(text, encoding="utf-8", newline="\n"))


def shown(path):
    """`path` for messages: relative to the repository or to the folder above `runs/` where it lies in one of them."""
    path = Path(os.path.abspath(path))
    for folder in (ROOT, RUNS.parent):
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return str(path)


def split_function(value):
    """`(absolute path, "function")` of `file.py:function`; of any other text `(absolute path, "")`."""
    file, _, function = value.rpartition(":")
    if not file.endswith(".py"):
        file, function = value, ""
    return Path(file).expanduser().absolute(), function


def run_name(parameters, data_name):
    """The folder name of a run: `noisy-digits-quick`, followed by each parameter that differs from its default.

    Args:
        parameters: the notebooks' parameters, as `parameters.checked` returns them.
        data_name: the short name of the data, `noisy-digits` for example.
    """
    from .parameters import PARAMETERS

    words = [data_name, parameters["preset"]]
    for name, value in parameters.items():
        if name not in ("data", "preset", "seed") and value != PARAMETERS[name].default:
            shown_value = value if isinstance(value, list | tuple) else [value]
            words += [name, *(Path(str(part)).name for part in shown_value)]
    return re.sub(r"[^\w.-]|\.$", "-", "-".join(map(str, words)))  # Windows refuses a final dot
