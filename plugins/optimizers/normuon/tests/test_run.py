"""Real runs of tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from surogate_model_transformers import testing as models_testing

import surogate_core
from surogate_core import testing

TEXT = [{"text": f"Number {number} is followed by {number + 1}; twice {number} is {2 * number}."} for number in range(60)]


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return {
        "optimizer": "normuon",
        "model_dtype": "fp32",
        "sequence_len": 64,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 6,
        "save_steps": 6,
        "eval_steps": 6,
        "learning_rate": 1e-2,
        "final_lr_fraction": 1.0,  # the rate of a step does not depend on the length of the run
        "recompute": False,
        "dataloader_num_workers": 0,
        "datasets": [{"path": str(testing.write_rows(tmp_path / "text.jsonl", TEXT)), "type": "text"}],
    }


def state(summary: Any) -> dict[str, torch.Tensor]:
    return load_file(summary.checkpoint / "optimizer.safetensors")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["phi3", "qwen3_moe"])
def test_stopping_and_continuing_changes_nothing(config: dict[str, Any], tmp_path: Path, family: str, dtype: str) -> None:
    """Joined projections and banks of experts, with momentum in 8 bits for the large ones."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64} if family == "qwen3_moe" else {}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} if family == "phi3" else {}
    config["model"] = str(models_testing.tiny_model(tmp_path / "model", family, hidden_size=64, **experts, **special))
    config["model_dtype"] = dtype
    whole = surogate_core.run({**config, "output_dir": str(tmp_path / "whole")})
    surogate_core.run({**config, "output_dir": str(tmp_path / "parts")}, max_steps=3)
    parts = surogate_core.run({**config, "output_dir": str(tmp_path / "parts")})
    one, two = state(whole), state(parts)
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert whole.checkpoint is not None
    assert parts.checkpoint is not None
    weights = [load_file(summary.checkpoint / "model.safetensors") for summary in (whole, parts)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    if family == "phi3":
        assert one["model.layers.0.self_attn.qkv_proj.weight.k.v"].shape == (1, 16)
        assert one["model.layers.0.self_attn.qkv_proj.weight.k.m"].dtype == torch.float32
        assert one["model.layers.1.mlp.gate_up_proj.weight.up.m"].dtype == torch.uint8
    else:
        assert one["model.layers.0.mlp.experts.gate_up_proj.gate.m"].shape == (4, 64, 64)
        assert one["model.layers.0.mlp.experts.gate_up_proj.gate.m"].dtype == torch.uint8
        assert "model.layers.0.mlp.gate.weight.m_absmax" not in one
        assert one["model.layers.0.mlp.gate.weight.v"].shape == (4, 64)


def test_the_plan_counts_what_the_state_holds(config: dict[str, Any], tmp_path: Path) -> None:
    from surogate_core.config import load
    from surogate_core.host import load_host
    from surogate_core.plan import make_plan

    config |= {"model": str(models_testing.tiny_model(tmp_path / "model", hidden_size=64)), "output_dir": str(tmp_path / "out")}
    summary = surogate_core.run({**config, "max_steps": 1})
    host = load_host()
    planned = make_plan(load(config, host), host).figures.memory["optimizer"]
    assert planned == sum(tensor.nbytes for tensor in state(summary).values())


def test_beside_lora_it_is_adamw_8bit(config: dict[str, Any], tmp_path: Path) -> None:
    pairs = [{"q": f"What is {number} + 1?", "a": f"It is {number + 1}."} for number in range(20)]
    rows = str(testing.write_rows(tmp_path / "pairs.jsonl", pairs))
    table = {"path": rows, "type": "instruction", "instruction_field": "q", "output_field": "a"}
    config |= {
        "model": str(models_testing.tiny_model(tmp_path / "model")),
        "datasets": [table],
        "sequence_len": 96,
    }
    config |= {"lora": True, "lora_rank": 4, "max_steps": 3}
    ends = []
    for optimizer in ("normuon", "adamw_8bit"):
        summary = surogate_core.run({**config, "optimizer": optimizer, "output_dir": str(tmp_path / optimizer)})
        ends.append(state(summary))
        assert summary.steps == 3
    assert ends[0].keys() == ends[1].keys()
    assert any("lora_A" in name for name in ends[0])
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
