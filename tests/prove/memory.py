"""The memory plan against the bytes that a step takes, over methods, optimizers, chunks, recomputation, rows and precisions.

    python tests/prove/memory.py --results docs/proof/memory.json

Planned is what ``surogate plan`` says, found on tensors without values. Measured is a real step on the CPU: the bytes of the
model's and the optimizer's tensors, and the largest sum of what torch's CPU allocator gave out and took back meanwhile, as its
profiler records it. Both are above what a process takes that has imported everything. Three random Qwen3 of 50 million
parameters: many layers, a large vocabulary, and long rows. A configuration is kept when it is done.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from surogate_command_plan.apart import rehearse_apart
from surogate_command_plan.labels import held
from surogate_command_plan.rehearse import job_of_a_step
from surogate_loop_standard.loop import optimizer_step
from surogate_model_transformers.testing import held_bytes, tiny_model

from surogate_core.config import load
from surogate_core.contracts import Batch, Step
from surogate_core.host import load_host
from surogate_core.plan import Plan, make_plan
from surogate_core.train.setup import bind_optimizer, build

DEEP = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 16, "head_dim": 64, "vocab_size": 512}
WORDS = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "head_dim": 64, "vocab_size": 65536}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 1024}
SHAPES = {"deep": {**DEEP, **HEADS}, "words": {**WORDS, **HEADS}}
BASE: dict[str, Any] = {
    "shape": "deep",
    "model_dtype": "fp32",
    "lora": True,
    "lora_dropout": 0.0,
    "sequence_len": 64,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "optimizer": "adamw",
    "recompute": False,
}
FULL: dict[str, Any] = {"lora": False}
RECOMPUTE = {"recompute": True}
FORMATS: dict[str, dict[str, Any]] = {"nf4": {"qlora_bnb": True}, "fp8": {"qlora_fp8": True}, "nvfp4": {"qlora_fp4": True}}
LONG = {"sequence_len": 384, "per_device_train_batch_size": 1}
CASES: dict[str, dict[str, Any]] = {
    "full, adamw": FULL,
    "full, adamw, recompute": {**FULL, **RECOMPUTE},
    "full, adamw, accumulation": {**FULL, **RECOMPUTE, "gradient_accumulation_steps": 2},
    "full, adamw, clipped": {**FULL, **RECOMPUTE, "max_grad_norm": 1.0},
    "full, bf16, adamw": {**FULL, "model_dtype": "bf16"},
    "full, bf16, masters, recompute": {**FULL, **RECOMPUTE, "model_dtype": "bf16", "master_dtype": "fp32"},
    "full, 1 row": {**FULL, "per_device_train_batch_size": 1},
    "full, bf16, masters, accumulation": {
        **FULL,
        **RECOMPUTE,
        "model_dtype": "bf16",
        "master_dtype": "fp32",
        "gradient_accumulation_steps": 2,
    },
    "full, 10 rows": {**FULL, "per_device_train_batch_size": 10},
    "full, 10 rows, recompute": {**FULL, **RECOMPUTE, "per_device_train_batch_size": 10},
    "full, fp8_hybrid": {**FULL, "model_dtype": "bf16", "recipe": "fp8_hybrid", "recipe_backend": "emulated"},
    "lora": {},
    "lora, recompute": RECOMPUTE,
    "lora, dropout": {"lora_dropout": 0.05},
    "lora, adamw_8bit, 6 rows": {"optimizer": "adamw_8bit", "per_device_train_batch_size": 6},
    "lora, bf16, recompute": {**RECOMPUTE, "model_dtype": "bf16"},
    "dora, recompute": {**RECOMPUTE, "lora_use_dora": True},
    "bottleneck": {"adapter": "bottleneck"},
    "prefix": {"adapter": "prefix"},
    "prompt, recompute": {"adapter": "prompt", **RECOMPUTE},
    **{f"qlora {name}": format for name, format in FORMATS.items()},
    **{f"qlora {name}, recompute": {**format, **RECOMPUTE} for name, format in FORMATS.items()},
    "qlora nf4, adamw_8bit, bf16, 6 rows": {
        **FORMATS["nf4"],
        "optimizer": "adamw_8bit",
        "model_dtype": "bf16",
        "per_device_train_batch_size": 6,
    },
    "words, full": {**FULL, **RECOMPUTE, "shape": "words", "per_device_train_batch_size": 4},
    "words, full, lmhead_chunks 8": {
        **FULL,
        **RECOMPUTE,
        "shape": "words",
        "per_device_train_batch_size": 4,
        "lmhead_chunks": 8,
    },
    "words, lora": {**RECOMPUTE, "shape": "words", "per_device_train_batch_size": 4},
    "words, lora, lmhead_chunks 8": {**RECOMPUTE, "shape": "words", "per_device_train_batch_size": 4, "lmhead_chunks": 8},
    "long rows, lora": LONG,
    "long rows, lora, attn_bwd_chunks 4": {**LONG, "attn_bwd_chunks": 4},
    "long rows, lora, bf16": {**LONG, "model_dtype": "bf16"},
    "long rows, lora, bf16, attn_bwd_chunks 4": {**LONG, "model_dtype": "bf16", "attn_bwd_chunks": 4},
    "full, adamw_8bit": {**FULL, "optimizer": "adamw_8bit"},
    "full, adamw_8bit, recompute": {**FULL, **RECOMPUTE, "optimizer": "adamw_8bit"},
    "full, normuon, recompute": {**FULL, **RECOMPUTE, "optimizer": "normuon"},
}
SAMPLE = ("lora, recompute", "words, lora", "qlora nf4, recompute")
"""What ``make test`` checks again."""


def config_of(case: dict[str, Any], models: Path) -> dict[str, Any]:
    given = {**BASE, **case}
    model = models / given.pop("shape")
    return {**given, "model": str(model)}


def plan_of(config: dict[str, Any]) -> Plan:
    host = load_host()
    return make_plan(load(config, host, need_data=False), host)


def step_of(plan: Plan) -> Step:
    """Random tokens, one document a row, all of them trained."""
    core = plan.config.core
    rows, length = core.per_device_train_batch_size, core.sequence_len
    random = torch.Generator().manual_seed(0)
    tokens = [torch.randint(500, (rows, length), generator=random) for _ in range(core.gradient_accumulation_steps)]
    batches = tuple(
        Batch(
            input_ids=ids,
            labels=ids.roll(1, 1),
            weights=torch.ones(rows, length),
            position_ids=torch.arange(length).repeat(rows, 1),
            document_ids=torch.zeros(rows, length, dtype=torch.int32),
        )
        for ids in tokens
    )
    positions = rows * length * len(batches)
    return Step(batches=batches, weight=float(positions), tokens=positions, trained=positions, sources=(), epoch=0.0)


def allocated(profile: Any) -> int:
    """The largest sum of bytes that the allocator had given out since the profile began."""
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def measure(plan: Plan) -> dict[str, int]:
    """Bytes: ``final`` and ``loading``, of the tensors of the model after and at most while it is loaded; ``peak`` of a step."""
    files = list(Path(plan.config.core.model).glob("*.safetensors"))
    with held_bytes(mapped=files[0].stat().st_size) as loading:
        trainee = build(plan)
    optimizer = bind_optimizer(plan, trainee)
    step = step_of(plan)
    job = job_of_a_step(plan, trainee, optimizer)
    living = [tensor for tensors in held(trainee.model, optimizer.state_dict()).values() for tensor in tensors]
    living += [
        getattr(b, name) for b in step.batches for name in ("input_ids", "labels", "weights", "position_ids", "document_ids")
    ]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in living}
    gc.collect()  # what the case before has left, given back during the step, would be taken off the figure
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            optimizer_step(job, step, 0, torch.tensor(1e-4))
    return {"final": loading.now, "loading": loading.peak, "peak": sum(storages.values()) + allocated(profile)}


def one(planned: Any, plan: Plan) -> dict[str, Any]:
    found = measure(plan)
    return {
        "planned": planned.total,
        "measured": found["peak"],
        "planned / measured": round(planned.total / found["peak"], 4),
        "loading / final": round(found["loading"] / max(1, found["final"]), 3),
        "parts": planned.peak.parts,
    }


def make_models(directory: Path, names: set[str]) -> Path:
    for name in sorted(names):
        tiny_model(directory / name, **SHAPES[name])
    return directory


def batched(names: Iterable[str], size: int) -> list[list[str]]:
    every = list(names)
    return [every[start : start + size] for start in range(0, len(every), size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES), metavar="CASE")
    options = parser.parse_args()
    kept = json.loads(options.results.read_text()) if options.results.is_file() else {}
    missing = {name: CASES[name] for name in options.only if name not in kept}
    with tempfile.TemporaryDirectory() as scratch:
        models = make_models(Path(scratch), {case.get("shape", "deep") for case in missing.values()})
        for names in batched(missing, 4):
            configs = [config_of(missing[name], models) for name in names]
            for name, config, planned in zip(names, configs, rehearse_apart(configs), strict=True):
                kept[name] = one(planned, plan_of(config))
                print(name, kept[name]["planned / measured"], flush=True)
                options.results.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
