"""What `check` is made of: requirements with hints, a student's method run step by step, the models of question 8."""

from functools import wraps

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from .metrics import accuracy, losses, predicted_shares
from .training import EpochEnd, Phase, unlearn

VERDICTS = ("like Gold", "no measurable change", "collapsed", "hidden, not forgotten")


class Wrong(Exception):
    """An answer is wrong; the message is the hint."""


def require(is_right, hint):
    """Raise `Wrong` with the hint unless the answer is right."""
    if not is_right:
        raise Wrong(hint)


def require_number(found, expected, name, hint, tolerance=0.05):
    """Require one number, at most `tolerance` from `expected`."""
    require(np.ndim(found) == 0 and not isinstance(found, bool | str), f"{name} must be one number")
    found = float(found)
    is_share = abs(100 * found - expected) <= tolerance < abs(found - expected)
    require(not is_share, f"{name} must be in percent or points, not a share of 1")
    require(abs(found - expected) <= tolerance, f"{name} is not {found:.4g}: {hint}")


def require_rows(found, expected, name, hint):
    """Require one number per image, `(n,)` like `expected`."""
    found = np.asarray(found)
    require(found.shape == expected.shape, f"{name} must have shape {expected.shape}, one number per image")
    require(
        not np.isnan(found).any(), f"{name} is NaN for some image: 0 · ln 0 counts as 0, no root of a number below 0"
    )
    require(np.allclose(found, expected, atol=1e-4), f"{name} is wrong for some image: {hint}")


def require_keys(answer, *keys):
    """Require a dict with exactly these keys."""
    require(
        isinstance(answer, dict) and set(answer) == set(keys),
        f"the answer must be a dict with the keys {', '.join(keys)}",
    )


def labels(e, name):
    """The labels of a set, int64 `(n,)`."""
    return e.split.sets[name].y.cpu()


def gap(e, logits):
    """Mean distance of the accuracies to Gold's, points; `logits` is `{set: (n, classes)}`."""
    pairs = [[accuracy(z[name], labels(e, name)) for z in (logits, e.gold().logits)] for name in e.scenario.gap]
    return float(np.mean([abs(found - gold) for found, gold in pairs]))


def replay(e, method, **settings):
    """What `method` yields on a copy of Original: losses, learning rates of its phases, epochs; and images used."""
    require(callable(method), f"the answer must be a function, not {type(method).__name__}")
    seen, limit = {"losses": [], "rates": [], "epochs": 0}, 100 + 10 * len(e.split.train)

    @wraps(method)
    def recorded(model, split, **settings):
        events = method(model, split, **settings)
        require(hasattr(events, "__next__"), "the function must be a generator: yield the losses")
        for event in events:
            require(len(seen["losses"]) < limit, "the method makes more and more steps and does not end")
            if isinstance(event, torch.Tensor):
                require(event.ndim == 0 and event.requires_grad, "a loss is one number that depends on the model")
                seen["losses"].append(event.item())
            else:
                require(isinstance(event, Phase | EpochEnd), f"a method does not yield {event!r}: see notebook 03")
                seen["rates"] += [event.lr] if isinstance(event, Phase) else []
                seen["epochs"] += isinstance(event, EpochEnd)
            yield event

    done = unlearn(recorded, e.original().model, e.split, settings, seed=e.seed, **e.preset["unlearning"])
    return {**seen, "images": done.cost["images"]}


def plain(e, name, sign, **settings):
    """What a method yields that steps along `sign` times the cross-entropy of each batch of the set `name`."""

    def steps(model, split, *, epochs, lr):
        yield Phase(lr)
        for _ in range(epochs):
            for x, y in getattr(split, name):
                yield sign * cross_entropy(model(x), y)
            yield EpochEnd()

    return replay(e, steps, **settings)


def is_close(found, expected):
    """Whether two lists of losses (nats) are equal but for rounding."""
    return len(found) == len(expected) and np.allclose(found, expected, rtol=0.05, atol=0.002)


def hint_of(rule, *answers):
    """Why `rule(*answers)` rejects the answers, in one line; empty if it does not, None if there is no answer yet."""
    parts = [part for answer in answers for part in (answer.values() if isinstance(answer, dict) else [answer])]
    if any(part is ... for part in parts):
        return None
    try:
        rule(*answers)
    except NotImplementedError:
        return None
    except Wrong as wrong:
        return str(wrong)
    except Exception as error:  # whatever a student's code raises
        return " ".join(f"the answer leads to {type(error).__name__}: {error}".split())[:200]
    return ""


# --- the models of question 8 -------------------------------------------------------------------------------------


def shifted(logits, classes, by):
    """The logits of each set, all 5 % larger, and those of `classes` increased by `by`."""
    moved = {name: 1.05 * z for name, z in logits.items()}
    for z in moved.values():
        z[:, classes] += by
    return moved


def suspects(e):
    """Four models of the class scenario under letters, `{letter: (verdict, {set: logits (n, classes)})}`.

    They are Gold 2, Original, Original with one class always on top, and Original without the forgotten classes. The
    order depends on the seed.
    """
    original, second = e.original().logits, e.gold(2).logits
    forgotten = list(e.split.forget_classes)
    kept = next(i for i in range(len(e.data.classes)) if i not in forgotten)
    models = dict(
        zip(VERDICTS, ((second, [], 0), (original, [], 0), (original, [kept], 50), (original, forgotten, -50)))
    )
    order = np.random.default_rng(e.seed).permutation(VERDICTS)
    return {letter: (str(verdict), shifted(*models[verdict])) for letter, verdict in zip("ABCD", order)}


def evidence(e):
    """One row per model, Original, Gold and the `suspects`, and the floor.

    Columns: accuracy on each set and share of the class that is predicted most often (percent), gap to Gold (points),
    mean losses (nats).
    """
    models = {"Original": e.original().logits, "Gold": e.gold().logits}
    models |= {letter: logits for letter, (_, logits) in suspects(e).items()}
    rows = {
        name: {
            **{f"{part} %": accuracy(z[part], labels(e, part)) for part in e.scenario.sets},
            "gap to Gold": gap(e, z),
            "largest class %": predicted_shares(z[e.scenario.test]).max(),
            **{f"loss, {part}": losses(z[part], labels(e, part)).mean() for part in ("retain", "forget")},
        }
        for name, z in models.items()
    }
    return pd.DataFrame({**rows, "floor": {"gap to Gold": gap(e, e.gold(2).logits)}}).T
