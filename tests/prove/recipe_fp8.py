"""How far `fp8_hybrid` is from `bf16` after 300 steps of full training on a real text, by emulation.

    python tests/prove/recipe_fp8.py --data DIRECTORY --results docs/proof/recipe_fp8.json

stories260K (64 wide, 5 layers) learns tiny Shakespeare: the first nine tenths are trained on, the loss is that of the last 20,000
characters after the last step. The two runs of a seed see the same 256 tokens in each step; every linear layer of the decoder is
in the recipe. The gap is the loss over that of `bf16` with the same seed, minus 1.

Results are kept after each run, and a sweep that is started again goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import surogate_core
from surogate_core.train import durable

SEEDS = (1, 2, 3)
STEPS = 300
GOAL = 0.5
"""Largest mean gap in percent."""


def prepare(data: Path, place: Path) -> None:
    text = (data / "pretrain" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    (place / "training.txt").write_text(text[: len(text) * 9 // 10], encoding="utf-8")
    (place / "validation.txt").write_text(text[-20_000:], encoding="utf-8")


def run(data: Path, place: Path, recipe: str, seed: int, steps: int = STEPS) -> float:
    """Loss on the validation text after the last step."""
    config: dict[str, Any] = {
        "model": str(data / "models" / "stories260K"),
        "recipe": recipe,
        "recipe_backend": "emulated",
        "recompute": False,
        "output_dir": str(place / f"{recipe}-{seed}-{steps}"),
        "optimizer": "adamw",
        "adamw_beta2": 0.95,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.05,
        "max_grad_norm": 1.0,
        "train_seed": seed,
        "sequence_len": 128,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "save_steps": steps,
        "eval_steps": steps,
        "dataloader_num_workers": 0,
        "lora": False,
        "datasets": [{"path": str(place / "training.txt"), "type": "text"}],
        "validation_datasets": [{"path": str(place / "validation.txt"), "type": "text"}],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        summary = surogate_core.run(config)
    if summary.eval_loss is None or summary.steps < steps:
        raise SystemExit("stopped; the same command goes on with this run")
    return summary.eval_loss


def sweep(data: Path, place: Path, results: Path | None) -> dict[str, Any]:
    runs: list[dict[str, Any]] = json.loads(results.read_text())["runs"] if results and results.exists() else []
    prepare(data, place)
    for seed in SEEDS:
        for recipe in ("bf16", "fp8_hybrid"):
            if not any(entry["recipe"] == recipe and entry["seed"] == seed for entry in runs):
                begun = time.monotonic()
                loss = round(run(data, place, recipe, seed), 5)
                runs.append({"recipe": recipe, "seed": seed, "loss": loss, "seconds": round(time.monotonic() - begun)})
                print(json.dumps(runs[-1]), flush=True)
                if results:
                    keep(runs, results)
    return summary(runs)


def keep(runs: list[dict[str, Any]], results: Path) -> None:
    results.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n  ".join(json.dumps(entry) for entry in runs)
    durable.replace_file(results, f'{{\n "summary": {json.dumps(summary(runs))},\n "runs": [\n  {lines}\n ]\n}}\n'.encode())


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Gaps to `bf16` in percent, of each seed that has both runs, and their mean."""
    losses = {(entry["recipe"], entry["seed"]): entry["loss"] for entry in runs}
    seeds = [seed for seed in SEEDS if ("bf16", seed) in losses and ("fp8_hybrid", seed) in losses]
    gaps = [100 * (losses["fp8_hybrid", seed] / losses["bf16", seed] - 1) for seed in seeds]
    return {"gap": round(statistics.fmean(gaps), 3), "by seed": [round(gap, 3) for gap in gaps]} if gaps else {}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--results", type=Path, help="JSON file that is kept and continued")
    arguments.add_argument("--data", type=Path, required=True, help="directory of texts and models")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="surogate-fp8-") as place:
        found = sweep(given.data, Path(place), given.results)
    print(json.dumps(found))
    return found["gap"] > GOAL


if __name__ == "__main__":
    sys.exit(main())
