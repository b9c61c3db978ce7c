"""LoRA on quantised bases against LoRA on the bf16 base: losses after 200 steps, bytes held, peak memory while loading.

    python tests/prove/qlora.py --data DIRECTORY --results docs/proof/qlora.json

Three models: stories260K; a Qwen3 of 50 million parameters with random weights; the same after 150 steps of pretraining. On random
weights a rate of 2e-3 without clipping resolves nothing: LoRA stays at the entropy of single tokens for about 140 of the 200 steps,
give or take fifty by the seed (bf16, three seeds: 5.16, 5.22 and 5.38); on the trained ones it hid the formats too
(``docs/models.md``). Each run is kept when it ends; a sweep that is started again goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from surogate_model_transformers.testing import held_bytes

import surogate_core
from surogate_core.config import load
from surogate_core.host import load_host
from surogate_core.plan import make_plan
from surogate_core.train.setup import build

FORMATS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "nf4": {"qlora_bnb": True},
    "fp8": {"qlora_fp8": True},
    "nvfp4": {"qlora_fp4": True},
    "nf4, single quantisation": {"qlora_bnb": True, "qlora_bnb_double_quant": False},
    "nvfp4, without four over six": {"qlora_fp4": True, "qlora_four_over_six": False},
}
CLIPPED = {"learning_rate": 1e-3, "max_grad_norm": 1.0}
SHAPES = {"stories260K": {"learning_rate": 5e-3}, "qwen3-50M": CLIPPED, "qwen3-50M, random": CLIPPED}
BASE = {
    "model_dtype": "bf16",
    "lora": True,
    "lora_rank": 16,
    "lora_dropout": 0.0,
    "sequence_len": 128,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_steps": 200,
    "eval_steps": 1000,
    "save_steps": 1000,
    "warmup_steps": 10,
    "weight_decay": 0.0,
    "optimizer": "adamw",
    "recompute": False,
    "report_to": [],
    "dataloader_num_workers": 0,
    "validation_split_ratio": 0.02,
}


PRETRAINING = {"lora": False, "max_steps": 150, "learning_rate": 1e-3, "validation_split_ratio": 0.0}


def qwen3(directory: Path, stories: Path, data: dict[str, Any]) -> tuple[Path, Path]:
    """50.6 million parameters with the tokenizer of stories260K: at random, and trained for a while."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 16, "head_dim": 64}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": True}
    config = Qwen3Config(vocab_size=512, max_position_embeddings=512, **shape, **heads)
    Qwen3ForCausalLM(config).save_pretrained(directory / "random")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / "random" / name).write_bytes((stories / name).read_bytes())
    trained = {**BASE, **PRETRAINING, **data, "model": str(directory / "random"), "output_dir": str(directory / "trained")}
    return directory / "random", surogate_core.run(trained).output_dir / "last"


def loading(config: dict[str, Any]) -> dict[str, Any]:
    """Peak and final bytes of tensors while the model is loaded, and what the plan says of them."""
    host = load_host()
    plan = make_plan(load(config, host), host)
    files = list(Path(config["model"]).glob("*.safetensors"))
    with held_bytes(mapped=files[0].stat().st_size) as held:
        trainee = build(plan)
    memory = plan.figures.memory
    said = memory["weights"] + memory.get("quantised weights", 0) + memory["adapter"]
    stored = [m.storage for m in trainee.model.modules() if getattr(m, "storage", None) is not None]
    base = sum(t.nbytes for s in stored for t in s.state_dict().values())
    values = sum(site.shape[0] * site.shape[1] for site in plan.stored())
    return {
        "final bytes": held.now,
        "peak while loading / final": round(held.peak / held.now, 3),
        "plan's bytes / held": round(said / held.now, 4),
        **({"bits a weight": round(8 * base / values, 4)} if stored else {}),
    }


def one(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    memory = loading(config)
    summary = surogate_core.run({**config, "output_dir": str(directory)})
    records = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    losses = [record["loss"] for record in records if record["kind"] == "step"]
    last = sum(losses[-20:]) / 20
    return {"loss, last 20 steps": round(last, 5), "held-out loss": round(summary.eval_loss or 0, 5), "first": losses[0], **memory}


def table(runs: dict[str, Any]) -> str:
    """One shape's results as in ``docs/models.md``."""
    lines = [
        "| base | bits a weight | loss, last 20 steps | | held-out loss | peak / final | MB held |",
        "|---|---|---|---|---|---|---|",
    ]
    plain = runs["bf16"]["loss, last 20 steps"]
    for name in FORMATS:
        one = runs[name]
        last = one["loss, last 20 steps"]
        figures = (
            f"{one.get('bits a weight', 16):.2f} | {last:.3f} | {100 * (last / plain - 1):+.1f} % | {one['held-out loss']:.3f}"
        )
        lines.append(f"| {name} | {figures} | {one['peak while loading / final']:.2f} | {one['final bytes'] / 1e6:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    kept = json.loads(options.results.read_text()) if options.results.is_file() else {"steps": BASE["max_steps"], "runs": {}}
    with tempfile.TemporaryDirectory() as scratch:
        text = Path(scratch, "text.txt")
        text.write_text((options.data / "pretrain" / "tinyshakespeare.txt").read_text()[:200_000])
        stories = options.data / "models" / "stories260K"
        data = {"datasets": [{"path": str(text), "type": "text"}]}
        untrained, trained = qwen3(Path(scratch, "qwen3"), stories, data)
        models = {"stories260K": stories, "qwen3-50M": trained, "qwen3-50M, random": untrained}
        for shape, changes in SHAPES.items():
            for name, format in FORMATS.items():
                if name in kept["runs"].setdefault(shape, {}):
                    continue
                config = {**BASE, **changes, **format, **data, "model": str(models[shape])}
                kept["runs"][shape][name] = one(config, Path(scratch, f"{shape} {name}"))
                print(shape, name, kept["runs"][shape][name], flush=True)
                options.results.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
