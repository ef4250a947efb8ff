"""Forget the images that a list names, or classes, with several methods; write weights and a report.

`./run_all.sh forget --data DIR --forget-list removed.txt`. The same command again finds the models that it has trained.
"""

import shlex
import sys
from pathlib import Path

from options import Parser, add_parameters, parameters_of, refuse

from helpers.parameters import check
from helpers.paths import shown

PARAMETERS = ("data", "preset", "forget_class", "forget_list", "model", "image_size", "flip", "original", "normalise")


def main(words):
    parser = Parser(prog="run_all.sh forget", description=__doc__, allow_abbrev=False)
    add_parameters(parser, PARAMETERS)
    add = parser.add_argument
    add("--methods", nargs="+", default=[], metavar="M", help="by name, or a Python file with some (default: three)")
    add("--no-gold", action="store_true", help="retrain nothing: cheaper, and fewer claims")
    add("--audit", action="store_true", help="attack the recommended model, as notebook 12 does")
    add("--seed", default=0, metavar="N", help="of training and unlearning (default: 0)")
    add("--out", metavar="DIR", help="folder for weights and report (default: one in runs/forget/)")
    options = parser.parse(words)
    try:
        return forget(options, request_of(options, parser), shlex.join(["./run_all.sh", "forget", *words]))
    except (ValueError, ArithmeticError, OSError) as error:
        return refuse(error, parser.prog)
    except KeyboardInterrupt:
        print("\nrun_all.sh forget: stopped; the same command resumes", flush=True)
        return 130


def request_of(options, parser):
    """The parameters of the experiment; a bad one ends the program in one line."""
    if bool(options.forget_list) == bool(options.forget_class):
        parser.error("name what to forget, either --forget-list FILE or --forget-class NAME ...")
    files = [word for word in options.methods if word.endswith(".py")]
    if len(files) > 1:
        parser.error(f"--methods: {' and '.join(files)} are several files; put the methods into one")
    scenario = "random" if options.forget_list else "class"
    try:
        seed = check("seed", options.seed)
    except ValueError as error:
        parser.error(f"--{error}")
    own = {"scenarios": [scenario], "seed": seed, "own_methods": files[0] if files else None}
    return {**parameters_of(options, parser), **own}


def forget(options, parameters, command):
    """Check everything, then train, unlearn and write the report; return the exit status, 1 if no method ran."""
    # slow to import: a misspelt option is refused at once
    from helpers.experiment import open_experiments
    from helpers.forget import carry_out, check_folder, chosen_methods, default_folder, prepared, write

    [experiment] = open_experiments(parameters)
    e = prepared(experiment, gold=not options.no_gold)
    named = [word for word in options.methods if not word.endswith(".py")]
    names = chosen_methods(e, [*named, *e.own_methods])
    folder = Path(options.out or default_folder(e, names))
    check_folder(folder, [parameters["forget_list"], e.weights_file])
    try:
        outcome = carry_out(e, names)
        write(outcome, folder, listed=parameters["forget_list"], command=command, audit=options.audit)
    finally:
        print(flush=True)  # ends the changing line of progress
    for name, reason in outcome.failed.items():
        print(f"{name} did not run: {reason}", file=sys.stderr)
    best = outcome.recommended
    print(f"Recommended: {best.name if best else 'no method, see the report'}")
    print(f"Report: {shown(folder / 'report.html')}")
    return 0 if outcome.runs else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
