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

import argparse
import contextlib
import io
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import surogate_core
from surogate_core.train import durable

SEEDS = (1, 2, 3)
STEPS = 600
FEWER = (450, 330)
START = {"adamw": 4e-3, "normuon": 8e-3}
GOAL = 0.85


def prepare(data: Path, place: Path) -> None:
    text = (data / "pretrain" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    (place / "training.txt").write_text(text[:cut], encoding="utf-8")
    (place / "validation.txt").write_text(text[cut:], encoding="utf-8")


def run(data: Path, place: Path, optimizer: str, rate: float, seed: int, steps: int) -> float:
    """Loss on the validation text after the last step."""
    config: dict[str, Any] = {
        "model": str(data / "models" / "stories260K"),
        "from_scratch": True,
        "model_dtype": "fp32",
        "recompute": False,
        "output_dir": str(place / f"{optimizer}-{rate:g}-{seed}-{steps}"),
        "optimizer": optimizer,
        "adamw_beta2": 0.95,
        "learning_rate": rate,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.05,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "train_seed": seed,
        "sequence_len": 128,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "save_steps": steps,
        "eval_steps": steps,
        "dataloader_num_workers": 0,
        "datasets": [{"path": str(place / "training.txt"), "type": "text"}],
        "validation_datasets": [{"path": str(place / "validation.txt"), "type": "text"}],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        summary = surogate_core.run(config)
    if summary.eval_loss is None or summary.steps < steps:
        raise SystemExit("stopped; the same command goes on with this run")
    return summary.eval_loss


class Sweep:
    def __init__(self, data: Path, place: Path, results: Path | None):
        self.data, self.place, self.results = data, place, results
        self.runs: list[dict[str, Any]] = json.loads(results.read_text())["runs"] if results and results.exists() else []
        prepare(data, place)

    def mean(self, optimizer: str, rate: float, steps: int) -> float:
        """Mean loss over the seeds; runs that are not there yet are made."""
        found = []
        for seed in SEEDS:
            key = {"optimizer": optimizer, "learning_rate": rate, "steps": steps, "seed": seed}
            known = [entry["loss"] for entry in self.runs if key.items() <= entry.items()]
            if not known:
                known = [round(run(self.data, self.place, optimizer, rate, seed, steps), 5)]
                self.runs.append({**key, "loss": known[0]})
                print(json.dumps(self.runs[-1]), flush=True)
                self.keep({})
            found.append(known[0])
        return statistics.fmean(found)

    def best(self, optimizer: str) -> tuple[float, dict[float, float]]:
        """The best learning rate between two worse ones, and the mean loss of each that was tried."""
        start = START[optimizer]
        means = {rate: self.mean(optimizer, rate, STEPS) for rate in (start / 2, start, 2 * start)}
        while (rate := min(means, key=means.__getitem__)) in (min(means), max(means)):
            other = rate / 2 if rate == min(means) else 2 * rate
            means[other] = self.mean(optimizer, other, STEPS)
        return rate, dict(sorted(means.items()))

    def summary(self) -> dict[str, Any]:
        adamw, normuon = self.best("adamw"), self.best("normuon")
        goal = adamw[1][adamw[0]]
        curve = {STEPS: normuon[1][normuon[0]], **{steps: self.mean("normuon", normuon[0], steps) for steps in FEWER}}
        needed = crossing(curve, goal)
        return {
            "loss of adamw after 600 steps": round(goal, 4),
            "steps of normuon to that loss": needed,
            "share": round(needed / STEPS, 3) if needed else None,
            "adamw, mean loss by learning rate": {f"{rate:g}": round(loss, 4) for rate, loss in adamw[1].items()},
            "normuon, mean loss by learning rate": {f"{rate:g}": round(loss, 4) for rate, loss in normuon[1].items()},
            "normuon, mean loss by steps": {str(steps): round(loss, 4) for steps, loss in curve.items()},
        }

    def keep(self, summary: dict[str, Any]) -> None:
        if self.results:
            self.results.parent.mkdir(parents=True, exist_ok=True)
            lines = ",\n  ".join(json.dumps(entry) for entry in self.runs)
            text = f'{{\n "summary": {json.dumps(summary)},\n "runs": [\n  {lines}\n ]\n}}\n'
            durable.replace_file(self.results, text.encode())


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
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--results", type=Path, help="JSON file that is kept and continued")
    arguments.add_argument("--data", type=Path, required=True, help="directory of texts and models")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="surogate-steps-") as place:
        sweep = Sweep(given.data, Path(place), given.results)
        summary = sweep.summary()
        sweep.keep(summary)
    print(json.dumps(summary, indent=1))
    return not (summary["share"] and summary["share"] <= GOAL)


if __name__ == "__main__":
    sys.exit(main())
