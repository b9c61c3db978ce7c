"""What fits which memory with ``make prove``; what it found is kept in ``docs/proof/fit.json`` and always checked, and two methods
are planned again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fit
import pytest
import torch
from surogate_command_plan.fit import planned
from transformers import AutoConfig, AutoModelForCausalLM

from surogate_core.host import load_host

HERE = Path(__file__).resolve()
RESULTS, DOCS = HERE.parents[2] / "docs" / "proof" / "fit.json", HERE.parents[2] / "docs" / "memory.md"
KEPT: dict[str, Any] = json.loads(RESULTS.read_text())


def peak(shape: str, method: str) -> int:
    found = KEPT[shape]["methods"][method]
    assert isinstance(found, dict), found
    return int(found["bytes"])


def test_the_documentation_has_the_answers_that_are_kept() -> None:
    assert KEPT.keys() == fit.SHAPES.keys()
    assert fit.table(KEPT) in DOCS.read_text()
    assert fit.methods_table(KEPT) in DOCS.read_text()


@pytest.mark.parametrize("shape", KEPT)
def test_what_takes_less_is_planned_with_less(shape: str) -> None:
    for method in ("full", "LoRA", "QLoRA, qlora_bnb", "QLoRA, qlora_fp8", "QLoRA, qlora_fp4"):
        assert peak(shape, f"{method}, recompute") <= peak(shape, method)
    assert peak(shape, "LoRA, recompute") < peak(shape, "full, recompute")
    for format in ("qlora_bnb", "qlora_fp8", "qlora_fp4"):
        assert peak(shape, f"QLoRA, {format}, recompute") < peak(shape, "LoRA, recompute")


def test_the_other_adapters_hold_what_their_papers_say() -> None:
    """In float32, beside a base that is the same: DoRA a magnitude for each output of a linear layer, prefix tuning keys and values
    in each layer, prompt tuning embeddings; of 20 virtual tokens. Bottlenecks of 64: two matrices with biases after two linears."""
    own = fit.SHAPES[fit.DETAILED]
    hidden, layers, keys = own["hidden_size"], own["num_hidden_layers"], own["num_key_value_heads"] * own["head_dim"]
    outputs = own["num_attention_heads"] * own["head_dim"] + 2 * keys + 2 * hidden + 2 * own["intermediate_size"]
    methods = KEPT[fit.DETAILED]["methods"]
    for end in ("", ", recompute"):
        assert {f"{name}{end}" for name in fit.ADAPTERS} <= methods.keys()
        held = {name: methods[f"{name}{end}"]["parts"]["adapter"] // 4 for name in ("LoRA", *fit.ADAPTERS)}
        assert held["DoRA"] - held["LoRA"] == layers * outputs
        assert held["prefix"] == 20 * layers * 2 * keys
        assert held["prompt"] == 20 * hidden
        assert held["bottleneck"] == layers * 2 * (2 * 64 * hidden + 64 + hidden)
    for name in fit.ADAPTERS:
        assert peak(fit.DETAILED, f"{name}, recompute") < peak(fit.DETAILED, name)


@pytest.mark.parametrize("shape", KEPT)
def test_the_weights_of_full_training_are_transformers_own_count_of_parameters(shape: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fit.SHAPES[shape]))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert KEPT[shape]["methods"]["full, recompute"]["parts"]["weights"] == pytest.approx(2 * count, rel=1e-4)


@pytest.mark.parametrize("method", ["LoRA, recompute", "QLoRA, qlora_bnb, recompute"])
def test_a_sample_is_planned_again(method: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fit.SHAPES["Qwen3-0.6B"]))
    keys = [("lora", True), ("recompute", True), ("qlora_bnb", "qlora_bnb" in method)]
    assert planned({"model": str(tmp_path)}, load_host(), keys, "cuda").total == pytest.approx(
        peak("Qwen3-0.6B", method), rel=1e-4
    )  # tables made once


@pytest.mark.prove("ten shapes take a quarter of an hour")
def test_every_shape(kept_by: Callable[..., Any], tmp_path: Path) -> None:
    found = kept_by("fit.py", tmp_path / "fit.json")
    assert found.keys() == fit.SHAPES.keys()
    for shape, kept in KEPT.items():
        assert found[shape]["recommended"] == kept["recommended"]
        assert found[shape]["methods"].keys() == kept["methods"].keys()
