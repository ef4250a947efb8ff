"""Follow a run: one line per finished job, with the time left, and its figures published at once. Imports no torch."""

import json
import resource
import time
from contextlib import suppress
from heapq import heapreplace
from pathlib import Path

from jobs import ROOT
from publish import publish

from helpers.messages import duration
from helpers.paths import replace_text

DEFAULTS = json.loads(Path(__file__).with_name("durations.json").read_text())  # two jobs at a time on two cores
PRIOR = 20  # seconds for which the recorded durations count before those of this run do


class Progress:
    """The jobs of a run that are `left` to do.

    Args:
        seed: whose figures are published.
        slots: how many jobs run at a time.
    """

    def __init__(self, jobs, left, folder, seed, preset, slots):
        self.jobs, self.left, self.folder, self.seed, self.slots = jobs, left, folder, seed, slots
        self.total = len(left)
        self.durations = folder / "durations.json"
        self.known = {**DEFAULTS.get(preset, {}), **read_json(self.durations)}
        self.observed, self.expected = PRIOR, PRIOR  # seconds of the jobs that have finished

    def start(self):
        """Forget the results of what is out of date, and print how much there is to do."""
        for job in self.left:
            (ROOT / job.result).unlink(missing_ok=True)
            job.beside("{}.failed").unlink(missing_ok=True)
        self.began, self.used = time.time(), processor_time()
        print(f"{self.total} job{'s' * (self.total > 1)}{self.time_left()}", flush=True)

    def update(self):
        """Print a line for each job that has finished since the last call, and publish its figures."""
        for job in [job for job in self.left if job.record]:
            self.left.remove(job)
            seconds = job.record["seconds"]
            self.observed += seconds
            self.expected += self.known.setdefault(job.kind, seconds)
            replace_text(self.durations, json.dumps({**read_json(self.durations), job.kind: seconds}))
            place = f"[{self.total - len(self.left)}/{self.total}]"
            print(f"{place} {job.title}: done in {duration(seconds)}{self.time_left()}", flush=True)
            publish([job], self.folder, self.seed)

    def finish(self):
        """Publish everything that is missing in `figures/`, and print how long the run took."""
        publish(self.jobs, self.folder, self.seed)
        if self.total:
            spent = f"{duration(processor_time() - self.used)} of processor time"
            print(f"All done in {duration(time.time() - self.began)} ({spent}).", flush=True)

    def time_left(self):
        """`; about 3 min 10 s left`; `at least` where a job of an unknown kind counts as short as the shortest."""
        if not self.left or not self.known:
            return ""
        scale, shortest = self.observed / self.expected, min(self.known.values())
        seconds = {job.result: scale * self.known.get(job.kind, shortest) for job in self.left}
        word = "about" if all(job.kind in self.known for job in self.left) else "at least"
        for job in self.left:
            if started := started_at(job, self.began):
                seconds[job.result] = max(seconds[job.result] - (time.time() - started), 1.0)
        running_first = sorted(self.left, key=lambda job: not started_at(job, self.began))
        return f"; {word} {duration(simulate(running_first, seconds, self.slots))} left"


def processor_time():
    """Seconds that all finished child processes have used, that of setting up the environment included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def simulate(jobs, seconds, slots):
    """Seconds until all jobs are done, if they start in order as soon as a slot is free and what they need is done.

    Args:
        seconds: of each job, by its result.
    """
    ends, free = {}, [0.0] * slots
    for job in jobs:
        start = max([free[0], *(ends.get(result, 0.0) for result in job.after)])
        ends[job.result] = start + seconds[job.result]
        heapreplace(free, ends[job.result])
    return max(ends.values())


def started_at(job, since):
    """When a job began, in seconds since 1970; None if it has not begun `since` then."""
    with suppress(FileNotFoundError, ValueError, IndexError):
        started = float(job.beside(".{}.progress").read_text(errors="replace").splitlines()[0])
        return started if started >= since else None
    return None


def read_json(path):
    """The JSON at `path`; an empty dict if there is none that can be read."""
    with suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    return {}
