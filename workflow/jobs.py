"""What a run consists of: one job per notebook and seed, and jobs that train the models which notebooks share.

Each job's `made_from` is a fingerprint of all that determines its result. Snakemake compares it with that of the last
run and so decides what is out of date. Imports no torch.
"""

import ast
import json
import re
import sys
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers.fingerprint import code_without_words, key
from helpers.paths import ROOT, RUNS, run_name
from helpers.presets import PRESETS


@dataclass(frozen=True)
class Needs:
    """What a notebook starts from, and whether it comes after those that run methods and is run once for all seeds."""

    models: bool = True  # Original and the Golds
    shadows: bool = False
    after_methods: bool = False
    all_seeds: bool = False
    runs_methods: bool = False  # the preset's methods, for which a seed counts as complete


# The one table that names notebooks, in the order in which they run: as a reader goes, what needs most models last.
# A notebook that is not here needs the models and runs last.
NEEDS = {
    "01": Needs(models=False),
    "02": Needs(),
    "03": Needs(runs_methods=True),
    "04": Needs(runs_methods=True),
    "05": Needs(runs_methods=True),
    "06": Needs(runs_methods=True),
    "07": Needs(runs_methods=True),
    "08": Needs(runs_methods=True),
    "09": Needs(runs_methods=True),
    "11": Needs(runs_methods=True),
    "12": Needs(),
    "13": Needs(shadows=True),
    "14": Needs(),
    "15": Needs(),
    "16": Needs(models=False),
    "10": Needs(after_methods=True, all_seeds=True),
    "17": Needs(after_methods=True),
}
DEFAULT = Needs()
FIRST = "01"  # the notebook to open first
SHADOWS_BEFORE = "11"  # shadow models are trained before it: it is long, and what attacks them runs beside it
SHADOWS_PER_JOB = 8  # on one machine, where starting a process costs as much as training briefly


def find_notebooks():
    """`{number: path from the repository}`, in the order in which they run."""
    found = {path.name[:2]: f"notebooks/{path.name}" for path in sorted(ROOT.glob("notebooks/[0-9][0-9]_*.ipynb"))}
    return {number: found[number] for number in sorted(found, key=lambda n: ([*NEEDS, n].index(n), n))}


@dataclass
class Job:
    """One process: a notebook to execute or a group of models to train."""

    kind: str  # a notebook's number, or "random models", "class shadows": jobs of a kind last about as long
    title: str
    name: str  # of the Snakemake rule
    seed: int | None  # None: all seeds
    result: str  # path of the JSON file that is written when the job has succeeded
    made_from: str  # fingerprint
    parameters: dict
    notebook: str = ""
    models: list = field(default_factory=list)
    scenario: str = ""
    after: list = field(default_factory=list)  # results that must exist before
    priority: int = 0

    @property
    def executed(self):
        """Path of the executed notebook; none for models."""
        return self.result.removesuffix(".json") + ".ipynb" if self.notebook else ""

    @property
    def output(self):
        """Folder into which a notebook's figures and tables go."""
        return str(Path(self.result).parent)

    def beside(self, pattern):
        """A file next to the result, named after it: `.{}.progress` or `{}.failed`."""
        path = ROOT / self.result
        return path.with_name(pattern.format(path.stem))

    @property
    def record(self):
        """The content of the result file; empty if there is none."""
        try:
            return json.loads((ROOT / self.result).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}


def as_config(jobs, **settings):
    """The jobs and further settings as JSON for the Snakefile and the jobs' processes."""
    return json.dumps({"jobs": [asdict(job) for job in jobs], **settings}, indent=1)


# --- the list of jobs ---------------------------------------------------------------------------------------------


def run_folder(parameters, facts):
    """The folder of a run, absolute."""
    return RUNS / "suite" / run_name(parameters, facts["name"])


def list_jobs(parameters, facts, seeds, numbers, separate=False):
    """All jobs of a run, in the order in which they should start.

    Args:
        parameters: of the notebooks, without the seed.
        facts: name and identity of the data, from `facts.py`.
        numbers: of the notebooks that are wanted.
        separate: one job per model, for a cluster or several GPUs.
    """
    folder = run_folder(parameters, facts)
    shown = folder.relative_to(ROOT).as_posix() if folder.is_relative_to(ROOT) else str(folder)
    notebooks = {number: path for number, path in find_notebooks().items() if number in numbers}
    jobs = []
    for seed in seeds:
        own = {**parameters, "seed": seed}
        models, shadows = model_jobs(f"{shown}/seed{seed}", own, facts["identity"], separate)
        jobs += models + shadows
        for number, path in notebooks.items():
            needs = NEEDS.get(number, DEFAULT)
            if not needs.all_seeds:
                job = notebook_job(path, f"{shown}/seed{seed}", own, facts["identity"])
                job.after = [m.result for m in models * needs.models + shadows * needs.shadows]
                jobs.append(job)
    for number, path in notebooks.items():
        if NEEDS.get(number, DEFAULT).all_seeds:
            own = {**parameters, "seed": seeds[0]}
            shows = sorted({*seeds, *complete_seeds(folder)})
            jobs.append(notebook_job(path, shown, own, [facts["identity"], shows], all_seeds=True))
    for job in jobs:
        if NEEDS.get(job.kind, DEFAULT).after_methods:
            job.after += [j.result for j in jobs if comes_before(j, job)]
    return in_order(needed(jobs))


def needed(jobs):
    """The notebooks and what they must wait for; models that none of them uses are left out."""
    by_result, wanted = {job.result: job for job in jobs}, [job for job in jobs if job.notebook]
    for job in wanted:  # grows on the way
        wanted += [other for other in map(by_result.get, job.after) if other not in wanted]
    return wanted


def comes_before(one, other):
    """Whether a notebook is one that `other`, which comes after those of its seed or seeds, must wait for."""
    needs = NEEDS.get(one.kind, DEFAULT)
    plain = not (needs.shadows or needs.after_methods)
    return bool(one.notebook) and plain and other.seed in (None, one.seed)


def in_order(jobs):
    """`jobs` with priorities: by seed as a reader goes, then what compares all of them."""
    order = list(find_notebooks())
    shadows_step = (order.index(SHADOWS_BEFORE) if SHADOWS_BEFORE in order else len(order)) - 0.5

    def rank(job):
        needs = NEEDS.get(job.kind, DEFAULT)
        late, seed = bool(job.notebook) and needs.after_methods, -1 if job.seed is None else job.seed
        if job.notebook:
            return late, seed, order.index(job.kind) if needs.models else -2
        return late, seed, shadows_step if "shadow" in job.kind else -1

    jobs = sorted(jobs, key=rank)
    for place, job in enumerate(jobs):
        job.priority = len(jobs) - place
    return jobs


def complete_seeds(folder):
    """The seeds whose notebooks with methods have all been run, whatever the last command was."""
    numbers = [number for number in find_notebooks() if NEEDS.get(number, DEFAULT).runs_methods]
    seeds = [int(path.name[4:]) for path in folder.glob("seed*") if path.name[4:].isdigit()]
    return [seed for seed in seeds if all((folder / f"seed{seed}/{number}.json").exists() for number in numbers)]


def notebook_job(path, folder, parameters, identity, all_seeds=False):
    """The job that executes a notebook into `folder`."""
    name = Path(path).stem
    words = name.replace("_", " ")
    seed = None if all_seeds else parameters["seed"]
    return Job(
        kind=name[:2],
        title=words if all_seeds else f"{words}, seed {seed}",
        name=f"notebook_{name[:2]}" if all_seeds else f"notebook_{name[:2]}_seed{seed}",
        seed=seed,
        result=f"{folder}/{name[:2]}.json",
        made_from=key([code_cells(path), code_used(notebook_code(path), parameters["preset"]), parameters, identity]),
        parameters=parameters,
        notebook=path,
    )


def model_jobs(folder, parameters, identity, separate):
    """The jobs that train Original and the Golds, and those that train shadow models, of one seed."""
    seed = parameters["seed"]

    def job(kind, models, title):
        used = "helpers.audit.shadows" if "shadow" in kind else "helpers.experiment"
        name = f"{scenario}-{title}".replace(" ", "-")
        return Job(
            kind=f"{scenario} {kind}",
            title=f"{scenario}: {title}, seed {seed}",
            name=f"{name}-seed{seed}".replace("-", "_"),
            seed=seed,
            result=f"{folder}/models/{name.lower()}.json",
            made_from=key([code_used(f"import {used}", parameters["preset"]), parameters, identity]),
            parameters=parameters,
            models=models,
            scenario=scenario,
        )

    models, shadows = [], []
    for scenario in parameters["scenarios"]:
        preset = PRESETS[parameters["preset"]][scenario]
        golds = ["gold", *(f"gold-{number + 1}" for number in range(1, preset["golds"]))][: preset["golds"]]
        if separate:
            models += [job("model", [name], name.replace("-", " ").capitalize()) for name in ["original", *golds]]
        else:
            models.append(job("models", ["original", *golds], "Original and Golds"))
        numbers, size = range(preset["audit"]["shadows"]), 1 if separate else SHADOWS_PER_JOB
        for part in (numbers[start : start + size] for start in numbers[::size]):
            title = f"shadow models {part[0]} to {part[-1]}" if len(part) > 1 else f"shadow model {part[0]}"
            shadows.append(job("shadows", [f"shadow-{number}" for number in part], title))
    for shadow in shadows:  # a shadow's tuned methods measure against the Golds
        shadow.after = [model.result for model in models if model.scenario == shadow.scenario]
    return models, shadows


# --- fingerprints -------------------------------------------------------------------------------------------------


@cache
def code_cells(path):
    """The code of a notebook's cells.

    Raises:
        ValueError: the file is no notebook.
    """
    try:
        cells = json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no notebook ({type(error).__name__}: {error})") from error


def notebook_code(path):
    """The Python of a notebook's cells, without lines that only Jupyter understands."""
    return re.sub(r"^\s*[%!].*$", "", "\n".join(code_cells(path)), flags=re.M)


@cache
def code_used(source, preset):
    """The code that `source` imports from `helpers`, directly or not, and the tables of the preset."""
    modules, waiting = set(), imports(source, "")
    while waiting:
        module = waiting.pop()
        if module not in modules:
            modules.add(module)
            waiting |= imported_by(module)
    tuned = ROOT / "helpers" / "tuned" / f"{preset}.csv"
    return [
        {name: code_of(name) for name in sorted(modules - {"helpers.presets"})},
        PRESETS[preset],
        tuned.read_text(encoding="utf-8") if tuned.exists() and "helpers.tuning" in modules else "",
    ]


@cache
def code_of(module):
    """A module of `helpers` as a fingerprint that comments, docstrings and layout do not change."""
    return key(code_without_words(read_module(module)[0]))


@cache
def module_files():
    """`{module: path}` of everything in `helpers`."""
    files = {}
    for path in ROOT.glob("helpers/**/*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


@cache
def read_module(name):
    """The source of a module, and the package that its relative imports start from."""
    path = module_files()[name]
    return path.read_text(encoding="utf-8"), name if path.name == "__init__.py" else name.rpartition(".")[0]


@cache
def imported_by(module):
    """The modules of `helpers` that a module needs."""
    return imports(*read_module(module))


def imports(source, package):
    """The modules of `helpers` that a source names in imports, its own package included."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a notebook's cell fails when it runs; until then it may use anything
        return set(module_files())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
            if module == "helpers" and any(f"helpers.{a.name}" not in module_files() for a in node.names):
                return set(module_files())  # a name that the package looks up itself
    parents = {".".join(name.split(".")[:depth]) for name in found for depth in range(1, name.count(".") + 2)}
    return parents & set(module_files())
