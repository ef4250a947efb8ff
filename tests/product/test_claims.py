"""What prose says about results is in `claims` and holds: in the published tables, and on two seeds of a new run."""

import json
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from claims import AUDIT_CLAIMS, CLAIMS
from default_run import SEEDS

ROOT = Path(__file__).resolve().parents[2]
RUN = "noisy-digits-quick"  # the default data and preset
BOTH = ("random", "class")  # scenarios
GOLDS = ("Gold 1", "Gold 2", "Gold 3", "Gold 4", "Gold 5")  # names in audit.csv


class Run:
    """One seed's tables, and the functions that expressions in `claims` use.

    Args:
        folder: has published.csv, attacks.csv, audit.csv and corrupted.csv of this seed.
        shared: has results.csv and runs.csv of all seeds.
    """

    functions = ("value", "per_epoch", "settings", "methods", "golds", "attack")
    functions += ("audited", "audited_models", "has_audit", "floor", "left")

    def __init__(self, folder, shared, seed):
        files = {"results": shared, "runs": shared, "published": folder, "attacks": folder, "audit": folder}
        files["corrupted"] = folder
        paths = {name: place / f"{name}.csv" for name, place in files.items()}
        tables = {name: pd.read_csv(path, keep_default_na=False) for name, path in paths.items() if path.exists()}
        self.tables = {name: table[table.seed == seed] for name, table in tables.items()}

    def holds(self, expression):
        """Whether an expression is true of this run."""
        names = {"BOTH": BOTH, "GOLDS": GOLDS} | {name: getattr(self, name) for name in self.functions}
        return eval(expression, names)

    # --- results.csv, published.csv, runs.csv ---

    def measured(self, **wanted):
        """The rows with these values, by epoch."""
        rows = pd.concat([self.tables["results"], self.tables["published"]])
        for column, value in wanted.items():
            rows = rows[rows[column] == value]
        return rows.sort_values("epoch", kind="stable")

    def value(self, scenario, method, metric, part=None):
        """A metric of a finished model, on the set `part`; the last value of one that is tracked."""
        of_set = {} if part is None else {"set": part}
        return float(self.measured(scenario=scenario, method=method, metric=metric, **of_set).value.iloc[-1])

    def per_epoch(self, scenario, method, unit):
        """Steps or images of a model, divided by its number of epochs."""
        row = self.measured(scenario=scenario, method=method, metric=unit).iloc[-1]
        return float(row.value) / row.epoch

    def methods(self, scenario):
        """The names of the methods that ran, those that diverged among them."""
        return set(self.measured(scenario=scenario, kind="method").method)

    def golds(self, scenario):
        """The names of the Golds."""
        return sorted(set(self.measured(scenario=scenario, kind="gold").method))

    def settings(self, scenario, name):
        """The values that a setting has among the documents' methods."""
        rows = self.tables["runs"]
        rows = rows[(rows.scenario == scenario) & (rows.kind == "method") & rows.run.isin(self.tables["results"].run)]
        return {found[name] for found in map(json.loads, rows.settings) if name in found}

    # --- corrupted.csv, attacks.csv, audit.csv ---

    def left(self, corruption, found, model, metric):
        """A value of corrupted.csv."""
        rows = self.tables["corrupted"]
        rows = rows[(rows.corruption == corruption) & (rows.found == found) & (rows.method == model)]
        return rows[rows.metric == metric].value.item()

    def attack(self, scenario, model, column):
        """A value of attacks.csv."""
        rows = self.tables["attacks"]
        return float(rows[(rows.scenario == scenario) & (rows.model == model)][column].item())

    def audits(self, scenario, metric, kinds=None, names=None):
        """The rows of audit.csv of these kinds or names."""
        rows = self.tables["audit"]
        rows = rows[(rows.scenario == scenario) & (rows.metric == metric)]
        return rows[rows.kind.isin(kinds) if names is None else rows.method.isin(names)]

    def audited(self, scenario, names, metric):
        """The mean of a metric over the shadow models, of one model or of several."""
        names = [names] if isinstance(names, str) else names
        return self.audits(scenario, metric, names=names).value.astype(float).mean()

    def floor(self, scenario, metric="average gap"):
        """The mean distance of two Golds."""
        return self.audits(scenario, metric, kinds=["pair"]).value.astype(float).mean()

    def audited_models(self, scenario, *kinds):
        """The names of the models of these kinds that did not diverge."""
        return sorted(set(self.audits(scenario, "UA", kinds).method))

    def has_audit(self, scenario, name, metric):
        """Whether there is such a number."""
        return len(self.audits(scenario, metric, names=[name])) > 0


def wrong(run, claims=CLAIMS):
    """The claims that a run contradicts."""
    return [f"{place}: {words} | {expression}" for place, words, expression in claims if not run.holds(expression)]


@pytest.fixture(scope="module")
def published():
    """The committed tables of the default run."""
    return Run(ROOT / "figures" / RUN, ROOT / "figures" / RUN, seed=0)


@pytest.mark.parametrize("place, words", [claim[:2] for claim in (*CLAIMS, *AUDIT_CLAIMS)])
def test_the_words_are_in_their_place(place, words):
    """Exactly, so that whoever changes them looks at the expression."""
    if place == "results":
        texts = [(ROOT / "notebooks/results.md").read_text(encoding="utf-8")]
    else:
        [path] = (ROOT / "notebooks").glob(f"{place}_*.ipynb")
        texts = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
    assert any(words in text for text in texts)


@pytest.mark.parametrize("number", ["03", "04", "05", "06", "07", "08", "09", "11"])
def test_a_computed_box_follows_the_tables(number):
    """What a run shows is computed in words, so that no prose repeats its numbers."""
    [path] = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    code = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    assert 0 < code.find("\ntables(suite, ") < max(code.find("\nin_this_run("), code.find("\nverdict("))


def test_the_published_tables_agree(published):
    assert not wrong(published)
    folder = ROOT / "figures/cifar10-audit"
    assert not wrong(Run(folder, folder, seed=0), AUDIT_CLAIMS)


def test_a_false_claim_is_found(published):
    """A wrong number is reported; a number that does not exist is an error, not a success."""
    false, empty = "value('random', 'Gold', 'accuracy', 'forget') == 0", "value('random', 'Gold', 'no metric') == 0"
    assert wrong(published, [("02", "words", false)]) == [f"02: words | {false}"]
    with pytest.raises(IndexError):
        published.holds(empty)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_every_claim_holds_on_a_new_run(default_run, seed):
    """All notebooks run, and every expression is true on every seed."""
    suite = default_run / "suite" / RUN
    assert not wrong(Run(suite / f"seed{seed}", suite, seed))
