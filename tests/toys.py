"""A small network, and the comparison of two networks."""

import torch
from torch import nn


class Toy(nn.Module):
    """ResNet-18's stages by name, with batch normalisation in each, in a thousand parameters."""

    def __init__(self, classes=4):
        super().__init__()
        stages = [
            nn.Sequential(nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            for before, width in ((3, 4), (4, 4), (4, 6), (6, 8))
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def seeded(build, seed):
    """What `build` returns under that seed, the global generator left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def equal(model, other):
    """Whether two models have bitwise the same parameters and buffers."""
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
