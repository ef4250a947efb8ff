"""Run the notebooks in order with Snakemake. The same command again resumes an interrupted run."""

import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from argparse import ArgumentTypeError
from contextlib import suppress
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path

from jobs import DEFAULT, FIRST, NEEDS, ROOT, RUNS, as_config, code_of, find_notebooks, list_jobs, run_folder
from options import Parser, add_parameters, parameters_of, refuse
from progress import Progress, read_json
from warm import ADDRESS

from helpers.fingerprint import code_without_words, key
from helpers.messages import duration, unknown
from helpers.parameters import whole_number
from helpers.paths import FIGURES, replace_text, shown, split_function
from helpers.presets import PRESETS

WORDS = (
    "`run_all.sh forget` carries out a request to forget images; `run_all.sh status` with the same options shows what "
    "is done; `run_all.sh report` writes one HTML page per run; "
    "`run_all.sh clean` lists what runs/ holds and what can be removed; `run_all.sh test` runs the checks and tests; "
    "`run_all.sh bench` times the suite against plain loops."
)
COMMANDS = ["forget", "status", "report", "clean", "test", "bench"]
THREADS_ON_CLUSTER = 4
JOBS_WORTH_A_SERVER = 4  # fewer jobs import the libraries themselves in less time
LONGEST_SOCKET = 90  # characters; Linux accepts 107 with the file's own name
THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def main():
    options = parse()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, interrupt)
    try:
        return run(options)
    except (ValueError, OSError) as error:
        return refuse(error)
    except KeyboardInterrupt:
        print("\nrun_all.sh: stopped; the same command resumes", flush=True)
        return 130


# --- options ------------------------------------------------------------------------------------------------------


def parse():
    parser = Parser(prog="run_all.sh", description=__doc__, epilog=WORDS, allow_abbrev=False)
    add_parameters(parser)
    add, numbers = parser.add_argument, [*find_notebooks()]
    add("--seeds", type=number, default=[0], nargs="+", metavar="SEED", help="whole numbers (default: 0)")
    add("--only", type=number, default=numbers, nargs="+", metavar="N", help="only these notebooks: 03 08")
    add("-j", "--jobs", type=number, metavar="N", help="processes at a time (default: 2; with GPUs one each)")
    add("--cluster", metavar="C", help="slurm: each notebook and each model is a job of its own there")
    add("--save", action="store_true", help="afterwards store the outputs of the first seed in notebooks/")
    add("--dry-run", action="store_true", help="only list which jobs would run")
    status = sys.argv[1:2] == ["status"]
    options = parser.parse(sys.argv[1 + status :], COMMANDS)
    options.status, options.parameters = status, parameters_of(options, parser)
    options.only = sorted({f"{int(number):02d}" for number in options.only})
    for word, valid in [(options.cluster or "slurm", ["slurm"]), *((number, numbers) for number in options.only)]:
        if word not in valid:
            parser.error(unknown(word, valid))
    if options.jobs == 0:
        parser.error("--jobs: 0 is too few: a whole number from 1")
    options.seeds = sorted(set(options.seeds))
    options.left_out = without_shadows(options.parameters, options.only)
    options.only = [number for number in options.only if number not in options.left_out]
    if not options.only:
        parser.error(left_out_line(options))
    return options


def without_shadows(parameters, numbers):
    """The notebooks that need shadow models, if the preset trains none."""
    tables = (PRESETS[parameters["preset"]][scenario] for scenario in parameters["scenarios"])
    trained = any(table["audit"]["shadows"] for table in tables)
    return [number for number in numbers if NEEDS.get(number, DEFAULT).shadows and not trained]


def left_out_line(options):
    """Which notebooks do not run, and why."""
    numbers, preset = " and ".join(options.left_out), options.parameters["preset"]
    scenarios = " and ".join(options.parameters["scenarios"])
    return f"notebook {numbers} is left out: preset {preset} trains no shadow models for {scenarios}; preset audit does"


def number(word):
    """A whole number; for argparse."""
    try:
        return whole_number(word)
    except ValueError as error:
        raise ArgumentTypeError(error) from None


# --- a run --------------------------------------------------------------------------------------------------------


def run(options):
    stored = (ROOT / "data" / name for name in ("cifar-10-batches-py", "cifar-10-python.tar.gz"))
    if options.parameters["data"] == "cifar10" and not any(place.exists() for place in stored):
        print("CIFAR-10 is not in data/ yet: downloading 170 MB.", flush=True)
    facts = find_facts(options.parameters)
    parameters = facts["parameters"]
    folder = run_folder(parameters, facts)
    slots, threads, separate = share_out(options)
    jobs = list_jobs(parameters, facts, options.seeds, options.only, separate)
    if options.status:
        return print_status(jobs, pending(jobs))
    seeds = "seed" + "s" * (len(options.seeds) > 1)
    print(
        f"{facts['title']}, preset {parameters['preset']}, scenarios {' and '.join(parameters['scenarios'])}, "
        f"{seeds} {' '.join(map(str, options.seeds))}; {slots} at a time, into {shown(folder)}/",
        flush=True,
    )
    if options.left_out:
        print(left_out_line(options))
    print(f"The weights that it stores in {shown(RUNS)}/ need {needed_disk(facts, options.seeds, folder)}.", flush=True)
    if options.dry_run:
        print("Would run:", "; ".join(job.title for job in pending(jobs)) or "nothing")
        return 0
    for needed in [RUNS, FIGURES, folder, ROOT / ".snakemake"] + [ROOT / "notebooks"] * options.save:
        check_writable(needed)
    lock = take_lock(ROOT / ".snakemake" / "suite.lock")
    progress = Progress(jobs, pending(jobs), folder, options.seeds[0], parameters["preset"], slots)
    if not progress.left:
        print("Nothing to do: everything is up to date.")
    else:
        if any(job.models for job in progress.left) and downloads_weights(parameters):
            find_facts(options.parameters, fetch=True)  # before hours of training; a cluster may have no network
        if snakemake(jobs, progress, slots, threads, options.cluster, lock) != 0:
            return report_failure(progress.left, folder / "snakemake.log")
    progress.finish()
    print_ending(folder, options, jobs)
    return 0


def needed_disk(facts, seeds, folder):
    """`2.1 GB (60 GB are free)`."""
    place = next(path for path in (folder, *folder.parents) if path.exists())
    return f"{facts['disk'] * len(seeds) / 1e9:.1f} GB at most ({shutil.disk_usage(place).free / 1e9:.0f} GB are free)"


def print_ending(folder, options, jobs):
    """Where the results are, and what to look at first."""
    if options.save:
        save(jobs, options.seeds[0])
    first = next((job for job in jobs if job.kind == FIRST), next(job for job in jobs if job.notebook))
    print(f"Figures and tables: {shown(FIGURES / folder.name)}/. Executed notebooks: {shown(folder)}/.")
    print(f"Open first: {first.executed}")
    print(f"All notebooks as one HTML page: ./run_all.sh report {folder.name}")


def find_facts(parameters, fetch=False):
    """Name, title and identity of the data, and the parameters with absolute paths, which fit the data.

    The answer is stored under `runs/`, since finding it needs torch; it is found anew when a file that a parameter
    names, or the code that reads the data, changes.
    """
    files = {name: list_files(value) for name, value in parameters.items() if isinstance(value, str)}
    answers = code_without_words((ROOT / "workflow" / "facts.py").read_text(encoding="utf-8"))
    code = [answers, code_of("helpers.datasets"), code_of("helpers.data"), PRESETS[parameters["preset"]]]
    stored = RUNS / "facts" / f"{key([parameters, files, code])}.json"
    known = {} if fetch else read_json(stored)
    if {"name", "title", "identity", "disk", "parameters"} <= known.keys():
        return known
    command = [sys.executable, ROOT / "workflow" / "facts.py", json.dumps(parameters), *["fetch"] * fetch]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0:
        raise ValueError((answer.stderr.strip() or "the data could not be read").splitlines()[-1])
    text = answer.stdout.strip().splitlines()[-1]
    with suppress(OSError):
        replace_text(stored, text)
    return json.loads(text)


def list_files(value):
    """Absolute path, size and time of each file that a parameter may mean; empty if it is no path."""
    for place in (split_function(value)[0], ROOT / value):
        if place.exists():
            files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
            return [(str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return []


def downloads_weights(parameters):
    """Whether the preset names weights from elsewhere."""
    presets = (PRESETS[parameters["preset"]][name] for name in parameters["scenarios"])
    return any("original" in preset or "weights" in preset["model"] for preset in presets)


def check_writable(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        place = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
        raise OSError(f"cannot write to {place}/: {error.strerror}") from error


def take_lock(path):
    """Keep `path` locked as long as this process or Snakemake lives; the system frees it even after a crash."""
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


# --- processes and devices ----------------------------------------------------------------------------------------


def share_out(options):
    """How many jobs at a time, the threads of each, and whether each model is a job of its own."""
    if options.cluster:
        check_cluster()
        return options.jobs or 100, THREADS_ON_CLUSTER, True
    gpus = list_gpus()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    slots = options.jobs or len(gpus) or min(2, cores)
    if len(gpus) > 1:
        os.environ["UNLEARNING_GPUS"] = ",".join(islice(cycle(gpus), slots))
    return slots, max(1, cores // slots), len(gpus) > 1


def list_gpus():
    """The names in CUDA_VISIBLE_DEVICES, or the numbers of the GPUs that NVIDIA's driver lists."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name not in ("", "-1")]
    with suppress(OSError):
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
        return [str(place) for place in range(listed.stdout.count("GPU ") if listed.returncode == 0 else 0)]
    return []


def check_cluster():
    if not shutil.which("sbatch"):
        raise ValueError("--cluster slurm: there is no sbatch here; start the suite on a machine that can submit jobs")
    if not find_spec("snakemake_executor_plugin_slurm"):
        raise ValueError("--cluster slurm needs Python 3.11 or newer and snakemake-executor-plugin-slurm")


# --- Snakemake ----------------------------------------------------------------------------------------------------


def command_for(file, jobs, profile="local"):
    """Snakemake on a configuration.

    A notebook whose figures or tables were deleted runs again, and so does a job whose result has another fingerprint:
    Snakemake stores fingerprints in the checkout, but several checkouts can share one folder of runs.
    """
    command = [sys.executable, "-m", "snakemake", "all", "--snakefile", "workflow/Snakefile", "--configfile", file]
    command += ["--profile", f"workflow/profiles/{profile}"]
    stale = [job.result for job in jobs if is_stale(job)]
    return command + ["--forcerun", *stale] * bool(stale)


def is_stale(job):
    """Whether the result exists, but is damaged, of another fingerprint, or lacks one of its files."""
    record = job.record
    files = [Path(job.output) / name for name in record.get("outputs", [])] + [job.executed] * bool(job.notebook)
    lost = any(not (ROOT / file).exists() or not (ROOT / file).stat().st_size for file in files)
    return (ROOT / job.result).exists() and (lost or record.get("made_from") != job.made_from)


def pending(jobs):
    """The jobs that Snakemake would run."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(as_config(jobs, threads=1, file=file.name))
        file.flush()
        command = [*command_for(file.name, jobs), "--summary"]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if answer.returncode != 0:
        raise OSError(f"Snakemake: {answer.stderr.strip().splitlines()[-1]}")
    rows = (line.split("\t") for line in answer.stdout.splitlines()[1:])
    results = {row[0] for row in rows if row[-1] == "update pending"}
    return [job for job in jobs if job.result in results]


def snakemake(jobs, progress, slots, threads, cluster, lock):
    """Run what is out of date in a process group of its own, which ends with this function; return the exit status."""
    file = progress.folder / "snakemake.json"  # not a temporary file of this machine: a cluster's nodes read it
    replace_text(file, as_config(jobs, threads=threads, file=str(file)))
    command = command_for(file, jobs, cluster or "local")
    command += ["--jobs", str(slots)] if cluster else ["--cores", str(slots * threads)]
    environment = {**os.environ, "UNLEARNING_DRIVER": "0" if cluster else str(os.getpid())}
    environment.pop(ADDRESS, None)  # of a run whose notebook started this one
    place = tempfile.TemporaryDirectory(prefix="unlearning-")  # of the server's socket
    worth_it = progress.total >= JOBS_WORTH_A_SERVER and len(place.name) < LONGEST_SOCKET
    if sys.platform == "linux" and not cluster and worth_it:
        command = [sys.executable, "workflow/warm.py", "--serve", place.name, *command]
        environment |= dict.fromkeys(THREAD_COUNTS, str(threads))  # read when the libraries are imported
    progress.start()
    with open(progress.folder / "snakemake.log", "w") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            pass_fds=[lock.fileno()],
            preexec_fn=end_with_driver if cluster else None,  # on one machine process.py sees to it
        )
    try:
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
            progress.update()
        return process.returncode
    except KeyboardInterrupt:
        if cluster:
            process.send_signal(signal.SIGINT)  # it cancels its jobs
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
        raise
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        place.cleanup()


def end_with_driver():
    """Let Linux kill this process when its parent dies, however that happens."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


# --- what is printed ----------------------------------------------------------------------------------------------


def print_status(jobs, left):
    """One line per notebook, and per model job that is still to do."""
    listed = [job for job in jobs if job.notebook or job in left]
    for job in listed:
        print(f"{job.title}: {state(job, job in left)}")
    print(f"{len(listed) - len(left)} of {len(listed)} done")
    return 0


def state(job, is_left):
    """`done in 5 s`, `running: ...` with its last line, `FAILED: ...`, `out of date` or `to do`."""
    progress, failed = job.beside(".{}.progress"), job.beside("{}.failed")
    if is_running(progress):
        return "running: " + (progress.read_text(errors="replace").splitlines()[1:] or ["started"])[-1]
    if not is_left:
        return f"done in {duration(job.record['seconds'])}"
    if failed.exists():
        return f"FAILED: {failed.read_text(encoding='utf-8').splitlines()[-1].strip()}"
    return "out of date" if job.record else "to do"


def is_running(progress):
    """Whether the job that keeps this file locked is alive."""
    with suppress(FileNotFoundError), open(progress) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def report_failure(left, log):
    """Name what failed and what was therefore not run."""
    failed = [job for job in left if job.beside("{}.failed").exists()]
    for job in failed:
        problem = job.beside("{}.failed").read_text(encoding="utf-8")
        print(f"FAILED: {job.title}: {problem.splitlines()[-1].strip()}")
        if job.notebook:
            print(f"    full traceback: {job.executed}")
    if not failed:
        print(f"FAILED: the end of {shown(log)}:")
        print("".join(f"    {line}\n" for line in log.read_text(errors="replace").splitlines()[-8:]), end="")
    if others := [job.title for job in left if job not in failed]:
        print(f"Not run: {'; '.join(others)}")
    print("The same command resumes.")
    return 1


def save(jobs, seed):
    """Store the outputs of the first seed's notebooks, and of those for all seeds, in `notebooks/`."""
    from save import save_outputs

    chosen = [job for job in jobs if job.notebook and job.seed in (seed, None)]
    save_outputs([(ROOT / job.notebook, ROOT / job.executed) for job in chosen])
    print(f"Saved the outputs of {len(chosen)} notebooks in notebooks/.")


def interrupt(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
