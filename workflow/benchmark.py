"""Time the suite against the loops that it replaces, side by side on this machine: `./run_all.sh bench --help`.

The reference is the plain loop of the documents: a DataLoader with PIL transforms image by image, float32, contiguous
NCHW, fused attention, the whole forward pass for frozen layers, evaluation in the training batch size. Ours are the
functions that the notebooks call: `train`, `unlearn`, `predict`. Both do the same number of steps on batches of the
same size from the same weights, with the same number of threads, in turns. Images are random uint8 of CIFAR-10's
shape: nothing is learnt, nothing is said about accuracy.
"""

import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pandas as pd
import timm
import torch
from options import Parser, add_parameters, guarded, parameters_of
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torchvision import transforms
from torchvision.models import resnet18

from helpers import methods
from helpers.data import make_split
from helpers.datasets import Data, load_data
from helpers.devices import pick_device, precision
from helpers.metrics import predict
from helpers.models import build_model, trained_layers
from helpers.paths import ROOT, RUNS
from helpers.presets import PRESETS
from helpers.training import train, unlearn

DEVICE = pick_device()
GPU = {"TFLOP/s": 100, "ms a step": 10}  # what one modern GPU is assumed to sustain in bfloat16, and its shortest step

# --- the reference ------------------------------------------------------------------------------------------------


class Pictures(Dataset):
    """The images of some `Batches` as PIL pictures, transformed one by one."""

    def __init__(self, batches, augment):
        self.images, self.labels = batches.images[batches.index].cpu().numpy(), batches.y.cpu()
        crop = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if augment else []
        size = [transforms.Resize(batches.image_size)] if batches.image_size != 32 else []
        norm = transforms.Normalize(batches.mean, batches.std)
        self.transform = transforms.Compose([*crop, *size, transforms.ToTensor(), norm])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.images[i])), self.labels[i]


def loader(batches, batch_size, augment=False):
    return DataLoader(Pictures(batches, augment), batch_size, shuffle=batches.shuffle)


def plain_model(model, name, image_size, patch_size):
    """The same weights in a network as its library builds it: contiguous, fused attention, no taps left out."""
    if name == "resnet18":
        plain = resnet18(num_classes=10)
    else:
        plain = timm.create_model(name, num_classes=10, img_size=image_size, patch_size=patch_size)
        for block in plain.blocks:
            block.attn.fused_attn = True
    plain.load_state_dict({key: value.contiguous() for key, value in model.state_dict().items()})
    return plain.to(DEVICE)


def step(model, batch, optimizer, strength=1.0):
    """One gradient step in its usual form."""
    x, y = (part.to(DEVICE) for part in batch)
    loss = strength * cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def plain_training(model, batches, batch_size, optimizer, lr):
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
    optimizer = kind(model.parameters(), lr, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    model.train()
    for batch in loader(batches, batch_size, augment=True):
        step(model, batch, optimizer)


def plain_selective(model, split, batch_size, alternating, retained):
    """An epoch of M2 (`retained`), M5 (`alternating`) or M6 (both): only layer4 and fc train."""
    model.eval().requires_grad_(False)
    trained_layers(model).train().requires_grad_(True)
    optimizer = torch.optim.SGD(trained_layers(model).parameters(), 1e-3, 0.9, weight_decay=5e-4)
    if alternating:
        for forgotten, kept in zip(loader(split.forget, batch_size), loader(split.retain, batch_size)):
            step(model, kept, optimizer)
            step(model, forgotten, optimizer, -0.4)
    if retained:
        for batch in loader(split.retain, batch_size):
            step(model, batch, optimizer)


@torch.no_grad()
def plain_evaluation(model, sets, batch_size):
    model.eval()
    return {
        name: torch.cat([model(x.to(DEVICE)).cpu() for x, _ in loader(batches, batch_size)])
        for name, batches in sets.items()
    }


# --- the cases ----------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """`reference` and `ours` accept a function to call at the start, at the end and in between of what is timed."""

    name: str
    images: int  # that each side's timed part serves
    reference: object
    ours: object
    set_up: int = 0  # how many laps of ours come first, in which the frozen part's outputs are computed, too


def synthetic(train_images, test_images):
    generator = torch.Generator().manual_seed(0)

    def part(count):
        x = torch.randint(256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8)
        return x, torch.arange(count) % 10

    parts = [*part(train_images), *part(test_images)]
    return Data("synthetic", "random images", tuple("abcdefghij"), *parts, identity="0" * 12, flip=True)


def pair(name, **size):
    """Ours and the reference's network, with the same weights."""
    size = {"image_size": 32, "patch_size": 16, **size}
    model = build_model(name, **size).to(DEVICE)
    return model, plain_model(model, name, **size)


def training_case(title, name, images, batch_size, optimizer, lr, batches, **size):
    model, plain = pair(name, **size)
    split = make_split(synthetic(images, 20), forget_fraction=0.5, device=DEVICE, **batches)  # only `train` is used

    def ours(lap):
        lap()
        train(model, split.train, epochs=1, batch_size=batch_size, lr=lr, optimizer=optimizer)
        lap()

    def reference(lap):
        lap()
        plain_training(plain, split.train, batch_size, optimizer, lr)
        lap()

    return Case(title, images, reference, ours)


def selective_case(title, method, images, batch_size, alternating, retained):
    model, plain = pair("resnet18")
    split = make_split(synthetic(images, 20), forget_fraction=0.5, device=DEVICE)  # an epoch sees all images
    served = alternating * 2 * len(split.forget.index) + retained * len(split.retain.index)
    settings = {"epochs": 2} | ({"final": int(retained)} if alternating else {})

    def ours(lap):
        lap()
        unlearn(method, model, split, batch_size=batch_size, track=lambda model: lap() or {}, settings=settings)

    def reference(lap):
        lap()
        plain_selective(plain, split, batch_size, alternating, retained)
        lap()

    return Case(title, served, reference, ours, set_up=1)


def evaluation_case(title, name, images, batch_size, batches, **size):
    model, plain = pair(name, **size)
    sets = make_split(synthetic(images, images // 5), device=DEVICE, **batches).sets

    def ours(lap):
        lap()
        for batches in sets.values():
            predict(model, batches)
        lap()

    def reference(lap):
        lap()
        plain_evaluation(plain, sets, batch_size)
        lap()

    return Case(title, images + images // 5, reference, ours)


VIT = "vit_tiny_patch16_224"
CASES = {  # what to call it in --cases: how to make it at a size, 1 for the real thing, 0 for a look whether it runs
    "vit32": lambda size: training_case(
        *("ViT-Tiny 32/4, training steps", VIT, [16, 256][size], [8, 128][size], "adamw", 1e-4, {}), patch_size=4
    ),
    "vit224": lambda size: training_case(
        *("ViT-Tiny 224/16, training steps", VIT, [4, 64][size], [2, 64][size], "sgd", 1e-4, {"image_size": 224}),
        image_size=224,
    ),
    "resnet": lambda size: training_case(
        *("ResNet-18, training epoch", "resnet18", [32, 2048][size], [16, 128][size], "sgd", 1e-3, {})
    ),
    "M2": lambda size: selective_case("M2, epoch", "M2 Selective FT", [64, 2048][size], [16, 128][size], False, True),
    "M5": lambda size: selective_case("M5, epoch", "M5 Per batch", [64, 2048][size], [16, 128][size], True, False),
    "M6": lambda size: selective_case("M6, epoch", "M6 Per batch + FT", [64, 2048][size], [16, 128][size], True, True),
    "evaluation": lambda size: evaluation_case(
        "ResNet-18, evaluation of all sets", "resnet18", [60, 2500][size], [16, 128][size], {}
    ),
    "vit32evaluation": lambda size: evaluation_case(
        "ViT-Tiny 32/4, evaluation of all sets", VIT, [20, 250][size], [8, 128][size], {}, patch_size=4
    ),
}

EXTRAS = ["notebook", "growth", "presets"]

# --- measuring ----------------------------------------------------------------------------------------------------


def clock():
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def laps(side, read=clock):
    """The values of `read` at each lap of a side."""
    found = []
    side(lambda: found.append(read()))
    return found


def seconds(side, set_up=0):
    found = laps(side)
    return found[-1] - found[set_up]


def attention_flops(q, k, v, *_, **__):
    return sdpa_flop_count(q, k, v)


def attention_backward_flops(gradient, q, k, v, *_, **__):
    return sdpa_backward_flop_count(gradient, q, k, v)


ON_CPU = {  # operations that torch's counter lacks
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}


def flops(side, set_up=0):
    """Multiplications and additions of matrix products, convolutions and attention that a side computes."""
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        found = laps(side, counter.get_total_flops)
    return found[-1] - found[set_up]


def peak_memory(side):
    """The most memory in MiB that the process (on CUDA: PyTorch) held while `side` ran."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        side(lambda: None)
        return torch.cuda.max_memory_allocated() / 2**20
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if reset.exists():
        reset.write_text("5")
    side(lambda: None)
    if reset.exists():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes, and of the whole run


def matmul_limit(dtype, side=2048, times=5):
    """FLOP/s of this machine's best product of two square matrices."""
    a, b = (torch.randn(side, side, device=DEVICE).to(dtype) for _ in range(2))
    a @ b
    taken = []
    for _ in range(times):
        start = clock()
        a @ b
        taken.append(clock() - start)
    return 2 * side**3 / min(taken)


def set_up_note(case, reference, ours, epochs=(5, 100)):
    """How the ratio over whole runs changes, since the frozen part's outputs are computed once."""
    found = laps(case.ours)
    once = max(found[case.set_up] - found[0] - case.set_up * ours, 0)
    ratios = " and ".join(f"{n * reference / (once + n * ours):.1f} over {n}" for n in epochs)
    return f"{case.name}: {once:.1f} s once for the frozen part's outputs; with them the ratio is {ratios} epochs."


def measure(case, rounds, notes):
    """The row of one case; remarks for below the table go to `notes`."""
    sides = {"reference": (case.reference, 0), "ours": (case.ours, case.set_up)}
    memory = {name: peak_memory(side) for name, (side, _) in sides.items()}  # warms up, too
    work = {name: flops(*side) for name, side in sides.items()}
    taken = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            taken[name].append(seconds(*side))
    if case.set_up:
        notes.append(set_up_note(case, statistics.median(taken["reference"]), statistics.median(taken["ours"])))
    ratios = [slow / fast for slow, fast in zip(taken["reference"], taken["ours"])]
    middle = {name: statistics.median(times) for name, times in taken.items()}
    return {
        "case": case.name,
        "reference, images/s": f"{case.images / middle['reference']:,.0f}",
        "ours, images/s": f"{case.images / middle['ours']:,.0f}",
        "ratio (lowest to highest)": f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        "% of limit": tuple(work[name] / middle[name] for name in sides),  # FLOP/s; `main` divides by the limits
        "peak MiB": f"{memory['reference']:,.0f} v. {memory['ours']:,.0f}",
    }


# --- the comparison notebook --------------------------------------------------------------------------------------


def notebook_seconds(data, preset):
    """How long notebook 10 runs on models that `runs/` holds, in seconds; None if the run's folder has none."""
    if not (RUNS / "suite" / f"{load_data(data).name}-{preset}" / "10.json").exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "papermill", "notebooks/10_comparison.ipynb", f"{folder}/10.ipynb"]
        command += [
            "-k",
            "python3",
            "--cwd",
            "notebooks",
            "--no-progress-bar",
            "-p",
            "data",
            data,
            "-p",
            "preset",
            preset,
        ]
        start = time.perf_counter()
        subprocess.run(
            command, cwd=ROOT, env={**os.environ, "UNLEARNING_OUTPUT": folder}, check=True, capture_output=True
        )
        return time.perf_counter() - start


# --- how cost grows -----------------------------------------------------------------------------------------------


def growth(images):
    """Seconds of unlearning against images, epochs and methods: twice as much should take twice as long."""
    model = build_model().to(DEVICE)

    def run(images, epochs, methods):
        split = make_split(synthetic(images, 20), device=DEVICE)
        for _ in range(methods):
            unlearn("M1 Retain FT", model, split, {"epochs": epochs}, batch_size=128)

    run(images, 1, 1)
    rows = []
    for factor in (1, 2, 4):
        row = {"times": factor}
        for i, what in enumerate(("images", "epochs", "methods")):
            amount = [images, 1, 1]
            amount[i] *= factor
            start = clock()
            run(*amount)
            row[f"{what}, s"] = f"{clock() - start:.2f}"
        rows.append(row)
    return rows


# --- what the presets cost ----------------------------------------------------------------------------------------

FROZEN = ("M2 Selective FT", "M3 Reversal", "M4 Per epoch", "M5 Per batch", "M6 Per batch + FT")  # backbone frozen


def jobs_of(scenario, table, count, names):
    """`{job: {kind: images}}` on `count` training images, a job being Original, a Gold or one of the methods `names`.

    Kinds: trained, selective (the frozen part computed once), evaluated. Counted by running every method, with its own
    number of epochs, on 500 one-pixel images and a toy network.
    """
    x = torch.zeros(500, 1, 1, 3, dtype=torch.uint8)
    y = torch.arange(500) % 10
    data = Data("one pixel", "one pixel", tuple("abcdefghij"), x, y, x[:100], y[:100], identity="0" * 12, flip=True)
    split = make_split(data, scenario, image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3)
    scale = count / 500
    shared = {**table["unlearning"], "batch_size": 50}
    if "retain_limit" in shared:
        shared["retain_limit"] = round(shared["retain_limit"] / scale)
    final, tracked = (table["evaluation"][what] or count for what in ("final", "tracked"))
    sets = min(final, count) + 0.1 * count + 0.2 * count
    panel = sum(min(tracked, share * count) for share in (0.9, 0.1, 0.1))
    epochs = table["training"]["epochs"]
    retained = len(split.retain.index) * scale
    jobs = {"Original": {"trained": epochs * count * ("original" not in table), "evaluated": sets + epochs * panel}}
    for number in range(table["golds"]):
        jobs[f"Gold {number + 1}"] = {"trained": epochs * retained, "evaluated": sets + epochs * panel}
    for name in names:
        settings = {**table["methods"], **table["published"]}[name]
        if "lr" in methods.find(name).defaults:
            settings = {**settings, "lr": 1e-9}  # nothing diverges
        result = unlearn(name, slim_network(), split, settings, **shared)
        job = Counter(trained=result.cost["images"], evaluated=0)
        if name in FROZEN:  # each image's way through the frozen part is like an evaluation
            job = Counter(selective=result.cost["images"], evaluated=min(500, result.cost["images"]))
        jobs[name] = {kind: images * scale for kind, images in job.items()}
        jobs[name]["evaluated"] += sets + result.history[-1]["epoch"] * panel
    return jobs


def slim_network():
    """A vision transformer for tiny images that costs next to nothing."""
    slim = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 4, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", num_classes=10, **slim)


def images_of(scenario, table, count):
    """`{kind: images}` that the models of notebooks 01 to 10 process."""
    total = Counter(trained=0, selective=0, evaluated=0)
    for job in jobs_of(scenario, table, count, table["methods"]).values():
        total.update(job)
    return dict(total)


@cache
def cpu_and_gpu(preset, scenario):
    """Functions for the seconds of a job of `jobs_of`: here, as measured, and on a GPU, by arithmetic."""
    table = PRESETS[preset][scenario]
    rate, work = rates(table)

    def here(job):
        return sum(images / rate[kind] for kind, images in job.items())

    def gpu(job):
        stepping = job.get("trained", 0) + job.get("selective", 0)
        steps = stepping / table["unlearning"]["batch_size"]
        arithmetic = (stepping + job.get("evaluated", 0) / 3) * work / (GPU["TFLOP/s"] * 1e12)
        return max(arithmetic, steps * GPU["ms a step"] / 1000)

    return here, gpu


def rates(table):
    """Images/s of ours on this machine, by kind, and FLOPs per image of a training step, for a scenario's network."""
    batch, size = table["training"]["batch_size"], table["batches"]["image_size"]
    images = batch * (2 if size > 32 else 6)
    model = build_model(**{**table["model"], "weights": None}).to(DEVICE)
    split = make_split(synthetic(images, images), device=DEVICE, **table["batches"])

    def training(lap):
        lap()
        train(model, split.train, epochs=1, batch_size=batch, lr=1e-4)
        lap()

    def selective(lap):
        settings = {"epochs": 2, "lr": 1e-4}
        unlearn("M2 Selective FT", model, split, settings, batch_size=batch, track=lambda _: lap() or {})

    def evaluation(lap):
        lap()
        predict(model, replace(split.train, shuffle=False, batch_size=500))
        lap()

    training(lambda: None)
    found = {"trained": images / seconds(training), "evaluated": images / seconds(evaluation)}
    cached = size == 32  # larger ones would not fit in memory: the frozen part is computed anew at each step
    found["selective"] = len(split.retain.index) / seconds(selective) if cached else found["trained"]
    return found, flops(training) / images


def preset_costs(names, count):
    """One row per preset and scenario: images by kind, hours here, and hours on a GPU by arithmetic."""
    rows = []
    for name in names:
        for scenario, table in PRESETS[name].items():
            number = 1437 if name == "quick" else count  # digits
            seen = images_of(scenario, table, number)
            here, gpu = cpu_and_gpu(name, scenario)
            rows.append({
                "preset": f"{name}, {scenario}",
                "images": f"{number:,}",
                **{f"{kind}, thousands": f"{images / 1000:,.0f}" for kind, images in seen.items()},
                "hours here": f"{here(seen) / 3600:.2f}",
                "hours on a GPU": f"{gpu(seen) / 3600:.2f}",
            })  # fmt: skip
    return rows


# --- what is printed ----------------------------------------------------------------------------------------------


def main(arguments=None):
    parser = Parser(prog="run_all.sh bench", description=__doc__.split("\n")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--cases", nargs="+", choices=[*CASES, *EXTRAS], help="only these (default: all)")
    add("--rounds", type=int, default=5, help="how often each side is timed, in turns (default: 5)")
    add("--tiny", action="store_true", help="a few images: does it run?")
    add("--markdown", action="store_true", help="tables in Markdown")
    add_parameters(parser, ("data", "preset"))
    options = parser.parse(sys.argv[1:] if arguments is None else arguments)
    parameters_of(options, parser)
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    chosen = options.cases or [*CASES, *EXTRAS]
    if "notebook" in chosen:
        load_data(options.data)  # refused before anything is timed
    limits = {
        name: matmul_limit(getattr(torch, name), 256 if options.tiny else 2048) for name in ("float32", "bfloat16")
    }
    rows, notes = [], []
    for name in filter(CASES.get, chosen):
        for dtype in limits:  # anew for each case, the best counts: other work on the machine lowers it
            limits[dtype] = max(limits[dtype], matmul_limit(getattr(torch, dtype), 256 if options.tiny else 2048))
        rows.append(measure(CASES[name](0 if options.tiny else 1), options.rounds, notes))
        print(f"{rows[-1]['case']}: {rows[-1]['ratio (lowest to highest)']}", file=sys.stderr, flush=True)
    for row in rows:
        shares = zip(row["% of limit"], (limits["float32"], limits[precision(DEVICE)]))
        row["% of limit"] = " v. ".join(f"{100 * speed / limit:.0f}" for speed, limit in shares)
    print(
        f"{DEVICE.type}, {torch.get_num_threads()} threads on both sides, torch {torch.__version__}; reference "
        f"in float32, ours in {precision(DEVICE)}; matrix products at best {limits['float32'] / 1e9:,.0f} GFLOP/s in "
        f"float32, {limits['bfloat16'] / 1e9:,.0f} in bfloat16; {options.rounds} rounds in turns, medians; the ratio "
        "is the median of the rounds' ratios; % of limit: reference v. ours, of those matrix products.\n"
    )
    show(rows, options.markdown)
    print("".join(f"{note}\n" for note in notes))
    if "notebook" in chosen:
        took = notebook_seconds(options.data, options.preset)
        where = f"notebook 10 on {options.data}, preset {options.preset}, models cached"
        print(f"{where}: {took:.0f} s\n" if took else f"{where}: not timed, runs/ has no finished suite of these\n")
    if "growth" in chosen:
        print("M1 on ResNet-18, seconds for 1, 2 and 4 times as much:\n")
        show(growth(32 if options.tiny else 1024), options.markdown)
    if "presets" in chosen:
        print(
            "What a whole suite costs. Hours here: images of a kind over the images/s of that kind, measured on random "
            f"images just now.\nOn a GPU (not measured): arithmetic at {GPU['TFLOP/s']} TFLOP/s, an evaluation being a "
            f"third of a step, or steps of {GPU['ms a step']} ms, whichever is more.\n"
        )
        show(preset_costs(["smoke"] if options.tiny else ["quick", "short", "documents"], 50_000), options.markdown)


def show(rows, markdown):
    """Print rows as a table, in Markdown as README.md has them."""
    if not rows:
        return
    if markdown:
        lines = [list(rows[0]), ["---", *["---:"] * (len(rows[0]) - 1)], *(list(row.values()) for row in rows)]
        print("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n")
    else:
        print(pd.DataFrame(rows).to_string(index=False) + "\n")


if __name__ == "__main__":
    sys.exit(guarded(main, "run_all.sh bench"))
