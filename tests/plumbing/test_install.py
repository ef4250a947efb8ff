"""What is installed: requirements, extras and versions of Python agree with each other and with what is imported."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from helpers.fingerprint import code_structure, key

ROOT = Path(__file__).resolve().parents[2]
tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest requires tomli there
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
GROUPS = {"dependencies": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
PYTHONS = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
DIGEST = "4b9546c0d387"  # of SOURCE
SOURCE = '''
"""A docstring."""
table: dict[str, tuple[int, ...]] = {"a": (1, 2), **other}  # a comment
@cache
def f(x, /, *rest, key=None, **more):
    """Another."""
    print(f"{x!r:>{width}} is \\"{more['a']}\\"" f"{{}}" 'and so on', 1.0, -1, 1e-5, True, b"")
    match x:
        case [1, *_] | {"a": None}:
            return x[1:2, ..., (3, 4)]
    return lambda: (yield), *rest
'''


def requirements():
    """The groups of requirements.txt, by the first word of each heading."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    groups = {}
    for block in text.split("\n\n"):
        heading, *lines = block.strip().splitlines()
        if lines:
            groups[re.match(r"# ([\w/]+)", heading)[1]] = lines
    return groups


def test_requirements_are_the_dependencies_and_extras():
    """Group by group, in the same order; the package itself is last."""
    groups = requirements()
    assert groups.pop("helpers/") == ["-e ."]
    ours = {name: [Requirement(line) for line in lines] for name, lines in groups.items()}
    assert ours == {name: [Requirement(line) for line in lines] for name, lines in GROUPS.items()}


def installed_with(*groups):
    """Names of all packages that installing some groups brings here, by what each requires."""
    waiting, found = [Requirement(line) for group in groups for line in GROUPS[group]], set()
    while waiting:
        asked = waiting.pop()
        name = canonicalize_name(asked.name)
        extras = asked.extras or {""}
        if (name, *extras) in found or (asked.marker and not any(asked.marker.evaluate({"extra": e}) for e in extras)):
            continue
        found.add((name, *extras))
        try:
            needed = [Requirement(line) for line in distribution(name).requires or ()]
        except PackageNotFoundError:
            continue
        waiting += [r for r in needed if not r.marker or any(r.marker.evaluate({"extra": e}) for e in extras)]
    return {name for name, *_ in found}


@cache
def homes():
    """`{module: names of the packages that contain it}`; Python 3.10's own function overlooks most."""
    found = {}
    for package in distributions():
        for top in {file.parts[0] for file in package.files or () if file.suffix in (".py", ".so")}:
            found.setdefault(top.partition(".")[0], set()).add(canonicalize_name(package.metadata["Name"]))
    return found


def imported(files):
    """The names of all packages that are imported in these files, except Python's own."""
    names = set()
    for file in files:
        for node in ast.walk(ast.parse(source_of(file))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.split(".")[0])
    ours = {path.stem for folder in ("tests", "workflow") for path in ROOT.glob(f"{folder}/**/*.py")} | {"helpers"}
    return names - ours - sys.stdlib_module_names


def source_of(file):
    if file.suffix != ".ipynb":
        return file.read_text(encoding="utf-8")
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return re.sub(r"^%.*", "", "\n".join(code), flags=re.M)


@pytest.mark.parametrize(
    "pattern, groups",
    [
        ("helpers/**/*.py", ["dependencies"]),
        ("notebooks/*.ipynb", ["dependencies", "notebooks"]),
        ("workflow/*.py", ["dependencies", "engine"]),
        ("tests/**/*.py", list(GROUPS)),
    ],
)
def test_what_is_imported_is_installed(pattern, groups):
    """Each part needs only its own groups: a reader's install needs nothing for the engine or the tests."""
    installed, names = installed_with(*groups), imported(ROOT.glob(pattern))
    missing = [name for name in names if not homes().get(name, set()) & installed]
    assert len(names) > 3 and not missing


def test_a_reader_installs_neither_engine_nor_tests():
    assert not installed_with("dependencies", "notebooks") & {"papermill", "snakemake", "pytest", "playwright", "ruff"}


def test_versions_of_python_agree():
    """Classifiers without a gap from the oldest; linter, `run_all.sh` and the container accept the same."""
    minors = [int(version.partition(".")[2]) for version in PYTHONS]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    assert SETTINGS["tool"]["ruff"]["target-version"] == f"py3{minors[0]}"
    script = (ROOT / "run_all.sh").read_text(encoding="utf-8")
    assert f"sys.version_info < (3, {minors[0]})" in script and all(f"python{v}" in script for v in PYTHONS)
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    assert re.search(r"python:(3\.\d+)", container["image"])[1] in PYTHONS


def test_the_digest_of_code_is_the_same_in_all_versions_of_python():
    """Stored models are found by it: an update of Python keeps them."""
    assert key(code_structure(SOURCE)) == DIGEST


def pythons():
    """An interpreter of each supported version that is here, in the search path or under pyenv."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in PYTHONS:
        candidates = [shutil.which(f"python{version}"), *versions.glob(f"{version}.*/bin/python")]
        works = (p for p in candidates if p and not subprocess.run([p, "-c", ""], capture_output=True).returncode)
        if found := next(works, None):
            yield version, found


def test_the_command_line_starts_in_each_python_that_is_here():
    """Without any package, before the set-up: all options, and every module is valid in that version."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    parse = "import ast, pathlib, sys; [ast.parse(pathlib.Path(f).read_bytes()) for f in sys.argv[1:]]"
    files = [path for folder in ("helpers", "workflow") for path in ROOT.glob(f"{folder}/**/*.py")]
    for version, python in pythons():
        for command in ([ROOT / "workflow/suite.py", "--help"], ["-c", parse, *files]):
            done = subprocess.run([python, *command], env=environment, capture_output=True, encoding="utf-8")
            assert done.returncode == 0, f"{version}: {done.stderr}"
            assert "--help" not in command or "--forget-list" in done.stdout
