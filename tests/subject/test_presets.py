"""The presets: complete tables, and the documents' training."""

import pytest

from helpers.datasets import CIFAR10_STATISTICS
from helpers.methods import DOCUMENTS, METHODS, PUBLISHED
from helpers.presets import PRESETS
from helpers.scenario import SCENARIOS

TABLES = [(name, scenario) for name in PRESETS for scenario in SCENARIOS]


@pytest.mark.parametrize("name, scenario", TABLES)
def test_a_presets_methods_exist_and_accept_its_settings(name, scenario):
    table = PRESETS[name][scenario]
    assert table["golds"] >= 2 and table["audit"]["shadows"] % 2 == 0
    assert set(table["methods"]) <= set(DOCUMENTS) and set(table["published"]) <= set(PUBLISHED)
    for method, settings in {**table["methods"], **table["published"]}.items():
        assert METHODS[method].check(settings).items() >= settings.items()
    available = [m for m in (*table["methods"], *table["published"]) if scenario in METHODS[m].scenarios]
    assert set(table["audit"]["methods"]) <= set(available)


@pytest.mark.parametrize("name", PRESETS)
def test_every_method_of_the_documents_runs_in_a_scenario(name):
    assert set(DOCUMENTS) == {method for table in PRESETS[name].values() for method in table["methods"]}


def test_quick_runs_every_published_method():
    assert set(PUBLISHED) == {method for table in PRESETS["quick"].values() for method in table["published"]}


def test_documents_is_the_documents_training():
    """Document A's common settings and document B's; the methods' own are their defaults."""
    a, b = PRESETS["documents"]["random"], PRESETS["documents"]["class"]
    assert a["model"] == {"name": "resnet18"} and a["original"] == "kit"
    assert a["batches"] == {"image_size": 32}, "normalised by CIFAR-10's statistics"
    assert CIFAR10_STATISTICS == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert a["training"] == {"epochs": 200, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4, "schedule": "cosine"}
    assert a["unlearning"] == {"batch_size": 128} and not any(a["methods"].values())
    vit = {"name": "vit_tiny_patch16_224", "image_size": 224, "patch_size": 16, "weights": "imagenet"}
    assert b["model"] == vit and b["batches"] == {"image_size": 224, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert b["training"] == {"epochs": 3, "batch_size": 64, "lr": 1e-4, "augment": False}
    assert b["unlearning"] == {"batch_size": 64}
    assert not any(b["methods"][name] for name in ("Fine-tuning", "Gradient ascent", "2-Stage", "2-Stage full"))
    for part in (a, b):
        assert part["evaluation"] == {"final": None, "tracked": 1000}
