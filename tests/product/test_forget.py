"""`run_all.sh forget`: from a list of images to weights and a report; what happens to a request that is not valid."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from brought import METHODS, NETWORK, write_photos
from forget import main
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from helpers import own, paths
from helpers.audit.shadows import memorisation, shadow
from helpers.experiment import open_experiments
from helpers.forget import DEFAULTS, prepared
from helpers.methods import METHODS as REGISTRY
from helpers.presets import PRESETS
from helpers.results import gap_points, tidy

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three classes of images, a list of 12 of the 96 training images, a network and methods."""
    folder = tmp_path_factory.mktemp("request")
    photos = write_photos(folder / "photos")
    (photos / "leaf/00.png").write_bytes((photos / "leaf/01.png").read_bytes())
    (folder / "net.py").write_text(NETWORK)
    (folder / "mine.py").write_text(METHODS)
    return folder


@pytest.fixture
def run(place, monkeypatch):
    """`run(*words)` is the command on these images at the smallest preset, with 8 epochs; it returns the status."""
    for scenario in ("random", "class"):
        table = PRESETS["smoke"][scenario]
        training = {**table["training"], "epochs": 8, "lr": 0.05, "optimizer": "sgd", "batch_size": 20}
        monkeypatch.setitem(PRESETS["smoke"], scenario, {**table, "training": training})
    monkeypatch.setattr(paths, "RUNS", place / "runs")
    monkeypatch.setenv("UNLEARNING_PROGRESS", str(place / "progress"))
    monkeypatch.chdir(place)
    before = dict(REGISTRY)
    settings = ["--data", "photos", "--preset", "smoke", "--model", "net.py:small", "--image-size", "16", "--no-flip"]

    def command(*words):
        try:
            return main([*settings, *map(str, words)]) or 0
        except SystemExit as stopped:
            return stopped.code

    yield command
    REGISTRY.clear()
    REGISTRY.update(before)
    own.FROM_FILES.clear()


@pytest.fixture
def listed(place, run):
    """The list, with a byte-order mark and one image twice."""
    e = experiment(place)
    names = [*e.data.files[::8], e.data.files[0]]
    (place / "asked.txt").write_text("# please\n" + "\n".join(names), encoding="utf-8-sig")
    return place / "asked.txt"


def experiment(place, **parameters):
    """The experiment that the command opens."""
    own_network = {"model": f"{place / 'net.py'}:small", "image_size": 16, "flip": False}
    values = {"data": str(place / "photos"), "preset": "smoke", "scenarios": ["random"], **own_network, **parameters}
    return prepared(open_experiments(values)[0])


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def ranked(text):
    """The names in the first column of the report's table of models."""
    table = text[text.index("| method | gap") if "| method | gap" in text else text.index("| method | score") :]
    return [line.split(" | ")[0].removeprefix("| ") for line in table.split("\n\n")[0].splitlines()[2:]]


METHODS_RUN = ("--methods", "Random labels", "Margin matching", "mine.py")


def test_a_request_becomes_weights_and_a_report(run, listed, place, monkeypatch):
    """Checksums are those of the files, the ranking is that of the tables, and a second run trains nothing."""
    out = place / "out"
    assert run("--forget-list", listed, *METHODS_RUN, "--audit", "--out", out) == 0
    text = (out / "report.md").read_text(encoding="utf-8")
    methods = ["Random labels", "Margin matching", "Soften", "soften"]
    weights = {"gold.safetensors", "random-labels.safetensors", "margin-matching.safetensors", "soften.safetensors"}
    assert {file.name for file in out.iterdir()} == {"report.md", "report.html", "report.png", *weights}
    for name in weights:
        assert f"| `{name}` | `{digest(out / name)}` |" in text
    assert digest(listed) in text and "names 12 images; repeated entries: 1" in text
    e = experiment(place, forget_list=str(listed), own_methods=str(place / "mine.py"))
    assert e.data.identity in text
    runs = [e.unlearn(name) for name in methods]
    points = gap_points(tidy([e], runs)).set_index("method").gap
    assert ranked(text) == ["Original", "Gold", "Gold 2", *points[methods].sort_values(kind="stable").index]
    gold = load_file(out / "gold.safetensors")
    assert all(torch.equal(value, gold[name]) for name, value in e.gold().model.state_dict().items())
    with safe_open(out / "gold.safetensors", "pt") as file:
        assert '"classes": ["leaf", "rose", "sky"]' in file.metadata()["unlearned"]
    assert "## Attacks" in text and "RMIA AUC" in text and "## What is not guaranteed" in text

    monkeypatch.setattr("helpers.experiment.train", None)
    monkeypatch.setattr("helpers.experiment.unlearn", None)
    assert run("--forget-list", listed, *METHODS_RUN, "--audit", "--out", out) == 0
    assert (out / "report.md").read_text(encoding="utf-8") == text


def test_the_report_is_one_page(run, listed, place):
    """It embeds its figure, links to nothing outside, and shows names as they are."""
    out = place / "one page"
    assert run("--forget-list", listed, "--methods", "Random labels", "--out", out) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'src="data:image/png;base64,' in page and "<table>" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "http" not in page


def test_copies_that_are_retained_are_listed(run, place):
    """leaf/00.png and leaf/01.png have the same pixels."""
    e = experiment(place)
    copies = [name for name in ("leaf/00.png", "leaf/01.png") if name in e.data.files]
    (place / "one.txt").write_text(f"{copies[0]}\n{e.data.files[50]}\n")
    assert run("--forget-list", "one.txt", "--methods", "Random labels", "--no-gold", "--out", "copies") == 0
    text = (place / "copies/report.md").read_text(encoding="utf-8")
    assert len(copies) < 2 or "1 of the forgotten images have a retained image with the same pixels" in text
    assert len(copies) < 2 or f"| {copies[0]} | {copies[1]} | 0.0 |" in text


def test_without_gold_fewer_claims_are_made(run, listed, place, monkeypatch):
    """Nothing is retrained; methods are ranked by held-out accuracy, and the report lists what it cannot claim."""
    monkeypatch.setattr("helpers.experiment.Experiment.gold", None)
    assert run("--forget-list", listed, *METHODS_RUN, "--no-gold", "--audit", "--out", "without") == 0
    text = (place / "without/report.md").read_text(encoding="utf-8")
    assert "none was retrained" in text and "gold.safetensors" not in text and "gap to Gold" not in text
    assert "score without Gold" in text and "RMIA" not in text and "| Gold |" not in text
    assert not (place / "without/gold.safetensors").exists()


def test_classes_are_forgotten_with_the_default_methods(run, place, capsys):
    """Two of three classes; a method that this network does not allow is named, the others run."""
    assert run("--forget-class", "leaf", "sky", "--out", "classes") == 0
    assert capsys.readouterr().err.startswith("M2 Selective FT did not run: ValueError: Sequential has no known stages")
    text = (place / "classes/report.md").read_text(encoding="utf-8")
    assert "leaf: 32 of 32; sky: 32 of 32" in text
    assert "**M2 Selective FT** did not run: ValueError: Sequential has no known stages" in text
    assert {*ranked(text)} == {"Original", "Gold", "Gold 2", *DEFAULTS["class"]} - {"M2 Selective FT"}


def test_a_request_that_no_method_carried_out_is_no_success(run, place, capsys):
    """The report is written, since Gold is in it."""
    assert run("--forget-class", "leaf", "--methods", "M2 Selective FT", "--out", "none ran") == 1
    said = capsys.readouterr()
    assert "M2 Selective FT did not run" in said.err and "Recommended: no method" in said.out
    assert (place / "none ran/gold.safetensors").exists()


def test_memorisation_is_reported_where_shadow_models_exist(run, listed, place):
    """One line per forgotten image in a file beside the report; the report has their median and names the largest."""
    words = ("--forget-list", listed, "--methods", "Random labels", "--no-gold", "--out", "memorised")
    assert run(*words) == 0 and not (place / "memorised/memorisation.csv").exists()
    e = experiment(place, forget_list=str(listed))
    for number in range(e.preset["audit"]["shadows"]):
        shadow(e, number).original()
    assert run(*words) == 0
    table, text = pd.read_csv(place / "memorised/memorisation.csv"), (place / "memorised/report.md").read_text()
    assert {*table.image} == {e.data.files[i] for i in e.split.forget.index} and len(table) == 12
    assert table.memorisation.to_numpy() == pytest.approx(sorted(memorisation(e), reverse=True), rel=1e-3)
    assert f"Median: {table.memorisation.median():.1f} nats" in text and "`memorisation.csv`" in text
    assert f"is to be removed: {table.image[0]} ({table.memorisation[0]:.1f}), " in text


def test_all_images_of_a_class_in_a_list_are_allowed_and_reported(run, place):
    names = [name for name in experiment(place).data.files if name.startswith("rose/")]
    (place / "rose.txt").write_text("\n".join(names))
    assert run("--forget-list", "rose.txt", "--methods", "Random labels", "--no-gold", "--out", "rose") == 0
    assert "All training images of **rose** are on the list" in (place / "rose/report.md").read_text(encoding="utf-8")


def test_an_original_of_ones_own_is_loaded(run, listed, place, capsys):
    e = experiment(place, forget_list=str(listed))
    torch.save({"state_dict": e.original().model.state_dict()}, place / "w.pth")
    words = ("--forget-list", listed, "--original", "w.pth", "--methods", "Random labels", "--out", "loaded")
    assert run(*words) == 0
    text = (place / "loaded/report.md").read_text(encoding="utf-8")
    assert "loaded from `w.pth`" in text and f"| `w.pth` | `{digest(place / 'w.pth')}` |" in text
    assert "Original was trained elsewhere" in text


def test_an_original_that_never_learnt(run, listed, place, capsys):
    """Loaded, it stops the command; trained, it is reported and no method is recommended."""
    torch.save(experiment(place).build(seed=5).state_dict(), place / "random.pth")
    assert run("--forget-list", listed, "--original", "random.pth", "--out", "nothing") == 2
    error = capsys.readouterr().err
    assert "hint" not in error and "--normalise" in error and error.count("\n") == 1
    assert not (place / "nothing").exists()
    PRESETS["smoke"]["random"]["training"].update(lr=1e-9)
    assert run("--forget-list", listed, "--methods", "Random labels", "--seed", 3, "--out", "unlearnt") == 0
    text = (place / "unlearnt/report.md").read_text(encoding="utf-8")
    assert "**Original never learnt" in text and "No method is recommended" in text


def bad_weights(place, **changes):
    state = {**experiment(place).build().state_dict(), **changes}
    torch.save({name: value for name, value in state.items() if value is not None}, place / "bad.pth")


BAD = {
    "nothing to forget": ((), "either --forget-list FILE or --forget-class"),
    "list and class": (("--forget-list", "asked.txt", "--forget-class", "leaf"), "either --forget-list"),
    "no such list": (("--forget-list", "none.txt"), "'none.txt' does not exist"),
    "unknown class": (("--forget-class", "lead"), "'lead' is unknown"),
    "unknown method": (("--forget-class", "leaf", "--methods", "DELET"), "did you mean DELETE"),
    "method of the other scenario": (
        ("--forget-list", "asked.txt", "--methods", "DELETE"),
        "not for the scenario random",
    ),
    "no such methods file": (
        ("--forget-class", "leaf", "--methods", "none.py"),
        "methods file 'none.py' does not exist",
    ),
    "two methods files": (("--forget-class", "leaf", "--methods", "a.py", "b.py"), "put the methods into one"),
    "no such weights": (("--forget-class", "leaf", "--original", "none.pth"), "weights 'none.pth' do not exist"),
    "a folder with other files": (("--forget-class", "leaf", "--out", "photos"), "the folder 'photos' holds 'leaf'"),
    "a folder with an input": (("--forget-list", "asked.txt", "--out", "."), "a report must not replace"),
    "bad seed": (("--forget-class", "leaf", "--seed", "x"), "--seed: 'x' is not a whole number"),
    "a folder in a file": (("--forget-class", "leaf", "--out", "asked.txt/report"), "'asked.txt' is a file"),
    "misspelt option": (("--forget-clas", "leaf"), "did you mean --forget-class"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_request_that_is_not_valid_is_refused_in_one_line(name, run, listed, place, capsys):
    """Before anything is trained; nothing is written."""
    words, message = BAD[name]
    before = sorted(path for path in place.rglob("*") if path.suffix in (".safetensors", ".md", ".html"))
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("run_all.sh forget: ") and message in error and error.count("\n") == 1
    assert before == sorted(path for path in place.rglob("*") if path.suffix in (".safetensors", ".md", ".html"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("leaf/99.png", "line 1: 'leaf/99.png' is no training image"),
        ("TEST", "is a test image of folder photos"),
        ("1,234", "is ambiguous"),
    ],
)
def test_a_list_that_is_not_valid_is_refused(text, message, run, place, capsys):
    (place / "bad.txt").write_text(experiment(place).data.test_files[0] if text == "TEST" else text)
    assert run("--forget-list", "bad.txt") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"3.weight": torch.zeros(7, 8), "3.bias": torch.zeros(7)}, "are of 7 classes, the data have 3"),
        ({"0.0.weight": None}, "do not fit net.py:small: tensor '0.0.weight' is missing"),
        ({"3.bias": torch.full((3,), float("nan"))}, "NaN or infinite values"),
    ],
)
def test_weights_that_do_not_fit_are_refused(changes, message, run, place, capsys):
    bad_weights(place, **changes)
    assert run("--forget-class", "leaf", "--original", "bad.pth", "--out", "refused") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (place / "refused").exists()


FULL = {
    "helpers.results.request.as_html": OSError(28, "No space left"),
    "helpers.store.save_file": SafetensorError("No space left"),
}


@pytest.mark.parametrize("writer", FULL)
def test_a_failure_while_writing_leaves_the_former_report(writer, run, listed, place, capsys, monkeypatch):
    words = ("--forget-list", listed, "--methods", "Random labels", "--no-gold", "--out", "kept")
    assert run(*words) == 0
    before = {file.name: file.read_bytes() for file in (place / "kept").iterdir()}

    def full(*arguments, **named):
        raise FULL[writer]

    monkeypatch.setattr(writer, full)
    capsys.readouterr()
    assert run(*words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "No space left" in line
    assert {file.name: file.read_bytes() for file in (place / "kept").iterdir()} == before
    assert not [path for path in place.iterdir() if path.name.startswith(".kept")]


def test_a_users_own_weights_are_never_replaced(run, listed, place, capsys):
    """Neither Original in the folder of a former report, nor any other file that this command did not write."""
    words = ("--forget-list", listed, "--methods", "Random labels", "--no-gold", "--out", "mixed")
    assert run(*words) == 0
    save_file({"w": torch.zeros(1)}, place / "mixed/mine.safetensors")
    assert run(*words) == 2 and "'mine.safetensors', which a report must not replace" in capsys.readouterr().err
    (place / "mixed/mine.safetensors").unlink()
    again = run(*words, "--original", "mixed/random-labels.safetensors")
    assert again == 2 and "holds 'random-labels.safetensors'" in capsys.readouterr().err


def test_the_command_line_has_the_word(place):
    """With its help, in a process of its own."""
    answer = subprocess.run(
        [sys.executable, ROOT / "workflow/forget.py", "--help"], capture_output=True, text=True, cwd=place
    )
    assert answer.returncode == 0 and "--no-gold" in answer.stdout and "--forget-list" in answer.stdout
    assert "forget | report" in (ROOT / "run_all.sh").read_text(encoding="utf-8")
