"""Three adapters on one loaded base: what a switch between them takes, against opening the model anew.

    python bench/switching.py

A random Qwen3 of 36 million parameters in float32; adapters of rank 16 on all its linear layers, made by PEFT. Outputs of each
adapter are compared with those of the model opened with it alone: it exits with 1 where they differ.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from surogate_adapter_lora.serve import open_model
from surogate_model_transformers.testing import held_bytes, tiny_model
from transformers import AutoModelForCausalLM

SHAPE = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "head_dim": 64, "num_attention_heads": 8}
ROUNDS = 20


def adapter(base: Path, directory: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    settings = peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(directory)
    return directory


def seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    ids, different = torch.arange(1, 33)[None], []
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        base = tiny_model(Path(place, "base"), **SHAPE)
        adapters = [adapter(base, Path(place, f"adapter{number}"), number) for number in range(3)]
        opened = open_model(str(base), adapters, "fp32")
        sizes = {
            part: [p.nbytes for name, p in opened.model.named_parameters() if ("lora_" in name) is part] for part in (False, True)
        }
        print(f"base {sum(sizes[False]) / 1e6:.1f} MB, three adapters {sum(sizes[True]) / 1e6:.1f} MB")
        for number, directory in enumerate(adapters):
            opening = [seconds(lambda directory=directory: open_model(str(base), [directory], "fp32")) for _ in range(3)]
            opened.use(number)
            alone = open_model(str(base), [directory], "fp32").model(input_ids=ids).logits
            same = torch.equal(opened.model(input_ids=ids).logits, alone)
            if not same:
                different.append(str(number))
            switching = statistics.median(seconds(lambda number=number: opened.use(number)) for _ in range(ROUNDS))
            with held_bytes() as made:
                opened.use(number)
            print(
                f"adapter {number}: switch {switching * 1e3:.2f} ms and {made.peak} bytes of new tensors, "
                f"opening the model with it {min(opening) * 1e3:.0f} ms, outputs {'equal' if same else 'DIFFERENT'}"
            )
    if different:
        sys.exit(f"adapter {', '.join(different)}: outputs after a switch are not those of the model opened with it alone")


if __name__ == "__main__":
    main()
