"""The parameters of a run: one definition for the command line, the notebooks' cell and every check. Imports no torch.

To add one, add a record here, use it where it belongs (in `experiment.Experiment`, for example), and write the
notebooks' cells with `workflow/cells.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .messages import suggestion, unknown
from .presets import NORMALISATIONS, PRESETS
from .scenario import SCENARIOS, STARTS


@dataclass(frozen=True)
class Parameter:
    """A parameter of a run.

    Args:
        name: of the variable in the notebooks' cell.
        default: its value there.
        comment: beside it in the cell, and its help on the command line.
        check: returns the value in its final type or raises a ValueError that says what is allowed.
        option: its name on the command line; None if it is given there in another way.
        many: whether the option has several values.
    """

    name: str
    default: object
    comment: str
    check: Callable
    option: str | None = None
    many: bool = False


def one_of(*valid):
    """A check for one of these words."""

    def check(value):
        if value not in valid:
            raise ValueError(unknown(value, valid))
        return value

    return check


def words(check, valid):
    """A check for one word, or a list of different ones, each of which passes `check`; `valid` gives the order."""

    def check_all(value):
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"{value!r} is not a list of {' and '.join(valid)}")
        chosen = {check(word) for word in values}
        return [word for word in valid if word in chosen]

    return check_all


def whole_number(value, lowest=0):
    """A whole number from `lowest` to 2**31 - 1, also as a string; not a bool."""
    try:
        if isinstance(value, bool) or int(value) != float(value) or not lowest <= int(value) < 2**31:
            raise ValueError
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{value!r} is not a whole number from {lowest} to {2**31 - 1}") from None


def fraction(value):
    """A number between 0 and 1, both excluded, also as a string; not a bool."""
    try:
        if isinstance(value, bool) or not 0 < float(value) < 1:
            raise ValueError
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not a number between 0 and 1, both excluded") from None


def flag(value):
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not True or False")
    return value


def text(value):
    """A non-empty string."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not a non-empty string")
    return value


def optional(check):
    """A check that lets None pass."""
    return lambda value: None if value is None else check(value)


def pixels(value):
    """None, or a whole number from 8."""
    return None if value is None else whole_number(value, lowest=8)


def class_names(value):
    """None, a class (name or index), or a list of classes; which classes exist depends on the data."""
    if value is None:
        return None
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values or not all(isinstance(name, str | int) and not isinstance(name, bool) for name in values):
        raise ValueError(f"{value!r} is not a class name, a class index or a list of them")
    return values if len(values) > 1 else values[0]


USED_BY = {"forget_class": "class", "forget_fraction": "random", "forget_list": "random", "start": "random"}
PRESET_COMMENT = "quick, short, audit or documents: the tables in helpers/presets.py"
RECORDS = (
    Parameter("data", "noisy-digits", "noisy-digits, clean-digits, cifar10, or a folder of images", text, "--data"),
    Parameter("preset", "quick", PRESET_COMMENT, one_of(*PRESETS), "--preset"),
    Parameter(
        "scenarios",
        list(SCENARIOS),
        "random: forget a random share; class: forget a class; or both",
        words(one_of(*SCENARIOS), list(SCENARIOS)),
        "--scenario",
        many=True,
    ),
    Parameter("seed", 0, "of initial weights and shuffling; the split stays the same", whole_number),
    Parameter(
        "forget_class",
        None,
        "class scenario: a name, an index or a list of them; None is the first class",
        class_names,
        "--forget-class",
        many=True,
    ),
    Parameter(
        "forget_fraction",
        0.1,
        "random scenario: the share of the training images to forget",
        fraction,
        "--forget-fraction",
    ),
    Parameter(
        "forget_list",
        None,
        "random scenario: a text file that names the training images to forget, one per line",
        optional(text),
        "--forget-list",
    ),
    Parameter(
        "model", None, "a timm model, or file.py:function, instead of the preset's networks", optional(text), "--model"
    ),
    Parameter(
        "image_size", None, "side in pixels of the network's input instead of the preset's", pixels, "--image-size"
    ),
    Parameter("flip", True, "augment with mirror images, if the data allow it", flag, "--no-flip"),
    Parameter(
        "start",
        "fresh",
        "fresh: methods start from Original; chain: each from the result of the one before it (random)",
        one_of(*STARTS),
        "--start",
    ),
    Parameter(
        "original",
        None,
        "a weights file from which Original is loaded instead of trained: .safetensors, .pth or .pt",
        optional(text),
        "--original",
    ),
    Parameter(
        "normalise",
        None,
        "data, half or imagenet: mean and standard deviation of the images, instead of the preset's",
        optional(one_of(*NORMALISATIONS)),
        "--normalise",
    ),
    Parameter(
        "own_methods",
        None,
        "a Python file with methods of your own, which run beside the preset's",
        optional(text),
        "--methods-file",
    ),
)
PARAMETERS = {parameter.name: parameter for parameter in RECORDS}


def check(name, value):
    """The checked value of one parameter.

    Raises:
        ValueError: with the parameter's name and what is allowed.
    """
    try:
        return PARAMETERS[name].check(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def checked(values):
    """All parameters in order: `values`, checked, and the defaults of the others.

    Raises:
        ValueError: an unknown name, or a value of the wrong type or range, in one line.
    """
    for name in values:
        if name not in PARAMETERS:
            raise ValueError(f"parameter '{name}' is unknown{suggestion(name, PARAMETERS)}")
    found = {name: check(name, values.get(name, parameter.default)) for name, parameter in PARAMETERS.items()}
    refuse_ignored(found)
    return found


def refuse_ignored(values):
    """Refuse parameters that no scenario of these would use.

    Raises:
        ValueError: in one line.
    """
    changed = [name for name, value in values.items() if value != PARAMETERS[name].default]
    for name, scenario in USED_BY.items():
        if name in changed and scenario not in values["scenarios"]:
            raise ValueError(f"{name} is used in the scenario {scenario} alone, which is not among the scenarios")
    if {"forget_fraction", "forget_list"} <= set(changed):
        raise ValueError("forget_fraction and forget_list both say which images to forget: give one of them")


def cell():
    """The source of the notebooks' parameters cell."""

    def literal(value):
        return (
            str(value).replace("'", '"')
            if isinstance(value, list)
            else f'"{value}"'
            if isinstance(value, str)
            else value
        )

    return "\n".join(f"{p.name} = {literal(p.default)}  # {p.comment}" for p in PARAMETERS.values())
