"""Machine unlearning, measured: data, models, training, unlearning methods, audits and figures behind the notebooks.

Names are imported when they are first used, so that programs that need only names and options start without torch.
"""

from importlib import import_module

_HOMES = {
    "load_data": "datasets",
    "make_split": "data",
    "build_model": "models",
    "train": "training",
    "unlearn": "training",
    "Experiment": "experiment",
    "METHODS": "methods",
}

__all__ = sorted(_HOMES)


def __getattr__(name):
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module 'helpers' has no attribute '{name}'")
