"""The records of the methods: complete settings, and one line for each setting that is not valid."""

import ast
import inspect
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from helpers.methods import DOCUMENTS, IDEAS, METHODS, PUBLISHED, Method, Search, find, register, source_of
from helpers.methods.documents import gradient_ascent, retain_finetuning, scaled_ascent, selective_finetuning
from helpers.scenario import SCENARIOS
from helpers.training import EpochEnd, Phase, unlearn

pytestmark = pytest.mark.usefixtures("float32")


def own(model, split, *, epochs=1, lr=0.1, warm=2, note="x", target=None):
    """A method outside the suite."""
    yield Phase(lr)
    for _ in range(epochs):
        yield EpochEnd({"note": note})


# --- records ------------------------------------------------------------------------------------------------------


def test_records_are_consistent():
    assert tuple(METHODS)[: len(DOCUMENTS) + len(PUBLISHED)] == DOCUMENTS + PUBLISHED
    ideas = [METHODS[name].idea for name in PUBLISHED]
    assert ideas == sorted(ideas, key=IDEAS.index), "published methods are grouped by idea"
    shorts = [method.short for method in METHODS.values()]
    assert len(set(shorts)) == len(shorts) and all(len(short) <= len(name) for name, short in zip(METHODS, shorts))
    for method in METHODS.values():
        assert method.idea in IDEAS and method.source and set(method.scenarios) <= set(SCENARIOS)
        assert set(method.search) <= set(method.defaults)


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_a_method_is_known_and_accepted(name):
    """No method hides settings behind `**`; all defaults are in range, also at the ends of the tuner's ranges."""
    method = METHODS[name]
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in method.parameters)
    assert method.check() == method.defaults and set(method.defaults) == {p.name for p in method.parameters}
    for setting, value in method.defaults.items():
        assert method.check({setting: value}) == method.defaults
        assert method.setting(setting).kind is type(value)
    for setting, search in method.search.items():
        for end in (search.low, search.high):
            method.check({setting: 1 - end if search.complement else end})


@pytest.mark.parametrize("name", METHODS)
def test_a_method_uses_each_of_its_settings(name):
    tree = ast.parse(inspect.getsource(METHODS[name].function))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert {parameter.name for parameter in METHODS[name].parameters} <= used


def test_records_override_the_signature_and_settings_the_records():
    assert METHODS["M5 Per batch"].defaults == {"epochs": 100, "s": 0.4, "final": 0, "lr": 1e-3, "weight_decay": 5e-4}
    assert METHODS["M6 Per batch + FT"].check({"s": 0.7, "lr": 0.01}) == {
        **{"epochs": 100, "s": 0.7, "final": 5, "lr": 0.01, "weight_decay": 5e-4}
    }


# --- checks of settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, settings, message",
    [
        (
            "M1 Retain FT",
            {"epoch": 3},
            "M1 Retain FT: setting 'epoch' is unknown: one of epochs, .*; did you mean epochs",
        ),
        ("M1 Retain FT", {"epochs": 2.5}, "epochs must be a whole number of at least 1, not 2.5"),
        ("M1 Retain FT", {"epochs": 0}, "epochs must be a whole number of at least 1, not 0"),
        ("M1 Retain FT", {"epochs": "3"}, "epochs must be a whole number of at least 1, not '3'"),
        ("M1 Retain FT", {"epochs": True}, "epochs must be a whole number of at least 1, not True"),
        ("M1 Retain FT", {"epochs": math.nan}, "epochs must be .*, not nan"),
        ("M1 Retain FT", {"lr": 0}, "lr must be a number above 0, not 0"),
        ("M1 Retain FT", {"lr": True}, "lr must be a number above 0, not True"),
        ("M1 Retain FT", {"lr": math.nan}, "lr must be a number above 0, not nan"),
        ("M1 Retain FT", {"lr": math.inf}, "lr must be a number above 0, not inf"),
        ("M1 Retain FT", {"lr": 10**400}, "lr must be a number above 0"),
        ("M1 Retain FT", {"lr": None}, "lr must be a number above 0, not None"),
        ("M1 Retain FT", {"lr": [0.1]}, r"lr must be a number above 0, not \[0.1\]"),
        ("M1 Retain FT", {"lr": np.array([0.1, 0.2])}, "lr must be a number above 0"),
        ("M1 Retain FT", {"schedule": "cosin"}, "schedule must be one of constant, cosine, onecycle, not 'cosin'"),
        ("M5 Per batch", {"s": -0.1}, "s must be a number of at least 0, not -0.1"),
        ("H1 Linear", {"growth": 1}, "growth must be one of linear, quadratic, exponential, not 1"),
        ("H4 Unfreezing", {"frozen_share": 1.2}, "frozen_share must be a number of at least 0 and of at most 1"),
        ("NegGrad+", {"alpha": 1.1}, "alpha must be a number of at least 0 and of at most 1, not 1.1"),
        ("EU-k", {"reset": 1}, "reset must be True or False, not 1"),
        ("2-Stage full", {"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
    ],
)
def test_a_setting_that_is_not_valid_is_refused_in_one_line(name, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        METHODS[name].check(settings)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(name)


def test_numbers_of_numpy_become_plain_ones():
    settings = METHODS["2-Stage full"].check({"rounds": np.int64(2), "tau": np.float64(0.5), "lr_retain": 1})
    assert settings["rounds"] == 2 and type(settings["rounds"]) is int
    assert type(settings["tau"]) is float and type(settings["lr_retain"]) is float
    assert METHODS["EU-k"].check({"reset": np.False_, "k": 3.0})["reset"] is False
    assert type(METHODS["EU-k"].check({"k": 3.0})["k"]) is int
    assert METHODS["M1 Retain FT"].check({"lr": Fraction(1, 2)})["lr"] == 0.5


def test_unlearn_checks_the_settings_before_it_runs(toy, random_split):
    with pytest.raises(ValueError, match="M1 Retain FT: lr must be"):
        unlearn("M1 Retain FT", toy(), random_split, {"lr": -1.0})
    with pytest.raises(ValueError, match="method 'M1 Retain' is unknown: one of .*; did you mean M1 Retain FT"):
        unlearn("M1 Retain", toy(), random_split)


# --- methods outside the suite ------------------------------------------------------------------------------------


def test_a_function_outside_the_suite_is_a_method():
    method = find(own)
    assert (method.name, method.idea, method.short, method.scenarios) == ("own", "own", "own", ("random", "class"))
    assert method.defaults == {"epochs": 1, "lr": 0.1, "warm": 2, "note": "x", "target": None}
    assert method.check({"target": [1], "lr": 1})["target"] == [1]
    for settings in ({"lr": 0}, {"warm": 0.5}, {"note": 3}, {"epoch": 2}):
        with pytest.raises(ValueError, match="^own: "):
            method.check(settings)
    assert find(method) is method and find("2-Stage") is METHODS["2-Stage"]


def test_a_default_that_does_not_fit_the_suites_range_sets_the_type():
    def per_cent(model, split, *, share=30.0, epochs=0.5):
        yield Phase(share)

    assert find(per_cent).check({"share": 50, "epochs": 1.5}) == {"share": 50.0, "epochs": 1.5}


def test_settings_without_a_default_are_required_and_any_are_accepted_after_two_stars():
    def strict(model, split, *, lr, s=1):
        yield Phase(lr)

    def loose(model, split, **settings):
        yield from retain_finetuning(model, split, **settings)

    with pytest.raises(ValueError, match="strict requires a value for the setting 'lr'"):
        find(strict).check()
    with pytest.raises(ValueError, match="strict: lr must be a number above 0"):
        find(strict).check({"lr": -1})
    assert find(strict).check({"lr": 1, "s": 0.5}) == {"lr": 1.0, "s": 0.5}
    assert find(loose).check({"epochs": 2, "lr": 0.1}) == {"epochs": 2, "lr": 0.1}

    def plain(model, split):
        yield Phase(0.1)

    with pytest.raises(ValueError, match="plain has no settings, so none called 'lr'"):
        find(plain).check({"lr": 0.1})


def test_a_registered_method_is_found_by_its_name(toy, random_split, monkeypatch):
    record = Method("Own", own, "relearn", "this test", {"epochs": 2}, search={"lr": Search(0.01, 1.0)}, short="O")
    assert register(record) is METHODS.pop("Own")  # what follows undoes itself
    monkeypatch.setitem(METHODS, "Own", record)
    assert find("Own") is record and tuple(METHODS)[-1] == "Own"
    history = unlearn("Own", toy(), random_split, {"note": "y"}).history
    assert [entry["note"] for entry in history] == ["y", "y"]
    with pytest.raises(ValueError, match="the name 'Own' is in use"):
        register(record)
    with pytest.raises(ValueError, match="Own 2: the function has no setting 'epoch'"):
        register(replace(record, name="Own 2", settings={"epoch": 2}))
    with pytest.raises(ValueError, match="Own 2: epochs must be"):
        register(replace(record, name="Own 2", settings={"epochs": -2}))
    assert "Own 2" not in METHODS


# --- source code --------------------------------------------------------------------------------------------------


def doubled(loss):
    """What `example` uses."""
    return 2 * loss


def example_with(rate):
    def example(model, split, *, epochs=1, lr=0.1):
        """A method."""
        functions = {"double": doubled}  # a comment
        yield Phase(lr)
        yield functions["double"](model(next(iter(split.retain))[0]).sum() * rate)

    return example


def test_the_source_of_a_method_is_all_that_it_uses():
    """Its own code, its module's functions, its constants and the suite's methods; not comments and docstrings."""
    source = source_of(example_with(0.1))
    assert "return 2 * loss" in source and "rate = 0.1" in source
    assert "What `example`" not in source and "a comment" not in source
    assert source_of(example_with(0.2)) != source and source_of(example_with(0.1)) == source
    scaled = source_of(scaled_ascent)
    assert "def alternate(" in scaled and "def quadratic" in scaled and "def endless" in scaled
    assert "def quadratic" not in source_of(gradient_ascent)
    selective = source_of(selective_finetuning)
    assert "def __getitem__(self, index)" in selective and "each is computed once" not in selective


@pytest.mark.parametrize("name", METHODS)
def test_the_source_of_every_method_is_found(name):
    source = source_of(METHODS[name].function)
    assert f"def {METHODS[name].function.__name__}(" in source and source == source_of(METHODS[name].function)
