"""One job's process: a lock, a GPU of its own, progress lines, and a result file that appears only after success."""

import fcntl
import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
from jobs import ROOT, Job

from helpers.messages import duration
from helpers.paths import replace_text

ATTEMPTS = 2
SECONDS_BETWEEN_LINES = 30


def main(work):
    """Run the job that the command line names (a run's configuration, a result, an attempt); return an exit status.

    Args:
        work: function of the job; returns what went wrong (or None), whether a retry may help, and a dict for the
            result file.
    """
    file, result, attempt = sys.argv[1:]
    config = json.loads(Path(file).read_text(encoding="utf-8"))
    [job] = [job for job in config["jobs"] if job["result"] == result]
    return run(Job(**job), int(attempt), work)


def run(job, attempt, work):
    """Do `work` once for all processes that were started for this job, and write the result file if it succeeded."""
    result, failed = ROOT / job.result, job.beside("{}.failed")
    if attempt == 1:
        failed.unlink(missing_ok=True)
    elif failed.exists():
        return 1
    result.parent.mkdir(parents=True, exist_ok=True)
    progress = open(job.beside(".{}.progress"), "a")  # noqa: SIM115
    fcntl.flock(progress, fcntl.LOCK_EX)  # a killed driver may have left a process for this job on a cluster
    if job.record.get("made_from") == job.made_from:
        return 0
    progress.truncate(0)
    print(psutil.Process().create_time(), file=progress, flush=True)
    gpu = take_gpu()  # noqa: F841
    if attempt > 1:
        report(job, "started again")

    os.environ["UNLEARNING_PROGRESS"] = progress.name
    start, ended = psutil.Process().create_time(), threading.Event()
    threading.Thread(target=watch, args=(job, Path(progress.name), ended), daemon=True).start()
    try:
        problem, may_retry, record = work(job)
        if not problem:
            seconds = round(time.time() - start, 1)
            record = {"parameters": job.parameters, "made_from": job.made_from, "seconds": seconds, **record}
            replace_text(result, json.dumps(record, indent=1))
    except OSError as error:  # a full disk
        problem, may_retry = f"    {type(error).__name__}: {error}", True
    finally:
        ended.set()
    if problem and may_retry and attempt < ATTEMPTS:
        report(job, f"{problem.strip()}; trying once more")
    elif problem:
        report(job, f"FAILED after {duration(time.time() - start)}\n{problem}")
        replace_text(failed, problem)
    return 1 if problem else 0


def take_gpu():
    """If the suite shares several GPUs among its jobs: one for this job alone, until its process ends."""
    while gpus := os.environ.get("UNLEARNING_GPUS"):
        for place, gpu in enumerate(gpus.split(",")):
            lock = open(ROOT / ".snakemake" / f"gpu{place}.lock", "a")  # noqa: SIM115
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                return lock
        time.sleep(1)


def watch(job, progress, ended):
    """Until `ended`, report the newest line of the file `progress` regularly; end with the suite if it is killed."""
    driver = int(os.environ.get("UNLEARNING_DRIVER", 0))
    last, when = None, time.monotonic()
    while not ended.wait(1):
        if driver and driver not in [process.pid for process in psutil.Process().parents()]:
            os.killpg(0, signal.SIGKILL)
        lines = progress.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
        if lines and lines[-1] != last and time.monotonic() - when > SECONDS_BETWEEN_LINES:
            last, when = lines[-1], time.monotonic()
            report(job, last)


def report(job, text):
    """Print one line or paragraph in one piece, also while other jobs print."""
    sys.stdout.write(f"{job.title}: {text}\n")
    sys.stdout.flush()
