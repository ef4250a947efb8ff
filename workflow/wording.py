"""What the suite says to people: durations, notebook titles, and what to type instead of a misspelt word."""

import argparse
import difflib
import sys
from pathlib import Path


def duration(seconds):
    """`41 s`, `3 min 20 s` or `1 h 5 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def title(notebook, seed=None):
    """`03 retain fine-tuning (seed 0)` for `notebooks/03_retain_fine-tuning.ipynb`; 10 looks at all seeds."""
    name = Path(notebook).stem.replace("_", " ")
    return name if seed is None or name.startswith("10 ") else f"{name} (seed {seed})"


def model_title(scenario, model, seed):
    """`random: gold-2 (seed 0)`."""
    return f"{scenario}: {model} (seed {seed})"


def unknown(word, valid):
    """`'quik' is unknown: one of quick, short; did you mean quick?`"""
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"'{word}' is unknown: one of {', '.join(valid)}{hint}"


class Parser(argparse.ArgumentParser):
    """Refuses in one line what it does not know."""

    def parse(self, words, others=()):
        """The options that `words` spell; `others` are words that may stand in front of them."""
        options, rest = self.parse_known_args(words)
        if rest:
            valid = [option for option in self._option_string_actions if option.startswith("--")]
            self.error(unknown(rest[0], valid if rest[0].startswith("-") else [*others, *valid]))
        return options

    def error(self, message):
        sys.exit(refuse(message, self.prog))


def refuse(message, program="run_all.sh"):
    """Say on one line why nothing is done; return the exit status."""
    print(f"{program}: {' '.join(str(message).split())}", file=sys.stderr)
    return 2
