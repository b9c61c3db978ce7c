"""A mixture of experts through the whole program: figures in the records, the effect of the losses, quantised experts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from surogate_model_transformers.experts import stacks
from surogate_model_transformers.routing import FIELDS
from surogate_model_transformers.testing import short_run, tiny_model

import surogate_core
from surogate_core.config import load
from surogate_core.errors import PlanError
from surogate_core.host import load_host
from surogate_core.plan import make_plan
from surogate_core.train.setup import build

FORMATS = {"qlora_bnb": "Nf4", "qlora_fp8": "Tiles", "qlora_fp4": "Nvfp4"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return tiny_model(tmp_path_factory.mktemp("moe"), "qwen3_moe", **shape, initializer_range=0.1)


@pytest.fixture
def config(model: Path, tmp_path: Path) -> dict[str, Any]:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog, and 12345 times back again. " * 200)
    step = {"sequence_len": 32, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    return short_run(model, text, tmp_path, **step, max_steps=3, learning_rate=3e-3, lora=False)


def steps(config: dict[str, Any], name: str, **changes: Any) -> list[dict[str, Any]]:
    output = Path(config["output_dir"]).with_name(name)
    surogate_core.run({**config, **changes, "output_dir": str(output)})
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == "step"]


def test_the_load_balancing_loss_lowers_the_imbalance(config: dict[str, Any]) -> None:
    """Over 100 steps, against a run without; the z-loss lowers what it measures."""
    without = steps(config, "without", max_steps=100, router_aux_loss_coef=0.0)
    balanced = steps(config, "with", max_steps=100, router_aux_loss_coef=0.1)
    late = {name: [mean(record[name] for record in run[-20:]) for run in (without, balanced)] for name in FIELDS}
    assert late["moe_load_imbalance"][1] < 0.8 * late["moe_load_imbalance"][0]
    assert late["moe_aux_loss"][1] < late["moe_aux_loss"][0]
    assert late["moe_expert_utilisation"][1] >= late["moe_expert_utilisation"][0]
    assert without[0]["loss"] == balanced[0]["loss"], "the loss that is told is the cross-entropy"
    small = steps(config, "z", max_steps=30, router_z_loss_coef=0.1)
    assert mean(record["moe_z_loss"] for record in small[-5:]) < mean(record["moe_z_loss"] for record in without[25:30])


def test_the_figures_are_in_every_step_and_in_the_documentation(config: dict[str, Any], tmp_path: Path) -> None:
    for record in steps(config, "moe"):
        assert record.keys() >= set(FIELDS)
        assert 1 <= record["moe_load_imbalance"] <= 8
        assert 0 < record["moe_expert_utilisation"] <= 1
    dense = tiny_model(tmp_path / "dense")
    assert not any(field.startswith("moe") for record in steps(config, "dense-run", model=str(dense)) for field in record)
    page = (Path(__file__).parents[4] / "docs" / "metrics.md").read_text()
    assert all(f"`{field}`" in page for field in FIELDS)


@pytest.mark.parametrize("key", FORMATS)
def test_quantised_experts_take_the_bytes_of_the_plan(key: str, config: dict[str, Any]) -> None:
    host = load_host()
    plan = make_plan(load({**config, "lora": True, key: True}, host), host)
    trainee = build(plan)
    held = [storage for *_, stack in stacks(trainee.model) for storage in stack.storages]
    assert Counter(type(storage).__name__ for storage in held) == {FORMATS[key]: 2 * 2 * 8}
    linears = [module.storage for module in trainee.model.modules() if type(module).__name__ == "SlotLinear"]
    measured = sum(tensor.nbytes for storage in (*held, *linears) for tensor in storage.state_dict().values())
    assert plan.figures.memory["quantised weights"] == measured
    assert not any("experts" in name and "adapter" not in name for name, _ in trainee.model.named_parameters())


def test_selective_runs_are_the_same_and_unpack_less(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from surogate_quantizer_bnb_nf4.nf4 import Nf4

    counted: list[int] = []
    before = Nf4.unpack

    def unpack(self: Nf4, dtype: torch.dtype) -> torch.Tensor:
        counted[-1] += 1
        return before(self, dtype)

    monkeypatch.setattr(Nf4, "unpack", unpack)
    runs = []
    for name, selective in (("all", False), ("selective", True)):
        counted.append(0)
        own = {"lora": True, "lora_rank": 4, "qlora_bnb": True, "qlora_selective_expert_dequant": selective, "sequence_len": 3}
        runs.append([(record["loss"], record["grad_norm"]) for record in steps(config, name, **own)])
    assert runs[0] == runs[1]
    assert counted[1] < 0.8 * counted[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"lora": True, "qlora_bnb": True, "qlora_offload_experts": True},
            "qlora_offload_experts = true, and this run computes on",
        ),
        ({"lora": True, "qlora_selective_expert_dequant": True}, "no expert is held quantised"),
    ],
)
def test_the_plan_refuses(changes: dict[str, Any], said: str, config: dict[str, Any]) -> None:
    host = load_host()
    with pytest.raises(PlanError, match=said):
        make_plan(load({**config, **changes}, host), host)
