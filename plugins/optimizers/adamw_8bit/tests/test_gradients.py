"""Gradients in the memory of the host, on a device for tests: parameters, states, norms and losses equal to the bit to those
without, none of them left on the device, as many copies as micro-batches."""

from __future__ import annotations

import contextlib
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from surogate_loop_standard import loop
from surogate_offload import StandIn, opening
from surogate_optimizer_adamw_8bit import plugin, update
from surogate_optimizer_adamw_8bit.plugin import Options
from surogate_optimizer_adamw_8bit.update import AdamW8bit, State
from torch import Tensor, nn

import surogate_core
from surogate_core import testing
from surogate_core.contracts import HoldsGradients, ParamGroup
from surogate_core.hookspecs import hookimpl

SHAPES = [(96, 64), (5000,), (7,), (300, 20), (64,)]
MICRO = 3
CHUNK = 4096
TEXT = [{"text": f"Number {number} is followed by {number + 1}; twice {number} is {2 * number}."} for number in range(40)]


@pytest.fixture(autouse=True)
def small_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(update.CHUNK, "cpu", CHUNK)


class Trial:
    """Steps of some parameters, with real backward passes; in each step another one gets no gradient from some micro-batches."""

    def __init__(self, dtypes: tuple[torch.dtype, torch.dtype], kernels: str, **options: bool):
        self.generator = torch.Generator().manual_seed(0)
        kinds = (dtypes[0],) * 3 + (dtypes[1],) * 2
        self.params = [nn.Parameter(self.random(shape, 0.02).to(dtype)) for shape, dtype in zip(SHAPES, kinds, strict=True)]
        masters, self.wide = options.pop("masters", False), options.pop("wide", False)
        own = {"masters": masters, "wide_sums": self.wide, "kernels": kernels, "offload": Options(**options)}
        rule = AdamW8bit(beta1=0.9, beta2=0.99, epsilon=1e-8, **own)
        groups = [
            ParamGroup(names=("d", "a"), params=(self.params[3], self.params[0]), weight_decay=0.1),
            ParamGroup(names=("b", "c", "e"), params=(self.params[1], self.params[2], self.params[4]), weight_decay=0.0),
        ]
        self.state: State = rule.bind(groups, seed=3)
        self.norms: list[Tensor] = []

    def random(self, shape: tuple[int, ...], scale: float) -> Tensor:
        return torch.randn(shape, generator=self.generator) * scale

    def backward(self, step: int, micro: int, bad: bool = False) -> None:
        factors = [self.random(param.shape, 1e-3) for param in self.params]
        if bad:
            factors[0][3, 5] = float("inf")
        left = [index for index in range(len(SHAPES)) if (index + step) % 5 or not (micro + step) % 3]
        sum((self.params[index].float() * factors[index]).sum() for index in left).backward()  # type: ignore[union-attr]

    def step(self, number: int, max_norm: float, bad: bool = False) -> None:
        with loop.float32_sums(self.params) if self.wide else contextlib.nullcontext():
            for micro in range(MICRO):
                self.backward(number, micro, bad and micro == 1)
        clips = self.state.clip if isinstance(self.state, HoldsGradients) else loop.clip
        self.norms.append(clips(self.params, max_norm))
        self.state.step(torch.tensor(1e-2), number)
        for param in self.params:
            param.grad = None


def run(trial: Trial, max_norm: float = 0.0, steps: int = 4, bad: bool = False) -> Trial:
    for number in range(1, steps + 1):
        trial.step(number, max_norm, bad and number == 2)
    return trial


def same(found: Trial, wanted: Trial) -> bool:
    pairs = [*zip(found.params, wanted.params, strict=True), *zip(found.norms, wanted.norms, strict=True)]
    states = found.state.state_dict(), wanted.state.state_dict()
    pairs += [(tensor, states[1][name]) for name, tensor in states[0].items()]
    return all(torch.equal(one.detach().nan_to_num(7), other.detach().nan_to_num(7)) for one, other in pairs)


F32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize("kernels", ["reference", "native"])
@pytest.mark.parametrize(
    ("dtypes", "options"),
    [
        ((F32, F32), {}),
        ((BF16, BF16), {}),
        ((BF16, F32), {"offload_optimizer": True}),
        ((BF16, BF16), {"masters": True, "offload_optimizer": True, "offload_master": True}),
        ((BF16, F32), {"masters": True, "wide": True, "offload_master": True}),
    ],
    ids=["fp32", "bf16", "mixed, moments too", "masters, all", "masters, float32 sums"],
)
@pytest.mark.parametrize("max_norm", [0.0, 0.05], ids=["unclipped", "clipped"])
def test_the_numbers_are_those_without(
    devices: list[StandIn], kernels: str, dtypes: Any, options: dict[str, bool], max_norm: float
) -> None:
    plain = run(Trial(dtypes, kernels, masters=options.get("masters", False), wide=options.get("wide", False)), max_norm)
    found = run(Trial(dtypes, kernels, offload_grads=True, **options), max_norm)
    assert len(devices) == 1
    assert devices[0].copies["out"] > 0
    assert same(found, plain)
    assert not max_norm or float(plain.norms[0]) > max_norm, "nothing was clipped"


@pytest.mark.parametrize("kernels", ["reference", "native"])
def test_gradients_that_are_not_finite_are_met_as_without(devices: list[StandIn], kernels: str) -> None:
    plain = run(Trial((F32, F32), kernels), bad=True)
    found = run(Trial((F32, F32), kernels, offload_grads=True), bad=True)
    assert not plain.norms[1].isfinite()
    assert same(found, plain)


def test_states_that_the_kernel_reads_on_the_host_go_with_it(devices: list[StandIn]) -> None:
    plain = run(Trial((BF16, BF16), "native"))
    found = run(Trial((BF16, BF16), "native", offload_grads=True, offload_optimizer=True, use_zero_copy=True))
    assert same(found, plain)


def test_memory_and_copies_are_as_planned(devices: list[StandIn]) -> None:
    """The device holds the sum that the next gradient is added to, in the update two stretches; each gradient goes out once for
    each of its micro-batches and comes back for the others and once for the update."""
    trial = Trial((F32, F32), "reference", offload_grads=True)
    (device,) = devices
    padded = [-(-param.numel() // 32) * 32 for param in trial.params]
    assert device.held == 4 * sum(padded)
    grads: list[weakref.ref[Any]] = []
    for param in trial.params:
        param.register_hook(lambda grad: grads.append(weakref.ref(grad.untyped_storage())))
    for micro in range(MICRO):
        trial.backward(5, micro)  # the first parameter gets one in the second micro-batch alone
    device.settle()
    gc.collect()
    assert len(grads) == MICRO * 5 - 2
    assert not any(held() is not None for held in grads), "a gradient is still on the device"
    assert all(param.grad is None for param in trial.params)
    assert device.copies == {"in": 2 * 4, "out": MICRO * 5 - 2}
    assert device.peak == 4 * 6000, "the sum that is brought next, and no other"
    device.peak = device.now
    trial.state.step(torch.tensor(1e-2), 5)
    assert device.peak == 2 * 4 * CHUNK
    assert device.copies["out"] == MICRO * 5 - 2, "what was only read does not go back"


def test_a_wait_that_is_left_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the waits, one after the other: without it some number is another."""
    wanted = run(Trial((F32, F32), "reference"), 0.05, 2)
    waits = 0
    wait = StandIn.wait

    def counted(self: StandIn, mark: Any) -> None:
        nonlocal waits
        waits += 1
        if waits != left_out:
            wait(self, mark)

    monkeypatch.setattr(StandIn, "wait", counted)
    harmless = 0
    left_out, total = 0, 1
    while left_out <= total:
        waits = 0
        with opening(lambda device, combined: StandIn("late")):
            found = run(Trial((F32, F32), "reference", offload_grads=True), 0.05, 2)
        harmless += left_out > 0 and same(found, wanted)
        total = waits
        assert left_out or same(found, wanted)
        left_out += 1
    # what was only read need not have gone back, and a copy that is waited for brings those before it in its stream
    assert harmless < total / 5


@pytest.mark.parametrize("changes", [{"lora": False, "master_dtype": "fp32"}, {"lora": True, "lora_dropout": 0.0}], ids=str)
def test_a_run_has_the_losses_and_norms_that_it_has_without(
    tiny: Path, changes: dict[str, Any], tmp_path: Path, devices: list[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that stops and goes on."""
    config: dict[str, Any] = {
        "model": str(tiny),
        "sequence_len": 64,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": MICRO,
        "max_steps": 4,
        "save_steps": 4,
        "max_grad_norm": 0.1,
        "final_lr_fraction": 1.0,
        "learning_rate": 3e-3,
        "dataloader_num_workers": 0,
        "datasets": [{"path": str(testing.write_rows(tmp_path / "text.jsonl", TEXT)), "type": "text"}],
        **changes,
    }
    monkeypatch.setattr(plugin, "check_plan", hookimpl(lambda plan, device: []))
    plain = surogate_core.run({**config, "output_dir": str(tmp_path / "plain")})
    config |= {"offload_grads": True, "shard_gradients": True}
    whole = surogate_core.run({**config, "output_dir": str(tmp_path / "whole")})
    surogate_core.run({**config, "output_dir": str(tmp_path / "parts")}, max_steps=2)
    parts = surogate_core.run({**config, "output_dir": str(tmp_path / "parts")})
    assert len(devices) == 3
    assert plain.loss == whole.loss == parts.loss
    norms = [
        [json.loads(line).get("grad_norm") for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "whole", "parts")
    ]
    kept = [[norm for norm in each if norm is not None] for each in norms]
    assert kept[0] == kept[1] == kept[2]
    assert len(kept[0]) == 4
    assert plain.checkpoint
    for file in (path.name for path in plain.checkpoint.glob("*.safetensors")):
        states = [load_file(summary.checkpoint / file) for summary in (plain, whole, parts) if summary.checkpoint]
        assert len(states) == 3
        assert all(torch.equal(tensor, other[name]) for other in states[1:] for name, tensor in states[0].items())
