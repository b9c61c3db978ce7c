"""What fits which memory: ``surogate plan --fit`` for every published shape that the documentation speaks of.

    python tests/prove/fit.py --results docs/proof/fit.json

A shape is a ``config.json`` without weights; planned for a GPU, which need not be here. A shape is kept when it is done; with
``--table`` what is kept is printed as the documentation has it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from surogate_command_plan.fit import compare, ranked
from surogate_command_plan.fit import planned as peak_of

from surogate_core.host import load_host

QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128}
LLAMA = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8}
SHAPES: dict[str, dict[str, Any]] = {
    name: {**family, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, **rest}
    for name, family, hidden, layers, heads, rest in (
        ("Qwen3-0.6B", QWEN3, 1024, 28, 16, {"intermediate_size": 3072, "tie_word_embeddings": True}),
        ("Qwen3-1.7B", QWEN3, 2048, 28, 16, {"intermediate_size": 6144, "tie_word_embeddings": True}),
        ("Qwen3-4B", QWEN3, 2560, 36, 32, {"intermediate_size": 9728, "tie_word_embeddings": True}),
        ("Qwen3-8B", QWEN3, 4096, 36, 32, {"intermediate_size": 12288, "tie_word_embeddings": False}),
        ("Qwen3-14B", QWEN3, 5120, 40, 40, {"intermediate_size": 17408, "tie_word_embeddings": False}),
        ("Qwen3-32B", QWEN3, 5120, 64, 64, {"intermediate_size": 25600, "tie_word_embeddings": False}),
        (
            "Qwen3-30B-A3B",
            {**QWEN3, "model_type": "qwen3_moe", "num_key_value_heads": 4},
            2048,
            48,
            32,
            {"moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "tie_word_embeddings": False},
        ),
        ("Llama-3.2-1B", LLAMA, 2048, 16, 32, {"head_dim": 64, "intermediate_size": 8192, "tie_word_embeddings": True}),
        ("Llama-3.1-8B", LLAMA, 4096, 32, 32, {"head_dim": 128, "intermediate_size": 14336, "tie_word_embeddings": False}),
        (
            "GPT-OSS-20B",
            {"model_type": "gpt_oss", "vocab_size": 201088, "num_key_value_heads": 8, "head_dim": 64},
            2880,
            24,
            64,
            {"intermediate_size": 2880, "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128},
        ),
    )
}
DETAILED = "Qwen3-8B"
"""The shape for which the other adapters are planned too."""
ADAPTERS: dict[str, dict[str, Any]] = {
    "DoRA": {"lora_use_dora": True},
    "bottleneck": {"adapter": "bottleneck"},
    "prefix": {"adapter": "prefix"},
    "prompt": {"adapter": "prompt"},
}
SIZES = {"24 GB": 24e9, "48 GB": 48e9, "80 GB": 80e9, "141 GB": 141e9}


def planned(shape: str, directory: Path) -> dict[str, Any]:
    """Method → bytes and their parts, or why it cannot be planned; and what is recommended for each memory."""
    (directory / "config.json").write_text(json.dumps(SHAPES[shape]))
    found = compare({"model": str(directory)}, load_host(), [], 0.0)
    best = {name: next((m.name for m in ranked(found, size)[:1] if m.fits(size)), None) for name, size in SIZES.items()}
    methods = {m.name: {"bytes": m.peak.total, "parts": m.peak.peak.parts} if m.peak else m.why for m in found}
    return {"methods": methods | (adapters(directory) if shape == DETAILED else {}), "recommended": best}


def adapters(model: Path) -> dict[str, Any]:
    """Method → bytes and their parts, of each adapter without and with recomputation."""
    found = {}
    for name, keys in ADAPTERS.items():
        for end, recompute in (("", False), (", recompute", True)):
            given = [*keys.items(), ("lora", True), ("recompute", recompute)]
            peak = peak_of({"model": str(model)}, load_host(), given, "cuda")
            found[f"{name}{end}"] = {"bytes": peak.total, "parts": peak.peak.parts}
    return found


def methods_table(kept: dict[str, Any]) -> str:
    """Markdown: the planned peaks of all methods on one shape."""
    methods = kept[DETAILED]["methods"]
    lines = ["| method | planned | with `recompute` |", "|---|---|---|"]
    for name, plain in methods.items():
        if recomputed := methods.get(f"{name}, recompute"):
            lines.append(f"| {name} | {plain['bytes'] / 1e9:.2f} GB | {recomputed['bytes'] / 1e9:.2f} GB |")
    return "\n".join(lines)


def table(kept: dict[str, Any]) -> str:
    """Markdown: what is recommended for each memory, with its planned peak."""
    lines = [f"| model | {' | '.join(SIZES)} |", "|---" * (1 + len(SIZES)) + "|"]
    for shape, found in kept.items():
        cells = (f"{name}: {found['methods'][name]['bytes'] / 1e9:.1f}" if name else "–" for name in found["recommended"].values())
        lines.append(f"| {shape} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    kept = json.loads(options.results.read_text()) if options.results.is_file() else {}
    if options.table:
        print(methods_table(kept), table(kept), sep="\n\n")
        return
    for shape in SHAPES:
        if shape not in kept:
            with tempfile.TemporaryDirectory() as scratch:
                kept[shape] = planned(shape, Path(scratch))
            print(shape, kept[shape]["recommended"], flush=True)
            options.results.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
