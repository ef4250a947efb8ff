"""One record per unlearning method: its function, settings, idea, source, scenarios, search ranges and short name.

To add a method, write a function (see `training` for the contract) and a record in one of the two tuples below;
`register` adds a record from outside.
"""

import inspect
import math
import numbers
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field

from ..fingerprint import code_without_words
from ..messages import suggestion, unknown
from ..scenario import SCENARIOS
from .distil import bad_teacher, delete, margin_matching, regun, scrub, scrub_rewind, trew
from .documents import (
    GROWTH,
    alternate_batches,
    alternate_epochs,
    gradient_ascent,
    gradient_reversal,
    periodic_finetuning,
    retain_finetuning,
    scaled_ascent,
    selective_finetuning,
    two_stage,
    two_stage_full,
    unfreezing,
)
from .edit_weights import fisher_forgetting, influence, small_gradients, ssd, transposed_kernels, weight_negation
from .push_away import neggrad_plus, sfr_on, ugradsl_plus
from .relabel import amun, munba, random_labels, salun, unsir
from .relearn import contrastive_finetuning, l1_sparse, last_blocks

IDEAS = ("relearn", "push away", "relabel", "distil", "edit weights")

# --- settings -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """The type and the range of a setting: from `low` (excluded if `above`) to `high`, or one of `choices`."""

    kind: type = float  # float, int, bool, str, or object: any value
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    choices: tuple = ()

    def check(self, value):
        """`value` as a plain Python value of this type.

        Raises:
            ValueError: "must be ..., not ...".
        """
        if self.kind is bool and type(value).__name__ in ("bool", "bool_"):
            return bool(value)
        if self.kind is str and isinstance(value, str) and (not self.choices or value in self.choices):
            return str(value)
        if self.kind in (int, float) and isinstance(value, numbers.Real) and not isinstance(value, bool):
            is_in_range = self.low < value if self.above else self.low <= value
            if is_in_range and value <= self.high and abs(value) <= sys.float_info.max and self.kind(value) == value:
                return self.kind(value)
        if self.kind is object:
            return value
        raise ValueError(f"must be {self}, not {value!r}")

    def __str__(self):
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        words = {int: "a whole number", float: "a number", bool: "True or False", str: "a word", object: "any value"}
        low = f" above {self.low:g}" if self.above else f" of at least {self.low:g}"
        low = low if self.low > -math.inf else ""
        high = f"{' and' if low else ''} of at most {self.high:g}" if self.high < math.inf else ""
        return words[self.kind] + low + high


@dataclass(frozen=True)
class Search:
    """The range in which the tuner draws a setting, on a logarithmic scale; if `complement`, it draws 1 - setting."""

    low: float
    high: float
    complement: bool = False


POSITIVE, WEIGHT, SHARE = Setting(low=0, above=True), Setting(low=0), Setting(low=0, high=1)
COUNT, COUNT_OR_NONE = Setting(int, low=1), Setting(int, low=0)
SETTINGS = {  # by name, for all methods; a record may override them
    **dict.fromkeys(("lr", "lr_uniform", "lr_contrast", "lr_retain", "lr_impair", "lr_repair", "noise_lr"), POSITIVE),
    **dict.fromkeys(("tau", "T", "clip", "eps", "most"), POSITIVE),
    **dict.fromkeys(("s", "alpha", "beta", "lam", "gamma", "l_f", "l_r", "penalty", "damping", "slow"), WEIGHT),
    **dict.fromkeys(("weight_decay", "lr_end"), WEIGHT),
    **dict.fromkeys(("share", "frozen_share"), SHARE),
    **dict.fromkeys(("epochs", "rounds", "steps", "every", "k", "images", "iterations", "batch_size"), COUNT),
    **dict.fromkeys(("final", "msteps"), COUNT_OR_NONE),
    "schedule": Setting(str, choices=("constant", "cosine", "onecycle")),
    "growth": Setting(str, choices=tuple(GROWTH)),
}

# --- methods ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Method:
    """An unlearning method.

    Args:
        name: as shown in tables and figures.
        function: a generator `function(model, split, *, settings...)` (see `training` for the contract).
        idea: one of `IDEAS`; "own" for a method outside the suite.
        source: the document or the paper.
        settings: over the defaults of the function's signature.
        scenarios: in which the method is defined.
        search: `{setting: Search}`, what the tuner varies beside learning rates and the number of epochs.
        short: the name in crowded figures; `name` by default.
        ranges: `{setting: Setting}`, over those in `SETTINGS`.
    """

    name: str
    function: Callable
    idea: str = "own"
    source: str = "own"
    settings: dict = field(default_factory=dict)
    scenarios: tuple[str, ...] = ("random", "class")
    search: dict = field(default_factory=dict)
    short: str = ""
    ranges: dict = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "short", self.short or self.name)

    def __repr__(self):
        return f"Method({self.name!r})"

    @property
    def parameters(self):
        """The parameters of the function after `model` and `split`."""
        return list(inspect.signature(self.function).parameters.values())[2:]

    @property
    def defaults(self):
        """All settings that have a default: those of the signature, then the record's own `settings` over them."""
        return self._signature | self.settings

    @property
    def _signature(self):
        return {p.name: p.default for p in self.parameters if p.default is not p.empty}

    def setting(self, name):
        """The `Setting` of that name: the record's, else that in `SETTINGS`.

        A default in the signature that does not fit sets the type instead: the function means something else by it.
        """
        signature, known = self._signature, self.ranges.get(name) or SETTINGS.get(name)
        default = signature.get(name)
        if known and (name not in signature or fits(default, known)):
            return known
        return Setting(next((kind for kind in (bool, int, float, str) if isinstance(default, kind)), object))

    def check(self, settings=None):
        """The complete effective settings: the defaults with `settings` over them, as plain Python values.

        Raises:
            ValueError: an unknown or a missing setting, a wrong type, a value out of range; in one line.
        """
        settings = dict(settings or {})
        names = [p.name for p in self.parameters if p.kind is not p.VAR_KEYWORD]
        accepts_any = len(names) < len(self.parameters)  # its function ends in **settings
        for name in settings:
            if name not in names and not accepts_any:
                has = f": setting {unknown(name, names)}" if names else f" has no settings, so none called '{name}'"
                raise ValueError(self.name + has)
        if missing := [name for name in names if name not in {**self.defaults, **settings}]:
            raise ValueError(f"{self.name} requires a value for the setting '{missing[0]}'")
        effective = {**self.defaults, **settings}
        for name, value in effective.items():
            try:
                effective[name] = self.setting(name).check(value)
            except ValueError as error:
                raise ValueError(f"{self.name}: {name} {error}") from None
        return effective


def fits(value, setting):
    """Whether `value` is valid for `setting`."""
    try:
        setting.check(value)
    except ValueError:
        return False
    return True


ASCENT = {"s": Search(0.01, 3.0)}
A, B, CHALLENGE = "document A", "document B", "NeurIPS 2023 unlearning challenge"
DOCUMENT_RECORDS = (
    Method("M1 Retain FT", retain_finetuning, "relearn", A, short="M1"),
    Method("M2 Selective FT", selective_finetuning, "relearn", A, short="M2"),
    Method("M3 Reversal", gradient_reversal, "push away", A, search=ASCENT, short="M3"),
    Method("M4 Per epoch", alternate_epochs, "push away", A, search=ASCENT, short="M4"),
    Method("M5 Per batch", alternate_batches, "push away", A, search=ASCENT, short="M5"),
    Method("M6 Per batch + FT", alternate_batches, "push away", A, {"s": 0.5, "final": 5}, search=ASCENT, short="M6"),
    Method("H1 Linear", scaled_ascent, "push away", A, search=ASCENT, short="H1"),
    Method(
        "H2 Quadratic + FT",
        scaled_ascent,
        "push away",
        A,
        {"s": 0.8, "growth": "quadratic", "final": 10},
        search=ASCENT,
        short="H2",
    ),
    Method("H3 Periodic FT", periodic_finetuning, "push away", A, search=ASCENT, short="H3"),
    Method("H4 Unfreezing", unfreezing, "push away", A, search=ASCENT, short="H4"),
    Method(
        "Fine-tuning",
        retain_finetuning,
        "relearn",
        B,
        {"epochs": 5, "lr": 1e-4, "weight_decay": 0.0, "schedule": "constant"},
        short="FT",
    ),
    Method("Gradient ascent", gradient_ascent, "push away", B, short="GA"),
    Method("2-Stage", two_stage, "push away", B, search={"tau": Search(0.1, 10.0)}, short="2S"),
    Method("2-Stage full", two_stage_full, "push away", f"fanchuan, {CHALLENGE}", short="2S full"),
)
PUBLISHED_RECORDS = (  # by idea
    Method("l1-sparse", l1_sparse, "relearn", "Jia et al., NeurIPS 2023", search={"alpha": Search(1e-6, 1e-3)}),
    Method("CF-k", last_blocks, "relearn", "Goel et al., 2022"),
    Method(
        "EU-k",
        last_blocks,
        "relearn",
        "Goel et al., 2022",
        {"reset": True, "epochs": 182, "lr": 0.1, "schedule": "cosine"},
    ),
    Method("CoUn", contrastive_finetuning, "relearn", "Khalil et al., NeurIPS 2025", search={"lam": Search(0.1, 6.0)}),
    Method(
        "NegGrad+",
        neggrad_plus,
        "push away",
        "Kurmanji et al., NeurIPS 2023",
        search={"alpha": Search(1e-4, 0.5, complement=True)},
        ranges={"alpha": SHARE},
    ),
    Method(
        "UGradSL+",
        ugradsl_plus,
        "push away",
        "Di et al., ICLR 2026",
        search={"p": Search(1e-4, 0.5, complement=True), "alpha": Search(1.0, 3.0, complement=True)},
        ranges={"p": SHARE, "alpha": Setting(high=0)},
    ),
    Method("SFR-on", sfr_on, "push away", "Huang et al., NeurIPS 2024", search={"alpha": Search(0.03, 30.0)}),
    Method("Random labels", random_labels, "relabel", "Graves et al., AAAI 2021"),
    Method("SalUn", salun, "relabel", "Fan et al., ICLR 2024", search={"share": Search(0.05, 1.0)}),
    Method("MUNBa", munba, "relabel", "Wu & Harandi, ICCV 2025"),
    Method("UNSIR", unsir, "relabel", "Tarun et al., TNNLS 2023", scenarios=("class",)),
    Method("AMUN", amun, "relabel", "Ebrahimpour-Boroojeny et al., ICML 2025"),
    Method("Bad Teacher", bad_teacher, "distil", "Chundawat et al., AAAI 2023", search={"share": Search(0.1, 1.0)}),
    Method("SCRUB", scrub, "distil", "Kurmanji et al., NeurIPS 2023", search={"alpha": Search(1e-3, 1.0)}),
    Method("SCRUB+R", scrub_rewind, "distil", "Kurmanji et al., NeurIPS 2023", search={"alpha": Search(1e-3, 1.0)}),
    Method("ReGUn", regun, "distil", "Mirlach et al., 2026", scenarios=("random",), search={"l_f": Search(0.05, 5.0)}),
    Method("DELETE", delete, "distil", "Zhou et al., CVPR 2025", scenarios=("class",)),
    Method(
        "TREW",
        trew,
        "distil",
        "Ebrahimpour-Boroojeny et al., ICML 2026",
        scenarios=("class",),
        search={"beta": Search(0.1, 30.0)},
    ),
    Method("Margin matching", margin_matching, "distil", "this suite"),
    Method("NoT", weight_negation, "edit weights", "Khalil et al., CVPR 2025"),
    Method(
        "NoT+CL",
        contrastive_finetuning,
        "edit weights",
        "Khalil et al., NeurIPS 2025",
        {"negate": True},
        search={"lam": Search(0.1, 6.0)},
    ),
    Method("CT", transposed_kernels, "edit weights", f"toshi_k, {CHALLENGE}"),
    Method(
        "MSG",
        small_gradients,
        "edit weights",
        f"Kookmin, {CHALLENGE}",
        search={"share": Search(0.03, 0.6)},
    ),
    Method(
        "SSD",
        ssd,
        "edit weights",
        "Foster et al., AAAI 2024",
        search={"alpha": Search(1.0, 100.0), "lam": Search(0.1, 1.0)},
    ),
    Method(
        "Fisher", fisher_forgetting, "edit weights", "Golatkar et al., CVPR 2020", search={"alpha": Search(1e-10, 1e-5)}
    ),
    Method(
        "Influence",
        influence,
        "edit weights",
        "Koh & Liang, ICML 2017; Izzo et al., AISTATS 2021; Jia et al., NeurIPS 2023",
        search={"alpha": Search(0.1, 300.0)},
    ),
)
DOCUMENTS = tuple(method.name for method in DOCUMENT_RECORDS)
PUBLISHED = tuple(method.name for method in PUBLISHED_RECORDS)
METHODS = {}


def register(method):
    """Add a `Method` to `METHODS` and return it.

    Raises:
        ValueError: the name is in use, or a setting has no default or one that is not valid.
    """
    if method.name in METHODS:
        raise ValueError(f"the name '{method.name}' is in use by another method")
    check_record(method)
    METHODS[method.name] = method
    return method


def check_record(method):
    """Refuse a record that does not fit its function.

    Raises:
        ValueError: a reserved name, an unknown scenario, a setting that the function lacks, or one that is not valid.
    """
    check_name(method.name)
    names = [p.name for p in method.parameters]
    for scenario in method.scenarios:
        if scenario not in SCENARIOS:
            raise ValueError(f"{method.name}: scenario {unknown(scenario, SCENARIOS)}")
    for setting in (*method.settings, *method.search, *method.ranges):
        if setting not in names:
            raise ValueError(f"{method.name}: the function has no setting '{setting}'{suggestion(setting, names)}")
    method.check()


def check_name(name):
    """Refuse a name that tables use for something else.

    Raises:
        ValueError: it is Original's, a Gold's, or one of a pair.
    """
    if re.fullmatch(r"Original|Gold( \d+)?", name) or " v. " in name:
        raise ValueError(f"a method cannot be called '{name}': Original, Gold and ' v. ' are reserved")


for record in (*DOCUMENT_RECORDS, *PUBLISHED_RECORDS):
    register(record)


def find(method):
    """The `Method` of a display name, of a record (itself) or of a function outside the suite.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(method, Method):
        return method
    if callable(method):
        return Method(getattr(method, "__name__", type(method).__name__), method)
    if method not in METHODS:
        raise ValueError(f"method {unknown(method, METHODS)}")
    return METHODS[method]


# --- source code --------------------------------------------------------------------------------------------------


def source_of(function):
    """The source of a method and of all that it uses in its own module and in `helpers.methods`, one string.

    Contains code and plain values without comments and docstrings, so that a better explanation changes nothing.
    """
    package = __name__.rpartition(".")[0]
    found, waiting = {}, {"": function}

    def is_ours(value):
        return value.__module__ == function.__module__ or f"{value.__module__}.".startswith(f"{package}.")

    while waiting:
        name, value = waiting.popitem()
        if isinstance(value, dict):
            waiting |= {f"{name}[{entry!r}]": value[entry] for entry in value}
        elif isinstance(value, bool | int | float | str | tuple):
            found[name] = f"{name} = {value!r}"
        elif inspect.isfunction(value) and is_ours(value) and value not in found:
            found[value] = code_without_words(textwrap.dedent(inspect.getsource(value)))
            used = {n: value.__globals__[n] for n in names_in(value.__code__) if n in value.__globals__}
            waiting |= used | inspect.getclosurevars(value).nonlocals
        elif inspect.isclass(value) and is_ours(value):
            parts = {f"{name}.{part}": function for part, function in vars(value).items()}
            waiting |= {part: f for part, f in parts.items() if inspect.isfunction(f) and is_written(f)}
    return "\n\n".join(sorted(found.values()))


def is_written(function):
    """Whether a function is in a file or a cell; the generated functions of a dataclass are not."""
    return function.__code__.co_filename != "<string>"


def names_in(code):
    """The names that a code object and the code objects inside it look up."""
    inner = [name for constant in code.co_consts if inspect.iscode(constant) for name in names_in(constant)]
    return [*code.co_names, *inner]
