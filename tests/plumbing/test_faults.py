"""Faults as they happen, injected for real: killed processes, full and read-only disks, hostile values.

Others are tested with the code that answers them: wrong options, failing cells, dead kernels, Ctrl-C, two runs at once
and no network in test_workflow.py; a cluster's in test_slurm.py; damaged files and two processes that want one model in
test_store.py and test_experiment.py; broken images and data sets in test_data.py; hostile checkpoints in
test_models.py; a user's weights, networks, methods and lists, and folders that change, in test_weights.py,
test_own_files.py, test_lists.py and test_forget.py; divergence and resuming in test_training.py; bad parameters in
test_parameters.py.
"""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import nbformat
import psutil
import pytest
import torch
from PIL import Image
from repository import PATIENCE, ROOT, execute, make_repository, notebooks_run, order, running_suite, suite, wait_until
from safetensors.torch import load_file

from helpers import paths, store
from helpers.data import make_split
from helpers.datasets import load_data, subset
from helpers.training import Checkpoint, train

as_root = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="only root can mount a disk")


@contextmanager
def disk(folder, options):
    """A file system of its own at `folder`, with these options of `mount`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


# Killed processes


def save_for_ever(path):
    number = 0
    while True:
        number += 1
        store.save(path, {}, {"w": torch.full((20_000,), float(number))}, number=number)


def test_a_save_that_is_killed_leaves_the_old_file_or_the_new_one(runs_folder):
    """kill -9 at twenty moments: what lies there is always whole and fits its record."""
    path = runs_folder / "m.safetensors"
    store.save(path, {}, {"w": torch.zeros(20_000)}, number=0)
    for moment in range(20):
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(path,))
        process.start()
        time.sleep(0.02 + 0.003 * moment)
        process.kill()
        process.join()
        record, tensors = store.load(path, {})
        assert torch.equal(tensors["w"], torch.full((20_000,), float(record["number"])))


def train_briefly(folder, number=0):
    """Four epochs on digits, with that signal to itself in mid-epoch; the number of steps and the weights' digest."""
    split = make_split(subset(load_data(), 200))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    steps = []

    def count(*_):
        steps.append(1)
        if number and len(steps) == 5:  # two batches of 100 an epoch
            os.kill(os.getpid(), number)

    model.register_forward_hook(count)
    checkpoint = Checkpoint(Path(folder) / "c.safetensors", {}, every=0)
    train(model, split.train, epochs=4, batch_size=100, lr=0.01, checkpoint=checkpoint)
    return len(steps), sha256(model[1].weight.detach().numpy().tobytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_training_that_is_killed_in_mid_epoch_goes_on_from_the_epoch_before(tmp_path, monkeypatch, number):
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    code = f"import test_faults; test_faults.train_briefly('killed', {int(number)})"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/plumbing'}:{ROOT / 'workflow'}",
        "OMP_NUM_THREADS": "1",
    }
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, timeout=PATIENCE)
    assert killed.returncode == -number
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    resumed, whole = train_briefly(tmp_path / "killed"), train_briefly(tmp_path / "whole")
    torch.set_num_threads(threads)
    assert (resumed[0], whole[0]) == (4, 8) and resumed[1] == whole[1]


@pytest.mark.slow
def test_a_killed_job_is_tried_again_and_leaves_no_kernel(tmp_path):
    make_repository(tmp_path, ["03"])
    (tmp_path / "wait03").touch()
    with running_suite(tmp_path) as (process, children):
        [job] = [child for child in children if "workflow/execute.py" in child.cmdline() and child.children()]
        kernels = job.children(recursive=True)
        job.kill()
        assert kernels and not psutil.wait_procs(kernels, timeout=60)[1]
        wait_until(lambda: notebooks_run(tmp_path) == ["03", "03"])
        (tmp_path / "wait03").unlink()
        assert process.wait(PATIENCE) == 0


@pytest.mark.slow
def test_whatever_is_killed_the_same_command_ends_with_the_same_models(tmp_path, monkeypatch):
    """The real notebooks 02 and 05, tiny: kill -9 of a training, driver, kernel, job, each between two models."""
    options = ["--only", "02", "05", "--preset", "smoke", "--scenario", "class"]
    left = {}
    for name in ("whole", "killed"):
        repository = tmp_path / name
        monkeypatch.setenv("PYTHONPATH", str(repository))  # its own helpers, and with them its own runs/
        for folder in ("workflow", "helpers", "notebooks"):
            shutil.copytree(ROOT / folder, repository / folder, ignore=shutil.ignore_patterns("__pycache__"))
        if name == "killed":
            for kind in ("workflow/train.py", "workflow/suite.py", "ipykernel_launcher", "workflow/execute.py"):
                kill_once(repository, options, kind)
        answer = suite(repository, *options)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        files = repository.glob("runs/models/**/*.safetensors")
        left[name] = {file.name: store.checksum("", load_file(file)) for file in files}
        assert "Nothing to do" in suite(repository, *options).stdout
    assert len(left["whole"]) >= 5 and left["killed"] == left["whole"]


def kill_once(repository, options, kind):
    """Run the suite until a process of that kind has stored one more model, kill it, stop the rest."""

    def count():
        return len(list(repository.glob("runs/models/**/*.safetensors")))

    def alive():
        found = []
        for member in (driver, *driver.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                found += [member] if any(word.endswith(kind) for word in member.cmdline()) else []
        return found

    process = subprocess.Popen(
        [sys.executable, "workflow/suite.py", *options], cwd=repository, stdout=subprocess.DEVNULL
    )
    driver = psutil.Process(process.pid)
    wait_until(lambda: alive() or process.poll() is not None)
    before = count()
    wait_until(lambda: (count() > before and alive()) or process.poll() is not None)
    assert process.poll() is None
    family = [driver, *driver.children(recursive=True)]
    alive()[0].kill()
    time.sleep(1)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(family, timeout=60)[1]


# Disks


@as_root
def test_a_full_disk_keeps_the_old_model_and_names_the_path(runs_folder):
    with disk(runs_folder / "models", "size=64k"):
        path = runs_folder / "models/m.safetensors"
        store.save(path, {}, {"w": torch.ones(2_000)})
        with pytest.raises(OSError, match=r"could not write runs/models/m.*No space left"):
            store.save(path, {}, {"w": torch.zeros(20_000)})
        assert torch.equal(store.load(path, {})[1]["w"], torch.ones(2_000))
        assert [file.name for file in path.parent.iterdir()] == ["m.safetensors"]


@pytest.mark.slow
@as_root
def test_a_full_disk_keeps_the_old_notebook_and_names_the_path(tmp_path):
    with disk(tmp_path / "runs", "size=64k") as folder:
        assert execute(tmp_path, "print(1)").returncode == 0
        before = (folder / "03.ipynb").read_bytes()
        (folder / "03.json").unlink()
        answer = execute(tmp_path, "print('long ' * 20_000)", attempt=2)
        assert answer.returncode == 1 and "No space left" in answer.stdout and "runs/03.ipynb" in answer.stdout
        assert (folder / "03.ipynb").read_bytes() == before and not (folder / "03.json").exists()


@as_root
def test_a_read_only_disk_is_named_before_anything_is_trained(runs_folder):
    refused = pytest.raises(OSError, match="could not write runs/models/m.safetensors: Read-only file system")
    with disk(runs_folder / "models", "ro"), refused:
        store.get_or_make(runs_folder / "models/m.safetensors", {}, lambda: pytest.fail("trained"))


@pytest.mark.slow
@as_root
def test_the_suite_refuses_a_read_only_disk_in_one_line(tmp_path):
    make_repository(tmp_path, ["03"])
    with disk(tmp_path / "runs", "ro"):
        answer = suite(tmp_path)
    assert answer.returncode == 2 and answer.stderr.startswith("run_all.sh: cannot write to runs/")
    assert answer.stderr.count("\n") == 1 and order(tmp_path) == []


# Hostile values


@pytest.mark.slow
def test_a_parameters_value_is_never_run_and_a_foreign_kernel_does_not_matter(tmp_path):
    value = "\"\"\"'\nopen('../ran', 'w')\n#{__import__('os').getpid()}"
    execute(tmp_path, "print(forget_class == " + repr(value) + ")")  # writes the notebook
    path = tmp_path / "notebooks/03_some_words.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.metadata["kernelspec"] = {"name": "julia-1.9", "display_name": "Julia", "language": "julia"}
    nbformat.write(notebook, path)
    (tmp_path / "runs/03.json").unlink()
    assert execute(tmp_path, parameters={"forget_class": value}).returncode == 0
    assert nbformat.read(tmp_path / "runs/03.ipynb", 4).cells[-1].outputs[0].text == "True\n"
    assert not (tmp_path / "ran").exists()


def test_a_folder_of_images_cannot_name_a_place_outside(tmp_path, runs_folder, monkeypatch):
    """`..` is not the name under which figures and models are kept."""
    for label in "ab":
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / "pictures" / label / f"{number}.png")
    monkeypatch.chdir(tmp_path / "pictures/a")
    assert load_data("..").name == "pictures"
