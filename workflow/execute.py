"""Execute one notebook with papermill. Its figures and tables appear only if every cell ran; a failed notebook is kept.

The Snakefile runs this. A cell that raises would raise again, so a second attempt is made only after a dead kernel.
"""

import ast
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from uuid import uuid4

os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # this environment's kernel, whatever else is installed
sys.modules["rfc3987_syntax"] = None  # jsonschema imports it for 2 s to check web addresses, which notebooks lack

import nbformat
import papermill
from jobs import ROOT
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from process import main
from traitlets.config import Config

from helpers.messages import unknown
from helpers.paths import replace_text


def execute(job):
    """Run the job's notebook; return what went wrong, whether a retry may help, and the record of a success."""
    notebook, executed = ROOT / job.notebook, ROOT / job.executed
    if problem := parameter_problem(nbformat.read(notebook, 4), job.parameters):
        return f"    {problem}", False, None
    unfinished, staging = job.beside(".{}.ipynb"), job.beside(".{}.output")
    unfinished.unlink(missing_ok=True)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    os.environ["UNLEARNING_OUTPUT"] = str(staging)
    try:
        done = run_notebook(notebook, unfinished, job.parameters, cwd=notebook.parent)
        if [cell for cell in done.cells if is_code(cell) and cell.execution_count is None]:
            return "    it stopped before its last cell", False, None
        outputs = keep_outputs(staging, ROOT / job.output, job.beside(".{}.outputs"))
        return None, False, {"notebook": notebook.name, "outputs": outputs, "environment": environment()}
    except PapermillExecutionError as error:
        return explain(error), False, None
    except DeadKernelError:
        return "    its kernel died (out of memory?)", True, None
    except (OSError, RuntimeError) as error:  # a full disk, a kernel that does not start
        unfinished.unlink(missing_ok=True)
        return f"    {type(error).__name__}: {error} ({job.executed})", True, None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if unfinished.exists():
            os.replace(unfinished, executed)


def keep_outputs(staging, folder, listing):
    """Move all files from `staging` to `folder`, and remove those that an earlier run made and this one did not.

    Args:
        listing: the file that lists the paths of a notebook's outputs, one per line.

    Returns:
        the files' paths from `folder`, sorted.
    """
    former = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    outputs = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())
    for name in outputs:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / name, folder / name)
    for name in set(former) - set(outputs):
        (folder / name).unlink(missing_ok=True)
    replace_text(listing, "\n".join(outputs))
    return outputs


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
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
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


if __name__ == "__main__":
    sys.exit(main(execute))
