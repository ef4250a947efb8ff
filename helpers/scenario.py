"""The two scenarios: which sets of images each has, and what each set is for. Imports no torch."""

from dataclasses import dataclass

STARTS = ("fresh", "chain")


@dataclass(frozen=True)
class Scenario:
    """The sets of a scenario and their roles.

    `retain` and `forget` are the two parts of the training images in both scenarios. `validation` is the half of the
    test images that document A holds out; the class scenario has it too (`Split.validation`), for methods that choose
    by unseen images, but does not measure it, since document B measures the whole test set.
    """

    name: str
    sets: tuple[str, ...]  # measured, in the order of tables
    tracked: tuple[str, ...]  # measured after each epoch, on part of each set
    test: str  # unseen images that the model must stay right about
    compared: str  # forgotten images on which predictions are compared with Gold's
    unseen: str  # the non-members beside the members `forget`, for attacks on one model
    held_out: str  # the non-members among the targets of the audit with shadow models
    gap: tuple[str, ...]  # the sets over which the mean gap to Gold is taken


SCENARIOS = {
    "random": Scenario(
        name="random",
        sets=("retain", "forget", "validation", "test"),
        tracked=("retain", "forget", "validation"),
        test="test",
        compared="forget",
        unseen="test",
        held_out="validation",
        gap=("retain", "forget", "test"),
    ),
    "class": Scenario(
        name="class",
        sets=("retain", "forget", "test retain", "test forget"),
        tracked=("retain", "forget", "test retain"),
        test="test retain",
        compared="test forget",
        unseen="test forget",
        held_out="test forget",
        gap=("retain", "forget", "test retain", "test forget"),
    ),
}
