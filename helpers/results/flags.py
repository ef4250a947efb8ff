"""Warnings about results that are easily misread, computed from tidy results (`rows.tidy`)."""

from ..scenario import SCENARIOS

LEAST = 0.5  # points below which a difference counts as none, however close the two Golds are
COLLAPSED, UNCHANGED = "collapsed", "no measurable change"
NOTHING_TO_FORGET = "Original is within the floor: there is nothing to forget here."
NEVER_LEARNT = "Original never learnt: it has collapsed or hardly beats chance, so that no result here means anything."
NOT_KNOWN_BETTER = "Original is no better on the forgotten images than on unseen ones: there is nothing to forget here."


def chance_limit(classes):
    """The accuracy in percent that is hardly better than chance: twice chance, but less where classes are few.

    Below ten classes it lies a ninth of the way from chance to 100 %: 55.6 % for two classes.
    """
    chance = 100 / classes
    return chance + min(chance, (100 - chance) / 9)


def is_collapsed(largest_class, true_share, retain_accuracy, classes):
    """Whether a model predicts one class for nearly all images, or is hardly better than chance on retained ones.

    Nearly all: over 90 %, and over 5 points more than have the most frequent label.

    Args:
        largest_class: the share of test images that is predicted as one class, percent.
        true_share: the share of test images that have the most frequent label, percent.
        retain_accuracy: percent.
        classes: how many there are.
    """
    return largest_class > max(90, true_share + 5) or retain_accuracy < chance_limit(classes)


def accuracies(results):
    """Accuracies of one scenario's results, one row per (model, seed) and one column per set."""
    rows = results[results.metric == "accuracy"]
    return rows.pivot_table(index=["method", "seed"], columns="set", values="value", sort=False)


def distance(table, one, other):
    """How far two models of `accuracies` are apart on each set, in points, mean over the seeds that both have."""
    return (table.loc[one] - table.loc[other]).abs().mean()


def method_flags(results):
    """`{method: flag}` of one scenario's methods: collapsed, or no measurable change.

    A method has changed nothing measurable if no accuracy has moved from Original's by more than the floor, which is
    the distance of the two Golds on that set, or `LEAST`. A collapse is a failure, whatever the forget accuracy; one
    seed is enough for this flag.
    """
    names = dict.fromkeys(results.method[results.kind == "method"])
    collapsed = set(results.method[results.metric == COLLAPSED])
    table = accuracies(results)
    floor = distance(table, "Gold 2", "Gold").clip(lower=LEAST) if "Gold 2" in table.index else LEAST
    found = {}
    for name in names:
        if name in collapsed:
            found[name] = COLLAPSED
        elif name in table.index and (distance(table, name, "Original") <= floor).all():
            found[name] = UNCHANGED
    return found


def scenario_flags(results, scenario):
    """Statements about one scenario of a run as a whole: has Original learnt, and is there anything to forget?"""
    table, s = accuracies(results), SCENARIOS[scenario]
    statements = []
    if "Original" in set(results.method[results.metric == COLLAPSED]):
        statements.append(NEVER_LEARNT)
    if "Gold 2" in table.index:
        original, floor = (distance(table, name, "Gold")[list(s.gap)].mean() for name in ("Original", "Gold 2"))
        if original <= floor:
            statements.append(NOTHING_TO_FORGET)
    original = table.loc["Original"].mean()
    if original["forget"] <= original[s.unseen]:
        statements.append(NOT_KNOWN_BETTER)
    return statements
