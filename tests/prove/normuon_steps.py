"""How many steps `normuon` needs to reach the loss that `adamw` reaches in 600, from scratch on a real text.

    python tests/prove/normuon_steps.py --data DIRECTORY --results docs/proof/normuon_steps.json

The model has the shape of stories260K (64 wide, 5 layers) with random weights, the text is tiny Shakespeare: the first nine tenths
are trained on, the loss is that of the last tenth after the last step. Both rules have warmup, cosine decay to 0 over their whole
run, the same decay and clipping. The learning rates of both are swept at 600 steps in factors of two, over three seeds, until the
best mean lies between two worse ones. Then `normuon` at its best rate runs for fewer steps, each time with the whole schedule; the
number of steps at which its mean loss would be `adamw`'s is interpolated between these runs.

Results are kept after each run, and a sweep that is started again goes on where it was.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from training import SEEDS, Kept, Runs, arguments, final_loss, texts

STEPS = 600
FEWER = (450, 330)
START = {"adamw": 4e-3, "normuon": 8e-3}
GOAL = 0.85


def run(data: Path, place: Path, optimizer: str, rate: float, seed: int, steps: int) -> float:
    """Loss on the validation text after the last step."""
    config: dict[str, Any] = {
        "model": str(data / "models" / "stories260K"),
        "from_scratch": True,
        "model_dtype": "fp32",
        "optimizer": optimizer,
        "learning_rate": rate,
        "weight_decay": 0.1,
        "train_seed": seed,
        "per_device_train_batch_size": 8,
    }
    return final_loss(place, f"{optimizer}-{rate:g}-{seed}-{steps}", steps, **config)


class Sweep:
    def __init__(self, data: Path, place: Path, results: Path | None):
        self.data, self.place = data, place
        self.kept = Kept(results, summary)
        texts(data, place)

    def mean(self, optimizer: str, rate: float, steps: int) -> float:
        """Mean loss over the seeds; runs that are not there yet are made."""
        found = []
        for seed in SEEDS:
            key = {"optimizer": optimizer, "learning_rate": rate, "steps": steps, "seed": seed}
            found.append(self.kept.loss(key, partial(run, self.data, self.place, optimizer, rate, seed, steps)))
        return statistics.fmean(found)

    def best(self, optimizer: str) -> float:
        """The best learning rate between two worse ones."""
        start = START[optimizer]
        means = {rate: self.mean(optimizer, rate, STEPS) for rate in (start / 2, start, 2 * start)}
        while (rate := min(means, key=means.__getitem__)) in (min(means), max(means)):
            other = rate / 2 if rate == min(means) else 2 * rate
            means[other] = self.mean(optimizer, other, STEPS)
        return rate

    def everything(self) -> dict[str, Any]:
        self.best("adamw")
        rate = self.best("normuon")
        for steps in FEWER:
            self.mean("normuon", rate, steps)
        found: dict[str, Any] = self.kept.write()
        return found


def summary(runs: Runs) -> dict[str, Any]:
    """Of the means over all seeds, those that are there; nothing before both rules have one."""
    found: dict[tuple[str, float, int], list[float]] = {}
    for entry in runs:
        found.setdefault((entry["optimizer"], entry["learning_rate"], entry["steps"]), []).append(entry["loss"])
    means = {key: statistics.fmean(losses) for key, losses in sorted(found.items()) if len(losses) == len(SEEDS)}
    adamw, normuon = ({rate: means[n, rate, s] for n, rate, s in means if (n, s) == (name, STEPS)} for name in START)
    if not adamw or not normuon:
        return {}
    goal, rate = min(adamw.values()), min(normuon, key=normuon.__getitem__)
    curve = {steps: means[name, r, steps] for name, r, steps in means if (name, r) == ("normuon", rate)}
    needed = crossing(curve, goal)
    return {
        "loss of adamw after 600 steps": round(goal, 4),
        "steps of normuon to that loss": needed,
        "share": round(needed / STEPS, 3) if needed else None,
        "adamw, mean loss by learning rate": {f"{rate:g}": round(loss, 4) for rate, loss in adamw.items()},
        "normuon, mean loss by learning rate": {f"{rate:g}": round(loss, 4) for rate, loss in normuon.items()},
        "normuon, mean loss by steps": {str(steps): round(loss, 4) for steps, loss in curve.items()},
    }


def crossing(curve: dict[int, float], goal: float) -> int | None:
    """Steps at which the loss falls to ``goal``, linear between the runs; the fewest steps tried when all reach it, None when
    none does."""
    points = sorted(curve.items())
    if points[0][1] <= goal:
        return points[0][0]
    for (less, before), (more, after) in itertools.pairwise(points):
        if after <= goal:
            return round(less + (more - less) * (before - goal) / (before - after))
    return None


def main() -> int:
    given = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="surogate-steps-") as place:
        found = Sweep(given.data, Path(place), given.results).everything()
    print(json.dumps(found, indent=1))
    return not (found["share"] and found["share"] <= GOAL)


if __name__ == "__main__":
    sys.exit(main())
