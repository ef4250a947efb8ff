"""What the suite prints: durations, suggestions for misspelt words, progress. Imports no torch."""

import difflib
import os


def duration(seconds):
    """`41 s`, `3 min 20 s` or `1 h 5 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def suggestion(word, valid):
    """`; did you mean quick?`, or nothing where no valid word is similar."""
    close = difflib.get_close_matches(str(word), [str(other) for other in valid], n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def unknown(word, valid):
    """`'quik' is unknown: one of quick, short; did you mean quick?`"""
    return f"'{word}' is unknown: one of {', '.join(map(str, valid))}{suggestion(word, valid)}"


def report_progress(line):
    """Report what happens: to the file that `UNLEARNING_PROGRESS` names, else as one changing line on the screen."""
    if file := os.environ.get("UNLEARNING_PROGRESS"):
        with open(file, "a", encoding="utf-8") as progress:
            progress.write(line + "\n")
    else:
        print(f"\r{line:<100}", end="", flush=True)
