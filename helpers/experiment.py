"""One scenario on one data set at one budget and seed: its split, its models, each trained at most once."""

import sys
from functools import cached_property
from . import runs
from .budgets import SHORT
from .data import load_data, make_split
from .models import build_model
from .training import pick_device, precision, train


class Experiment:
    def __init__(self, data, budget, scenario, seed):
        self.data, self.budget, self.scenario, self.seed = data, budget[scenario], scenario, seed
        self.device = pick_device()
        self.split_settings = {"scenario": scenario, "seed": 42} | (
            {"forget_fraction": 0.1} if scenario == "random" else {"forget_class": 0})
        self.split = make_split(data, **self.split_settings, device=self.device, **self.budget["batches"])
        self.folder = runs.RUNS / f"{data.name}-{data.identity}" / scenario

    def common(self, seed):
        return {"data": self.data.identity, "split": self.split_settings, "model": self.budget["model"],
                "batches": self.budget["batches"], "seed": seed, "precision": precision(self.device)}

    def trained(self, role, batches, seed):
        settings = {"role": role, **self.common(seed), "training": self.budget["training"]}
        path = self.folder / f"{role}-seed{seed}-{runs.key(settings)}"
        model = build_model(**self.budget["model"], classes=len(self.data.classes), seed=seed).to(self.device)
        if saved := runs.load(path, settings):
            model.load_state_dict(saved[0])
            return model.eval(), saved[1]
        partial = path.with_name(path.name + ".partial")
        history = train(model, batches, seed=seed, checkpoint=partial, progress=lambda t: print(path.name, t, flush=True), **self.budget["training"])
        runs.save(path, settings, model.state_dict(), history=history)
        for suffix in (".json", ".safetensors"):
            partial.with_name(partial.name + suffix).unlink()
        return model, {"history": history}

    def original(self):
        return self.trained("original", self.split.train, self.seed)

    def retrained(self, number=0):
        return self.trained("retrained", self.split.retain, self.seed + 1000 * number)
