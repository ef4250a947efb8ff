"""The summary for people who requested removal: its numbers, its verdicts, and when it is refused."""

import re
from dataclasses import replace

import pytest

from helpers.audit.shadows import memorisation, shadow
from helpers.datasets import load_data
from helpers.experiment import Experiment
from helpers.presets import PRESETS
from helpers.results import tidy
from helpers.results.certificate import certificate, memorised, row


@pytest.fixture
def made(runs_folder):
    """An experiment of 240 digits and the result of a method."""
    e = Experiment(load_data("clean-digits"), "random", "smoke")
    return e, e.unlearn("Gradient ascent", lr=2e-3)


def check_in(text, title):
    """The cells of one check's row."""
    return [cell.strip() for cell in re.search(rf"\| {re.escape(title)} \|(.*)\|", text)[1].split("|")]


def test_numbers_are_those_of_the_table(made):
    """Of Original, the method and Gold; the floor is the distance of the second Gold, and the verdict follows."""
    e, run = made
    text, results = certificate(e, run), tidy([e], [run])
    forgotten, trained = len(e.split.forget.index), len(e.split.train.index)
    assert f"**Images**: {forgotten:,} of {trained:,} training images" in text and "lr 0.002" in text
    for title, name in (("accuracy on the forgotten images, %", "forget"), ("accuracy on the set test, %", "test")):
        value = results[(results.metric == "accuracy") & (results.set == name)].set_index("method").value
        *numbers, within = check_in(text, title)
        expected = [
            *(value[name] for name in ("Original", "Gradient ascent", "Gold")),
            abs(value["Gradient ascent"] - value["Gold"]),
            abs(value["Gold 2"] - value["Gold"]),
        ]
        assert [float(number) for number in numbers] == pytest.approx(expected, abs=6e-4)
        assert within == ("yes" if expected[3] <= expected[4] else "no")
    share = 100 * run.cost["images"] / e.gold().cost["images"]
    assert f"{share:.1f} % of retraining's" in text and "## What is not guaranteed" in text


def test_memorised_images_are_named_where_shadow_models_exist(made):
    e, run = made
    assert "Memorisation" not in certificate(e, run)
    for number in range(e.preset["audit"]["shadows"]):
        shadow(e, number).original()
    nats, table = memorisation(e), memorised(e)
    most = int(e.split.forget.index[nats.argmax()])
    assert table.index[0] == most and table.memorisation.iloc[0] == nats.max() and len(table) == len(nats)
    assert f"most is to be removed: {most} ({nats.max():.1f}), " in certificate(e, run)


@pytest.mark.parametrize(("difference", "floor", "within"), [(5, 3, "no"), (3, 3, "yes"), (0, 0, "yes")])
def test_a_difference_of_at_most_the_floor_is_within_it(difference, floor, within):
    line = row("a check", 9.0, 10.0 - difference, 10.0, 10.0 + floor)
    assert line.endswith(f"| {difference:.3f} | {floor:.3f} | {within} |")


def test_rounding_decides_nothing():
    """As decimals, difference and floor are both 0.025; as floating-point numbers they are not equal."""
    assert abs(0.375 - 0.4) > abs(0.425 - 0.4)
    assert row("attack", 0.425, 0.375, 0.4, 0.425).endswith("| yes |")


def test_what_could_not_be_measured_is_named_so():
    unmeasured = " not measurable |" * 5
    assert row("attack", *[float("nan")] * 4) == f"| attack |{unmeasured} not measurable |"


def test_refused_for_what_diverged_or_is_no_method_or_has_no_floor(made, monkeypatch):
    e, run = made
    with pytest.raises(ValueError, match="Gradient ascent diverged: there is no model to certify"):
        certificate(e, replace(run, diverged="the loss is nan", cost={}))
    with pytest.raises(ValueError, match="Gold is not the result of a method"):
        certificate(e, e.gold())
    with pytest.raises(ValueError, match="smoke has no second Gold"):
        certificate(e.derive(preset={**e.preset, "golds": 1}), run)


def test_refused_for_what_followed_another_method(runs_folder, monkeypatch):
    methods = {"M1 Retain FT": {"epochs": 1, "lr": 0.01}, "Gradient ascent": {"epochs": 1, "lr": 0.001}}
    monkeypatch.setitem(PRESETS["smoke"], "random", {**PRESETS["smoke"]["random"], "methods": methods})
    chain = Experiment(load_data("clean-digits"), "random", "smoke", start="chain")
    assert certificate(chain, chain.unlearn("M1 Retain FT")).startswith("# What was forgotten by M1 Retain FT")
    with pytest.raises(ValueError, match="started from the result of another method: .* start = 'fresh'"):
        certificate(chain, chain.unlearn("Gradient ascent"))
