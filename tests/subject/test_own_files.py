"""Methods and networks in a user's own files: they join the suite's, and one line says what is wrong with a file."""

import re

import pytest
import torch
from brought import METHODS, NETWORK

from helpers import own
from helpers.audit.shadows import unlearn_shadow
from helpers.experiment import Experiment
from helpers.methods import METHODS as REGISTRY
from helpers.methods import source_of
from helpers.tuning import tune

pytestmark = pytest.mark.usefixtures("float32", "runs_folder")


@pytest.fixture(autouse=True)
def registry():
    """The registry is afterwards as it was."""
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)
    own.FROM_FILES.clear()


@pytest.fixture
def file(tmp_path):
    """A methods file with a record and a function, beside a network."""
    (tmp_path / "net.py").write_text(NETWORK)
    path = tmp_path / "mine.py"
    path.write_text(METHODS)
    return path


def experiment(data, file, scenario="random", **settings):
    network = f"{file.with_name('net.py')}:small"
    return Experiment(data, scenario, "smoke", model=network, image_size=8, own_methods=file, **settings)


# --- methods ------------------------------------------------------------------------------------------------------


def test_methods_of_a_file_run_beside_the_presets_and_are_audited(data, file):
    e = experiment(data, file)
    assert e.methods[-2:] == ["Soften", "soften"] == e.own_methods == e.preset["audit"]["methods"][-2:]
    run = e.unlearn("Soften")
    assert run.settings == {"epochs": 1, "lr": 0.01, "s": 0.5} and run.settings_origin.startswith("defaults")
    assert "Soften" in [other.name for other in e.finished()]
    plain = Experiment(data, "random", "smoke", model=e.network_file, image_size=8)
    assert not {"Soften", "soften"} & {*plain.methods, *plain.preset["audit"]["methods"]}
    assert "Soften" in [other.name for other in plain.finished()], "it is found without the file, too"


def test_a_file_can_be_registered_again_and_an_edit_replaces_it(data, file):
    first = experiment(data, file).unlearn("Soften")
    assert experiment(data, file).unlearn("Soften").id == first.id
    file.write_text(METHODS.replace('"""Down', '"""Further down'))
    assert experiment(data, file).unlearn("Soften").id == first.id, "words do not count"
    file.write_text(METHODS.replace("WEIGHT = 1.0", "WEIGHT = 2.0"))
    assert experiment(data, file).unlearn("Soften").id != first.id
    assert "WEIGHT = 2.0" in source_of(REGISTRY["Soften"].function)
    file.write_text(METHODS.replace(", soften]", "]"))
    assert own.register_methods(file) == ["Soften"] and "soften" not in REGISTRY


def test_an_own_method_is_tuned(data, file):
    trials = tune(experiment(data, file, forget_fraction=0.25), "Soften", 2)
    assert len(trials) == 2 and trials.score.notna().all() and '"s"' in trials.settings[0]


def test_an_own_method_runs_on_shadow_models(data, file):
    e = experiment(data, file, forget_fraction=0.25)
    e.preset["audit"] = {"shadows": 2, "methods": e.own_methods}  # M2 needs a network with stages
    shadow, *runs = unlearn_shadow(e, 1)
    assert shadow.kind == "shadow" and [run.name for run in runs] == ["Soften", "soften"]
    assert {run.made_with["start"] for run in runs} == {shadow.id}


def test_a_method_for_one_scenario_runs_only_there(data, file):
    file.write_text(METHODS.replace('search={"s"', 'scenarios=("class",), search={"s"'))
    assert experiment(data, file).own_methods == ["soften"]
    assert experiment(data, file, "class").own_methods == ["Soften", "soften"]


def test_without_a_list_records_count_or_else_functions(file):
    text = METHODS.replace("METHODS = [", "one, two = ").replace(", soften]", ", soften")
    file.write_text(text)
    assert own.register_methods(file) == ["Soften"]
    file.write_text(METHODS.rpartition("\n\n\n")[0] + "\n\ndef _hidden(model, split):\n    yield\n")
    assert own.register_methods(file) == ["soften"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("WEIGHT = 1.0", "WEIGHT = one"), "line 7: NameError: name 'one' is not defined"),
        (("def soften(", "def soften(("), "line 10: SyntaxError"),
        (('{"lr": 0.01}', '{"rate": 0.01}'), "Soften: the function has no setting 'rate'"),
        (('{"lr": 0.01}', '{"lr": -1}'), "Soften: lr must be a number above 0"),
        (('{"s": Search', '{"t": Search'), "Soften: the function has no setting 't'"),
        (('"Soften"', '"SalUn"'), "the name 'SalUn' is in use by another method"),
        (('"Soften"', '"soften"'), "the name 'soften' is in use by another method"),
        (('"Soften"', '"Gold 2"'), "a method cannot be called 'Gold 2'"),
        ((", soften]", ", 3]"), "3 is neither a function nor a Method record"),
        (("METHODS = [", "METHODS = []  # ["), "it has no method"),
        (("METHODS = [", "METHODS = 3  # ["), "METHODS is a int, not a list"),
    ],
)
def test_a_methods_file_that_cannot_be_used_is_refused_in_one_line(change, message, file):
    assert METHODS.count(change[0]) == 1
    file.write_text(METHODS.replace(*change))
    before = dict(REGISTRY)
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        own.register_methods(file)
    assert str(refused.value).startswith("methods file 'mine.py'") and "\n" not in str(refused.value)
    assert before == REGISTRY


def test_a_methods_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match="methods file 'none.py' does not exist"):
        own.register_methods(tmp_path / "none.py")


def test_two_files_cannot_have_the_same_method(file):
    own.register_methods(file)
    other = file.with_name("other.py")
    other.write_text(METHODS)
    with pytest.raises(ValueError, match="methods file 'other.py': the name 'Soften' is in use"):
        own.register_methods(other)


# --- a network ----------------------------------------------------------------------------------------------------


def test_an_own_network_is_built_trained_and_found_again(data, file):
    e = experiment(data, file)
    assert torch.equal(e.build(3)[3].weight, e.build(3)[3].weight) and e.build()[3].out_features == 4
    assert e.original().made_with["model"] == {
        "name": "net.py:small",
        "code": e.preset["model"]["code"],
        "image_size": 8,
    }
    assert experiment(data, file).original().id == e.original().id
    net = file.with_name("net.py")
    net.write_text(NETWORK.replace("ReLU", "GELU"))
    assert experiment(data, file).original().id != e.original().id


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (NETWORK, "smal", "network file 'net.py' has no function 'smal'; did you mean small?"),
        ("import nothing_like_it", "small", "network file 'net.py', line 1: ModuleNotFoundError"),
        (NETWORK.replace("nn.Linear(8", "nn.Linear(9"), "small", "does not classify images of 8 pixels"),
        (NETWORK.replace(", classes)", ", 7)"), "small", "its output is (2, 7)"),
        (
            NETWORK.replace("return ", "raise SystemExit(0)\n    return "),
            "small",
            "does not classify images of 8 pixels: Sys",
        ),
        (NETWORK.replace("return ", "return 3, "), "small", "it returned a tuple, not a torch.nn.Module"),
    ],
)
def test_a_network_file_that_cannot_be_used_is_refused_in_one_line(text, name, message, data, tmp_path):
    (tmp_path / "net.py").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        Experiment(data, "random", "smoke", model=f"{tmp_path / 'net.py'}:{name}", image_size=8).build()
    assert "\n" not in str(refused.value)
