"""Programs that run as forks of one process behave like programs of their own and end with what started them."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from repository import PATIENCE, ROOT, make_repository, notebooks_run, running_suite, suite, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are used on Linux alone")

# Under the server: one program after another, each asked for as the Snakefile does, and what came of it.
STORY = """
import json, os, subprocess, sys
def ask(*words, **options):
    command = [sys.executable, "-I", "-S", {warm!r}, *words]
    return subprocess.run(command, capture_output=True, text=True, **options)
with open("program.py", "w") as file:
    file.write('''
import json, os, sys, neighbour
print(json.dumps([sys.argv, os.getcwd(), os.environ.get("MARK"), os.getppid(), "torch" in sys.modules, __name__]))
print("to the other", file=sys.stderr)
if sys.argv[1:] == ["leave"]:
    sys.exit(7)
if sys.argv[1:] == ["message"]:
    sys.exit("a message")
if sys.argv[1:] == ["raise"]:
    raise ValueError("of the program")
if sys.argv[1:] == ["kill"]:
    os.kill(os.getpid(), 9)
''')
with open("neighbour.py", "w") as file:
    file.write("")
os.mkdir("inner")
told = {{}}
for word in ("end", "leave", "message", "raise", "kill"):
    answer = ask("../program.py", word, cwd="inner", env={{**os.environ, "MARK": word}})
    told[word] = [answer.returncode, answer.stdout, answer.stderr]
told["module"] = ask("-m", "platform").stdout
with open("told.json", "w") as file:
    json.dump(told, file)
sys.exit(5)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each program of the story printed, and its exit status."""
    folder, place = tmp_path_factory.mktemp("warm"), tmp_path_factory.mktemp("socket")
    (folder / "story.py").write_text(STORY.format(warm=str(ROOT / "workflow/warm.py")))
    command = [sys.executable, ROOT / "workflow/warm.py", "--serve", place, sys.executable, "story.py"]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert answer.returncode == 5, answer.stderr
    return folder, json.loads((folder / "told.json").read_text())


def test_a_fork_has_the_callers_words_folder_environment_and_output(told):
    folder, told = told
    status, out, err = told["end"]
    words, place, mark, _, has_torch, name = json.loads(out)
    assert (status, words, mark, has_torch, name) == (0, ["../program.py", "end"], "end", True, "__main__")
    assert Path(place) == folder / "inner" and err == "to the other\n"
    assert "Linux" in told["module"]


def test_the_exit_status_is_the_programs(told):
    found = {word: told[1][word][0] for word in ("leave", "message", "raise", "kill")}
    assert found == {"leave": 7, "message": 1, "raise": 1, "kill": 1}
    assert "ValueError: of the program" in told[1]["raise"][2] and told[1]["message"][2].endswith("a message\n")


def test_programs_are_forks_of_one_process(told):
    parents = {json.loads(told[1][word][1])[3] for word in ("end", "leave", "raise")}
    assert len(parents) == 1 and not psutil.pid_exists(parents.pop())


@pytest.fixture
def short(tmp_path_factory):
    """A folder for temporary files; a socket's path must be short."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture
def waiting(tmp_path, short, monkeypatch):
    """A suite of four notebooks of which two have started and wait: its folder and its process."""
    monkeypatch.setenv("TMPDIR", str(short))
    numbers = ["03", "04", "05", "06"]
    make_repository(tmp_path, numbers)
    for number in numbers:
        (tmp_path / f"wait{number}").touch()
    with running_suite(tmp_path) as (process, _):
        wait_until(lambda: len(notebooks_run(tmp_path)) == 2)
        yield tmp_path, process
    for number in numbers:
        (tmp_path / f"wait{number}").unlink(missing_ok=True)


def names(process):
    """`{name: a process}` of the descendants of a process, by the names that the system shows."""
    return {child.name()[:15]: child for child in psutil.Process(process.pid).children(recursive=True)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["execute.py", "ipykernel_launc"])
def test_a_killed_fork_is_tried_again(waiting, name):
    folder, process = waiting
    names(process)[name].kill()
    for number in ("03", "04", "05", "06"):
        (folder / f"wait{number}").unlink()
    assert process.wait(PATIENCE) == 0
    assert len(notebooks_run(folder)) == 5 and {*notebooks_run(folder)} == {"03", "04", "05", "06"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_nothing_outlives_a_stopped_run(waiting, short, number):
    folder, process = waiting
    assert {"execute.py", "ipykernel_launc"} <= set(names(process)), "no forks"
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert not psutil.wait_procs(family, timeout=60)[1]
    assert number == signal.SIGKILL or not list(short.glob("unlearning-*"))
    for waits in folder.glob("wait*"):
        waits.unlink()
    assert suite(folder).returncode == 0
