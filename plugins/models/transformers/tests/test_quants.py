"""Quantised weights between their uses: kept, not kept, and in the memory of the host, on a device for tests. Losses and gradients
are the same to the bit; what is quantised and unpacked again is counted; two layers are on the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from surogate_model_transformers import plugin
from surogate_model_transformers.testing import tiny_model
from surogate_offload import StandIn, opening
from surogate_quantizer_bnb_nf4.nf4 import Nf4
from surogate_recipe_fp8_hybrid.linear import Fp8Linear
from torch import Tensor

from surogate_core.config import load
from surogate_core.contracts import Batch, FollowsSteps
from surogate_core.errors import ConfigError, PlanError
from surogate_core.hookspecs import hookimpl
from surogate_core.host import load_host
from surogate_core.plan import Plan, make_plan
from surogate_core.train.setup import build

LAYERS, LINEARS, STEPS, LENGTH = 4, 7, 2, 24
FULL, LORA = {"lora": False}, {"lora": True, "lora_dropout": 0.0}
PACKED = {**LORA, "qlora_bnb": True}
KEPT = {"zero_level": 3, "persistent_quants": True}
AWAY = {**KEPT, "offload_quants": True}
Found = tuple[list[Tensor], list[StandIn]]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("deep"), num_hidden_layers=LAYERS)


@pytest.fixture
def plan_of(deep: Path) -> Callable[..., Plan]:
    def make(device: str | None = None, **changes: Any) -> Plan:
        host = load_host()
        base = {"model": str(deep), "sequence_len": LENGTH, "recipe_backend": "emulated", "recipe": "fp8_hybrid"}
        return make_plan(load({**base, **changes}, host, need_data=False), host, device)

    return make


@pytest.fixture
def trained(plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Found]:
    """Losses and gradients of some steps of two micro-batches, and the devices that were opened."""
    monkeypatch.setattr(plugin, "check_plan", hookimpl(lambda plan, device: []))

    def train(order: Any = "late", built: Callable[[], None] = lambda: None, **changes: Any) -> Found:
        devices: list[StandIn] = []

        def opener(device: torch.device, write_combined: bool) -> StandIn:
            devices.append(StandIn(order))
            return devices[-1]

        plan = plan_of(**changes)
        with opening(opener):
            trainee = build(plan)
        built()
        found: list[Tensor] = []
        for step in range(STEPS):
            for micro in range(2):
                ids = (torch.arange(LENGTH) * (step + 2) + micro).remainder(50).view(1, -1)
                where = {"position_ids": torch.arange(LENGTH).view(1, -1), "document_ids": torch.zeros_like(ids)}
                batch = Batch(input_ids=ids, labels=ids, weights=torch.ones(1, LENGTH), **where)
                loss = plan.model_source.loss(trainee.model, batch)
                loss.backward()
                found.append(loss.detach())
            with torch.no_grad():
                for parameter in trainee.parameters:
                    assert parameter.grad is not None
                    found.append(parameter.grad)
                    parameter.sub_(parameter.grad, alpha=1e-3)
                    parameter.grad = None
            if isinstance(plan.recipe, FollowsSteps):
                plan.recipe.stepped(trainee.computes)
            if step < STEPS - 1:  # what is counted is the last step
                for device in devices:
                    device.copies = {"in": 0, "out": 0}
        return found, devices

    return train


def equal(one: Found, other: Found) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))


@pytest.mark.parametrize(
    "changes",
    [FULL, {**FULL, "recompute": False, "recipe": "nvfp4"}, {**FULL, "recipe": "nvfp4_quartet"}, PACKED],
    ids=["fp8", "nvfp4, no recompute", "quartet", "packed"],
)
def test_the_numbers_are_those_without(changes: dict[str, Any], trained: Callable[..., Found]) -> None:
    wanted = trained(**changes)
    assert not wanted[1]
    for more in ({"shard_weights": True}, KEPT):
        assert equal(trained(**changes, **more), wanted), more
    for order in ("late", "early"):
        found = trained(order, **changes, **AWAY)
        assert equal(found, wanted), order
        assert any(device.copies["in"] for device in found[1])


@pytest.mark.parametrize(
    ("changes", "each"),
    [
        (FULL, {"": STEPS, "sharded": 6 * STEPS, "kept": STEPS, "away": STEPS}),
        (LORA, {"": 1, "sharded": 6 * STEPS, "kept": 1, "away": 1}),
        (PACKED, {"": 6 * STEPS, "sharded": 6 * STEPS, "kept": 1, "away": 1}),
    ],
    ids=["full", "lora", "packed"],
)
def test_how_often_a_weight_is_quantised(
    changes: dict[str, Any], each: dict[str, int], trained: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward pass, recomputed forward pass and backward pass, in two micro-batches a step. Kept once a step, or once if it is
    frozen; what is kept of a packed weight spares unpacking it too."""
    counted: Counter[str] = Counter()
    tensors, unpack = Fp8Linear._tensors, Nf4.unpack

    def counting(self: Fp8Linear, weight: Tensor) -> tuple[Tensor, ...]:
        counted["quantised"] += 1
        return tensors(self, weight)

    def unpacking(self: Nf4, dtype: torch.dtype) -> Tensor:
        counted["unpacked"] += 1
        return unpack(self, dtype)

    monkeypatch.setattr(Fp8Linear, "_tensors", counting)
    monkeypatch.setattr(Nf4, "unpack", unpacking)
    for name, more in (("", {}), ("sharded", {"zero_level": 3}), ("kept", KEPT), ("away", AWAY)):
        trained(built=counted.clear, **changes, **more)
        assert counted["quantised"] == each[name] * LAYERS * LINEARS, name
        assert counted["unpacked"] == (counted["quantised"] if "qlora_bnb" in changes else 0), name


def test_two_layers_are_on_the_device_and_each_comes_once_a_pass(trained: Callable[..., Found]) -> None:
    """Of trained weights: each copy goes out once a step, in three tensors; the other passes bring it, the first of them all
    layers, each later one those but the two that are there."""
    _, devices = trained(**FULL, **AWAY)
    unused, device = devices
    assert unused.held == 0
    assert device.peak == device.held * 2 // LAYERS
    assert device.copies["out"] == LAYERS * LINEARS * 3
    passes = [LAYERS, LAYERS - 2, LAYERS - 2]  # backward, forward and backward again
    assert device.copies["in"] == sum(passes) * LINEARS


def test_packed_weights_too(trained: Callable[..., Found], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a recipe that keeps no copies they are brought for each use, and nothing goes out."""
    monkeypatch.setattr("surogate_model_transformers.quants._copies", lambda options, sharded, stored, now, *_: now)
    _, (device, unused) = trained(**PACKED, **AWAY)
    assert unused.held == 0
    assert device.copies["out"] == 0
    assert device.copies["in"] == 2 * 2 * (LAYERS - 2) * LINEARS  # forward and backward, of two micro-batches
    assert device.peak == device.held * 2 // LAYERS


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"num_hidden_layers": 3, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return tiny_model(tmp_path_factory.mktemp("mixture"), "qwen3_moe", **shape)


@pytest.mark.parametrize(("quantizer", "recipe"), [("qlora_bnb", "bf16"), ("qlora_fp8", "fp8_hybrid"), ("qlora_fp4", "bf16")])
def test_experts_alone(
    quantizer: str, recipe: str, mixture: Path, trained: Callable[..., Found], plan_of: Callable[..., Plan]
) -> None:
    """``qlora_offload_experts`` with the formats themselves: all stacked experts are on the host, and come from there."""
    changes = {**LORA, quantizer: True, "recipe": recipe, "model": str(mixture)}
    plan = plan_of(**changes)
    assert plan.quantizer is not None
    parts = [part for site in plan.stored() if site.kind == "stacked_linear" for part in site.parts]
    with torch.device("meta"):
        size = sum(tensor.nbytes for part in parts for tensor in plan.quantizer.storage(part).state_dict().values())
    wanted = trained(**changes)
    assert not wanted[1]
    for order, selective in (("late", False), ("early", True)):
        found = trained(order, **changes, qlora_offload_experts=True, qlora_selective_expert_dequant=selective)
        assert equal(found, wanted), order
        device = found[1][0]
        assert device.copies["in"]
        assert device.copies["out"] == 0
        assert device.held >= size > 0


def test_a_wait_that_is_left_out_is_found(trained: Callable[..., Found], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = trained(**LORA)
    wait = StandIn.wait
    waits, left_out = 0, -1

    def counted(self: StandIn, mark: Any) -> None:
        nonlocal waits
        waits += 1
        if waits != left_out:
            wait(self, mark)

    monkeypatch.setattr(StandIn, "wait", counted)
    assert equal(trained(**LORA, **AWAY), wanted)
    monkeypatch.setattr(StandIn, "wait", lambda self, mark: None)
    assert not equal(trained(**LORA, **AWAY), wanted)


def refused(error: type[Exception], make: Callable[[], Any]) -> str:
    with pytest.raises(error) as caught:
        make()
    (problem,) = caught.value.problems  # type: ignore[attr-defined]
    assert problem.where.startswith("mapping, key ")
    return f"{problem.what}; {problem.how}"


def test_keys_that_need_others_are_refused_by_name(plan_of: Callable[..., Plan]) -> None:
    said = refused(ConfigError, lambda: plan_of(persistent_quants=True, zero_level=2))
    assert said.startswith("persistent_quants = true needs weights that are sharded; this run has none; set shard_weights = true")
    said = refused(ConfigError, lambda: plan_of(offload_quants=True, zero_level=3))
    assert said.startswith("offload_quants = true needs quantised weights that are kept; this run has none; set persistent_quants")


def test_on_a_cpu_it_is_refused_with_the_reason(plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = refused(PlanError, lambda: plan_of(**LORA, **AWAY))
    assert said.startswith("offload_quants = true needs a GPU: this run computes on the CPU, whose memory is the host's")


@pytest.mark.parametrize(("changes", "said"), [(LORA, "makes no quantised copies"), (PACKED, "are kept anyway")], ids=str)
def test_nothing_to_keep_is_refused(changes: dict[str, Any], said: str, plan_of: Callable[..., Plan]) -> None:
    found = refused(PlanError, lambda: plan_of(**changes, **KEPT, recipe="bf16"))
    assert found.startswith('persistent_quants = true changes nothing: recipe = "bf16" makes no quantised copies of weights')
    assert said in found
    assert plan_of("cuda", **PACKED, **AWAY, recipe="bf16"), "there packed weights are on the host"
