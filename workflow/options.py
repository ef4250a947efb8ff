"""Command lines: parameters as options, and a parser that refuses bad input in one line. Imports no torch."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers.messages import unknown
from helpers.parameters import PARAMETERS, USED_BY, check, refuse_ignored


class Parser(argparse.ArgumentParser):
    """Refuses unknown or bad options in one line, with the nearest valid word."""

    renamed = {"--budget": "--preset"}  # noqa: RUF012

    def parse(self, words, others=()):
        """The options in `words`; `others` are words that are valid in front of them."""
        options, rest = self.parse_known_args(words)
        if rest:
            name = rest[0].split("=")[0]
            if name in self.renamed:
                self.error(f"{name} is now called {self.renamed[name]}")
            valid = [option for option in self._option_string_actions if option.startswith("--")]
            self.error(unknown(name, valid if name.startswith("-") else [*others, *valid]))
        return options

    def error(self, message):
        sys.exit(refuse(message, self.prog))


def refuse(message, program="run_all.sh"):
    """Print on one line why nothing is done; return the exit status."""
    print(f"{program}: {' '.join(str(message).split())}", file=sys.stderr)
    return 2


def guarded(main, program):
    """The exit status of `main`; what goes wrong is one line, and so is an interruption."""
    try:
        return main() or 0
    except KeyboardInterrupt:
        print(f"\n{program}: stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        return refuse(error, program)


def add_parameters(parser, names=tuple(PARAMETERS)):
    """Add the option of each of these parameters that has one."""
    for parameter in (PARAMETERS[name] for name in names):
        shown = " ".join(map(str, parameter.default)) if isinstance(parameter.default, list) else parameter.default
        words = parameter.comment if parameter.default in (None, True) else f"{parameter.comment} (default: {shown})"
        option = {"dest": parameter.name, "default": parameter.default, "help": words}
        if isinstance(parameter.default, bool):
            option |= {"action": "store_false", "help": f"do not {parameter.comment}"}
        else:
            metavar = parameter.option.rpartition("-")[2].upper() if parameter.option else None
            option |= {"metavar": metavar, "nargs": "+" if parameter.many else None}
        if parameter.option:
            parser.add_argument(parameter.option, **option)


def parameters_of(options, parser):
    """`{name: checked value}` of the parameters among parsed options; a bad one ends the program in one line."""
    values = {}
    for name, value in vars(options).items():
        if name in PARAMETERS:
            try:
                values[name] = check(name, value)
            except ValueError as error:
                parser.error(as_option(error, [name]))
    if "scenarios" in values:
        try:
            refuse_ignored({**{p.name: p.default for p in PARAMETERS.values()}, **values})
        except ValueError as error:
            parser.error(as_option(error, USED_BY))
    return values


def as_option(error, names):
    """A message about parameters as one about their options."""
    text = str(error)
    for name in names:
        text = text.replace(name, PARAMETERS[name].option)
    return text
