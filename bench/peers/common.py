"""What the peers share: the packed rows, the command line, and a record of when each step ended."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "bias": "none", "task_type": "CAUSAL_LM"}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Side:
    """One run of a peer: ``work`` holds model, tokenizer and rows; ``step_done`` is called at the end of each optimizer step."""

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--work", type=Path, required=True)
        parser.add_argument("--output", type=Path, required=True)
        parser.add_argument("--dtype", choices=DTYPES, required=True)
        parser.add_argument("--lora", action="store_true")
        parser.add_argument("--lr", type=float, required=True)
        given = parser.parse_args()
        self.model, self.output, self.lora, self.lr = given.work / "model", given.output, given.lora, given.lr
        self.precision, self.dtype = given.dtype, DTYPES[given.dtype]
        self.rows = load_rows(given.work / "rows.safetensors")
        self.ended: list[float] = []
        self.losses: list[float] = []

    def step_done(self, *_: Any) -> None:
        self.ended.append(time.monotonic())

    def write(self) -> None:
        """Times are of the system's monotonic clock, which the benchmark reads before it starts this process."""
        self.output.mkdir(parents=True, exist_ok=True)
        (self.output / "peer.json").write_text(json.dumps({"ended": self.ended, "losses": self.losses}))


def load_rows(path: Path) -> dict[str, torch.Tensor]:
    """(steps, B, S) each. ``labels`` are moved by one to the right, as transformers and LitGPT want them: labels[s] is the token
    at s where s - 1 is trained to predict it, -100 elsewhere. A label of a row's last position has no place there."""
    rows = load_file(path)
    shifted = torch.full_like(rows["labels"], -100)
    shifted[..., 1:] = rows["labels"][..., :-1]
    rows["labels"] = shifted
    return rows
