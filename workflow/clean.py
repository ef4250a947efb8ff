"""List what `runs/` holds, with sizes, and remove models that no current setting needs: `run_all.sh clean --yes`.

A model is not needed if the code or the presets that made it have changed since, so that no run finds it again.
"""

import json
import sys
from contextlib import suppress
from functools import cache

from options import Parser, guarded
from safetensors import SafetensorError

from helpers import methods, store
from helpers.paths import RUNS, shown
from helpers.presets import PRESETS


def main():
    parser = Parser(prog="run_all.sh clean", description=__doc__, allow_abbrev=False)
    parser.add_argument("--yes", action="store_true", help="remove them; without it they are only listed")
    options = parser.parse(sys.argv[1:])
    for folder in sorted(path for path in [*RUNS.glob("*"), *RUNS.glob("suite/*"), *RUNS.glob("models/*")]):
        if folder.is_dir():
            print(f"{size_of(folder.rglob('*')):>10}  {shown(folder)}/")
    unneeded = [path for path in sorted(RUNS.glob("models/**/*.safetensors")) if not is_needed(path)]
    print(f"{size_of(unneeded):>10}  in {len(unneeded)} models that no current setting needs", end="")
    if unneeded and not options.yes:
        print("; `run_all.sh clean --yes` removes them", end="")
    for path in unneeded * options.yes:
        path.unlink()
    print(", removed" if unneeded and options.yes else "")


def size_of(paths):
    """The size of files in words."""
    size = sum(path.stat().st_size for path in paths if path.is_file())
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def is_needed(path):
    """Whether today's code and presets can use the model in a file; a file that cannot be read is not needed."""
    with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError):
        record = store.read_record(path)
        made_with = record["settings"]
        return (
            made_with["recipe"] == store.recipe()
            and ("own" in record or made_with.get("code") in [None, *current("code")])
            and all(made_with.get(part) in [None, *current(part)] for part in ("training", "unlearning"))
        )
    return False


@cache
def current(part):
    """The methods' code as it is now, or the tables of all presets, as JSON returns them."""
    if part == "code":
        return [store.key(methods.source_of(method.function)) for method in methods.METHODS.values()]
    return [json.loads(json.dumps(table[part])) for preset in PRESETS.values() for table in preset.values()]


if __name__ == "__main__":
    sys.exit(guarded(main, "run_all.sh clean"))
