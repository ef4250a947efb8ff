"""What the notebooks share: opening a suite, showing source, tables and sentences, saving figures and tables."""

import inspect
import io
from importlib.metadata import version

import pandas as pd
from IPython.display import Image, Markdown, display

from . import paths, plots
from .experiment import open_experiments
from .models import share_of_parameters, trained_layers
from .parameters import PARAMETERS
from .results import tables as made
from .results.published import DATA
from .results.rows import OTHER_DATA, tidy


def open_suite(variables, show=True):
    """One `Experiment` per scenario, from a notebook's parameters, after a paragraph that describes them.

    Args:
        variables: the notebook's `globals()`; of these the names in `parameters.PARAMETERS` count.
        show: whether to display the paragraph.

    Raises:
        ValueError: a parameter has the wrong type or value, or does not fit the data; in one line.
    """
    suite = open_experiments({name: variables[name] for name in PARAMETERS if name in variables})
    plots.use_style(suite[0].data.classes)
    pd.set_option("display.max_columns", 20)  # pandas' choice in a notebook, unless it was imported before the kernel
    pd.set_option("display.max_colwidth", None)
    if show:
        display(Markdown(describe(suite)))
    return suite


def describe(suite):
    """A Markdown paragraph: the data, the preset, and what is forgotten and how models are trained per scenario."""
    first = suite[0]
    lines = [
        f"**{first.data.title}**, {len(first.data.train_y):,} training and {len(first.data.test_y):,} test images; "
        f"preset **{first.preset_name}**, seed {first.seed}, start **{first.start}**. "
        f"Suite {version('unlearning-suite')}, torch {version('torch')}."
    ]
    for e in suite:
        epochs, forgotten = e.preset["training"]["epochs"], [e.data.classes[n] for n in e.split.forget_classes]
        trained = "Original and Gold (notebook 02)"
        if e.loads_original or e.downloads_original:
            origin = f"the weights in {e.weights_file.name}" if e.loads_original else "the starting kit's checkpoint"
            trained = f"Original: {origin}. Gold (notebook 02)"
        retained = len(e.split.retain.index)
        most = e.preset["unlearning"].get("retain_limit") or retained
        limit = f" One epoch of a method over the retained images uses {most:,} of them." if most < retained else ""
        chosen = "the images of a list" if "forget" in e.split_settings else "a random share"
        what = f"the class{'es' * (len(forgotten) > 1)} **{', '.join(forgotten)}**" if forgotten else chosen
        lines.append(
            f"- **{e.scenario.name}**: {e.network} forgets {what}: {len(e.split.forget.index):,} "
            f"images; {retained:,} are retained. {trained}: {epochs} epoch{'s' * (epochs != 1)}.{limit}{last_layers(e)}"
        )
    return "\n".join(lines)


def last_layers(e):
    """A sentence with the share of parameters that selective methods train; none for a network without stages."""
    model = e.build(weights=None)
    try:
        share = 100 * share_of_parameters(trained_layers(model), model)
    except ValueError:
        return ""
    return f" Its last layers, which M2 to M6 train (notebooks 04 to 07), have {share:.0f} % of its parameters."


def show(*functions):
    """Display the source of functions and classes."""
    source = "\n\n".join(inspect.getsource(function).rstrip() for function in functions)
    display(Markdown(f"```python\n{source}\n```"))


# --- tables and sentences -----------------------------------------------------------------------------------------


def tables(suite, results):
    """Display each scenario's table below one line that describes it.

    Args:
        suite: experiments, of one or several seeds.
        results: of `results.tidy`.
    """
    for scenario in dict.fromkeys(e.scenario.name for e in suite):
        e = next(e for e in suite if e.scenario.name == scenario)
        part = results[results.scenario == scenario]
        if part.empty:
            continue
        seeds = sorted(int(seed) for seed in part.seed.unique())
        shown = made.table(part, scenario, e.data.name)
        marked = list(dict.fromkeys(part[part.metric == OTHER_DATA].method))
        shown = shown.rename(index={name: f"{name} †" for name in marked})
        environment = e.original().environment
        lines = [
            f"**{scenario}** on {e.data.title}, preset {e.preset_name}, seed{'s' * (len(seeds) > 1)} "
            f"{', '.join(map(str, seeds))}; seconds (without evaluation) on {environment['device']}, "
            f"{environment['threads']} thread{'s' * (environment['threads'] != 1)}, {environment['precision']}."
        ]
        if marked:
            others = {e.preset["written_for"][part] for part in ("methods", "published")} - {e.data.name}
            lines.append(f"† Settings that were chosen for other data: {', '.join(sorted(others))}.")
        display(Markdown(" ".join(lines)), shown)


def beside_the_documents(suite, results):
    """Display what the documents print beside what was measured, started from Original and in a chain.

    The runs of a chain are those that exist already (`--start chain`); this trains nothing.
    """
    for e in [e for e in suite if e.data.name == DATA]:
        name, chained = e.scenario.name, e.derive(start="chain")
        sources = {e.start: results}
        runs = [run for run in chained.finished() if run.name in e.methods]
        if name == "random" and e.start == "fresh" and runs:
            sources["chain"] = tidy([chained], runs)
        table = made.beside_published(sources, name)
        rows = table.round(2).astype(object).where(table.notna(), "")
        display(Markdown(f"**{name}**: preset {e.preset_name} and what the document prints"), rows)
        box(f"**In this run** ({provenance([e])})", made.published_lines(table))
    if all(e.data.name != DATA for e in suite):
        display(Markdown("The documents' numbers are of CIFAR-10: nothing to compare on these data."))


def show_settings(suite, runs):
    """Display the settings with which each run was made, defaults included, and where they come from."""
    table = made.effective_settings(suite, runs)
    for scenario in table.index.unique("scenario"):
        display(Markdown(f"**{scenario}**: settings"), table.xs(scenario, level="scenario"))


def in_this_run(suite, results):
    """Display one computed sentence per method: how far it is from Gold, and at what cost."""
    box(f"**In this run** ({provenance(suite)})", made.run_lines(results))


def verdict(results):
    """Display the sentences of `results.tables.verdict_lines`."""
    box("**In this run**", made.verdict_lines(results))


def box(title, lines):
    """Display a title and lines of Markdown as a quotation."""
    display(Markdown("\n".join([f"> {title}", ">", *(f"> {line}" for line in lines)])))


# --- files --------------------------------------------------------------------------------------------------------


def save_figure(figure, suite, name, alt):
    """Display `figure` as PNG with its alternative text and write it to `figures/<name>.png` in the run's folder.

    A grey line above the figure names the run; below it a legend may stand.
    """
    above = 1 + 4 / 72 / figure.get_figheight()  # 4 points over the edge
    figure.text(1, above, provenance(suite), ha="right", va="bottom", fontsize=7.5, color="0.5")
    png = io.BytesIO()
    figure.savefig(png, format="png", bbox_inches="tight", metadata={"Software": None})
    path = suite[0].output / "figures" / f"{name}.png"
    paths.replace_file(path, lambda file: file.write_bytes(png.getvalue()))
    display(Image(png.getvalue(), format="png", alt=alt))


def provenance(suite):
    """`scikit-learn digits · quick · seed 0`, then the scenario if there is one alone, and `chain` for a chain."""
    seeds, first = sorted({e.seed for e in suite}), suite[0]
    scenarios = {e.scenario.name for e in suite}
    parts = [first.data.title, first.preset_name, f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"]
    parts += [plots.TITLES[name] for name in scenarios if len(scenarios) == 1]
    return " · ".join(parts + ["chain"] * (first.start == "chain"))


def save_table(table, suite, name):
    """Write `table` to `<name>.csv` in the run's folder and report how long it is."""
    path = suite[0].output / f"{name}.csv"
    paths.replace_file(path, lambda file: table.to_csv(file, index=False, lineterminator="\n"))
    print(f"{len(table):,} rows in {name}.csv")
