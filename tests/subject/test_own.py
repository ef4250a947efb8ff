"""A reader's own images, list of images to forget, network and method."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from helpers import paths
from helpers.datasets import load_data, read_forget_list
from helpers.experiment import Experiment
from helpers.training import EpochEnd, Phase

SMALL = {"name": "mobilenetv3_small_050"}


def soften(model, split, *, epochs=2, lr=1e-3):
    """An own method: towards uniform predictions on forgotten images."""
    yield Phase(lr)
    for _ in range(epochs):
        for (x_f, _), (x_r, y_r) in zip(split.forget, split.retain):
            yield cross_entropy(model(x_r), y_r) - model(x_f).log_softmax(1).mean()
        yield EpochEnd()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of three classes in images of several sizes, and a list of some to forget."""
    folder = tmp_path_factory.mktemp("own") / "photos"
    rng = np.random.default_rng(3)
    for name, colour in {"apple": (200, 40, 40), "leaf": (40, 180, 60), "sky": (60, 90, 220)}.items():
        (folder / name).mkdir(parents=True)
        for number in range(40):
            size = (int(rng.integers(30, 60)), int(rng.integers(30, 60)), 3)
            pixels = np.clip(np.array(colour) + rng.integers(-40, 40, size), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def own(photos):
    """An experiment on these images that forgets what a file lists, with one method of the suite's and an own one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "RUNS", photos.parent / "runs")
        patch.setenv("UNLEARNING_PROGRESS", str(photos.parent / "progress"))
        data = load_data(str(photos))
        listed = photos.parent / "forget.txt"
        listed.write_text("# to be removed\n" + "\n".join(data.files[3:20]) + f"\n\n{data.files[3]}\n40\n")
        e = Experiment(data, "random", "smoke", forget_index=read_forget_list(listed, data), model=SMALL)
        yield e, e.unlearn("Soften (mine)", soften)


def test_forget_list_names_files_and_indices(own):
    """The named files and the index are forgotten, nothing else; all others are retained."""
    split = own[0].split
    assert split.forget.index.sort().values.tolist() == [*range(3, 20), 40]
    assert sorted(split.retain.index.tolist() + split.forget.index.tolist()) == list(range(len(own[0].data.train_y)))


def test_files_are_those_of_the_images(own, photos):
    """The file at a place, decoded by itself, is the image at that place."""
    data = own[0].data
    assert len(data.files) == len(data.train_y)
    for i in (0, 7, 50):
        assert data.files[i].split("/")[0] == data.classes[data.train_y[i]]
        mean = np.asarray(Image.open(photos / data.files[i]).convert("RGB"), float).mean()
        assert abs(data.train_x[i].double().mean().item() - mean) < 6


def test_another_seed_forgets_the_same_list(own):
    e, _ = own
    assert e.with_seed(1).split.forget.index.equal(e.split.forget.index)
    other = Experiment(e.data, "random", "smoke", forget_index=torch.tensor([1, 2, 3]), model=SMALL)
    assert other.split_settings != e.split_settings


def test_an_own_method_is_a_run_like_the_others(own):
    e, mine = own
    assert (mine.name, mine.kind, mine.settings) == ("Soften (mine)", "method", {"epochs": 2, "lr": 1e-3})
    assert [entry["epoch"] for entry in mine.history] == [0, 1, 2] and mine.cost["steps"] > 0
    assert mine.name in [run.name for run in e.finished()]
    again = e.unlearn("Soften (mine)", soften, epochs=1)
    assert again.settings["epochs"] == 1 and again.id != mine.id
    with pytest.raises(ValueError, match="epochs must be a whole number"):
        e.unlearn("Soften (mine)", soften, epochs=-1)


def test_any_network_of_timm_is_trained_and_unlearned(own):
    """A MobileNet, the selective methods included."""
    e, _ = own
    assert e.original().made_with["model"]["name"] == SMALL["name"]
    assert type(e.original().model).__name__ == "MobileNetV3"
    run = e.unlearn("M2 Selective FT")
    ours, theirs = run.model.state_dict(), e.original().model.state_dict()
    changed = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert "classifier.weight" in changed and "conv_stem.weight" not in changed
