"""What a reader does on Windows without `run_all.sh`: `python -X warn_default_encoding windows.py FOLDER`.

First the modules that exist on Unix only, the packages that no notebook needs, and what `os` and `signal` lack on
Windows are taken away; files that are in use cannot be replaced or removed. Then come the notebooks' imports, methods,
tables, a figure, a lock.
"""

import ast
import errno
import json
import os
import re
import signal
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = "curses fcntl grp nis pty pwd readline resource spwd syslog termios tty"
PACKAGES = "latex2mathml nbstripout papermill playwright pulp pytest ruff snakemake xdist"  # extras engine and tests
OF_OS = "fork forkpty getegid geteuid getgid getloadavg getpgid getuid killpg mkfifo nice openpty sched_getaffinity"
OF_OS += " sched_setaffinity setsid statvfs wait3 wait4"
OF_SIGNAL = "SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 alarm setitimer"
METHODS = ("M5 Per batch", "SSD")  # one trains, one edits weights


def imitate_windows():
    """Take away what Windows lacks, and refuse what it refuses."""
    sys.modules.update(dict.fromkeys([*MODULES.split(), *PACKAGES.split()]))  # None: an ImportError
    for module, names in ((os, OF_OS), (signal, OF_SIGNAL)):
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    replace, unlink, fsync = os.replace, os.unlink, os.fsync

    def replace_unused(source, target):
        refuse_if_used(source)
        refuse_if_used(target)
        replace(source, target)

    def unlink_unused(path, **options):
        if not str(path).endswith(".lock"):  # without fcntl and msvcrt, the lock is a file
            refuse_if_used(path)
        unlink(path, **options)

    def fsync_writable(number):
        os.write(number, b"")  # an error if the file is open for reading
        fsync(number)

    os.replace, os.unlink, os.remove, os.fsync = replace_unused, unlink_unused, unlink_unused, fsync_writable


def refuse_if_used(path):
    """Raise what Windows raises if this process has a file open or mapped into its memory."""
    path = os.path.realpath(path)
    opened = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    if path in opened or path in Path("/proc/self/maps").read_text(encoding="utf-8"):
        raise PermissionError(errno.EACCES, "the file is in use", path)


def imports():
    """Every import of `helpers` in the notebooks, as source."""
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = re.sub(r"^%.*", "", "".join(cell["source"]), flags=re.M) if cell["cell_type"] == "code" else ""
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.Import | ast.ImportFrom) and "helpers" in ast.unparse(node):
                    yield ast.unparse(node)


def read(suite, names):
    """Train, tabulate and draw with what the notebooks imported; return the number of rows."""
    runs = [e.unlearn(name) for e in suite for name in METHODS]
    results = names["tidy"](suite, runs)
    names["tables"](suite, results)
    names["show_settings"](suite, runs)
    names["save_table"](results, suite, "results")
    names["save_figure"](names["plots"].grid(1, 1, 2, 2)[0], suite, "00_nothing", "an empty figure")
    return len(results)


def second_lock(path):
    """What a second holder of a model's lock meets; the lock is free again afterwards."""
    from filelock import FileLock, Timeout

    from helpers import store

    lock = FileLock(path.with_name(f".{path.name}.lock"))
    with store.lock(path):
        try:
            lock.acquire(timeout=0)
            return "nothing"
        except Timeout:
            pass
    with lock.acquire(timeout=0):
        return "a lock"


def written_again(path):
    """Replace and remove a file whose tensors are in use; return these."""
    import torch

    from helpers import store

    store.save(path, {}, {"x": torch.arange(3)}, {"w": torch.arange(4)})
    outputs, weights = store.load(path, {})[1], store.load_weights(path)
    store.save(path, {}, {"x": torch.zeros(3)}, {"w": torch.zeros(4)})
    path.unlink()
    return [outputs["x"].tolist(), weights["w"].tolist()]


def main(folder):
    imitate_windows()
    warnings.filterwarnings("error", category=EncodingWarning, module="helpers")
    names = {}
    for statement in imports():
        exec(statement, names)
    from helpers import store

    store.COPIES = True  # as where os.name is nt
    found = {"rows": read(names["open_suite"]({"preset": "smoke", "scenarios": ["random"]}), names)}
    found |= {
        "second lock meets": second_lock(folder / "a.safetensors"),
        "in use": written_again(folder / "b.safetensors"),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
