from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from surogate_command_plan import rehearse as module
from surogate_command_plan.rehearse import rehearse
from surogate_command_plan.tally import HOST

from surogate_core.plan import Plan

FULL: dict[str, Any] = {"lora": False}
CASES = [
    FULL,
    {**FULL, "recompute": False, "optimizer": "normuon"},
    {**FULL, "gradient_accumulation_steps": 3, "model_dtype": "fp32"},
    {"recompute": False},
    {"qlora_fp8": True, "lora_dropout": 0.0},
    {"qlora_bnb": True, "recompute": False, "optimizer": "adamw_8bit"},
    {"adapter": "bottleneck"},
    {"adapter": "prefix"},
    {"adapter": "prompt"},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_a_few_layers_tell_what_all_of_them_take(
    changes: dict[str, Any], plan_of: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = rehearse(plan_of(**changes), "cuda")
    monkeypatch.setattr(module, "DEPTHS", (20, 40))
    whole = rehearse(plan_of(**changes), "cuda")
    assert few is not None
    assert whole is not None
    assert few.total == pytest.approx(whole.total, rel=0.01)
    assert few.phases["forward"].total == pytest.approx(whole.phases["forward"].total, rel=0.001)


def test_what_lives_from_step_to_step_is_what_the_shapes_say(plan_of: Callable[..., Plan]) -> None:
    plan = plan_of(qlora_fp8=True, adamw_beta1=0.8)
    memory = rehearse(plan, "cuda")
    assert memory is not None
    for name in ("quantised weights", "adapter", "optimizer"):
        assert memory.peak.parts[name] == pytest.approx(plan.figures.memory[name], rel=1e-4), name
    masters = rehearse(plan_of(**FULL, master_dtype="fp32"), "cuda")
    assert masters is not None
    assert masters.peak.parts["masters"] == 2 * plan_of(**FULL).figures.parameters


def test_each_way_to_take_less_takes_less(plan_of: Callable[..., Plan]) -> None:
    """Activations are the most of long rows, weights with what belongs to them that of short ones."""

    def total(**changes: Any) -> int:
        memory = rehearse(plan_of(**{**FULL, "recompute": False, **changes}), "cuda")
        assert memory is not None
        return memory.total

    whole = total(sequence_len=256)
    for changes in ({"recompute": True}, {"per_device_train_batch_size": 1}):
        assert total(sequence_len=256, **changes) < whole, changes
    ways: list[dict[str, Any]] = [{}, {"lora": True}, {"lora": True, "qlora_bnb": True}]
    short = [total(sequence_len=32, **way) for way in ways]
    assert short == sorted(set(short), reverse=True)


def test_a_source_without_blank_models_is_not_rehearsed(plan_of: Callable[..., Plan]) -> None:
    import attrs

    assert rehearse(attrs.evolve(plan_of(), model_source=object()), "cpu") is None


OFFLOADS: list[tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = [
    ({**FULL, "master_dtype": "fp32"}, {"offload_optimizer": True, "offload_master": True}, ("optimizer", "masters")),
    (FULL, {"offload_grads": True, "zero_level": 2}, ("gradients",)),
    ({"qlora_fp8": True}, {"zero_level": 3, "persistent_quants": True, "offload_quants": True}, ("quantised weights",)),
    (FULL, {"offload_residual": True}, ("activations",)),
]


@pytest.mark.parametrize(("changes", "more", "buffers"), OFFLOADS, ids=lambda value: ", ".join(value))
def test_what_is_offloaded_is_counted_on_the_host(
    changes: dict[str, Any], more: dict[str, Any], buffers: tuple[str, ...], plan_of: Callable[..., Plan]
) -> None:
    """For a GPU that is not here: the bytes that the shapes say are on the host, and the device loses them."""
    plan = plan_of("cuda", **changes, optimizer="adamw_8bit")
    plain, found = rehearse(plan, "cuda"), rehearse(plan_of("cuda", **changes, **more, optimizer="adamw_8bit"), "cuda")
    assert plain is not None
    assert found is not None
    phase = "forward" if "activations" in buffers else "backward, lower half"
    before, after = plain.phases[phase], found.phases[phase]
    away = 7 * 2 * 2 * 64 * 64 if "activations" in buffers else plan.figures.memory[buffers[0]]  # bf16, 2 rows of 64, 64 wide
    assert HOST not in before.parts
    assert after.parts[HOST] == pytest.approx(away, rel=0.1)  # memory begins at multiples of 256 bytes
    if phase != "forward":
        lost = sum(before.parts[name] - after.parts.get(name, 0) for name in buffers)
        assert 0.85 * away < lost < 1.1 * away  # at the peak the last gradients are not there yet
    assert after.total < before.total
