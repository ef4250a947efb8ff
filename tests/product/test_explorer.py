"""The explorer: what it finds, what it shows, how fast it answers; the live page runs, stops and compares."""

import re
import shutil
import time

import ipywidgets as widgets
import numpy as np
import pytest

from helpers import explorer, methods, paths
from helpers.datasets import load_data
from helpers.experiment import Experiment
from helpers.methods import METHODS, Method
from helpers.metrics import js_distance
from helpers.training import EpochEnd, Phase

RUN = ("Gradient ascent", "M2 Selective FT")


def soften(model, split, *, lr=1e-3):
    """A method from outside the suite."""
    yield Phase(lr)
    for x, _ in split.forget:
        yield -model(x).log_softmax(1).mean()
    yield EpochEnd()


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Two scenarios with Original, two Golds and two methods, and a function from outside in one of them."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("explorer")
        patch.setattr(paths, "RUNS", folder / "runs")
        patch.setenv("UNLEARNING_PROGRESS", str(folder / "progress"))
        made = [Experiment(load_data(), scenario, "smoke") for scenario in ("class", "random")]
        for e in made:
            e.original(), e.golds(), [e.unlearn(name) for name in RUN]
        made[0].unlearn("Soften", soften)
        yield made


def names(e):
    return [run.name for run in e.finished()]


def test_looking_changes_no_file_and_passes_over_damaged_ones(suite, tmp_path, monkeypatch):
    """A truncated model counts as missing, as does one that disappears; the others are found."""
    shutil.copytree(paths.RUNS, tmp_path / "runs")
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    e = Experiment(load_data(), "class", "smoke")
    assert names(e) == ["Original", "Gold", "Gold 2", *RUN, "Soften"]
    [model] = e.folder.glob("*soften*.safetensors")
    model.write_bytes(model.read_bytes()[:-1])
    (e.folder / "gone.safetensors").symlink_to("nowhere")
    before = {file: file.lstat().st_mtime_ns for file in tmp_path.rglob("*")}
    fresh = Experiment(load_data(), "class", "smoke")
    assert names(fresh) == ["Original", "Gold", "Gold 2", *RUN] and fresh.complete_seeds() == [0]
    assert {file: file.lstat().st_mtime_ns for file in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("panel", explorer.PANELS)
def test_each_panel_describes_what_it_shows(suite, panel):
    """Each is an image with its pixels and an alternative text that names the method or the models."""
    for e in suite:
        markup = explorer.picture(panel, explorer.View(explorer.Results(e), "Gradient ascent"))
        assert re.search(r'<img src="data:image/png;base64,\w', markup) and "http" not in markup
        [alt] = re.findall(r'alt="([^"]+)"', markup)
        assert "Original" in alt or "Gradient ascent" in alt


def test_image_tab_starts_where_method_and_gold_differ_most(suite):
    """Its distance, written beneath the picture, is the largest; the last image's is the smallest."""
    results = explorer.Results(suite[0])
    view = explorer.View(results, "Gradient ascent")
    distances = js_distance(view.logits(view.run), view.logits(results.runs["Gold"])).numpy()
    for image, expected in ((0, distances.max()), (len(distances) - 1, distances.min())):
        markup = explorer.picture("Images", explorer.View(results, "Gradient ascent", image=image))
        assert float(re.search(r"JSD to Gold (\d\.\d+)", markup)[1]) == pytest.approx(expected, abs=6e-4)


def test_epoch_0_is_original(suite):
    """The slider begins at Original's tracked accuracy."""
    e = suite[0]
    results = explorer.Results(e)
    markup = explorer.picture("Accuracy", explorer.View(results, "Gradient ascent", epoch=0))
    tracked = e.track(e.original().model)["tracked"]
    assert all(f"{name} {value:.1f} %" in markup for name, value in tracked.items())


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
    assert list(page.method.options) == [*RUN, "Soften"] and "Gradient ascent" in page.table.value
    images = list(explorer.PANELS).index("Images")
    changes = [(page.method, "value", RUN[1]), (page.epoch, "value", 1), (page.scenario, "value", "random")]
    changes += [(page.tabs, "selected_index", images), (page.image, "value", 5), (page.method, "value", RUN[0])]
    changes += [(page.tabs, "selected_index", tab) for tab in range(len(explorer.PANELS)) if tab != images]
    seconds = []
    for control, trait, value in changes:
        before, started = (shown(), page.table.value), time.process_time()
        setattr(control, trait, value)
        seconds.append(time.process_time() - started)
        assert (shown(), page.table.value) != before, f"{control.description} = {value} changes nothing"
    assert np.median(seconds) < 0.3


def test_page_without_a_model_offers_to_train_it(suite, tmp_path, monkeypatch):
    """Opening it trains nothing; the button trains and reports progress, and the page fills."""
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    page = explorer.Explorer([Experiment(load_data(), "class", "smoke")])
    assert page.body.layout.display == "none" and not (tmp_path / "runs" / "models").exists()
    [box] = page.offer.children
    status, button = box.children
    assert "Train Original, Gold and Fine-tuning" in status.value
    lines = []
    status.observe(lambda change: lines.append(change.new), "value")
    button.click()
    wait_until(lambda: page.body.layout.display is None)
    assert any("epoch" in line for line in lines) and list(page.method.options) == ["Fine-tuning"]


def wait_until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# --- live ---------------------------------------------------------------------------------------------------------


def controls(page):
    return {control.description: control for control in page.settings.children}


def test_live_runs_stops_and_compares(suite):
    """Controls reach the method; the curves start at epoch 0; a stopped run stays visible; the last one is compared."""
    page = explorer.Live(suite)
    page.method.value = "Gradient ascent"
    controls(page)["epochs"].value = 3
    page.run.click()
    assert page.run.disabled
    page.thread.join()
    assert [entry["epoch"] for entry in page.history] == [0, 1, 2, 3] and "finished after 3 epochs" in page.status.value
    e = suite[0]
    assert page.history[0]["tracked"] == e.track(e.original().model)["tracked"]
    assert not page.run.disabled and page.stop.disabled and "<img" in page.curves.value
    controls(page)["epochs"].value = 20
    page.run.click()
    wait_until(lambda: len(page.history) > 1)
    page.stop.click()
    page.thread.join()
    assert 2 <= len(page.history) < 21 and "stopped after" in page.status.value
    assert len(page.last) == 4 and all(word in page.status.value for word in ("this run", "last run", "Gold"))


def test_live_has_both_scenarios(suite):
    page = explorer.Live(suite)
    assert {"UNSIR", "Gradient ascent"} <= {*page.method.options} and "ReGUn" not in page.method.options
    page.scenario.value = suite[1]
    assert "ReGUn" in page.method.options and "UNSIR" not in page.method.options


def test_2_stage_full_runs_live_with_its_batch_size(suite):
    """A method may have a setting of the same name as the driver."""
    page = explorer.Live(suite)
    page.method.value = "2-Stage full"
    controls(page)["batch_size"].value = 16
    page.run.click()
    page.thread.join()
    assert "finished" in page.status.value and len(page.history) > 1


@pytest.mark.parametrize("scenario", [0, 1], ids=["class", "random"])
def test_every_method_has_a_control_for_each_setting_at_its_value(suite, scenario):
    """What is not changed reaches the method exactly as the preset has it."""
    e = suite[scenario]
    page = explorer.Live([e])
    assert {*e.methods, *e.published} == {*page.method.options}
    for name in page.method.options:
        page.method.value = name
        values = {setting: control.value for setting, control in controls(page).items()}
        assert values == e.settings(name) and METHODS[name].check(values) == values


def test_controls_have_the_types_and_ranges_of_settings(suite):
    page = explorer.Live(suite[1:])
    page.method.value = "H4 Unfreezing"
    found = controls(page)
    assert isinstance(found["lr"], widgets.FloatLogSlider) and isinstance(found["epochs"], widgets.IntSlider)
    assert (found["frozen_share"].min, found["frozen_share"].max, found["epochs"].min) == (0, 1, 1)
    page.method.value = "EU-k"
    found = controls(page)
    assert isinstance(found["reset"], widgets.Checkbox) and "cosine" in found["schedule"].options


def test_a_registered_method_runs_live(suite, monkeypatch):
    monkeypatch.setitem(METHODS, "Soften more", Method("Soften more", soften, settings={"lr": 2e-3}))
    page = explorer.Live(suite)
    assert page.method.options[-1] == "Soften more"
    page.method.value = "Soften more"
    assert controls(page)["lr"].value == 2e-3 and methods.find("Soften more").idea == "own"
    page.run.click()
    page.thread.join()
    assert "finished after 1 epoch." in page.status.value


def test_a_live_run_that_diverges_is_reported(suite):
    """The message is shown and the buttons come back."""
    page = explorer.Live(suite[1:])
    page.method.value = "Gradient ascent"
    controls(page)["lr"].max = 30
    controls(page)["lr"].value = 1e20
    page.run.click()
    page.thread.join()
    assert "diverged" in page.status.value and not page.run.disabled


def test_without_a_viewer_there_is_one_figure(suite):
    """Of both scenarios, with an alternative text."""
    assert not explorer.watched()
    figure, alt = explorer.static(suite)
    assert "class: " in alt and "random: " in alt and len(figure.subfigs) == 2
