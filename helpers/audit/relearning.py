"""Relearning: how fast the forgotten images are learnt again, compared with Gold."""

from itertools import islice

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from ..methods.common import endless
from ..metrics import accuracy, predict
from ..training import EpochEnd, Phase, unlearn


def relearning(model, split, *, steps=50, every=1, lr=1e-3):
    """Gradient steps on the cross-entropy of a forget batch joined to a retain batch; an epoch has `every` steps."""
    yield Phase(lr)
    pairs = zip(endless(split.forget), endless(split.retain))
    for step, ((x_f, y_f), (x_r, y_r)) in enumerate(islice(pairs, steps), 1):
        yield cross_entropy(model(torch.cat([x_f, x_r])), torch.cat([y_f, y_r]))
        if step % every == 0:
            yield EpochEnd()


def relearn(model, split, *, steps=50, every=1, lr=1e-3, batch_size=128, seed=0):
    """The relearning curve: forget accuracy while a copy of `model` is trained on the forgotten images again.

    Half of the images of each step are retained ones, so that a forgotten class is not learnt by predicting it for
    every image, nor normalised by its own statistics. Pitfall: print the curve, since the number of steps depends on
    learning rate and tolerance; only the distance to Gold's curve is informative.

    Returns:
        Table with columns step (from 0) and accuracy, percent.
    """
    batches = split.sets["forget"]

    def track(learner):
        return {"accuracy": accuracy(predict(learner, batches)[0], batches.y.cpu())}

    settings = {"steps": steps, "every": every, "lr": lr}
    history = unlearn(relearning, model, split, settings, seed=seed, batch_size=batch_size, track=track).history
    curve = [epoch["accuracy"] for epoch in history]
    return pd.DataFrame({"step": every * np.arange(len(curve)), "accuracy": curve})


def steps_back(curve, original, tolerance=5):
    """First step at which the accuracy is within `tolerance` percent of Original's; infinite if there is none."""
    back = curve.step[curve.accuracy >= (1 - tolerance / 100) * original]
    return back.min() if len(back) else np.inf


def anamnesis_index(unlearned_steps, gold_steps):
    """`steps_back` of the unlearned model divided by Gold's (Chundawat et al., 2023: AIN); ideal 1.

    Below 1 the model remembers, above 1 it resists learning. NaN where Gold's steps are 0, since Gold is right about
    images that it never saw, or infinite. Pitfall: in the random scenario Gold often starts within the tolerance.
    """
    return unlearned_steps / gold_steps if 0 < gold_steps < np.inf else np.nan
