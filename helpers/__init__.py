"""Machine unlearning, measured: data, models, training, unlearning methods, metrics and plots behind the notebooks."""

from .data import load_data, make_split
from .literature import IDEAS, METHODS
from .metrics import evaluate
from .models import build_model
from .training import train
from .unlearning import unlearn

__all__ = ["IDEAS", "METHODS", "build_model", "evaluate", "load_data", "make_split", "train", "unlearn"]
