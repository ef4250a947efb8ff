"""Run the notebooks in order with Snakemake. The same command again goes on where a run was cut short."""

import argparse
import ctypes
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from hashlib import sha256
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple

from files import FIGURES, ROOT, RUNS, figure_digest
from wording import Parser, duration, model_title, refuse, title, unknown

NOTEBOOKS = {path.name[:2]: f"notebooks/{path.name}" for path in sorted(ROOT.glob("notebooks/[0-9][0-9]_*.ipynb"))}
BUDGETS = ["quick", "short", "audit", "published", "smoke"]
SCENARIOS = ["random", "class"]
STARTS = ["fresh", "chain"]
WORDS = (
    "`run_all.sh status` and the same options tell what is done; `run_all.sh report` makes one HTML file of each run; "
    "`run_all.sh test` checks the style and runs the tests (what follows goes to pytest); `run_all.sh bench` times the "
    "suite against plain loops."
)
CLUSTERS = ["slurm"]
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


def parse():
    parser = Parser(prog="run_all.sh", description=__doc__, epilog=WORDS, allow_abbrev=False)
    add = parser.add_argument
    add("--data", default="digits", metavar="DATA", help="digits (default), cifar10 or a folder of images")
    add("--budget", type=one_of(*BUDGETS), default="quick", metavar="B", help="quick, short, audit, published or smoke")
    add("--scenario", type=one_of(*SCENARIOS), default=SCENARIOS, nargs="+", metavar="S", help="random, class or both")
    add("--seeds", type=whole_number, default=[0], nargs="+", metavar="SEED", help="whole numbers (default: 0)")
    add("--forget-class", metavar="CLASS", help="name or index of the class to forget (default: the first)")
    add("--forget-fraction", type=fraction, default=0.1, metavar="X", help="share to forget at random (default: 0.1)")
    add("--start", type=one_of(*STARTS), default="fresh", metavar="START", help="fresh (default) or chain")
    add(
        "--only",
        type=notebook_number,
        default=[*NOTEBOOKS],
        nargs="+",
        metavar="N",
        help="only these notebooks, as in 03 08",
    )
    add("-j", "--jobs", type=positive_number, metavar="N", help="notebooks at a time (default: 2, with GPUs one each)")
    add("--cluster", type=one_of(*CLUSTERS), metavar="C", help="slurm: each notebook is a job of its own there")
    add("--save", action="store_true", help="afterwards put the outputs of the first seed into notebooks/")
    add("--dry-run", action="store_true", help="only tell which notebooks would run")
    status = sys.argv[1:2] == ["status"]
    options = parser.parse(sys.argv[1 + status :], ["test", "status", "report", "bench"])
    options.status = status
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
    suite, device = open_suite_of(options)
    data = suite[0].data
    folder = "runs/suite/" + re.sub(r"[^\w.-]", "-", f"{data.name}-{options.budget}")
    config = {
        "folder": folder,
        "notebooks": {number: NOTEBOOKS[number] for number in options.only},
        "seeds": options.seeds,
        "parameters": {name: getattr(options, name) for name in SETTINGS},
    }
    config["made_from"] = {number: made_from(number, config["parameters"], data.identity) for number in options.only}
    if "10" in options.only:
        config["made_from"]["10"] = digest([config["made_from"]["10"], seeds_shown(options, suite)])
    config["made_from"]["models"] = digest([config["parameters"], data.identity])
    targets = list_targets(config)
    if options.status:
        return tell_status(config, targets, suite)
    jobs, config["threads"] = share_out(options, device)
    print(
        f"{data.title}, budget {options.budget}, scenarios {' and '.join(options.scenarios)}, "
        f"seed {' '.join(map(str, options.seeds))}; up to {jobs} at a time, into {folder}/",
        flush=True,
    )
    if options.dry_run:
        left = pending(config, targets)
        print("Would run:", ", ".join(target.title for target in models_for(config, left, suite) + left) or "nothing")
        return 0
    for needed in [ROOT / folder, RUNS, FIGURES, ROOT / ".snakemake"] + [ROOT / "notebooks"] * options.save:
        check_writable(needed)
    lock = take_lock(ROOT / ".snakemake" / "suite.lock")
    left = pending(config, targets)
    left = models_for(config, left, suite) + left
    if not left:
        print("Nothing to do: all is up to date.")
    else:
        if any(target.notebook is None for target in left):
            for experiment in suite:
                experiment.fetch()  # here, since a cluster's nodes may have no network, and before hours of training
        start, log = time.monotonic(), ROOT / folder / "snakemake.log"
        if snakemake(config, targets, left, jobs, options.cluster, log, lock) != 0:
            return report_failure([target for target in left if not recorded(target)], log)
        print(f"All done in {duration(time.monotonic() - start)}.")
    print(f"Figures are in {shown(FIGURES)}/, executed notebooks in {folder}/, models and numbers in {shown(RUNS)}/.")
    if options.save:
        save(targets, options.seeds[0])
    return 0


def open_suite_of(options):
    """The experiments at the first seed, which prove that the options can be used, and the notebooks' device."""
    sys.path.insert(0, str(ROOT))
    from helpers.data import class_number, find_folder
    from helpers.notebook import open_suite
    from helpers.training import pick_device

    if options.data not in ("digits", "cifar10"):
        options.data = str(find_folder(options.data))
    suite = open_suite(**{name: getattr(options, name) for name in SETTINGS}, seed=options.seeds[0], say=False)
    class_number(suite[0].data, options.forget_class)
    return suite, str(pick_device())


def seeds_shown(options, suite):
    """For each scenario the seeds that 10 is to show: its own, those complete by now, those that this run completes."""
    completes = {number for number in NOTEBOOKS if number < "10"} <= set(options.only)
    return [sorted({*e.seeds_there(), *(options.seeds if completes else [])}) for e in suite]


def check_writable(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"cannot write to {shown(folder)}/: {error.strerror}") from error


def shown(path):
    """A path as a reader knows it: from the repository if it is in there."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


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
    """One notebook to run, or one model to train, which has none; the seed is None for 10, which looks at all seeds."""

    title: str
    seed: int | None
    stem: str
    notebook: str | None = None

    @property
    def number(self):
        return Path(self.stem).name

    @property
    def result(self):
        return f"{self.stem}.json"

    @property
    def executed(self):
        return f"{self.stem}.ipynb"


def list_targets(config):
    """The notebooks that were asked for, in the order in which the Snakefile runs them."""
    folder = config["folder"]
    pairs = [(seed, number) for seed in config["seeds"] for number in config["notebooks"] if number != "10"]
    if "10" in config["notebooks"]:
        pairs.append((None, "10"))
    stems = [f"{folder}/10" if seed is None else f"{folder}/seed{seed}/{number}" for seed, number in pairs]
    names = [NOTEBOOKS[number] for _, number in pairs]
    return [Target(title(name, pair[0]), pair[0], stem, name) for name, pair, stem in zip(names, pairs, stems)]


def models_for(config, notebooks, suite):
    """The models that these notebooks share and that are not under runs/ yet, each a job of its own."""
    from helpers.shadows import still_to_train

    numbers = {target.number for target in notebooks}
    first = config["seeds"][0]
    seeds = {first if target.seed is None else target.seed for target in notebooks if target.number != "01"}
    targets = []
    for seed in sorted(seeds):
        for experiment in (e.with_seed(seed) for e in suite):
            for name in still_to_train(experiment, shadows="12" in numbers):
                stem = f"{config['folder']}/seed{seed}/models/{experiment.scenario}-{name}"
                targets.append(Target(model_title(experiment.scenario, name, seed), seed, stem))
    return targets


def share_out(options, device):
    """How many notebooks at a time, and the threads of each; on one machine with several GPUs each has its own."""
    if options.cluster:
        check_cluster()
        return options.jobs or 100, 1  # the profile says how many threads
    gpus = list_gpus() if device == "cuda" else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jobs = options.jobs or len(gpus) or min(2, cores)
    if len(gpus) > 1:
        os.environ["UNLEARNING_GPUS"] = ",".join(islice(cycle(gpus), jobs))
    return jobs, max(1, cores // jobs)


def list_gpus():
    """What CUDA_VISIBLE_DEVICES calls the GPUs that may be used here."""
    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return named.split(",")
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def check_cluster():
    if not shutil.which("sbatch"):
        raise ValueError("--cluster slurm: there is no sbatch here; start the suite on a machine that can submit jobs")
    if not find_spec("snakemake_executor_plugin_slurm"):
        raise ValueError("--cluster slurm needs Python 3.11 or newer and snakemake-executor-plugin-slurm")


def snakemake(config, targets, left, jobs, cluster, log, lock):
    """Make the results of `left` in a process group of its own, which ends with this function, however it ends."""
    seconds = {target.number: recorded(target).get("seconds") for target in [*targets, *left]}
    for target in left:
        (ROOT / target.result).unlink(missing_ok=True)
        (ROOT / target.result).with_suffix(".failed").unlink(missing_ok=True)
    configfile = log.with_suffix(".json")  # not a temporary file of this machine: a cluster's nodes read it
    configfile.write_text(json.dumps({**config, "left": [target.result for target in left]}))
    command = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--configfile", configfile]
    command += ["--profile", f"workflow/profiles/{cluster or 'local'}"]
    command += ["--jobs", str(jobs)] if cluster else ["--cores", str(jobs * config["threads"])]
    with open(log, "w") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "UNLEARNING_DRIVER": "0" if cluster else str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
            pass_fds=[lock.fileno()],
            preexec_fn=end_with_driver if cluster else None,  # on one machine execute.py sees to it
        )
    try:
        return follow(process, left, jobs, seconds)
    except KeyboardInterrupt:
        if cluster:
            process.send_signal(signal.SIGINT)  # it cancels its jobs
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
        raise
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def end_with_driver():
    """Ask Linux to kill this process when its parent dies, however that happens."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def follow(process, left, jobs, seconds):
    """Say each of `left` that is done and what remains; return Snakemake's exit status.

    Args:
        seconds: for each target's number how long it took before, or None.
    """
    waiting, ended = list(left), False
    while not ended:
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        ended = process.returncode is not None
        for target in [target for target in waiting if recorded(target)]:
            waiting.remove(target)
            seconds[target.number] = recorded(target)["seconds"]
            line = (
                f"{target.title}  done in {duration(seconds[target.number])}; {len(left) - len(waiting)} of {len(left)}"
            )
            print(line + time_left(waiting, jobs, seconds), flush=True)
    return process.returncode


def time_left(waiting, jobs, seconds):
    """In words; what has not run before counts as the shortest of its kind, models or notebooks, that has."""
    known = {number: value for number, value in seconds.items() if value is not None}
    shortest = {kind: min((known[n] for n in known if n.isdigit() == kind), default=0) for kind in (True, False)}
    total = sum(known.get(target.number, shortest[target.number.isdigit()]) for target in waiting)
    if not total:
        return ""
    word = "about" if all(target.number in known for target in waiting) else "at least"
    return f", {word} {duration(total / min(jobs, len(waiting)))} left"


def tell_status(config, targets, suite):
    """One line a notebook."""
    left = pending(config, targets)
    models = models_for(config, left, suite)
    targets, left = models + targets, models + left
    for target in targets:
        print(f"{target.title}  {state(target, target in left)}")
    print(f"{len(targets) - len(left)} of {len(targets)} done")
    return 0


def state(target, is_left):
    """`done in 5 s`, `running: ...` with what its notebook said last, `FAILED: ...`, `out of date` or `to do`."""
    result, progress = ROOT / target.result, (ROOT / target.stem).with_name(f".{target.number}.progress")
    if is_running(progress):
        return "running: " + (progress.read_text(errors="replace").splitlines() or ["started"])[-1]
    if not is_left:
        return f"done in {duration(recorded(target)['seconds'])}"
    if result.with_suffix(".failed").exists():
        return f"FAILED: {result.with_suffix('.failed').read_text(encoding='utf-8').splitlines()[-1].strip()}"
    return "out of date" if result.exists() else "to do"


def is_running(progress):
    """Whether the job that holds this file locked is alive."""
    with suppress(FileNotFoundError), open(progress) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def made_from(number, parameters, identity):
    """Changes with a notebook's code, the helpers, the settings, chosen ones too, or the data; not with its prose."""
    try:
        cells = json.loads((ROOT / NOTEBOOKS[number]).read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{NOTEBOOKS[number]} is no notebook ({type(error).__name__}: {error})") from error
    files = [*ROOT.glob("helpers/*.py"), *ROOT.glob(f"helpers/tuned/{parameters['budget']}.csv")]
    helpers = {path.name: path.read_text(encoding="utf-8") for path in sorted(files)}
    return digest([code, helpers, parameters, identity])


def digest(value):
    return sha256(json.dumps(value).encode()).hexdigest()[:12]


def pending(config, targets):
    """Those of `targets` whose result or figures are missing or were made from something else; 10 after others."""
    left = [target for target in targets if not is_current(config, target)]
    last = [target for target in targets if target.seed is None and target not in left]
    others = [target for target in targets if target.number != "13"]
    again = any(target in left for target in others)
    return left + [target for target in last if again or written(target) < max(map(written, others))]


def is_current(config, target):
    """Whether the result was made from what there is now, and each figure is as the notebook, at any seed, left it."""
    made_from, result = config["made_from"][target.number], recorded(target)
    seeds = (read_result(path) for path in (ROOT / config["folder"]).glob(f"**/{target.number}.json"))
    known = [seed.get("figures", {}).items() for seed in seeds if seed.get("made_from") == made_from]
    if result.get("made_from") != made_from:
        return False
    return all(any((name, figure_digest(name)) in items for items in known) for name in result.get("figures", {}))


def written(target):
    return (ROOT / target.result).stat().st_mtime


def recorded(target):
    """What the target's result file says; nothing where there is none."""
    return read_result(ROOT / target.result)


def read_result(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def report_failure(left, log):
    """Name what failed and what was therefore left out."""
    failed = [target for target in left if (ROOT / target.result).with_suffix(".failed").exists()]
    for target in failed:
        problem = (ROOT / target.result).with_suffix(".failed").read_text(encoding="utf-8")
        print(f"FAILED: {target.title}: {problem.splitlines()[-1].strip()}")
        if target.notebook:
            print(f"    full traceback: {target.executed}")
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
