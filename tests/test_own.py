"""One's own images, list of images to forget, method and network; and the summary for those who asked."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from helpers import plots, runs
from helpers.certificate import certificate, row
from helpers.data import load_data, read_forget_list
from helpers.experiment import Experiment
from helpers.models import early, tail
from helpers.notebook import gap_points, table
from helpers.training import EpochEnd, Phase

SMALL = {"name": "mobilenetv3_small_050"}


def soften(model, split, *, epochs=2, lr=1e-3):
    """README's method of one's own."""
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
        patch.setattr(runs, "RUNS", photos.parent / "runs")
        patch.setenv("UNLEARNING_PROGRESS", str(photos.parent / "progress"))
        data = load_data(str(photos))
        asked = photos.parent / "asked.txt"
        asked.write_text("# these asked to be removed\n" + "\n".join(data.files[3:20]) + f"\n\n{data.files[3]}\n40\n")
        e = Experiment(data, "random", "smoke", forget_index=read_forget_list(asked, data), model=SMALL)
        yield e, e.unlearned("Soften (mine)", soften)


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


@pytest.mark.parametrize(
    "text, message",
    [
        ("apple/00.pgn", "line 1: 'apple/00.pgn' is no training image"),
        ("# a\n\n99999", "line 3: '99999' is no training image"),
        ("-1", "line 1: '-1'"),
        ("# nothing", "names no image"),
    ],
)
def test_bad_forget_list_is_refused(own, tmp_path, text, message):
    file = tmp_path / "asked.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        read_forget_list(file, own[0].data)


def test_a_forget_list_may_begin_with_a_byte_order_mark(own, tmp_path):
    """As Windows' editors write it."""
    (tmp_path / "asked.txt").write_text(f"{own[0].data.files[3]}\n", encoding="utf-8-sig")
    assert read_forget_list(tmp_path / "asked.txt", own[0].data).tolist() == [3]


def test_list_and_fraction_are_kept_apart(own):
    """Another list, and a fraction, are other experiments; a budget that cuts the images takes no list."""
    e = own[0]
    other = Experiment(e.data, "random", "smoke", forget_index=torch.tensor([1, 2, 3]), model=SMALL)
    share = Experiment(e.data, "random", "smoke", model=SMALL)
    assert len({runs.key(x.split_settings) for x in (e, other, share)}) == 3
    assert e.with_seed(1).split.forget.index.equal(e.split.forget.index)
    with pytest.raises(ValueError, match="a list of images needs another one"):
        Experiment(load_data("digits"), "random", "smoke", forget_index=torch.tensor([1, 2]))


def test_own_method_joins_tables_and_figures(own):
    """Beside one of the suite's methods, with its accuracy, gap and cost."""
    e, mine = own
    results = e.table(["M1 Retain FT", mine])
    rows = table(results, "random")
    assert {"Original", "Gold", "M1 Retain FT", "Soften (mine)"} <= set(rows.index)
    points = gap_points(results)
    assert points.set_index("method").cost["Soften (mine)"] > 0
    assert "Soften (mine)" in [text.get_text() for text in plots.gap_against_cost(points).axes[0].texts]
    assert mine.name in [run.name for run in e.there()]


def test_any_network_of_timm_or_a_word_why_not(own):
    """Methods for the whole network ran above on a MobileNet; those that need its end say what they need."""
    e = own[0]
    assert e.original.settings["model"] == SMALL and type(e.original.model).__name__ == "MobileNetV3"
    with pytest.raises(ValueError, match=r"M2 to M6, H4, CF-k and EU-k need a ResNet or a ViT with a class token"):
        e.unlearned("M2 Selective FT")
    for part in (tail, early):
        with pytest.raises(ValueError, match="no known tail"):
            part(timm.create_model("vit_tiny_patch16_224", img_size=32, global_pool="avg", class_token=False))


def test_tail_of_timms_resnet_is_its_end():
    """Trunk, then tail, gives what the network gives."""
    model = timm.create_model("resnet10t", num_classes=3).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        trunk = model.layer3(model.layer2(model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(x)))))))
        assert torch.allclose(tail(model)(trunk), model(x), atol=1e-6)


def test_certificate_says_what_was_done_and_what_not(own):
    """Numbers are those of the table, the verdict follows from the floor, and the limits are named."""
    e, mine = own
    text = certificate(e, mine)
    assert "**Images**: 18 of 96 training images" in text and "Soften (mine)" in text and "epochs = 2" not in text
    results = e.table([mine]).query("metric == 'accuracy' and set == 'forget'").set_index("method").value
    before, now, gold, apart, floor, within = [
        cell.strip() for cell in re.search(r"\| accuracy on the forgotten images, % \|(.*)\|", text)[1].split("|")
    ]
    assert [float(v) for v in (before, now, gold)] == pytest.approx(
        [results["Original"], results["Soften (mine)"], results["Gold"]], abs=6e-4
    )
    assert float(apart) == pytest.approx(abs(results["Soften (mine)"] - results["Gold"]), abs=6e-4)
    assert float(floor) == pytest.approx(abs(results["Gold 2"] - results["Gold"]), abs=6e-4)
    assert within == ("yes" if float(apart) <= float(floor) else "no")
    assert "## What is not guaranteed" in text and "no check of a model can show that" in text
    assert [row.endswith("| yes |") for row in (certificate_row(5, 3), certificate_row(3, 3))] == [False, True]
    unmeasured = " not measurable |" * 5
    assert row("attack", *[float("nan")] * 4) == f"| attack |{unmeasured} not measurable |"


def test_no_certificate_for_what_diverged_or_followed_another_method(own):
    """One line that says why."""
    e, mine = own
    with pytest.raises(ValueError, match=r"Soften \(mine\) diverged: there is no model to certify"):
        certificate(e, replace(mine, diverged="soften diverged in epoch 1", cost={}))
    follower = {**mine.settings, "start": mine.settings}
    with pytest.raises(ValueError, match="started from what another method left: certify one with start = 'fresh'"):
        certificate(e, replace(mine, settings=follower))


def certificate_row(difference, floor):
    """The line of a check in which the model is that far from Gold."""
    return row("a check", 9.0, 10.0 - difference, 10.0, 10.0 + floor)


def test_readmes_examples_run(own, photos, tmp_path, monkeypatch, capsys):
    """The blocks of README.md on own images, methods and models, with a tiny budget and few methods."""
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("UNLEARNING_PROGRESS", str(tmp_path / "progress"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asked.txt").write_text("3\n4\n5\n9\n")
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert len(blocks) == 4
    changes = {"path/to/images": str(photos), '"quick"': '"smoke"', "[*suite[0].methods,": "[*suite[0].methods[:1],"}
    space = {"suite": [own[0]], "plots": plots}
    for number, block in enumerate(blocks):
        for old, new in changes.items():
            block = block.replace(old, new)
        (tmp_path / f"block{number}.py").write_text(block)  # a file, so that the method's source can be read
        exec(compile(block, tmp_path / f"block{number}.py", "exec"), space)
    assert "# What was forgotten by M5 Per batch" in capsys.readouterr().out
    assert "Soften (mine)" in set(space["results"].method) and space["e"].budget["model"] == SMALL
