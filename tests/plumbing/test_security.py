"""Nothing that is read or written here can run code, and the locked requirements are those that are asked for."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LOADERS = ("load", "load_state_dict", "load_state_dict_from_url")  # of torch, timm and torch.hub


def sources():
    """Name and Python source of every module and of every notebook's code."""
    for path in sorted([*ROOT.glob("helpers/**/*.py"), *ROOT.glob("workflow/*.py")]):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        cells = nbformat.read(path, 4).cells
        yield path.name, re.sub(r"^%.*", "", "\n".join(c.source for c in cells if c.cell_type == "code"), flags=re.M)


def unsafe(source):
    """What in a source could unpickle or run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            found += [name for name in names if name.split(".")[0] in ("pickle", "dill", "joblib", "shelve", "marshal")]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            weights_only = any(
                keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True" for keyword in node.keywords
            )
            if name in ("eval", "exec", "torch.save", "os.system", "yaml.load", "np.load", "pd.read_pickle"):
                found.append(name)
            if name.split(".")[0] in ("torch", "timm") and name.split(".")[-1] in LOADERS and not weights_only:
                found.append(name)
    return found


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle", ["pickle"]),
        ("from joblib import load", ["joblib"]),
        ("torch.load('x')", ["torch.load"]),
        ("torch.hub.load_state_dict_from_url(u, weights_only=False)", ["torch.hub.load_state_dict_from_url"]),
        ("torch.load('x', weights_only=True); json.load(f); model.load_state_dict(s)", []),
    ],
)
def test_what_is_unsafe_is_seen(source, expected):
    assert unsafe(source) == expected


@pytest.mark.parametrize(("name", "source"), list(sources()), ids=lambda value: value if len(value) < 60 else "")
def test_nothing_is_unpickled_or_run(name, source):
    assert unsafe(source) == []


def test_the_locked_requirements_are_those_that_are_asked_for():
    """Each has pins that it allows, each pin has a sha256, and no address is named."""
    lock = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)[^\n]*\\\n    --hash=sha256:[0-9a-f]{64}", lock, re.M)
    assert len(pins) == len(re.findall(r"^\w", lock, re.M)) > 50
    lines = [line.split("  #")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    for asked in [Requirement(line) for line in lines if line and not line.startswith(("#", "-e"))]:
        versions = [version for name, version in pins if name == asked.name]
        assert any(asked.specifier.contains(version) for version in versions), asked
    assert "://" not in lock
