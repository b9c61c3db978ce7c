"""Makes what all sides of the benchmark read: texts, tokenizer, initial weights, and the packed rows as surogate packs them.

    python bench/prepare.py WORK --steps 10 [--whole]

``WORK/texts.jsonl``, ``WORK/model`` (a Hugging Face directory with random float32 weights) and ``WORK/rows.safetensors``.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

BATCH, LENGTH, SEED = 4, 512, 1234
CHARACTERS = 700_000
SHAPE = {
    "hidden_size": 320,
    "num_hidden_layers": 7,
    "vocab_size": 4096,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "head_dim": 64,
    "intermediate_size": 960,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
"""10.6 million parameters."""


def texts(whole: bool) -> list[str]:
    """Definitions from the sources of Python's standard library, in a shuffled order; ``whole``: as one document."""
    library = Path(sysconfig.get_path("stdlib"))
    found = [
        block.strip()
        for path in sorted(library.glob("*.py"))
        for block in path.read_text("utf-8", errors="replace").split("\n\n\n")
        if 200 <= len(block) <= 2500
    ]
    random.Random(SEED).shuffle(found)
    kept, size = [], 0
    for block in found:
        if size > CHARACTERS:
            break
        kept.append(block)
        size += len(block)
    return ["\n\n\n".join(kept)] if whole else kept


def config(work: Path, output: Path, *, dtype: str, lora: bool, compiled: bool, steps: int, lr: float) -> str:
    """The configuration of surogate's side, TOML."""
    values: dict[str, Any] = {
        "task": "sft" if lora else "pt",
        "model": str(work / "model"),
        "output_dir": str(output),
        "sequence_len": LENGTH,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "save_steps": steps,
        "validation_split_ratio": 0.0,
        "train_seed": SEED,
        "optimizer": "adamw",
        "learning_rate": lr,
        "final_lr_fraction": 1.0,
        "weight_decay": 0.0,
        "model_dtype": dtype,
        "recompute": False,
        "compile": compiled,
        "lora": lora,
    }
    if lora:
        values |= {"lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join([*lines, "", "[[datasets]]", f"path = {json.dumps(str(work / 'texts.jsonl'))}", 'type = "text"', ""])


def write_model(directory: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(SEED)
    Qwen3ForCausalLM(Qwen3Config(**SHAPE)).to(torch.float32).save_pretrained(directory)


def write_rows(work: Path, steps: int) -> float:
    """The rows of the first steps, as a run with this configuration takes them. Returns the share of positions in use."""
    import torch
    from safetensors.torch import save_file

    from surogate_core.config import load
    from surogate_core.host import load_host
    from surogate_core.plan import make_plan

    path = work / "rows.toml"
    path.write_text(config(work, work / "none", dtype="fp32", lora=False, compiled=False, steps=steps, lr=1e-3))
    host = load_host()
    plan = make_plan(load(path, host), host)
    batches = plan.pipeline.prepare(plan.model_source.tokenizer(), lambda text: None).training(BATCH, 1)
    taken = [batches.step(index) for index in range(steps)]
    columns = {
        name: torch.stack([getattr(step.batches[0], name) for step in taken]) for name in ("input_ids", "labels", "position_ids")
    }
    save_file({**columns, "tokens": torch.tensor([step.tokens for step in taken])}, work / "rows.safetensors")
    return batches.fill


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--whole", action="store_true")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text}) + "\n" for text in texts(given.whole)]
    (given.work / "texts.jsonl").write_text("".join(lines), "utf-8")
    command = ["tokenizer", "train", str(given.work / "texts.jsonl"), "--output", str(given.work / "model")]
    subprocess.run([sys.executable, "-m", "surogate_core", *command, "--vocab-size", str(SHAPE["vocab_size"])], check=True)
    write_model(given.work / "model")
    print(f"rows are {write_rows(given.work, given.steps):.1%} full")


if __name__ == "__main__":
    main()
