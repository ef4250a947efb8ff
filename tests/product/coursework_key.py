"""Answers to the questions of `notebooks/coursework.ipynb`: the source of each answer's cell, by number."""

KEY = {
    1: """
import torch


def random_split(n, fraction, seed):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    forgotten = round(n * fraction)
    return order[forgotten:], order[:forgotten]


def is_split(retain, forget, n):
    together = torch.cat([retain, forget])
    return len(together) == n and torch.equal(together.sort().values, torch.arange(n))
""",
    2: """
from helpers.metrics import accuracy


def accuracy_of(e, run, name):
    return accuracy(run.logits[name], e.split.sets[name].y.cpu())


e = at_random
measured = {run.name: accuracy_of(e, run, "forget") for run in (e.original(), e.gold())}
apart = [abs(accuracy_of(e, e.gold(2), name) - accuracy_of(e, e.gold(), name)) for name in e.scenario.gap]
measured["floor"] = sum(apart) / len(apart)
""",
    3: """
from torch.nn.functional import cross_entropy


def finetune(model, split, *, epochs=2, lr=0.01):
    yield Phase(lr)
    for _ in range(epochs):
        for x, y in split.retain:
            yield cross_entropy(model(x), y)
        yield EpochEnd()
""",
    4: """
def bounded_ascent(model, split, *, epochs=3, lr=0.01, ceiling=2.3):
    yield Phase(lr)
    for _ in range(epochs):
        for x, y in split.forget:
            loss = cross_entropy(model(x), y)
            if loss > ceiling:
                return
            yield -loss
        yield EpochEnd()
""",
    5: """
def gap_and_cost(e, run):
    apart = [abs(accuracy_of(e, run, name) - accuracy_of(e, e.gold(), name)) for name in e.scenario.gap]
    return sum(apart) / len(apart), 100 * run.cost["images"] / e.gold().cost["images"]
""",
    6: """
def entropy(p):
    return -torch.xlogy(p, p).sum(1)


def js_distance(p, q):
    divergence = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    return divergence.clamp(min=0).sqrt()


def predictions(run):
    return run.logits[by_class.scenario.compared].double().softmax(1)


gold = predictions(by_class.gold())
compared = (by_class.original(), by_class.gold(2))
distances = {run.name: js_distance(predictions(run), gold).mean().item() for run in compared}
""",
    7: """
from helpers.metrics import losses


def auc(members, others):
    lower, tied = members[:, None] < others, members[:, None] == others
    return (lower + 0.5 * tied).mean()


def losses_of(run, name):
    return losses(run.logits[name], at_random.split.sets[name].y.cpu())


attacked = (at_random.original(), at_random.gold())
aucs = {run.name: auc(losses_of(run, "forget"), losses_of(run, at_random.scenario.unseen)) for run in attacked}
""",
    8: """
table, verdicts = check.evidence(), {}
for name in "ABCD":
    row = table.loc[name]
    sets = [f"{part} %" for part in by_class.scenario.sets]
    if (row[sets] == table.loc["Original", sets]).all():
        verdicts[name] = "no measurable change"
    elif row["loss, retain"] > 20:
        verdicts[name] = "collapsed"
    elif row["loss, forget"] > 20:
        verdicts[name] = "hidden, not forgotten"
    else:
        verdicts[name] = "like Gold"
""",
}
