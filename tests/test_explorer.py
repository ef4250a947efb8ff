"""The explorer: what it finds, what it shows, how fast it answers; the live page runs, stops and compares."""

import io
import re
import shutil
import time
from contextlib import redirect_stdout

import numpy as np
import pytest

from helpers import explorer, runs
from helpers.data import load_data
from helpers.experiment import Experiment
from helpers.metrics import js_distance
from helpers.shadows import still_to_train
from helpers.training import EpochEnd, Phase

METHODS = ("Gradient ascent", "M2 Selective FT")


def soften(model, split):
    """A method of one's own."""
    yield Phase(1e-3)
    for x, _ in split.forget:
        yield -model(x).log_softmax(1).mean()
    yield EpochEnd()


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Two scenarios with Original, two Golds and two methods, and one method of one's own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("explorer")
        patch.setattr(runs, "RUNS", folder / "runs")
        patch.setenv("UNLEARNING_PROGRESS", str(folder / "progress"))
        made = [Experiment(load_data("digits"), scenario, "smoke") for scenario in ("class", "random")]
        for e in made:
            e.original, e.golds, [e.unlearned(name) for name in METHODS]
        made[0].unlearned("Soften", soften)
        yield made


def names(e):
    return [run.name for run in e.there()]


def test_there_finds_what_has_run_and_trains_nothing(suite, monkeypatch):
    """Original, Golds, the budget's methods in its order, then own ones; another seed or setting finds nothing."""
    for name in ("train", "unlearn"):
        monkeypatch.setattr(f"helpers.experiment.{name}", lambda *a, **k: pytest.fail("trained"))
    fresh = Experiment(load_data("digits"), "class", "smoke")
    assert names(fresh) == ["Original", "Gold", "Gold 2", *METHODS, "Soften"]
    assert names(Experiment(load_data("digits"), "random", "smoke")) == [
        "Original",
        "Gold",
        "Gold 2",
        *reversed(METHODS),
    ]
    assert names(fresh.with_seed(1)) == [] and fresh.seeds_there() == [0]
    assert names(Experiment(load_data("digits"), "class", "smoke", forget_class=3)) == []


def test_damaged_and_vanishing_records_are_passed_over(suite, tmp_path, monkeypatch):
    """A truncated file, one of another process that is gone before it is read, one without settings."""
    shutil.copytree(runs.RUNS, tmp_path / "runs")
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    e = Experiment(load_data("digits"), "class", "smoke")
    before = names(e)
    (e.folder / "truncated.json").write_text('{"settings": {"sour')
    (e.folder / "gone.json").symlink_to("nowhere")
    (e.folder / "gone.partial.json").symlink_to("nowhere")
    (e.folder / "other.json").write_text("[1]")
    assert "Soften" in before and names(e) == before and e.seeds_there() == [0]


def test_what_only_looks_writes_nothing(suite, tmp_path, monkeypatch):
    """A model without its outputs or with damaged weights counts as not there; nothing is made or removed."""
    shutil.copytree(runs.RUNS, tmp_path / "runs")
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    e = Experiment(load_data("digits"), "class", "smoke")
    [outputs] = e.folder.glob("gold-2-*.outputs.safetensors")
    outputs.unlink()
    [weights] = [file for file in e.folder.glob("soften-*.safetensors") if ".outputs" not in file.name]
    weights.write_bytes(weights.read_bytes()[:-1])
    (e.folder / f"{weights.stem}.partial.json").write_text("{}")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    said = io.StringIO()
    with redirect_stdout(said):
        assert still_to_train(e) == ["gold-2"] and "Soften" not in names(e)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    assert f"{weights.stem} does not match its checksum\n" in said.getvalue() and "again" not in said.getvalue()


def test_an_edited_method_shows_its_newest_run(suite, monkeypatch):
    """The same name with other source is the same method, edited."""
    e = suite[0]
    old = e.unlearned("Soften", soften)
    monkeypatch.setattr("inspect.getsource", lambda function: "edited")
    new = e.unlearned("Soften", soften)
    found = [run for run in e.there() if run.name == "Soften"]
    assert [run.settings["source"] for run in found] == ["edited"] and old.settings[
        "source"
    ] != "edited" == new.settings["source"]


@pytest.mark.parametrize("panel", explorer.PANELS)
def test_each_panel_says_what_it_shows(suite, panel):
    """Each is an image with its own pixels and an alternative text; the sentence names the method or the models."""
    for e in suite:
        markup = explorer.picture(panel, explorer.View(explorer.Results(e), "Gradient ascent"))
        assert re.search(r'<img src="data:image/png;base64,\w', markup) and "http" not in markup
        [alt] = re.findall(r'alt="([^"]+)"', markup)
        assert "Original" in alt or "Gradient ascent" in alt


def test_image_tab_starts_where_method_and_gold_differ_most(suite):
    """Its distance, said beneath the picture, is the largest; the last image's is the smallest."""
    results = explorer.Results(suite[0])
    view = explorer.View(results, "Gradient ascent")
    apart = js_distance(view.logits(view.run), view.logits(results.runs["Gold"])).numpy()
    for image, expected in ((0, apart.max()), (len(apart) - 1, apart.min())):
        said = explorer.picture("Images", explorer.View(results, "Gradient ascent", image=image))
        assert float(re.search(r"JSD to Gold (\d\.\d+)", said)[1]) == pytest.approx(expected, abs=6e-4)


def test_controls_choose_and_answers_are_fast(suite):
    """Each control changes what is shown, in 300 ms of computing at the median once the results are read."""
    page = explorer.Explorer(suite)
    shown = lambda: page.tabs.children[page.tabs.selected_index or 0].value  # noqa: E731
    page.scenario.value = "random"  # read both before the clock runs
    page.scenario.value = "class"
    for tab in range(len(explorer.PANELS)):
        page.tabs.selected_index = tab
        page.draw()
    page.tabs.selected_index = 0
    assert list(page.method.options) == [*METHODS, "Soften"] and "Gradient ascent" in page.table.value
    changes = [(page.method, "value", METHODS[1]), (page.epoch, "value", 1), (page.scenario, "value", "random")]
    changes += [(page.tabs, "selected_index", 3), (page.image, "value", 5), (page.method, "value", METHODS[0])]
    changes += [(page.tabs, "selected_index", tab) for tab in (1, 2, 5)]
    took = []
    for control, trait, value in changes:
        before, started = (shown(), page.table.value), time.process_time()
        setattr(control, trait, value)
        took.append(time.process_time() - started)
        assert (shown(), page.table.value) != before, f"{control.description} = {value} changes nothing"
    assert np.median(took) < 0.3


def test_page_without_a_model_offers_to_train_it(suite, tmp_path, monkeypatch):
    """Nothing is trained by opening it; the button trains, tells of it, and the page fills."""
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    page = explorer.Explorer([Experiment(load_data("digits"), "class", "smoke")])
    assert page.body.layout.display == "none" and not (tmp_path / "runs" / "models").exists()
    [box] = page.offer.children
    status, button = box.children
    assert "Train Original, Gold and Fine-tuning" in status.value
    said = []
    status.observe(lambda change: said.append(change.new), "value")
    button.click()
    wait_until(lambda: page.body.layout.display is None)
    assert any("epoch" in line for line in said) and list(page.method.options) == ["Fine-tuning"]


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_live_runs_stops_and_compares(suite):
    """Sliders reach the method; each epoch is a point; a stopped run keeps what it has; the last one stays beside."""
    page = explorer.Live(suite[0])
    page.method.value = "Gradient ascent"
    sliders = {slider.description: slider for slider in page.sliders.children}
    assert {"epochs", "lr"} <= sliders.keys()
    sliders["epochs"].value = 3
    page.run.click()
    assert page.run.disabled
    page.thread.join()
    assert [entry["epoch"] for entry in page.history] == [0, 1, 2, 3] and "finished after 3 epochs" in page.status.value
    assert not page.run.disabled and page.stop.disabled and "<img" in page.curves.value
    sliders["epochs"].value = 20
    page.run.click()
    wait_until(lambda: len(page.history) > 1)
    page.stop.click()
    page.thread.join()
    assert 2 <= len(page.history) < 21 and "stopped after" in page.status.value
    assert len(page.last) == 4 and all(word in page.status.value for word in ("this run", "last run", "Gold"))


def test_a_live_run_has_the_budgets_settings_beneath_its_sliders(suite, monkeypatch):
    """Also those that the method hands on, and that no slider shows."""
    asked = {}
    monkeypatch.setattr(explorer, "unlearn", lambda name, *a, **settings: asked.update(settings))
    page = explorer.Live(suite[1])
    page.method.value = "H4 Thawing"
    shown = {slider.description: slider for slider in page.sliders.children}
    shown["thaw"].value = 0.5
    page.run.click()
    page.thread.join()
    wanted = suite[1].settings("H4 Thawing") | {"thaw": 0.5}
    assert wanted.keys() - shown.keys() and {name: asked[name] for name in wanted} == wanted


def test_a_live_run_that_diverges_says_so(suite):
    """The message is shown and the buttons come back."""
    page = explorer.Live(suite[1])
    page.method.value = "Gradient ascent"
    {slider.description: slider for slider in page.sliders.children}["lr"].max = 30
    {slider.description: slider for slider in page.sliders.children}["lr"].value = 1e20
    page.run.click()
    page.thread.join()
    assert "diverged" in page.status.value and not page.run.disabled


def test_no_one_watches_a_test(suite, tmp_path, monkeypatch):
    """Then it is one figure of both scenarios, and it has an alternative text."""
    assert not explorer.watched()
    figure, data, name, alt = explorer.static(suite)
    assert (data, name) == ("digits", "13_explorer") and "class: " in alt and "random: " in alt
    assert len(figure.subfigs) == 2
