"""Execute one notebook with papermill. Its result file appears only if every cell ran; a failed notebook is kept.

The Snakefile runs this. A cell that raises would raise again, so a second attempt is made only after a dead kernel.
"""

import argparse
import ast
import fcntl
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # this environment's kernel, whatever else is installed

import nbformat
import papermill
import psutil
from files import figure_digest, figures_of, replace_text
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config
from wording import duration, title, unknown

ATTEMPTS = 2
SECONDS_BETWEEN_LINES = 15


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--parameters", type=json.loads, required=True, help="a JSON object")
    parser.add_argument("--made-from", required=True, help="a digest of all that the result depends on")
    parser.add_argument("--executed", type=Path, required=True, help="where the executed notebook goes")
    parser.add_argument("--result", type=Path, required=True, help="the JSON file written after the last cell")
    parser.add_argument("--attempt", type=int, default=ATTEMPTS)
    options = parser.parse_args()
    name = title(options.notebook, options.parameters.get("seed"))
    described = {"notebook": options.notebook.name, "parameters": options.parameters}
    return run_job(name, lambda: execute_and_note(options, described), options, described)


def run_job(name, work, options, described):
    """Do `work` once for all jobs that want it, and write the result file if it went well; return an exit status.

    Args:
        work: returns what went wrong, if anything, and whether a retry may help.
        options: result, made_from and attempt.
        described: what the result file says of the job.
    """
    failed = options.result.with_suffix(".failed")
    if options.attempt == 1:
        failed.unlink(missing_ok=True)
    elif failed.exists():
        return 1

    options.result.parent.mkdir(parents=True, exist_ok=True)
    progress = open(options.result.with_name(f".{options.result.stem}.progress"), "a")  # noqa: SIM115
    fcntl.flock(progress, fcntl.LOCK_EX)  # a job that a killed driver left on a cluster may be at it still
    if options.result.exists() and json.loads(options.result.read_text()).get("made_from") == options.made_from:
        return 0
    progress.truncate(0)
    gpu = take_gpu()  # noqa: F841

    say(name, "started" if options.attempt == 1 else "started again")
    start, ended = time.monotonic(), threading.Event()
    path = Path(progress.name).resolve()  # papermill changes the working directory
    os.environ["UNLEARNING_PROGRESS"] = str(path)
    threading.Thread(target=watch, args=(name, path, ended), daemon=True).start()
    try:
        problem, again = work()
    finally:
        ended.set()
    seconds = time.monotonic() - start
    if problem and again and options.attempt < ATTEMPTS:
        say(name, f"{problem.strip()}; trying once more")
    elif problem:
        say(name, f"FAILED after {duration(seconds)}\n{problem}")
        replace_text(failed, problem)
    else:
        result = {**described, "seconds": round(seconds, 1)}
        result["made_from"] = options.made_from
        result["environment"] = environment()
        replace_text(options.result, json.dumps(result, indent=1))
    return 1 if problem else 0


def take_gpu():
    """Where the suite shares out several GPUs, one for this job alone, until its process ends."""
    while gpus := os.environ.get("UNLEARNING_GPUS"):
        for place, gpu in enumerate(gpus.split(",")):
            lock = open(Path(".snakemake") / f"gpu{place}.lock", "a")  # noqa: SIM115
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                return lock
        time.sleep(1)


def execute_and_note(options, described):
    """What `execute` does and returns; then `described` has the digests of the figures that were written meanwhile."""
    before = figures_of(options.notebook)
    answer = execute(options)
    written = dict(figures_of(options.notebook).items() - before.items())
    described["figures"] = {name: figure_digest(name) for name in sorted(written)}
    return answer


def execute(options):
    """Run the notebook to `options.executed`; return what went wrong, if anything, and whether a retry may help."""
    if problem := parameter_problem(nbformat.read(options.notebook, 4), options.parameters):
        return f"    {problem}", False
    unfinished = options.executed.with_name(f".{options.executed.name}")
    unfinished.unlink(missing_ok=True)
    try:
        executed = run_notebook(options.notebook, unfinished, options.parameters, cwd=options.notebook.parent)
        not_run = [cell for cell in executed.cells if is_code(cell) and cell.execution_count is None]
        return ("    it stopped before its last cell", False) if not_run else (None, False)
    except PapermillExecutionError as error:
        return explain(error), False
    except DeadKernelError:
        return "    its kernel died (out of memory?)", True
    except (OSError, RuntimeError) as error:  # a full disk, a kernel that does not start
        unfinished.unlink(missing_ok=True)
        return f"    {type(error).__name__}: {error} ({options.executed})", True
    finally:
        if unfinished.exists():
            os.replace(unfinished, options.executed)


def run_notebook(notebook, executed, parameters, cwd):
    """papermill, with a kernel behind Unix sockets: of several that start at once one may find its TCP port taken."""
    name = f"unlearning-{uuid4().hex}"
    address = f"@{name}" if sys.platform == "linux" else f"/tmp/{name}"  # with @ there is no file to remove
    return papermill.execute_notebook(
        notebook,
        executed,
        parameters,
        kernel_name="python3",
        language="python",
        cwd=cwd,
        start_timeout=300,
        progress_bar=False,
        config=Config({"KernelManager": {"transport": "ipc", "ip": address}}),
    )


def environment():
    """Versions of what the numbers depend on, and the commit of the code, for the report."""
    versions = {name: version(name) for name in ("torch", "torchvision", "timm", "numpy", "scikit-learn")}
    git = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty= with changes"]
    commit = subprocess.run(git, capture_output=True, text=True)
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        **versions,
        "commit": commit.stdout.strip() or "not under git",
    }


def is_code(cell):
    return cell.cell_type == "code" and cell.source.strip() != ""


def parameter_problem(notebook, parameters):
    """What is wrong with the names of `parameters`: the cell tagged `parameters` must assign each of them."""
    tagged = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    names = {
        target.id
        for statement in ast.parse("\n".join(tagged)).body
        for target in getattr(statement, "targets", [getattr(statement, "target", None)])
        if isinstance(target, ast.Name)
    }
    problems = [f"parameter {unknown(name, sorted(names))}" for name in parameters if name not in names]
    return "; ".join(problems)


def explain(error, lines=5):
    """The first lines of the cell that raised, and the error's message."""
    source = error.source.strip().splitlines()
    shown = source[:lines] + ["..."] * (len(source) > lines)
    return "\n".join(["    in the cell", *(f"        {line}" for line in shown), f"    {error.ename}: {error.evalue}"])


def watch(name, progress, ended):
    """Until `ended`, say the newest line of the file `progress` now and then; leave with the suite if it is killed."""
    driver = int(os.environ.get("UNLEARNING_DRIVER", 0))
    said, when = None, time.monotonic()
    while not ended.wait(1):
        if driver and driver not in ancestors():
            os.killpg(0, signal.SIGKILL)
        lines = progress.read_text(encoding="utf-8", errors="replace").splitlines()
        if lines and lines[-1] != said and time.monotonic() - when > SECONDS_BETWEEN_LINES:
            said, when = lines[-1], time.monotonic()
            say(name, said)


def ancestors():
    return [process.pid for process in psutil.Process().parents()]


def say(name, text):
    """One line (or paragraph) on standard output, in one piece even while other notebooks speak."""
    sys.stdout.write(f"{name}  {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
