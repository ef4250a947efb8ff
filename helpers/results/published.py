"""The numbers that the two founding documents print, as literal tables."""

# Document A: ResNet-18, a random 10 % of CIFAR-10. Accuracies in percent.
# M2, M4 and M6 are not in the document; they were read from its public notebook.
RANDOM = {
    "M1 Retain FT": {"retain": 100.00, "forget": 99.22, "validation": 88.40, "test": 88.54},
    "M2 Selective FT": {"retain": 100.00, "forget": 99.14, "validation": 88.36, "test": 88.60},
    "M3 Reversal": {"retain": 100.00, "forget": 98.30, "validation": 87.62, "test": 88.10},
    "M4 Per epoch": {"retain": 99.96, "forget": 96.10, "validation": 86.76, "test": 86.58},
    "M5 Per batch": {"retain": 92.31, "forget": 74.30, "validation": 77.90, "test": 77.24},
    "M6 Per batch + FT": {"retain": 99.93, "forget": 95.64, "validation": 86.76, "test": 86.86},
    "H1 Linear": {"retain": 46.51, "forget": 37.22, "validation": 44.56, "test": 44.86},
    "H2 Quadratic + FT": {"retain": 93.27, "forget": 67.82, "validation": 72.26, "test": 71.70},
    "H3 Periodic FT": {"retain": 100.00, "forget": 71.76, "validation": 85.36, "test": 85.08},
    "H4 Unfreezing": {"retain": 98.42, "forget": 66.64, "validation": 78.88, "test": 78.02},
}

# Document B: ViT-Tiny, the class airplane. Accuracies in percent (forget: training images), entropy in nats,
# Jensen-Shannon distance.
CLASS = {
    "Original": {"forget": 98.94, "test retain": 96.08, "entropy": 0.0867, "JSD to Gold": 0.7961},
    "Gold": {"forget": 0.00, "test retain": 96.31, "entropy": 0.6868, "JSD to Gold": 0.0},
    "Fine-tuning": {"forget": 78.28, "test retain": 96.47, "entropy": 0.3097, "JSD to Gold": 0.6515},
    "Gradient ascent": {"forget": 0.00, "test retain": 11.11, "entropy": 0.0000, "JSD to Gold": 0.5565},
    "2-Stage": {"forget": 1.02, "test retain": 76.93, "entropy": 2.2814, "JSD to Gold": 0.5922},
}

# The starting kit's notebook: its own checkpoints on its own split of the official CIFAR-10, which is not document A's.
KIT = {
    "pretrained": {"train %": 99.5, "test %": 88.3, "kit MIA": 0.579},
    "fine-tuned 5 epochs": {"retain %": 98.3, "test %": 84.0, "kit MIA": 0.512},
    "retrained": {"retain %": 99.5, "forget %": 88.2, "kit MIA": 0.502},
}

PUBLISHED = {"random": RANDOM, "class": CLASS}
DATA = "cifar10"  # the data of all these numbers
