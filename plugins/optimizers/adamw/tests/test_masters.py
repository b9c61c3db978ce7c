"""float32 masters of bfloat16 weights, with each optimizer, against float32 parameters that are rounded after every step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from surogate_optimizer_adamw import update as adamw
from surogate_optimizer_adamw.masters import keeps_masters, restore_, split_
from surogate_optimizer_adamw_8bit import update as adamw_8bit
from surogate_optimizer_normuon import update as normuon
from surogate_optimizer_normuon.plugin import Options as NorMuonOptions
from torch import Tensor, nn

from surogate_core.config import CoreOptions
from surogate_core.contracts import Context, ParamGroup

SHAPES = [(64, 80), (96, 130), (7,), (300,), (5000,)]
BUILD: dict[str, Callable[[Context], Any]] = {
    "adamw": lambda context: adamw.build(None, context),
    "adamw_8bit": lambda context: adamw_8bit.build(None, context),
    "normuon": lambda context: normuon.build(NorMuonOptions(), context),
}
every_optimizer = pytest.mark.parametrize("optimizer", list(BUILD))


def rule(optimizer: str, **options: Any) -> Any:
    return BUILD[optimizer](Context(config=CoreOptions(model="m", lora=False, optimizer=optimizer, **options)))


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    """Values that bfloat16 has, so that float32 and bfloat16 ones start equal."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter((torch.randn(shape, generator=generator) * 0.1).bfloat16().to(dtype)) for shape in SHAPES]


def bind(made: Any, params: list[nn.Parameter]) -> Any:
    names = tuple(f"layers.{index}.mlp.up_proj.weight" for index in range(len(params)))
    return made.bind([ParamGroup(names=names, params=tuple(params), weight_decay=0.1)], seed=3)


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator).bfloat16() for shape in SHAPES]


def steps(params: list[nn.Parameter], state: Any, first: int, last: int) -> None:
    for step in range(first, last + 1):
        for param, gradient in zip(params, gradients(step), strict=True):
            param.grad = gradient.to(param.dtype)
        state.step(torch.tensor(1e-4), step)


def nearest(values: Tensor) -> Tensor:
    """The nearest bfloat16 value, of two the one away from zero, found among the neighbours in float64."""
    middle = values.bfloat16()
    near = torch.stack([middle.view(torch.int16) + step for step in (-1, 0, 1)]).view(torch.bfloat16).double()
    distance = (near - values.double()).abs()
    distance -= near.abs() * 1e-12  # of two equally near ones the larger
    return near.gather(0, distance.argmin(0, keepdim=True))[0].bfloat16()


def test_weight_and_remainder_are_the_master() -> None:
    """For all upper halves of a float32 with lower halves around the tie, and random ones."""
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    lower = torch.tensor([0, 1, 2**15 - 1, 2**15, 2**15 + 1, 2**16 - 1, 12_345, 54_321], dtype=torch.int32)
    masters = (upper[:, None] | lower).view(torch.float32).flatten()
    remainder = torch.empty_like(masters, dtype=torch.int16)
    weights = split_(masters, remainder)
    finite = masters.isfinite()
    assert torch.equal(restore_(weights[finite].float(), remainder[finite]).view(torch.int32), masters[finite].view(torch.int32))
    assert weights[masters.isnan()].isnan().all()
    assert torch.equal(weights[masters.isinf()].float(), masters[masters.isinf()])
    inner = (masters.abs() > 1e-30) & (masters.abs() < 1e30)
    assert torch.equal(weights[inner], nearest(masters[inner]))


@every_optimizer
def test_bfloat16_with_a_remainder_is_the_float32_run_bit_for_bit(optimizer: str) -> None:
    """Also the weights: at every step they are the masters, rounded to the nearest."""
    exact, work = parameters(torch.float32), parameters(torch.bfloat16)
    reference = bind(rule(optimizer, model_dtype="fp32"), exact)
    state = bind(rule(optimizer, master_dtype="fp32"), work)
    for step in range(1, 13):
        steps(exact, reference, step, step)
        steps(work, state, step, step)
        for one, other in zip(work, exact, strict=True):
            assert torch.equal(one, nearest(other.detach()))
    saved = state.state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in reference.state_dict().items())
    plain = parameters(torch.bfloat16)
    steps(plain, bind(rule(optimizer), plain), 1, 12)
    assert not all(torch.equal(one, other) for one, other in zip(plain, work, strict=True))


def test_ten_thousand_small_updates_are_not_lost() -> None:
    """Each 1e-4 of the weight, an eightieth of bfloat16's step: rounding to nearest loses every one of them."""
    made = rule("adamw", master_dtype="fp32", adamw_beta1=0.0, adamw_beta2=0.0)
    weight = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    lost, wanted = torch.ones(64, dtype=torch.bfloat16), 1.0
    state = made.bind([ParamGroup(names=("w",), params=(weight,), weight_decay=0.0)], seed=0)
    for step in range(1, 10_001):
        weight.grad = torch.ones_like(weight)
        state.step(torch.tensor(1e-4 * wanted), step)
        lost -= 1e-4 * lost
        wanted *= 1 - 1e-4
    assert (lost == 1).all()
    assert weight.detach().float().mean().item() == pytest.approx(wanted, rel=2**-8)
    master = restore_(weight.detach().float(), state.state_dict()["w.remainder"])
    assert master.mean().item() == pytest.approx(wanted, rel=1e-3)


@every_optimizer
def test_resume_is_bit_exact(optimizer: str, tmp_path: Path) -> None:
    whole, cut = parameters(torch.bfloat16), parameters(torch.bfloat16)
    made = rule(optimizer, master_dtype="fp32")
    one, two = bind(made, whole), bind(made, cut)
    steps(whole, one, 1, 6)
    steps(cut, two, 1, 3)
    save_file({name: tensor.contiguous() for name, tensor in two.state_dict().items()}, tmp_path / "optimizer.safetensors")
    two = bind(made, cut)
    two.load_state_dict(load_file(tmp_path / "optimizer.safetensors"))
    steps(cut, two, 4, 6)
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


@every_optimizer
def test_two_more_bytes_a_value(optimizer: str) -> None:
    plain, made = rule(optimizer), rule(optimizer, master_dtype="fp32")
    names = [f"layers.{index}.mlp.up_proj.weight" for index in range(len(SHAPES))]
    params = parameters(torch.bfloat16)
    for name, param in zip(names, params, strict=True):
        shape = tuple(param.shape)
        assert made.state_bytes(shape, name) - plain.state_bytes(shape, name) == 2 * param.numel()
    held = [tensor for name, tensor in bind(made, params).state_dict().items() if name.endswith(".remainder")]
    assert sum(tensor.nbytes for tensor in held) == sum(2 * param.numel() for param in params)


@every_optimizer
def test_float32_parameters_among_them_are_untouched_by_masters(optimizer: str) -> None:
    """Some families keep a few parameters in float32."""
    mixed = [nn.Parameter(p.detach().float()) if index % 2 else p for index, p in enumerate(parameters(torch.bfloat16))]
    exact = parameters(torch.float32)
    steps(mixed, bind(rule(optimizer, master_dtype="fp32"), mixed), 1, 8)
    steps(exact, bind(rule(optimizer, model_dtype="fp32"), exact), 1, 8)
    for index, (one, other) in enumerate(zip(mixed, exact, strict=True)):
        assert torch.equal(one, other if index % 2 else nearest(other.detach()))


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"master_dtype": "fp32", "lora": False}, True),
        ({"master_dtype": "fp32", "lora": True}, False),
        ({"master_dtype": "fp32", "lora": False, "model_dtype": "fp32"}, False),
        ({"master_dtype": "bf16", "lora": False}, False),
        ({"lora": False}, False),
    ],
)
def test_who_keeps_masters(options: dict[str, Any], wanted: bool) -> None:
    assert keeps_masters(CoreOptions(model="m", **options)) is wanted
