"""workflow/scale.py: the estimate of a large study."""

from types import SimpleNamespace

import pandas as pd
import pytest
import scale

COLUMNS = ["scenario", "seed", "method", "epoch", "set", "metric", "value"]


def test_the_estimate_by_hand():
    """Gold at 100 images a second; two methods at 10 and 30 % of a retraining; 2 seeds, 4 shadows, `published`."""
    measured = {("Gold", "images"): 1000, ("Gold", "seconds"): 10, ("Gold", "images, % of retraining"): 100}
    measured |= {("Original", "images, % of retraining"): 111, ("M1", "images, % of retraining"): 10}
    measured |= {("H1", "images, % of retraining"): 30}
    options = SimpleNamespace(measured_budget="short", seeds=2, shadows=4)
    for scenario, training, trainings in (("random", 200 * 500, 2 + 4), ("class", 3 * 500 * 197 / 17, 2 + 1 + 4)):
        rows = [(scenario, 0, method, 1, "", metric, value) for (method, metric), value in measured.items()]
        work, chain, _ = scale.plan(pd.DataFrame(rows, columns=COLUMNS), scenario, options)
        assert work == pytest.approx(2 * (trainings + 5 * 0.4) * training)
        assert chain == pytest.approx((2 + 1 + 0.3) * training)
