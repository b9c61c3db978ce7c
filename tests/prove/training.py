"""What the sweeps of training runs share: the text, one run, and results that are kept after each run."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import Factory, define

import surogate_core
from surogate_core.train import durable

SEEDS = (1, 2, 3)
Runs = list[dict[str, Any]]

COMMON: dict[str, Any] = {
    "recompute": False,
    "optimizer": "adamw",
    "adamw_beta2": 0.95,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.05,
    "max_grad_norm": 1.0,
    "sequence_len": 128,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "lora": False,
}


def texts(data: Path, place: Path, held_out: int | None = None) -> None:
    """Tiny Shakespeare in ``place``: nine tenths to train on; the last, or ``held_out`` characters, for validation."""
    text = (data / "pretrain" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    cut = len(text) * 9 // 10
    (place / "training.txt").write_text(text[:cut], encoding="utf-8")
    (place / "validation.txt").write_text(text[-held_out:] if held_out else text[cut:], encoding="utf-8")


def final_loss(place: Path, name: str, steps: int, **changes: Any) -> float:
    """Loss on the held-out text after the last step of a run with :data:`COMMON` and ``changes``."""
    lengths = dict.fromkeys(("max_steps", "save_steps", "eval_steps"), steps)
    data = {
        f"{kind}datasets": [{"path": str(place / f"{part}.txt"), "type": "text"}]
        for kind, part in (("", "training"), ("validation_", "validation"))
    }
    with contextlib.redirect_stdout(io.StringIO()):
        summary = surogate_core.run({**COMMON, **lengths, **data, "output_dir": str(place / name), **changes})
    if summary.eval_loss is None or summary.steps < steps:
        raise SystemExit("stopped; the same command goes on with this run")
    return summary.eval_loss


@define
class Kept:
    """The runs of a sweep, in a JSON file that is written after each; a sweep that is started again goes on where it was."""

    results: Path | None
    summary: Callable[[Runs], Any]
    runs: Runs = Factory(list)

    def __attrs_post_init__(self) -> None:
        if self.results and self.results.exists():
            self.runs = json.loads(self.results.read_text())["runs"]

    def loss(self, key: dict[str, Any], run: Callable[[], float]) -> float:
        """Of the run with this key, which is made if it is not there yet."""
        known = [entry["loss"] for entry in self.runs if key.items() <= entry.items()]
        if known:
            return float(known[0])
        begun = time.monotonic()
        loss = round(run(), 5)
        self.runs.append({**key, "loss": loss, "seconds": round(time.monotonic() - begun)})
        print(json.dumps(self.runs[-1]), flush=True)
        self.write()
        return loss

    def write(self) -> Any:
        """The summary, kept beside the runs."""
        found = self.summary(self.runs)
        if self.results:
            self.results.parent.mkdir(parents=True, exist_ok=True)
            lines = ",\n  ".join(json.dumps(entry) for entry in self.runs)
            durable.replace_file(self.results, f'{{\n "summary": {json.dumps(found)},\n "runs": [\n  {lines}\n ]\n}}\n'.encode())
        return found


def arguments(about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="JSON file that is kept and continued")
    parser.add_argument("--data", type=Path, required=True, help="directory of texts and models")
    return parser
