"""Record the real curves of ``curves.json``: runs of surogate with a fault each, on a CPU, some minutes in all.

    python plugins/observers/diagnostics/tests/record_curves.py DATA [NAME ...]

DATA holds models/stories260K and pretrain/ (``SUROGATE_TEST_DATA``). A curve is kept with its configuration: steps as three lists
(loss, gradient norm, rate), evaluations as pairs, and how the run ended.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from surogate_model_transformers.testing import tiny_model

import surogate_core
from surogate_core import testing
from surogate_core.errors import NonFiniteLoss

HERE = Path(__file__).resolve().parent
BASE = {
    "task": "pt",
    "model_dtype": "fp32",
    "sequence_len": 128,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_steps": 600,
    "save_steps": 100_000,
    "eval_steps": 50,
    "optimizer": "adamw",
    "adamw_beta2": 0.95,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 20,
    "max_grad_norm": 0.0,
    "recompute": False,
    "dataloader_num_workers": 0,
}
STORIES = {"path": "stories", "type": "text", "samples": 1500}
HELD = {"path": "held", "type": "text", "samples": 16}
PLAYS = {
    "datasets": [{"path": "plays", "type": "text"}],
    "validation_datasets": [{"path": "held plays", "type": "text"}],
}
CURVES: dict[str, dict[str, Any]] = {
    "healthy fast": {"from_scratch": True},
    "healthy slow": {"learning_rate": 1e-5, "lr_scheduler_type": "constant", **PLAYS},
    "healthy noisy": {"from_scratch": True, "per_device_train_batch_size": 1, "sequence_len": 96, "max_grad_norm": 1.0},
    "healthy adapter": {
        "task": "sft",
        "lora": True,
        "lora_rank": 8,
        "learning_rate": 2e-3,
        **PLAYS,
    },
    "spike": {"from_scratch": True, "datasets": [STORIES, {"path": "garbage", "type": "text"}]},
    "explosion": {"learning_rate": 1.0, "warmup_steps": 300, "lr_scheduler_type": "constant"},
    "nan": {"learning_rate": 3000.0, "warmup_steps": 600, "lr_scheduler_type": "constant", "weight_decay": 0.0},
    "plateau": {"from_scratch": True, "learning_rate": 1e-9, "lr_scheduler_type": "constant"},
    "plateau after learning": {"learning_rate": 2e-3, "datasets": [{"path": "noise", "type": "text"}], "max_steps": 1000},
    "oscillating": {"learning_rate": 0.1, "adamw_beta1": 0.0, "adamw_beta2": 0.5, "lr_scheduler_type": "constant"},
    "diverging": {"learning_rate": 0.3, "warmup_ratio": 1.0, "warmup_steps": 0, "max_steps": 500},
    "overfitting": {"datasets": [{"path": "few", "type": "text"}], "learning_rate": 5e-3, "lr_scheduler_type": "constant"},
    "no warmup": {"from_scratch": True, "learning_rate": 5e-2, "warmup_steps": 0},
    "mixture at a high rate": {"model": "mixture", "from_scratch": True, "learning_rate": 0.1, "lr_scheduler_type": "constant"},
    "mixture healthy": {"model": "even", "from_scratch": True},
    "mixture collapse": {"model": "repelled", "from_scratch": True},
    # recorded when the thresholds of the two above were committed
    "mixture healthy, plays": {"model": "even", "from_scratch": True, "learning_rate": 1e-3, **PLAYS},
    "mixture collapse, plays": {"model": "repelled", "from_scratch": True, "learning_rate": 1e-3, **PLAYS},
}


MIXTURE = {"num_experts": 8, "moe_intermediate_size": 32, "norm_topk_prob": True}
MIXTURES = {
    "mixture": {"num_experts_per_tok": 1},
    "even": {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.01},
    "repelled": {"num_experts_per_tok": 2, "router_aux_loss_coef": -0.1},
}
"""0.01 is that of the Switch Transformer (arXiv 2101.03961, section 2.2); a negative one rewards collapse."""
ROUTING = ("moe_load_imbalance", "moe_expert_utilisation")


def prepare(data: Path, place: Path) -> dict[str, str]:
    """Texts and models by the names that the configurations use."""
    draw = random.Random(7)
    letters = "abcdefghijklmnopqrstuvwxyz ,.\n"
    rows = [json.loads(line) for line in (data / "pretrain/tinystories.jsonl").read_text().splitlines()]
    plays = (data / "pretrain/tinyshakespeare.txt").read_text()
    texts = {
        "stories": rows[60:],
        "held": rows[:60],
        "few": rows[100:130],
        "plays": [{"text": plays[start : start + 2000]} for start in range(0, 600_000, 2000)],
        "held plays": [{"text": plays[start : start + 2000]} for start in range(600_000, 610_000, 2000)],
        "garbage": [{"text": "".join(chr(draw.randrange(0x4E00, 0x9000)) for _ in range(120))} for _ in range(6)],
        "noise": [{"text": "".join(draw.choices(letters, k=500))} for _ in range(1500)],
    }
    paths = {name: str(testing.write_rows(place / f"{name}.jsonl", some)) for name, some in texts.items()}
    return {**paths, **{name: str(tiny_model(place / name, "qwen3_moe", **MIXTURE, **shape)) for name, shape in MIXTURES.items()}}


def record(name: str, data: Path, place: Path, paths: dict[str, str]) -> dict[str, Any]:
    change = CURVES[name]
    output = place / name.replace(" ", "-")
    config = {**BASE, "model": str(data / "models/stories260K"), "datasets": [STORIES], "validation_datasets": [HELD], **change}
    config["model"] = paths.get(config["model"], config["model"])
    for key in ("datasets", "validation_datasets"):
        config[key] = [{**table, "path": paths[table["path"]]} for table in config[key]]
    ended = "finished"
    try:
        surogate_core.run({**config, "output_dir": str(output)})
    except NonFiniteLoss as error:
        ended = error.problems[0].what
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [one for one in records if one["kind"] == "step"]
    run = next(one for one in records if one["kind"] == "run")
    return {
        "change": change,
        "parameters": run["parameters"],
        **({"crowd": MIXTURE["num_experts"] / MIXTURES[change["model"]]["num_experts_per_tok"]} if "model" in change else {}),
        "warmup": config["warmup_steps"] or config.get("warmup_ratio", 0) * config["max_steps"],
        "tokens": steps[0]["tokens"],
        "steps": config["max_steps"],
        "ended": ended,
        "loss": [float(f"{one['loss']:.5g}") for one in steps],
        "grad_norm": [float(f"{one['grad_norm']:.4g}") for one in steps],
        "lr": [float(f"{one['lr']:.4g}") for one in steps],
        **{name: [float(f"{one[name]:.4g}") for one in steps] for name in ROUTING if name in steps[0]},
        "evals": [[one["step"], float(f"{one['loss']:.6g}")] for one in records if one["kind"] == "eval"],
    }


def main(data: Path, names: list[str]) -> None:
    kept = HERE / "curves.json"
    curves = json.loads(kept.read_text()) if kept.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        paths = prepare(data, Path(place))
        for name in names or CURVES:
            curves[name] = record(name, data, Path(place), paths)
            lines = ",\n".join(
                f"{json.dumps(key)}: {json.dumps(curves[key], separators=(',', ':'))}" for key in CURVES if key in curves
            )
            kept.write_text("{\n" + lines + "\n}\n")
            print(name, curves[name]["ended"], flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
