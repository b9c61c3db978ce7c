"""How far `nvfp4` and `nvfp4_quartet` are from `bf16` after 300 steps from scratch on a real text, by emulation.

    python tests/prove/recipes_nvfp4.py --data DIRECTORY --results docs/proof/recipes_nvfp4.json [--only stories260K]

Two random models: the shape of stories260K (64 wide, 5 layers), and a Qwen3 of 20 million parameters (384 wide, 11 layers, the same
tokenizer). The text is tiny Shakespeare: the first nine tenths are trained on, the loss is that of the last 20,000 characters after
the last step. All runs of one seed start from the same weights and see the same 256 tokens in each step; every linear layer of the
decoder is in the recipe. The gap is the loss over that of `bf16` with the same seed, minus 1.

Results are kept after each run, and a sweep that is started again goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
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
RATES = {"stories260K": 4e-3, "qwen3-20m": 1e-3}
RECIPES: dict[str, dict[str, Any]] = {
    "bf16": {"recipe": "bf16"},
    "nvfp4": {"recipe": "nvfp4"},
    "nvfp4_quartet": {"recipe": "nvfp4_quartet"},
    "nvfp4, no 4/6": {"recipe": "nvfp4", "fp4_four_over_six": False},
    "nvfp4_quartet, no 4/6": {"recipe": "nvfp4_quartet", "fp4_four_over_six": False},
}
GOAL = 0.04
"""Largest gap of `nvfp4`."""


def prepare(data: Path, place: Path) -> None:
    """Texts, and the larger model's directory, in ``place``."""
    from transformers import Qwen3Config

    text = (data / "pretrain" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    (place / "training.txt").write_text(text[: len(text) * 9 // 10], encoding="utf-8")
    (place / "validation.txt").write_text(text[-20_000:], encoding="utf-8")
    small, large = data / "models" / "stories260K", place / "qwen3-20m"
    large.mkdir(exist_ok=True)
    for path in small.glob("*token*"):
        shutil.copy(path, large)
    Qwen3Config(
        vocab_size=json.loads((small / "config.json").read_text())["vocab_size"],
        hidden_size=384,
        intermediate_size=1152,
        num_hidden_layers=11,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        architectures=["Qwen3ForCausalLM"],
    ).save_pretrained(large)


def run(data: Path, place: Path, model: str, recipe: str, seed: int, steps: int = STEPS, **changes: Any) -> float:
    """Loss on the validation text after the last step."""
    own = place / model
    config: dict[str, Any] = {
        "model": str(own if own.is_dir() else data / "models" / model),
        "from_scratch": True,
        "recompute": False,
        "output_dir": str(place / f"{model}-{'-'.join(str(value) for value in RECIPES[recipe].values())}-{seed}-{steps}"),
        "optimizer": "adamw",
        "adamw_beta2": 0.95,
        "learning_rate": RATES[model],
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.05,
        "weight_decay": 0.1,
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
        "recipe_backend": "emulated",
        **RECIPES[recipe],
        **changes,
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

    def loss(self, model: str, recipe: str, seed: int) -> float:
        key = {"model": model, "recipe": recipe, "seed": seed}
        known = [entry["loss"] for entry in self.runs if key.items() <= entry.items()]
        if not known:
            begun = time.monotonic()
            known = [round(run(self.data, self.place, model, recipe, seed), 5)]
            self.runs.append({**key, "loss": known[0], "seconds": round(time.monotonic() - begun)})
            print(json.dumps(self.runs[-1]), flush=True)
            self.keep()
        return known[0]

    def everything(self, models: tuple[str, ...]) -> dict[str, Any]:
        for model in models:
            for seed in SEEDS:
                for recipe in RECIPES:
                    self.loss(model, recipe, seed)
        return self.keep()

    def keep(self) -> dict[str, Any]:
        found = {model: summary(self.runs, model) for model in RATES}
        if self.results:
            self.results.parent.mkdir(parents=True, exist_ok=True)
            lines = ",\n  ".join(json.dumps(entry) for entry in self.runs)
            text = f'{{\n "summary": {json.dumps(found)},\n "runs": [\n  {lines}\n ]\n}}\n'
            durable.replace_file(self.results, text.encode())
        return found


def summary(runs: list[dict[str, Any]], model: str) -> dict[str, Any]:
    """Gaps to `bf16` in percent: of each seed that has both runs, and their mean."""
    losses = {(entry["recipe"], entry["seed"]): entry["loss"] for entry in runs if entry["model"] == model}
    found: dict[str, Any] = {}
    for recipe in RECIPES:
        seeds = [seed for seed in SEEDS if (recipe, seed) in losses and ("bf16", seed) in losses]
        if recipe != "bf16" and seeds:
            gaps = [100 * (losses[recipe, seed] / losses["bf16", seed] - 1) for seed in seeds]
            found[recipe] = {"gap": round(statistics.fmean(gaps), 2), "by seed": [round(gap, 2) for gap in gaps]}
    return found


def reached(found: dict[str, Any]) -> dict[str, bool]:
    """The three claims for one model. An order of two recipes counts as held when the mean is not worse by more than the standard
    error of the seeds' differences."""

    def not_worse(one: str, other: str) -> bool:
        differences = [a - b for a, b in zip(found[one]["by seed"], found[other]["by seed"], strict=True)]
        error = statistics.stdev(differences) / len(differences) ** 0.5
        return statistics.fmean(differences) <= error

    return {
        "nvfp4 at most 4 % above bf16": found["nvfp4"]["gap"] <= 100 * GOAL,
        "4/6 no worse than without": not_worse("nvfp4", "nvfp4, no 4/6"),
        "nvfp4_quartet no worse than nvfp4": not_worse("nvfp4_quartet", "nvfp4"),
    }


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--results", type=Path, help="JSON file that is kept and continued")
    arguments.add_argument("--data", type=Path, required=True, help="directory of texts and models")
    arguments.add_argument("--only", choices=tuple(RATES), help="one of the two models")
    given = arguments.parse_args()
    models = (given.only,) if given.only else tuple(RATES)
    with tempfile.TemporaryDirectory(prefix="surogate-nvfp4-") as place:
        found = Sweep(given.data, Path(place), given.results).everything(models)
    claims = {model: reached(found[model]) for model in models}
    print(json.dumps({"gaps": found, "claims": claims}, indent=1))
    return not all(held for claim in claims.values() for held in claim.values())


if __name__ == "__main__":
    sys.exit(main())
