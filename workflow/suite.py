"""Run the notebooks 01 to 10 in order with Snakemake. The same command again goes on where a run was cut short."""

import argparse
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from wording import duration, title, unknown

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = {path.name[:2]: f"notebooks/{path.name}" for path in sorted(ROOT.glob("notebooks/[0-9][0-9]_*.ipynb"))}
BUDGETS = ["quick", "short", "published", "smoke"]
SCENARIOS = ["random", "class"]
STARTS = ["fresh", "chain"]
TEST = (
    "`run_all.sh test` checks the code's style and runs the tests; what follows `test` goes to pytest. "
    "`run_all.sh bench` times the suite against plain loops; `run_all.sh bench --help` has its options."
)
SETTINGS = ["data", "budget", "scenarios", "forget_class", "forget_fraction", "start"]


def main():
    options = parse()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, interrupt)
    try:
        return run(options)
    except (ValueError, ConnectionError, OSError) as error:
        return refuse(error)
    except KeyboardInterrupt:
        print("\nrun_all.sh: stopped; the same command goes on from here", flush=True)
        return 130


# What was asked for


class Parser(argparse.ArgumentParser):
    def error(self, message):
        sys.exit(refuse(message))


def refuse(message):
    print(f"run_all.sh: {' '.join(str(message).split())}", file=sys.stderr)
    return 2


def parse():
    parser = Parser(prog="run_all.sh", description=__doc__, epilog=TEST, allow_abbrev=False)
    add = parser.add_argument
    add("--data", default="digits", metavar="DATA", help="digits (default), cifar10 or a folder of images")
    add("--budget", type=one_of(*BUDGETS), default="quick", metavar="B", help="quick, short, published or smoke")
    add("--scenario", type=one_of(*SCENARIOS), default=SCENARIOS, nargs="+", metavar="S", help="random, class or both")
    add("--seeds", type=whole_number, default=[0], nargs="+", metavar="SEED", help="whole numbers (default: 0)")
    add("--forget-class", metavar="CLASS", help="name or index of the class to forget (default: the first)")
    add("--forget-fraction", type=fraction, default=0.1, metavar="X", help="share to forget at random (default: 0.1)")
    add("--start", type=one_of(*STARTS), default="fresh", metavar="START", help="fresh (default) or chain")
    add("--only", type=notebook_number, default=list(NOTEBOOKS), nargs="+", metavar="N", help="only these, as in 03 08")
    add("-j", "--jobs", type=positive_number, metavar="N", help="notebooks at a time (default: 2, with a GPU 1)")
    add("--save", action="store_true", help="afterwards put the outputs of the first seed into notebooks/")
    add("--dry-run", action="store_true", help="only tell which notebooks would run")
    options, rest = parser.parse_known_args()
    if rest:
        valid = [option for option in parser._option_string_actions if option.startswith("--")]
        parser.error(unknown(rest[0], valid if rest[0].startswith("-") else ["test", "bench", *valid]))
    options.scenarios = [scenario for scenario in SCENARIOS if scenario in options.scenario]
    options.seeds, options.only = sorted(set(options.seeds)), sorted(set(options.only))
    return options


def one_of(*valid):
    def check(word):
        if word not in valid:
            raise argparse.ArgumentTypeError(unknown(word, valid))
        return word

    return check


def whole_number(word, lowest=0):
    if not (word.isascii() and word.isdigit() and lowest <= int(word) < 2**31):
        raise argparse.ArgumentTypeError(f"'{word}' is not a whole number from {lowest} to {2**31 - 1}")
    return int(word)


def positive_number(word):
    return whole_number(word, lowest=1)


def fraction(word):
    try:
        value = float(word)
    except ValueError:
        value = 0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"'{word}' is not a number between 0 and 1, both excluded")
    return value


def notebook_number(word):
    return one_of(*NOTEBOOKS)(word.zfill(2))


# The run


def run(options):
    data, device = check_data(options)
    folder = "runs/suite/" + re.sub(r"[^\w.-]", "-", f"{data.name}-{options.budget}")
    for needed in [folder, "figures", ".snakemake"] + ["notebooks"] * options.save:
        check_writable(ROOT / needed)
    lock = take_lock(ROOT / ".snakemake" / "suite.lock")
    config = {
        "folder": folder,
        "notebooks": {number: NOTEBOOKS[number] for number in options.only},
        "seeds": options.seeds,
        "parameters": {name: getattr(options, name) for name in SETTINGS},
        "identity": data.identity,
    }
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jobs = options.jobs or (min(2, cores) if device == "cpu" else 1)
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{library}_NUM_THREADS"] = str(max(1, cores // jobs))

    targets = list_targets(config)
    print(
        f"{data.title}, budget {options.budget}, scenarios {' and '.join(options.scenarios)}, "
        f"seed {' '.join(map(str, options.seeds))}; up to {jobs} at a time, into {folder}/",
        flush=True,
    )
    if options.dry_run:
        print("Would run:", ", ".join(target.title for target in pending(config, targets, lock)) or "nothing")
        return 0
    for target in targets:
        (ROOT / target.result).with_suffix(".failed").unlink(missing_ok=True)
    start, log = time.monotonic(), ROOT / folder / "snakemake.log"
    with open(log, "w") as file:
        code = snakemake(config, ["-j", str(jobs)], lock=lock, stderr=file)
    if code != 0:
        return report_failure(config, targets, log, lock)
    nothing = "Nothing to be done" in log.read_text(errors="replace")
    print("Nothing to do: all is up to date." if nothing else f"All done in {duration(time.monotonic() - start)}.")
    print(f"Figures are in figures/, executed notebooks in {folder}/, models and numbers in runs/.")
    if options.save:
        save(targets, options.seeds[0])
    return 0


def check_data(options):
    """The data set, proven to be usable with these options, and the kind of device that notebooks will find."""
    sys.path.insert(0, str(ROOT))
    from helpers import load_data
    from helpers.data import class_number
    from helpers.training import pick_device

    data = load_data(options.data)
    class_number(data, options.forget_class)
    if options.data not in ("digits", "cifar10"):
        folder = Path(options.data).expanduser()
        options.data = str(folder.resolve() if folder.is_dir() else (ROOT / folder).resolve())
    return data, str(pick_device())


def check_writable(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"cannot write to {folder.relative_to(ROOT)}/: {error.strerror}") from error


def take_lock(path):
    """Hold `path` locked as long as this process or Snakemake lives; the system frees it even after a crash."""
    lock = open(path, "a+")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        raise ValueError(f"another run (process {lock.read().strip()}) is using this folder: wait or stop it") from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


class Target(NamedTuple):
    """One notebook to run; its seed is None for 10, which looks at all seeds."""

    notebook: str
    seed: int | None
    stem: str

    @property
    def title(self):
        return title(self.notebook, self.seed)

    @property
    def result(self):
        return f"{self.stem}.json"

    @property
    def executed(self):
        return f"{self.stem}.ipynb"


def list_targets(config):
    """Everything that was asked for, in the order in which the Snakefile runs it."""
    folder = config["folder"]
    pairs = [(seed, number) for seed in config["seeds"] for number in config["notebooks"] if number != "10"]
    targets = [Target(NOTEBOOKS[number], seed, f"{folder}/seed{seed}/{number}") for seed, number in pairs]
    if "10" in config["notebooks"]:
        targets.append(Target(NOTEBOOKS["10"], None, f"{folder}/10"))
    return targets


def snakemake(config, arguments, *, lock, **streams):
    """Run Snakemake in a process group of its own, which ends with this function, however it ends."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(config, file)
        file.flush()
        command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--configfile", file.name]
        command += ["--keep-going", "--retries", "1", "--rerun-incomplete", "--rerun-triggers", "mtime", "params"]
        command += ["--nolock", "--scheduler", "greedy", *arguments]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "UNLEARNING_DRIVER": str(os.getpid())},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[lock.fileno()],
            **streams,
        )
        try:
            return process.wait()
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)


def pending(config, targets, lock):
    """Those of `targets` that Snakemake would run now."""
    with tempfile.TemporaryFile("w+") as table:
        code = snakemake(config, ["--summary"], lock=lock, stdout=table, stderr=subprocess.DEVNULL)
        table.seek(0)
        files = {line.split("\t")[0] for line in table if line.rstrip().endswith("update pending")}
    return [target for target in targets if code or target.result in files]


def report_failure(config, targets, log, lock):
    """Name what failed and what was therefore left out."""
    left = pending(config, targets, lock)
    failed = [target for target in left if (ROOT / target.result).with_suffix(".failed").exists()]
    for target in failed:
        problem = (ROOT / target.result).with_suffix(".failed").read_text(encoding="utf-8")
        print(f"FAILED: {target.title}: {problem.splitlines()[-1].strip()}\n    full traceback: {target.executed}")
    if not failed:
        print(f"FAILED: the end of {log.relative_to(ROOT)} says")
        print("".join(f"    {line}\n" for line in log.read_text(errors="replace").splitlines()[-8:]), end="")
    if others := [target.title for target in left if target not in failed]:
        print(f"Not run: {', '.join(others)}")
    print("The same command goes on from here.")
    return 1


def save(targets, seed):
    """Put the outputs of the first seed's notebooks, and of 10, into `notebooks/`."""
    from save import save_outputs

    chosen = [target for target in targets if target.seed in (seed, None)]
    save_outputs([(ROOT / target.notebook, ROOT / target.executed) for target in chosen])
    print(f"Saved the outputs of {len(chosen)} notebooks in notebooks/.")


def interrupt(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
