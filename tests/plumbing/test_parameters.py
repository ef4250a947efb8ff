"""The parameters of a run: types, ranges, messages, and the notebooks' cell."""

import numpy as np
import pytest

from helpers.parameters import PARAMETERS, cell, checked


def test_defaults_are_valid_and_complete():
    defaults = checked({})
    assert list(defaults) == list(PARAMETERS)
    assert defaults == {name: parameter.default for name, parameter in PARAMETERS.items()}


def test_the_notebooks_cell_has_the_defaults_and_explains_each():
    variables = {}
    exec(cell(), variables)
    assert {name: variables[name] for name in PARAMETERS} == checked({})
    assert all(parameter.comment in line for parameter, line in zip(PARAMETERS.values(), cell().splitlines()))


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("seed", "2", 2),
        ("seed", np.int64(2), 2),
        ("seed", 2.0, 2),
        ("forget_fraction", "1e-1", 0.1),
        ("scenarios", "class", ["class"]),
        ("scenarios", ["class", "random", "class"], ["random", "class"]),
        ("forget_class", ["a", 3], ["a", 3]),
        ("forget_class", ("a",), "a"),
        ("forget_class", None, None),
        ("model", None, None),
    ],
)
def test_values_get_their_final_type(name, value, expected):
    found = checked({name: value})[name]
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("preset", "quik", "did you mean quick"),
        ("preset", 3, "one of quick, short, audit, documents"),
        ("preset", ["quick"], "one of quick, short, audit, documents"),
        ("start", "chained", "did you mean chain"),
        ("scenarios", ["clas"], "did you mean class"),
        ("scenarios", [], "a list of random and class"),
        ("scenarios", 1, "a list of random and class"),
        ("scenarios", [["class"]], "is unknown"),
        ("seed", True, "True is not a whole number from 0"),
        ("seed", -1, "-1 is not a whole number from 0"),
        ("seed", 1.5, "1.5 is not a whole number"),
        ("seed", "x", "'x' is not a whole number"),
        ("seed", None, "None is not a whole number"),
        ("seed", float("inf"), "inf is not a whole number"),
        ("seed", 2**31, "is not a whole number"),
        ("forget_fraction", float("nan"), "nan is not a number between 0 and 1"),
        ("forget_fraction", "much", "'much' is not a number between 0 and 1"),
        ("forget_fraction", 1.0, "1.0 is not a number between 0 and 1"),
        ("forget_fraction", True, "True is not a number between 0 and 1"),
        ("forget_class", [], "[] is not a class name"),
        ("forget_class", True, "True is not a class name"),
        ("data", 5, "5 is not a non-empty string"),
        ("data", "", "'' is not a non-empty string"),
        ("forget_list", 5, "5 is not a non-empty string"),
        ("normalise", "imagnet", "one of data, half, imagenet; did you mean imagenet"),
        ("original", "", "'' is not a non-empty string"),
        ("own_methods", ["a.py"], "['a.py'] is not a non-empty string"),
    ],
)
def test_bad_values_are_refused_in_one_line(name, value, message):
    with pytest.raises(ValueError) as refused:
        checked({name: value})
    line = str(refused.value)
    assert line.startswith(f"{name}: ") and message in line and "\n" not in line


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scenarios": ["class"], "forget_list": "a.txt"}, "forget_list is used in the scenario random alone"),
        ({"scenarios": ["random"], "forget_class": 3}, "forget_class is used in the scenario class alone"),
        ({"scenarios": "class", "forget_fraction": 0.3}, "forget_fraction is used in the scenario random alone"),
        ({"scenarios": ["class"], "start": "chain"}, "start is used in the scenario random alone"),
        ({"forget_list": "a.txt", "forget_fraction": 0.3}, "give one of them"),
    ],
)
def test_a_parameter_that_would_be_ignored_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        checked(values)
    assert checked({**values, "scenarios": ["random", "class"], "forget_fraction": 0.1})


def test_an_unknown_parameter_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="parameter 'sed' is unknown; did you mean seed"):
        checked({"sed": 1})
