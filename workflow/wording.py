"""What the suite says to people: durations, notebook titles, and what to type instead of a misspelt word."""

import difflib
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
    """`03 retain fine-tuning (seed 0)` for `notebooks/03_retain_fine-tuning.ipynb`."""
    name = Path(notebook).stem.replace("_", " ")
    return name if seed is None else f"{name} (seed {seed})"


def model_title(scenario, model, seed):
    """`random: gold-2 (seed 0)`."""
    return f"{scenario}: {model} (seed {seed})"


def unknown(word, valid):
    """`'quik' is unknown: one of quick, short; did you mean quick?`"""
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"'{word}' is unknown: one of {', '.join(valid)}{hint}"
