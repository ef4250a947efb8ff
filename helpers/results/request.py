"""The report on a request to forget, as Markdown and as one HTML page without links to anything outside it."""

import base64
import html
from pathlib import Path

import numpy as np
import pandas as pd

from ..datasets import named_images
from ..fingerprint import file_digest
from .certificate import NOT_GUARANTEED, ONE_PAIR, check_lines, checks, class_counts, forgotten_lines, is_within
from .duplicates import near_duplicates
from .flags import scenario_flags
from .rows import made_for_other_data
from .tables import in_words

FIGURE, MEMORISATION = "report.png", "memorisation.csv"
PAIRS = 10  # forgotten images with a retained copy that are listed
WITHOUT_GOLD = (
    "That the model is like one retrained without the images: none was retrained.",
    "That a difference is more than chance: the floor is the difference of two retrained models, and there are none.",
    "That the target is right: accuracy on unseen images (0 for a class) only estimates that of a retrained model.",
    "That the method is cheaper than retraining.",
)


def report(outcome, weights, *, best=None, listed=None, command="", attacked=None, memorised=None):
    """Markdown: what was requested, what was done, at what cost, how it was checked, and what is not guaranteed.

    Args:
        outcome: a `forget.Outcome`.
        weights: `{model: (file name, SHA-256)}` of the weights beside the report.
        best: the run that is checked in detail.
        listed: the file that named the images.
        command: what was typed.
        attacked: one row per model and one column per attack.
        memorised: of `certificate.memorised`.
    """
    e = outcome.e
    parts = {
        "# Report on a request to forget": verdict_lines(outcome, weights),
        "## What was requested": requested_lines(e, listed, memorised),
        "## What was done": [*done_lines(e), *method_lines(outcome), "", *ranking_lines(outcome)],
        f"## How {best.name} was checked" if best else "": checked_lines(e, best),
        "## Attacks" if attacked is not None else "": attack_lines(attacked),
        "## What is not guaranteed": [f"- {line}" for line in not_guaranteed(e)],
        "## Checksums, versions and command": origin_lines(e, weights, listed, command),
    }
    return "\n\n".join("\n".join([title, "", *lines]) for title, lines in parts.items() if title) + "\n"


def verdict_lines(outcome, weights):
    """Which weights are recommended, and why."""
    e, best, by = outcome.e, outcome.recommended, outcome.ranking.columns[0]
    lines = [f"**{statement}**" for statement in scenario_flags(outcome.results, e.scenario.name)]
    original, floor = outcome.references
    compared = f"the untouched model has {original:.2f}" + f", the floor is {floor:.2f}" * bool(np.isfinite(floor))
    if best is None:
        lines.append(
            f"No method is recommended: none without a flag has a {by} that is measurably smaller than that of the "
            f"untouched model. In points, {compared}."
        )
    else:
        value = outcome.ranking[by][best.name]
        lines.append(
            f"**{best.name}** is recommended, `{weights[best.name][0]}`. Of the methods without a flag it has the "
            f"smallest {by}, {value:.2f} points; {compared}."
        )
        if value <= floor:
            lines.append("Within the floor, accuracy does not distinguish it from a retrained model.")
        elif np.isfinite(floor):
            lines.append("It is above the floor: two retrained models are nearer to each other.")
        if len(outcome.finished) > 1:
            lines.append("The same comparison chose it, so in a new one its distance would be greater on average.")
        if e.preset["golds"] > 1:
            within = [is_within(*values) for _, _, *values in checks(e, best)]
            lines.append(f"Of {len(within)} checks against Gold it is within the floor in {sum(within)}.")
    if e.preset["golds"]:
        lines.append(f"`{weights['Gold'][0]}` is the model retrained without these images: it never saw them.")
    else:
        lines.append("No model was retrained: see below what is not guaranteed.")
    return [" ".join(lines)]


def requested_lines(e, listed, memorised=None):
    """Which images were to be forgotten: the list, classes, copies that are retained."""
    near, lines = near_duplicates(e.split), []
    if listed:
        named = named_images(listed, e.data)
        lines.append(
            f"- **List**: `{Path(listed).name}` names {len(set(named)):,} images; repeated entries: "
            f"{len(named) - len(set(named)):,}; SHA-256 `{file_digest(listed)}`"
        )
    lines += forgotten_lines(e, near, memorised)
    if memorised is not None:
        lines.append(f"- Each forgotten image's memorisation: `{MEMORISATION}`")
    if not e.split.forget_classes:
        complete = [name for name, (forgotten, total) in class_counts(e).items() if forgotten == total]
        lines += [
            f"- All training images of **{name}** are on the list. A model without them never predicts that class, so "
            "unseen images of other classes are no reference for them; `--forget-class` is made for this."
            for name in complete
        ]
    if len(near):
        names = np.array(e.data.files or range(len(e.data.train_y)), dtype=object)
        shown = near.head(PAIRS)
        pairs = {
            "forgotten": names[shown.forgotten],
            "retained": names[shown.retained],
            "difference, grey levels": shown.difference,
        }
        pairs = pd.DataFrame(pairs).set_index("forgotten")
        lines += ["", f"The {len(shown)} nearest pairs:", "", *table_lines(pairs, digits=1)]
    return lines


def done_lines(e):
    """Which models were trained or loaded, on what."""
    batches, original, epochs = e.split.retain, e.original(), e.preset["training"]["epochs"]
    epochs = f"{epochs} epoch{'s' * (epochs != 1)}"
    made = original.environment
    if e.loads_original:
        origin = f"loaded from `{e.weights_file.name}`"
    else:
        origin = "the starting kit's checkpoint" if e.downloads_original else f"trained on all images, {epochs}"
    lines = [
        f"- **Network**: {e.network}, {len(e.data.classes)} classes, input of {batches.image_size} pixels, normalised "
        f"by mean {batches.mean} and standard deviation {batches.std}",
        f"- **Original**: {origin}; preset {e.preset_name}, seed {e.seed}",
    ]
    if e.preset["golds"]:
        cost, elsewhere = e.gold().cost, "Original was trained elsewhere; a difference in training adds to the gaps"
        lines.append(
            f"- **Gold and Gold 2**: retrained without the forgotten images, {epochs} each, {cost['images']:,} "
            f"images processed, {cost['seconds']:.0f} s" + f". {elsewhere}" * e.loads_original
        )
    threads = f"{made['threads']} thread{'s' * (made['threads'] != 1)}"
    return [*lines, f"- **Machine**: {made['device']}, {threads}, {made['precision']}"]


def method_lines(outcome):
    """One line per method: its settings and where they come from, or why it did not run."""
    runs, lines = outcome.runs, [f"- **{name}** did not run: {reason}" for name, reason in outcome.failed.items()]
    if others := [run.name for run in runs if made_for_other_data(outcome.e, run)]:
        lines.append(f"- **Settings for other data**: {', '.join(others)}; `workflow/tune.py` chooses them anew")
    return [f"- **{run.name}**: {in_words(run.settings)} ({run.settings_origin})" for run in runs] + lines


def ranking_lines(outcome):
    """The table of all models, the best method first."""
    table = outcome.table
    return table_lines(table, {table.columns[0]: 2, "images": 0, "seconds": 0}, digits=1)


def checked_lines(e, best):
    """The comparison with Gold and the floor, and the figure; without Gold only the figure."""
    if best is None:
        return []
    alt = "Histograms of the loss on forgotten and on unseen images, one panel per model"
    lines = check_lines(e, best) if e.preset["golds"] > 1 else ["Without a retrained model there is no such check."]
    return [*lines, "", f"![{alt}]({FIGURE})"]


def attack_lines(attacked):
    """The attacks of notebook 12, one row per model."""
    if attacked is None:
        return []
    text = "The target of each attack is its value for Gold, a model that never saw the images, not the lowest value."
    if "Gold" not in attacked.index:
        text = "The target of each attack would be its value for a retrained model; without one, compare with Original."
    return [text, "", *table_lines(attacked)]


def not_guaranteed(e):
    """What the report does not claim."""
    return [*((ONE_PAIR,) if e.preset["golds"] else WITHOUT_GOLD), *NOT_GUARANTEED]


def origin_lines(e, weights, listed, command):
    """Checksums of all files and data, versions, and the command."""
    files = dict(weights.values())
    files |= {Path(file).name: file_digest(file) for file in (listed, e.loads_original and e.weights_file) if file}
    made = e.original().environment
    packages = ("python", "torch", "torchvision", "timm", "numpy", "scikit-learn")
    return [
        "| file | SHA-256 |",
        "| --- | --- |",
        *(f"| `{name}` | `{digest}` |" for name, digest in files.items()),
        "",
        f"- **Data**: {e.data.title}, identity `{e.data.identity}`, a digest of names and contents",
        f"- **Versions**: {', '.join(f'{name} {made[name]}' for name in packages)}; code {made['commit']}",
        *([f"- **Command**: `{command}`"] if command else []),
    ]


# --- formats ------------------------------------------------------------------------------------------------------


def table_lines(table, by_column=None, digits=3):
    """A table as Markdown, its numbers with so many digits after the point; NaN is an empty cell."""

    def shown(value, column=""):
        if not isinstance(value, float):
            return str(value).replace("|", "\\|")
        return "" if np.isnan(value) else f"{value:,.{(by_column or {}).get(column, digits)}f}"

    heads = [table.index.name or "model", *table.columns]
    rows = [[name, *row] for name, row in zip(table.index, table.itertuples(index=False))]
    lines = [map(shown, heads), ["---", *["---:"] * len(table.columns)], *(map(shown, row, heads) for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def as_html(markdown, figure):
    """The report as one HTML page; the file `figure`, if there is one, is embedded."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath  # slow to import

    body = MarkdownWithMath(renderer=IPythonRenderer(escape=True, exclude_anchor_links=True)).render(markdown)
    if Path(figure).exists():
        png = base64.b64encode(Path(figure).read_bytes()).decode()
        body = body.replace(f'src="{FIGURE}"', f'src="data:image/png;base64,{png}"')
    title = html.escape(markdown.splitlines()[0].lstrip("# "))
    return PAGE.format(title=title, body=body)


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
td, th {{ border: 1px solid #ccc; padding: 0.25rem 0.6rem; text-align: left; }}
code {{ overflow-wrap: anywhere; }}
img {{ max-width: 100%; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
