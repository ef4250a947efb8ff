"""Checks of `notebooks/coursework.ipynb`: each computes what is right from the run itself, and prints points or a hint.

An answer that is missing, has a wrong type or raises an error gets 0 points and one line, never a traceback.
"""

import numpy as np
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as entropy_of_rows
from sklearn.metrics import roc_auc_score
from torch.nn.functional import one_hot

from .grading import (
    VERDICTS,
    evidence,
    gap,
    hint_of,
    is_close,
    labels,
    plain,
    replay,
    require,
    require_keys,
    require_number,
    require_rows,
    suspects,
)
from .metrics import accuracy, losses


def variant(student, classes=10):
    """One student's settings: seed, forgotten class (index), share of images to forget, learning rate."""
    if not isinstance(student, int) or isinstance(student, bool) or student < 0:
        raise ValueError(f"student = {student!r}: use a whole number, without letters or leading zeros")
    return {
        "seed": student % 1_000_003,
        "forget_class": student % classes,
        "forget_fraction": (0.08, 0.1, 0.12)[student // classes % 3],
        "lr": (0.005, 0.01, 0.02)[student // (3 * classes) % 3],
    }


def split_is_right(check, random_split, is_split):
    """`random_split(n, fraction, seed)` gives two index tensors, `is_split(retain, forget, n)` a truth value."""
    n, k = (len(part.index) for part in (check.random.split.train, check.random.split.forget))
    retain, forget = (torch.as_tensor(part) for part in random_split(n, k / n, 1))
    require(retain.ndim == forget.ndim == 1 and not forget.is_floating_point(), "each part holds whole numbers")
    require(len(forget) == k, f"a share of {k / n:.4f} of {n} images is {k} images, not {len(forget)}")
    require(sorted([*retain.tolist(), *forget.tolist()]) == list(range(n)), "some image is missing or in two places")
    again, other = (torch.as_tensor(random_split(n, k / n, seed)[1]).tolist() for seed in (1, 2))
    require(again == forget.tolist(), "the same seed must give the same split")
    require(sorted(other) != sorted(again), "another seed must give another split")
    require(is_split(retain, forget, n), "is_split must return True for a correct split")
    wrong = {"one image is missing": forget[:-1], "one image is in both parts": torch.cat([forget[1:], retain[:1]])}
    wrong |= {"one image is there twice": torch.cat([forget[1:], forget[1:2]])}
    for reason, part in wrong.items():
        require(not is_split(retain, part, n), f"is_split must return False where {reason}")


def gold_is_measured(check, measured):
    """`measured`: two forget accuracies in percent and the floor in points, random scenario."""
    require_keys(measured, "Original", "Gold", "floor")
    e = check.random
    for run in (e.original(), e.gold()):
        expected = accuracy(run.logits["forget"], labels(e, "forget"))
        require_number(measured[run.name], expected, run.name, "it is the accuracy on the set forget, in percent")
    expected = gap(e, e.gold(2).logits)
    require_number(measured["floor"], expected, "floor", "it is the mean over the sets e.scenario.gap, of Gold 2")


def finetuning_is_right(check, finetune):
    """`finetune(model, split, *, epochs, lr)` is a generator of steps down the loss of retained batches."""
    settings = {"epochs": 2, "lr": check.lr}
    found, right = replay(check.random, finetune, **settings), plain(check.random, "retain", 1, **settings)
    require(found["rates"] == right["rates"], "yield one Phase with the learning rate lr before the first loss")
    require(found["epochs"] == 2, f"2 epochs yield 2 EpochEnd(), not {found['epochs']}")
    used = f"in 2 epochs the method uses {found['images']:,} images"
    require(found["images"] == right["images"], f"{used}; each retained image counts once per epoch, no other counts")
    require(is_close(found["losses"], right["losses"]), "the losses are not the mean cross-entropy of retained batches")


def ascent_is_right(check, bounded_ascent):
    """`bounded_ascent(model, split, *, epochs, lr, ceiling)` climbs until a loss is above `ceiling` (nats)."""
    settings = {"epochs": 3, "lr": check.lr}
    right = plain(check.by_class, "forget", -1, **settings)["losses"]
    found = replay(check.by_class, bounded_ascent, **settings, ceiling=1e9)["losses"]
    require(not is_close([-loss for loss in found[:1]], right[:1]), "the driver steps down: which sign leads up?")
    require(is_close(found, right), "below the ceiling, each forgotten batch of each epoch gives one step up its loss")
    highest = np.maximum.accumulate(-np.array(right))
    last = int(np.diff(highest).argmax())  # the ceiling lies in the largest rise, so rounding does not decide
    ceiling = float(highest[last : last + 2].mean())
    steps = next((i for i, loss in enumerate(right) if -loss > ceiling), len(right))
    found = replay(check.by_class, bounded_ascent, **settings, ceiling=ceiling)["losses"]
    require(len(found) == steps, f"at a ceiling of {ceiling:.2f} it makes {len(found)} steps: when must it end?")


def gap_and_cost_are_right(check, gap_and_cost):
    """`gap_and_cost(e, run)` gives points and percent of Gold's images, in both scenarios."""
    for e in (check.random, check.by_class):
        for run in (e.gold(2), e.unlearn(e.methods[0])):
            answer, where = gap_and_cost(e, run), f"of {run.name}, {e.scenario.name}"
            require(isinstance(answer, tuple | list) and len(answer) == 2, "return two numbers: gap, cost")
            hint = "it is the mean of the distances to Gold over the sets e.scenario.gap"
            require_number(answer[0], gap(e, run.logits), f"the gap {where}", hint)
            expected, hint = 100 * run.cost["images"] / e.gold().cost["images"], "Gold's images are 100 %"
            require_number(answer[1], expected, f"the cost {where}", hint)


def distances_are_right(check, entropy, js_distance, distances):
    """Functions of probabilities, float64 `(n, classes)`: nats and distances `(n,)`; and two mean distances to Gold."""
    e = check.by_class
    original, gold, second = (
        run.logits[e.scenario.compared].double().softmax(1) for run in (e.original(), *e.golds()[:2])
    )
    certain = one_hot(gold.argmax(1), gold.shape[1]).double()
    for p in (gold, torch.full_like(gold, 1 / gold.shape[1]), certain):
        require_rows(entropy(p), entropy_of_rows(p.numpy(), axis=1), "the entropy", "sum over the classes, use ln")
    for p, q in ((original, gold), (certain, gold), (certain, certain.flip(1)), (gold, gold)):
        expected = np.nan_to_num(jensenshannon(p.numpy(), q.numpy(), axis=1))
        require_rows(js_distance(p, q), expected, "the distance", "check the root, the factors 1/2 and ln")
    require_keys(distances, "Original", "Gold 2")
    for name, p in (("Original", original), ("Gold 2", second)):
        expected = np.nan_to_num(jensenshannon(p.numpy(), gold.numpy(), axis=1)).mean()
        require_number(distances[name], expected, name, "it is the mean over the set e.scenario.compared", 0.002)


def auc_is_right(check, auc, aucs):
    """`auc(members, others)` of losses `(n,)`, `(m,)`: 0 to 1; and its values for Original and Gold."""
    e, names = check.random, ("forget", check.random.scenario.unseen)
    made_up = {"lower": ([1.0, 2.0], [3.0, 4.0]), "tied": ([1.0, 2.0, 2.0], [2.0, 3.0])}
    real = {run.name: [losses(run.logits[n], labels(e, n)) for n in names] for run in (e.original(), e.gold())}
    hints = {"lower": "members have the lower losses: then it is 1", "tied": "a tie counts as half a pair"}
    require_keys(aucs, "Original", "Gold")
    for name, sides in {**made_up, **real}.items():
        members, others = map(np.array, sides)
        truth = np.repeat([1, 0], [len(members), len(others)])
        expected = roc_auc_score(truth, -np.concatenate([members, others]))
        hint = hints.get(name, "count pairs of a member and a non-member")
        require_number(auc(members, others), expected, "the AUC", hint, 1e-6)
        if name in aucs:
            require_number(aucs[name], expected, name, f"compare the losses of the sets {' and '.join(names)}", 0.002)


def verdicts_are_right(check, verdicts):
    """`verdicts`: `{letter: one of VERDICTS}`."""
    models = suspects(check.by_class)
    require_keys(verdicts, *models)
    unknown = [word for word in verdicts.values() if word not in VERDICTS]
    require(not unknown, f"{unknown[:1]} is no verdict: use {', '.join(VERDICTS)}")
    wrong = sum(verdicts[name] != verdict for name, (verdict, _) in models.items())
    require(not wrong, f"{wrong} wrong: compare each row with Original, Gold and the floor")


QUESTIONS = {  # points, rule, what it expects
    1: (10, split_is_right, "the functions random_split and is_split"),
    2: (10, gold_is_measured, "the three numbers of measured"),
    3: (10, finetuning_is_right, "the function finetune"),
    4: (15, ascent_is_right, "the function bounded_ascent"),
    5: (10, gap_and_cost_are_right, "the function gap_and_cost"),
    6: (15, distances_are_right, "the functions entropy and js_distance, and the dict distances"),
    7: (15, auc_is_right, "the function auc and the dict aucs"),
    8: (15, verdicts_are_right, "a verdict for each of the four models"),
}


class Check:
    """Checks answers to the questions by number and counts the points.

    Args:
        at_random, by_class: the experiments of the two scenarios.
        variant: of `variant`.
    """

    def __init__(self, at_random, by_class, variant):
        self.random, self.by_class, self.lr = at_random, by_class, variant["lr"]
        self.points = dict.fromkeys(QUESTIONS, 0)

    def __call__(self, number, *answers):
        """Check the answers to a question, print one line, and return the points."""
        most, rule, expected = QUESTIONS[number]
        hint = hint_of(rule, self, *answers)
        self.points[number] = most if hint == "" else 0
        hint = f"no answer yet; write {expected}" if hint is None else hint
        print(f"{number}. {self.points[number]} of {most} points" + f": {hint}" * bool(hint))
        return self.points[number]

    def total(self):
        """Print and return the sum of the points."""
        missing = [str(number) for number, points in self.points.items() if not points]
        most = sum(most for most, _, _ in QUESTIONS.values())
        total = sum(self.points.values())
        print(f"Total: {total} of {most} points" + f"; none yet for {', '.join(missing)}" * bool(missing))
        return total

    def evidence(self):
        """What question 8 judges by: see `grading.evidence`."""
        return evidence(self.by_class)
