"""States in the memory of the host, on a device for tests: the same numbers, less memory of the device, as many copies as
stretches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from surogate_offload import StandIn
from surogate_optimizer_adamw_8bit import offload, places, plugin, update
from surogate_optimizer_adamw_8bit.plugin import Options
from surogate_optimizer_adamw_8bit.update import AdamW8bit, State
from torch import nn

import surogate_core
from surogate_core import testing
from surogate_core.config import load
from surogate_core.contracts import ParamGroup
from surogate_core.errors import PlanError, SurogateError
from surogate_core.hookspecs import hookimpl
from surogate_core.host import load_host
from surogate_core.plan import make_plan

SHAPES = [(96, 64), (5000,), (7,), (300, 20), (64,)]
CHUNK = 4096
TEXT = [{"text": f"Number {number} is followed by {number + 1}; twice {number} is {2 * number}."} for number in range(40)]


@pytest.fixture(autouse=True)
def small_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(update.CHUNK, "cpu", CHUNK)


def trained(steps: int, dtype: torch.dtype, masters: bool, kernels: str, **options: bool) -> tuple[list[nn.Parameter], State]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter((torch.randn(shape, generator=generator) * 0.02).to(dtype)) for shape in SHAPES]
    rule = AdamW8bit(beta1=0.9, beta2=0.99, epsilon=1e-8, masters=masters, kernels=kernels, offload=Options(**options))
    groups = [
        ParamGroup(names=("a", "b", "c"), params=tuple(params[:3]), weight_decay=0.1),
        ParamGroup(names=("d", "e"), params=tuple(params[3:]), weight_decay=0.0),
    ]
    state = rule.bind(groups, seed=3)
    for step in range(1, steps + 1):
        for param in params:
            param.grad = (torch.randn(param.shape, generator=generator) * 1e-3).to(dtype)
        state.step(torch.tensor(1e-2), step)
    return params, state


@pytest.mark.parametrize("kernels", ["reference", "native"])
@pytest.mark.parametrize(("dtype", "masters"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)])
@pytest.mark.parametrize("options", [("offload_optimizer",), ("offload_master",), ("offload_optimizer", "offload_master")])
def test_the_numbers_are_those_without(
    devices: list[StandIn], kernels: str, dtype: torch.dtype, masters: bool, options: tuple[str, ...]
) -> None:
    wanted, plain = trained(5, dtype, masters, kernels)
    assert not devices
    found, state = trained(5, dtype, masters, kernels, **dict.fromkeys(options, True))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    held, other = state.state_dict(), plain.state_dict()
    assert held.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in held.items())


def test_memory_and_copies_are_as_planned(devices: list[StandIn]) -> None:
    """Of 22,000 values the device holds two stretches of 4,096, and each tensor of a stretch comes and goes once a step."""
    _, state = trained(3, torch.bfloat16, True, "reference", offload_optimizer=True, offload_master=True)
    state.state_dict()
    (device,) = devices
    coded = [places.padded(size) for size in (96 * 64, 5000, 6000)]
    ends = [sum(coded[:2]), sum(coded)]
    stretches = -(-ends[0] // CHUNK) + -(-coded[2] // CHUNK)
    assert device.copies == {"in": 3 * (5 * stretches + 3 * 2), "out": 3 * (5 * stretches + 3 * 2)}
    exact = 256 * 2
    total = 2 * sum(coded) + 8 * sum(coded) // 256 + 8 * exact + 2 * (sum(coded) + exact)
    assert device.bytes == {"in": 3 * total, "out": 3 * total}
    assert device.held == total
    assert device.peak == 2 * (2 * CHUNK + 2 * 256 + 2 * CHUNK)  # scales are padded to 256 bytes
    rule = AdamW8bit(beta1=0.9, beta2=0.99, epsilon=1e-8, masters=True, offload=Options(offload_optimizer=True))
    assert rule.state_bytes((5000,)) == 2 * 5000


def test_without_copies_the_kernel_reads_the_memory_of_the_host(devices: list[StandIn]) -> None:
    wanted, _ = trained(4, torch.bfloat16, False, "native")
    found, _ = trained(4, torch.bfloat16, False, "native", offload_optimizer=True, use_zero_copy=True)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    (device,) = devices
    assert device.copies == {"in": 0, "out": 0}
    assert device.peak == 0
    assert device.held > 0


def test_the_host_waits_before_it_reads(devices: list[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    _, state = trained(1, torch.float32, False, "reference", offload_optimizer=True)
    waited: list[StandIn] = []
    monkeypatch.setattr(StandIn, "settle", lambda self: waited.append(self))
    state.state_dict()
    assert waited == devices


@pytest.fixture
def config(tiny: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(tiny),
        "lora": False,
        "sequence_len": 64,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 4,
        "save_steps": 4,
        "eval_steps": 4,
        "master_dtype": "fp32",
        "final_lr_fraction": 1.0,  # the rate of a step does not depend on the length of the run
        "learning_rate": 3e-3,
        "recompute": False,
        "dataloader_num_workers": 0,
        "datasets": [{"path": str(testing.write_rows(tmp_path / "text.jsonl", TEXT)), "type": "text"}],
    }


def test_a_run_has_the_losses_that_it_has_without(
    config: dict[str, Any], tmp_path: Path, devices: list[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that stops and goes on."""
    monkeypatch.setattr(plugin, "check_plan", hookimpl(lambda plan, device: []))
    plain = surogate_core.run({**config, "output_dir": str(tmp_path / "plain")})
    config |= {"offload_optimizer": True, "offload_master": True}
    whole = surogate_core.run({**config, "output_dir": str(tmp_path / "whole")})
    surogate_core.run({**config, "output_dir": str(tmp_path / "parts")}, max_steps=2)
    parts = surogate_core.run({**config, "output_dir": str(tmp_path / "parts")})
    assert len(devices) == 3
    assert plain.loss == whole.loss == parts.loss
    for file in ("optimizer.safetensors", "model.safetensors"):
        states = [load_file(summary.checkpoint / file) for summary in (plain, whole, parts) if summary.checkpoint]
        assert len(states) == 3
        assert all(torch.equal(tensor, other[name]) for other in states[1:] for name, tensor in states[0].items())


def refused(config: dict[str, Any], **more: Any) -> list[str]:
    host = load_host()
    with pytest.raises(SurogateError) as caught:
        load({**config, **more}, host)
    return [problem.what for problem in caught.value.problems]


@pytest.mark.parametrize("key", ["offload_optimizer", "offload_master", "offload_grads"])
def test_on_a_cpu_it_is_refused_with_the_reason(config: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    host = load_host()
    with pytest.raises(PlanError) as caught:
        make_plan(load({**config, "zero_level": 2, key: True}, host), host)
    (problem,) = caught.value.problems
    assert problem.what == f"{key} = true needs a GPU: this run computes on the CPU, whose memory is the host's"
    assert problem.where == f"mapping, key {key}"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"offload_master": True, "master_dtype": None}, "offload_master = true: this run has no masters"),
        ({"offload_master": True, "model_dtype": "fp32"}, "offload_master = true: this run has no masters"),
        ({"use_zero_copy": True}, "use_zero_copy = true says how states are offloaded, and none is"),
        (
            {"use_zero_copy": True, "offload_grads": True, "zero_level": 2},
            "use_zero_copy = true says how states are offloaded, and none is",
        ),
        ({"use_write_combined": True}, "use_write_combined = true says how states and gradients are offloaded, and none is"),
        (
            {"offload_optimizer": True, "use_zero_copy": True, "kernels": "reference"},
            'use_zero_copy = true with kernels = "reference"',
        ),
    ],
)
def test_options_without_anything_to_work_on_are_refused(config: dict[str, Any], options: dict[str, Any], said: str) -> None:
    (what,) = refused(config, **options)
    assert what.startswith(said)


def test_the_options_reach_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[torch.device, bool]] = []
    monkeypatch.setattr(offload, "open_device", lambda device, combined: made.append((device, combined)))
    for options in (Options(use_write_combined=True, offload_grads=True), Options(offload_master=True), Options()):
        offload.Store(options, torch.device("cuda"))
    assert made == [(torch.device("cuda"), True), (torch.device("cuda"), False)]
