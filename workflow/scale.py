"""How long a large study would take, from the measured times in results.csv: `.venv/bin/python workflow/scale.py`.

Trainings at `published` are taken to go at the measured images per second, the ViT's slower by the tokens of its larger
images; a method's share of retraining is the measured one. `--speed` says how many times faster one device of each
machine is than the one that was measured: measure it by training one Gold there.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from wording import duration

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from helpers.budgets import BUDGETS  # noqa: E402

TRAINING_IMAGES = 50_000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "figures/cifar10/results.csv")
    parser.add_argument("--measured-budget", default="short", choices=BUDGETS, help="the budget of those results")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--shadows", type=int, default=128)
    parser.add_argument("--speed", type=float, default=1.0, help="of one device, in measured devices (default: 1)")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8, 100])
    options = parser.parse_args()
    results = pd.read_csv(options.results, keep_default_na=False)
    total = chain = 0
    for scenario in BUDGETS["published"]:
        work, longest, lines = plan(results, scenario, options)
        print("\n".join(lines))
        total, chain = total + work, max(chain, longest)
    print(f"sum: {duration(total)} of a measured device; longest chain: {duration(chain)}")
    for devices in options.devices:
        shared = total / devices
        limit = "the sum of the work" if shared > chain else "the longest chain: Original, Golds and one method in turn"
        time = duration(max(shared, chain) / options.speed)
        print(f"{devices} devices of speed {options.speed:g}: {time}, limit: {limit}")


def plan(results, scenario, options):
    """Seconds of all jobs and of the longest chain of one seed on a measured device, and the arithmetic in words."""
    final = results[(results.scenario == scenario) & (results.set == "")]
    cost = final.pivot_table(index="method", columns="metric", values="value")
    share = cost["images, % of retraining"].dropna() / 100
    share = share[~share.index.str.match("Original|Gold")]
    rate = cost["images"]["Gold"] / cost["seconds"]["Gold"]
    table, measured = BUDGETS["published"][scenario], BUDGETS[options.measured_budget][scenario]
    slower = tokens(table["model"]) / tokens(measured["model"])
    training = table["training"]["epochs"] * TRAINING_IMAGES * slower / rate
    trainings = table["golds"] + ("original" not in table) + options.shadows
    forgettings = (1 + options.shadows) * share.sum()
    work = options.seeds * (trainings + forgettings) * training
    chain = (table["golds"] + 1 + share.max()) * training
    lines = [
        f"{scenario}: a training is {table['training']['epochs']} epochs x {TRAINING_IMAGES:,} images x {slower:.1f} "
        f"(tokens) / {rate:.0f} images/s = {duration(training)}",
        f"    {options.seeds} seeds x ({trainings} trainings + {1 + options.shadows} models x {share.sum():.2f} of a "
        f"training for all {len(share)} methods) x {duration(training)} = {duration(work)}",
    ]
    return work, chain, lines


def tokens(model):
    """What a vision transformer attends to, the class token included; 1 for a network that sees all as it is."""
    return (model["image_size"] // model["patch_size"]) ** 2 + 1 if "patch_size" in model else 1


if __name__ == "__main__":
    main()
