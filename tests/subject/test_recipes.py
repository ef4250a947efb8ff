"""The code that all models share still computes what the stored models were made with."""

import json

import pytest
import recipes
import torch

from helpers import store

KNOWN = json.loads(store.RECIPES.read_text(encoding="utf-8"))


@pytest.mark.parametrize("part", store.PARTS)
def test_a_parts_values_and_code_are_those_on_record(part):
    assert KNOWN.keys() == store.PARTS.keys()
    advice = f"run `{recipes.COMMAND}`, and commit helpers/recipes.json"
    values, known = (recipes.comparable(part, found) for found in (recipes.values_of(part), KNOWN[part]["values"]))
    if not recipes.are_equal(values, known):
        pytest.fail(f"the results of '{part}' differ from those in helpers/recipes.json: {advice}", pytrace=False)
    if KNOWN[part]["code"] != store.code_of(part):
        pytest.fail(f"the code of '{part}' is not the one in helpers/recipes.json: {advice}", pytrace=False)


def test_an_edit_that_changes_no_value_changes_the_digest_alone():
    known = {"number": 2, "code": "an older one", "values": recipes.values_of("batches")}
    new, line = recipes.updated("batches", known)
    assert new == {**known, "code": store.code_of("batches")} and "digest" in line
    assert recipes.updated("batches", new) == (new, "unchanged")


def test_changed_values_raise_the_number():
    values = recipes.values_of("batches")
    known = {"number": 2, "code": store.code_of("batches"), "values": [values[0] + 1e-2, *values[1:]]}
    new, line = recipes.updated("batches", known)
    assert new == {"number": 3, "code": known["code"], "values": values} and "3" in line


def test_a_step_that_is_left_out_changes_the_drivers_values(monkeypatch):
    """The probe has the power to notice: one gradient step of thirty is skipped."""
    from helpers import training

    before, step, steps = recipes.values_of("driver"), training.step, []

    def all_but_one(*arguments):
        steps.append(1)
        if len(steps) != 5:
            step(*arguments)

    monkeypatch.setattr(training, "step", all_but_one)
    assert not recipes.are_equal(recipes.values_of("driver"), before)


def test_a_moved_crop_changes_the_values_of_batches(monkeypatch):
    from helpers import data

    crop = data.crop_and_flip
    monkeypatch.setattr(data, "crop_and_flip", lambda x, g, **kw: crop(x, g, **kw).roll(1, dims=1))
    assert not recipes.are_equal(recipes.values_of("batches"), KNOWN["batches"]["values"])


def test_values_do_not_depend_on_the_threads():
    threads, values = torch.get_num_threads(), recipes.values_of("networks")
    torch.set_num_threads(2)
    try:
        assert recipes.are_equal(recipes.values_of("networks"), values) and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
