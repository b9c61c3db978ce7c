"""What emulated NVFP4 costs a step of training: the CPU's own build of the kernels' arithmetic beside plain torch, and beside bf16.

    python bench/emulation.py [--rounds 3] [--keep FILE]

A random Qwen3 of 19 million parameters in bfloat16 (384 wide, 11 layers, bytes as tokens), all weights trained by AdamW, 4 rows of 256
positions a step, no recomputation, one thread. The sides take turns in one process, five steps each; a round's figure is the median of
a side's last four, by the wall clock, and ratios are taken within a round. Losses of both builds that are not equal make it fail.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from surogate_model_transformers.testing import tiny_model

import surogate_core

SHAPE = {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 11, "num_attention_heads": 6}
SIDES = {
    "bf16": {"recipe": "bf16"},
    **{
        f"{recipe}, {kernels}": {"recipe": recipe, "kernels": kernels}
        for recipe in ("nvfp4", "nvfp4_quartet")
        for kernels in ("reference", "native")
    },
}
STEPS, TOKENS = 5, 1024


def run(model: Path, text: Path, place: Path, side: str) -> tuple[float, list[float]]:
    """(median seconds of a step, losses)."""
    config: dict[str, Any] = {
        "model": str(model),
        "output_dir": str(place),
        "sequence_len": 256,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": STEPS,
        "save_steps": STEPS,
        "optimizer": "adamw",
        "recompute": False,
        "lora": False,
        "dataloader_num_workers": 0,
        "validation_split_ratio": 0.0,
        "datasets": [{"path": str(text), "type": "text"}],
        "recipe_backend": "emulated",
        **SIDES[side],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        summary = surogate_core.run(config)
    records = [json.loads(line) for line in (summary.output_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "step"]
    return statistics.median(TOKENS / record["tokens_per_s"] for record in steps[1:]), [record["loss"] for record in steps]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {side: [] for side in SIDES}
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        model, text = tiny_model(Path(place, "model"), num_key_value_heads=3, head_dim=64, **SHAPE), Path(place, "text.txt")
        text.write_text("\n\n".join(path.read_text() for path in sorted(Path(statistics.__file__).parent.glob("*.py"))[:20]))
        for number in range(options.rounds):
            for side in SIDES:
                seconds, losses[side] = run(model, text, Path(place, f"{side}-{number}"), side)
                taken[side].append(seconds)
                print(f"{side}: {seconds:.2f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    for recipe in ("nvfp4", "nvfp4_quartet"):
        if losses[f"{recipe}, reference"] != losses[f"{recipe}, native"]:
            raise SystemExit(f"{recipe}: the losses of both builds differ")
    ratios = {
        side: [round(own / base, 2) for own, base in zip(taken[side], taken["bf16"], strict=True)] for side in SIDES
    }
    for side, own in ratios.items():
        print(f"{side}: {statistics.median(own):.2f} times bf16 ({min(own):.2f} to {max(own):.2f})")
    if options.keep:
        machine = {"torch": torch.__version__, "threads": 1, "load": os.getloadavg()}
        kept = {"machine": machine, "seconds": taken, "times bf16": ratios}
        options.keep.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
