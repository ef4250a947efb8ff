"""The coursework: the key gets all points, an empty hand-in none, typical mistakes none; the forms of all exercises."""

import re
from itertools import pairwise
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from coursework_key import KEY
from execute import run_notebook
from torch.nn.functional import cross_entropy

from helpers import paths
from helpers.check import QUESTIONS, Check, variant
from helpers.datasets import load_data
from helpers.experiment import Experiment
from helpers.training import EpochEnd, Phase

ROOT = Path(__file__).resolve().parents[2]
COURSEWORK = ROOT / "notebooks/coursework.ipynb"
FORM = r"\*\((basic|medium|hard), (\d+) min, (\d+) points\)\*"
TEACHING = (ROOT / "notebooks/teaching.md").read_text(encoding="utf-8")
POINTS = {"basic": 5, "medium": 10, "hard": 15}  # of an exercise
STUDENT = 4711


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where this module keeps its models, so that nothing is trained twice."""
    return tmp_path_factory.mktemp("coursework")


@pytest.fixture
def place(folder, monkeypatch):
    """The folder, set as the place of models, outputs and progress, here and in a notebook's kernel."""
    for name in ("runs", "progress", "output"):
        monkeypatch.setenv(f"UNLEARNING_{name.upper()}", str(folder / name))
    monkeypatch.setattr(paths, "RUNS", folder / "runs")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


def answered(key):
    """The coursework with the student's number and the answers of `key`."""
    book = nbformat.read(COURSEWORK, 4)
    [number] = [cell for cell in book.cells if cell.source.startswith("student = ")]
    number.source = f"student = {STUDENT}"
    answers = [cell for cell in book.cells if cell.source.startswith("# YOUR CODE")]
    assert len(answers) == len(QUESTIONS) == 8
    for i, source in key.items():
        answers[i - 1].source = source
    return book


def lines(book, place):
    """What the checks print, one line per question, then the total."""
    nbformat.write(book, place / "hand-in.ipynb")
    done = run_notebook(place / "hand-in.ipynb", place / "done.ipynb", {"preset": "smoke"}, cwd=place)
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout").splitlines()
    return [line for line in printed if re.match(r"\d\. |Total", line)]


def test_the_key_gets_all_points(place):
    expected = [f"{number}. {points} of {points} points" for number, (points, *_) in QUESTIONS.items()]
    assert lines(answered(KEY), place) == [*expected, "Total: 100 of 100 points"]


def test_an_empty_hand_in_gets_none_and_one_line_per_question(place):
    *questions, total = lines(answered({}), place)
    assert len(questions) == 8 and total == "Total: 0 of 100 points; none yet for 1, 2, 3, 4, 5, 6, 7, 8"
    for line, (number, (points, *_)) in zip(questions, QUESTIONS.items()):
        assert line.startswith(f"{number}. 0 of {points} points: no answer yet; write ")


# --- variants -----------------------------------------------------------------------------------------------------


def test_students_have_their_own_variant():
    """Neighbours differ in seed and class; each class, share and rate occurs among a hundred students."""
    variants = [variant(student) for student in range(2024_123_400, 2024_123_500)]
    assert len({tuple(v.values()) for v in variants}) == 100 and variant(STUDENT) == variant(STUDENT)
    for setting, count in {"seed": 100, "forget_class": 10, "forget_fraction": 3, "lr": 3}.items():
        assert len({v[setting] for v in variants}) == count
    assert all(a["forget_class"] != b["forget_class"] for a, b in pairwise(variants))


@pytest.mark.parametrize("student", ["4711", 47.0, -1, True, None])
def test_a_student_number_is_a_whole_number(student):
    with pytest.raises(ValueError, match=r"^student = .*: use a whole number"):
        variant(student)


# --- wrong answers ------------------------------------------------------------------------------------------------


@pytest.fixture
def check(place):
    mine = variant(STUDENT)
    settings = {name: mine[name] for name in ("seed", "forget_class", "forget_fraction")}
    data = load_data("noisy-digits")
    return Check(*(Experiment(data, name, "smoke", **settings) for name in ("random", "class")), mine)


@pytest.fixture
def right(check):
    """The names that the key's answers define."""
    names = {"check": check, "at_random": check.random, "by_class": check.by_class}
    names |= {"Phase": Phase, "EpochEnd": EpochEnd}
    for source in KEY.values():
        exec(source, names)
    return names


@pytest.fixture
def hint(check, capsys):
    """`hint(number, *answers)`: what the check of a wrong answer prints after its 0 points."""

    def checked(number, *answers):
        assert check(number, *answers) == 0 and check.points[number] == 0
        [line] = capsys.readouterr().out.splitlines()
        points = QUESTIONS[number][0]
        assert line.startswith(f"{number}. 0 of {points} points: ") and len(line) < 250
        return line.partition(": ")[2]

    return checked


def test_right_answers_pass_without_a_notebook(check, right):
    answers = {1: ("random_split", "is_split"), 2: ("measured",), 3: ("finetune",), 4: ("bounded_ascent",)}
    answers |= {5: ("gap_and_cost",), 6: ("entropy", "js_distance", "distances"), 7: ("auc", "aucs"), 8: ("verdicts",)}
    for number, names in answers.items():
        assert check(number, *(right[name] for name in names)) == QUESTIONS[number][0], number
    assert check.total() == 100


def test_wrong_splits(hint, right):
    def first(n, fraction, seed):
        return torch.arange(round(n * fraction), n), torch.arange(round(n * fraction))

    def overlap(n, fraction, seed):
        retain, forget = right["random_split"](n, fraction, seed)
        return torch.cat([retain[1:], forget[:1]]), forget

    def by_length(retain, forget, n):
        return len(retain) + len(forget) == n

    assert hint(1, first, right["is_split"]) == "another seed must give another split"
    assert "missing or in two places" in hint(1, overlap, right["is_split"])
    assert "one image is in both parts" in hint(1, right["random_split"], by_length)


def test_wrong_measurements(hint, right):
    measured = right["measured"]
    assert "not a share" in hint(2, {**measured, "Gold": measured["Gold"] / 100})
    assert "Gold 2" in hint(2, {**measured, "floor": measured["floor"] + 1})
    assert "a dict with the keys Original, Gold, floor" in hint(2, 5)
    assert "one number" in hint(2, {**measured, "Gold": [1, 2]})
    assert hint(2, {**measured, "Gold": ...}).startswith("no answer yet")


def finetuning(part="retain", sign=1, phases=True, ends=True, extra=0):
    """A method like question 3's, with a mistake."""

    def method(model, split, *, epochs=2, lr=0.01):
        if phases:
            yield Phase(lr)
        for _ in range(epochs + extra):
            for x, y in getattr(split, part):
                yield sign * cross_entropy(model(x), y)
            if ends:
                yield EpochEnd()

    return method


@pytest.mark.parametrize(
    "mistake, words",
    [
        ({"part": "train"}, "each retained image counts once"),
        ({"part": "forget"}, "each retained image counts once"),
        ({"sign": -1}, "not the mean cross-entropy"),
        ({"phases": False}, "yield one Phase"),
        ({"ends": False}, "2 EpochEnd(), not 0"),
        ({"extra": 1}, "2 EpochEnd(), not 3"),
    ],
    ids=str,
)
def test_wrong_finetuning(hint, mistake, words):
    assert words in hint(3, finetuning(**mistake))


def test_methods_that_are_none(hint):
    """No generator, a loss that is a number, other settings, an error inside, no end: one line each."""

    def endless(model, split, *, epochs, lr):
        while True:
            yield 0 * next(model.parameters()).sum()

    def number(model, split, *, epochs, lr):
        yield 0.5

    def broken(model, split, *, epochs, lr):
        yield Phase(lr)
        raise ZeroDivisionError("in a\nmethod")

    assert "must be a generator" in hint(3, lambda model, split, *, epochs, lr: None)
    assert "does not yield 0.5" in hint(3, number)
    assert "does not end" in hint(3, endless)
    assert "setting 'epochs' is unknown" in hint(3, lambda model, split, *, rounds=1, lr=1.0: None)
    assert hint(3, broken) == "the answer leads to ZeroDivisionError: in a method"
    assert "must be a function, not dict" in hint(3, {"a": 1})
    assert "TypeError" in hint(5, 1)


def ascent(sign=-1, stop="before"):
    """A method like question 4's, with a mistake: the wrong sign, or it stops after the step or never."""

    def method(model, split, *, epochs=3, lr=0.01, ceiling=2.3):
        yield Phase(lr)
        for _ in range(epochs):
            for x, y in split.forget:
                loss = cross_entropy(model(x), y)
                is_above = loss > ceiling
                if is_above and stop == "before":
                    return
                yield sign * loss
                if is_above and stop == "after":
                    return
            yield EpochEnd()

    return method


def test_wrong_ascent(hint):
    assert "which sign leads up" in hint(4, ascent(sign=1))
    assert "when must it end?" in hint(4, ascent(stop="never"))
    assert "when must it end?" in hint(4, ascent(stop="after"))


def test_wrong_gap_and_cost(hint, right):
    gap_and_cost = right["gap_and_cost"]
    assert "must be in percent" in hint(5, lambda e, run: (gap_and_cost(e, run)[0], gap_and_cost(e, run)[1] / 100))
    assert "the cost of" in hint(5, lambda e, run: (gap_and_cost(e, run)[0], run.cost["images"]))
    assert "the gap of" in hint(5, lambda e, run: (gap_and_cost(e, run)[0] + 1, gap_and_cost(e, run)[1]))
    assert "two numbers" in hint(5, lambda e, run: gap_and_cost(e, run)[0])


def test_wrong_distances(hint, right):
    entropy, js_distance, distances = right["entropy"], right["js_distance"], right["distances"]
    assert "NaN" in hint(6, lambda p: -(p * p.log()).sum(1), js_distance, distances)
    assert "use ln" in hint(6, lambda p: entropy(p) / np.log(2), js_distance, distances)
    assert "check the root" in hint(6, entropy, lambda p, q: js_distance(p, q) ** 2, distances)
    assert "e.scenario.compared" in hint(6, entropy, js_distance, {**distances, "Gold 2": 0.0})


def test_wrong_aucs(hint, right):
    auc, aucs = right["auc"], right["aucs"]
    assert "lower losses" in hint(7, lambda members, others: 1 - auc(members, others), aucs)
    assert "half a pair" in hint(7, lambda m, o: (m[:, None] < o).mean(), aucs)
    assert "the sets forget and test" in hint(7, auc, {**aucs, "Gold": aucs["Gold"] + 0.1})


def test_wrong_verdicts(hint, right):
    verdicts = right["verdicts"]
    swapped = dict(zip(verdicts, [*list(verdicts.values())[1:], verdicts["A"]]))
    assert hint(8, swapped).startswith("4 wrong: ")
    assert "is no verdict" in hint(8, {**verdicts, "A": "fine"})
    assert "the keys A, B, C, D" in hint(8, {"A": "collapsed"})


# --- forms --------------------------------------------------------------------------------------------------------


def test_each_question_states_level_minutes_and_points():
    cells = nbformat.read(COURSEWORK, 4).cells
    questions = [re.match(rf"## (\d)\. .*\n\n{FORM} ", cell.source) for cell in cells if cell.cell_type == "markdown"]
    stated = {int(m[1]): int(m[4]) for m in questions if m}
    assert stated == {number: points for number, (points, *_) in QUESTIONS.items()} and sum(stated.values()) == 100
    assert not [output for cell in cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")), ids=lambda path: path.stem)
def test_each_exercise_states_level_minutes_and_points(path):
    """In one form; the points follow from the level."""
    exercises = re.findall(r"^\d\. .*", nbformat.read(path, 4).cells[-1].source, re.M)
    assert len(exercises) >= 2
    for exercise in exercises:
        stated = re.match(rf"\d\. {FORM} \S", exercise)
        assert stated, exercise
        assert 5 <= int(stated[2]) <= 60 and int(stated[2]) % 5 == 0 and int(stated[3]) == POINTS[stated[1]]


def test_teaching_md_has_the_times_of_the_readme_and_the_sums_of_the_exercises():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        stated = re.findall(FORM, nbformat.read(path, 4).cells[-1].source)
        minutes, points = (sum(int(exercise[i]) for exercise in stated) for i in (1, 2))
        [time] = re.findall(rf"^\| \[{path.stem[:2]} .* \| ([^|]*) \|$", readme, re.M)
        [row] = re.findall(rf"^\| \[{path.stem[:2]} .*?\) \| (.*) \|$", TEACHING, re.M)
        first_run, _, *exercises = row.split(" | ")
        assert (first_run, *exercises) == (time, str(len(stated)), f"{minutes} min", str(points)), path.stem


def test_teaching_md_lists_the_questions():
    cells = [cell.source for cell in nbformat.read(COURSEWORK, 4).cells]
    stated = [m.groups() for source in cells if (m := re.match(rf"## (\d)\. .*\n\n{FORM} ", source))]
    listed = re.findall(r"^\| (\d) .*? \| (basic|medium|hard) \| (\d+) \| (\d+) \|", TEACHING, re.M)
    assert listed == stated
    rubric = TEACHING.partition("## Rubric")[2]
    assert sum(map(int, re.findall(r"^\| (\d+) \|", rubric, re.M))) == 100
