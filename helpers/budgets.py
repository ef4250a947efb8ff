"""How much is spent: one literal table a budget. Edit a number, and what depends on it is trained anew."""

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

SHORT = {
    "random": {
        "golds": 2,
        "model": {"name": "resnet18"},
        "batches": {"mean": CIFAR10_MEAN, "std": CIFAR10_STD, "image_size": 32},
        "training": {"epochs": 16, "plain_epochs": 4, "batch_size": 128, "lr": 0.1, "weight_decay": 5e-4, "schedule": "onecycle"},
    },
    "class": {
        "golds": 2,
        "model": {"name": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8},
        "batches": {"image_size": 32},
        "training": {"epochs": 10, "plain_epochs": 2, "batch_size": 128, "lr": 1e-3, "weight_decay": 0.05, "schedule": "onecycle", "optimizer": "adamw"},
    },
}
