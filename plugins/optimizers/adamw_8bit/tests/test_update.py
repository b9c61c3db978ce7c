from __future__ import annotations

import math
from typing import Any

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file, save_file
from surogate_optimizer_adamw_8bit import update
from surogate_optimizer_adamw_8bit.places import SMALL
from surogate_optimizer_adamw_8bit.plugin import register_optimizers
from surogate_optimizer_adamw_8bit.update import AdamW8bit, build
from torch import Tensor, nn

from surogate_core.config import CoreOptions
from surogate_core.contracts import Context, ParamGroup
from surogate_core.errors import ResumeError

SHAPES = [(64, 64), (4097,), (33, 127), (4095,), (5, 7), (10_000,)]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter((torch.randn(shape, generator=generator) * 0.02).to(dtype)) for shape in SHAPES]


def group(params: list[nn.Parameter], weight_decay: float = 0.0) -> ParamGroup:
    names = tuple(f"layer{index}.weight" for index in range(len(params)))
    return ParamGroup(names=names, params=tuple(params), weight_decay=weight_decay)


def gradients(step: int, like: list[nn.Parameter]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    return [
        (torch.randn(p.shape, generator=generator) * 1e-3 * (1 + math.sin(step + index))).to(p.dtype)
        for index, p in enumerate(like)
    ]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    for param, gradient in zip(params, gradients(step, params), strict=True):
        param.grad = gradient


def rate(step: int) -> Tensor:
    return torch.tensor(1e-3 / (1 + 0.05 * step))


@pytest.fixture(params=["reference", "native"])
def rule(request: pytest.FixtureRequest) -> AdamW8bit:
    """In plain torch, and by the CPU's build of the kernel's source."""
    return AdamW8bit(beta1=0.9, beta2=0.99, epsilon=1e-8, kernels=request.param)


def bitsandbytes_optimizer(params: list[nn.Parameter], weight_decay: float = 0.0) -> Any:
    return bitsandbytes.optim.AdamW8bit(params, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=weight_decay)


@pytest.mark.usefixtures("exact_codes")
@pytest.mark.parametrize("chunk", [512, 1 << 18])
def test_fifty_steps_each_from_the_state_of_bitsandbytes(rule: AdamW8bit, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """Codes, scales and parameters after each step, both starting from what bitsandbytes had."""
    monkeypatch.setitem(update.CHUNK, "cpu", chunk)
    theirs, ours = parameters(), parameters()
    reference, state = bitsandbytes_optimizer(theirs), rule.bind([group(ours)], seed=1)
    assert [small for _, small in _sizes()] == [False, False, False, True, True, False]
    differences = codes = 0
    for step in range(1, 51):
        set_gradients(theirs, step)
        set_gradients(ours, step)
        reference.param_groups[0]["lr"] = float(rate(step))
        reference.step()
        state.step(rate(step), step)
        mine = state.state_dict()
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
            entry = reference.state[other]
            for moment, code, absmax in (("m", "state1", "absmax1"), ("v", "state2", "absmax2")):
                got = mine[f"layer{index}.weight.{moment}"]
                if one.numel() < 4096:
                    torch.testing.assert_close(got, entry[code], rtol=1e-5, atol=2e-11 if moment == "m" else 1e-15)  # m may cancel
                    got.copy_(entry[code])
                    continue
                torch.testing.assert_close(mine[f"layer{index}.weight.{moment}_absmax"], entry[absmax], rtol=1e-6, atol=0)
                differences += int((got != entry[code]).sum())
                assert (got.int() - entry[code].int()).abs().max() <= 1
                codes += got.numel()
                got.copy_(entry[code])
                mine[f"layer{index}.weight.{moment}_absmax"].copy_(entry[absmax])
            one.data.copy_(other.data)
    assert differences <= 2e-5 * codes  # float32 rounding exactly at a boundary between two codes


def _sizes() -> list[tuple[int, bool]]:
    return [(math.prod(shape), math.prod(shape) < SMALL) for shape in SHAPES]


@pytest.mark.usefixtures("exact_codes")
def test_fifty_steps_on_its_own_stay_with_bitsandbytes(rule: AdamW8bit) -> None:
    theirs, ours = parameters(), parameters()
    reference, state = bitsandbytes_optimizer(theirs), rule.bind([group(ours)], seed=1)
    for step in range(1, 51):
        set_gradients(theirs, step)
        set_gradients(ours, step)
        reference.param_groups[0]["lr"] = float(rate(step))
        reference.step()
        state.step(rate(step), step)
    start = parameters()
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        moved = (other - start[index]).norm()
        assert (one - other).norm() < 1e-3 * moved
        mine, code = state.state_dict()[f"layer{index}.weight.m"], reference.state[other]["state1"]
        if mine.dtype == torch.uint8:
            assert ((mine.int() - code.int()).abs() > 1).float().mean() < 1e-3


def test_weight_decay_comes_last(rule: AdamW8bit) -> None:
    """bitsandbytes' CPU code decays first: one step differs by exactly the update times lr·wd."""
    theirs, ours, plain = parameters(), parameters(), parameters()
    lr, decay = 1e-2, 0.1
    reference, state = bitsandbytes_optimizer(theirs, decay), rule.bind([group(ours, decay)], seed=1)
    without = rule.bind([group(plain)], seed=1)
    for params in (theirs, ours, plain):
        set_gradients(params, 1)
    reference.param_groups[0]["lr"] = lr
    reference.step()
    state.step(torch.tensor(lr), 1)
    without.step(torch.tensor(lr), 1)
    for one, other, undecayed in zip(ours, theirs, plain, strict=True):
        torch.testing.assert_close(one, undecayed * (1 - lr * decay), rtol=1e-6, atol=1e-9)
        assert (one - other).abs().max() < 1.1 * lr * lr * decay
        assert (one - other).abs().max() > 0.9 * lr * lr * decay


def test_groups_have_their_own_decay(rule: AdamW8bit) -> None:
    ours = parameters()
    start = [param.detach().clone() for param in ours]
    first, second = group(ours[:3], 0.5), ParamGroup(names=("a", "b", "c"), params=tuple(ours[3:]), weight_decay=0.0)
    for param in ours:
        param.grad = torch.zeros_like(param)
    rule.bind([first, second], seed=1).step(torch.tensor(0.1), 1)
    for param, before in zip(ours, start, strict=True):
        torch.testing.assert_close(param.detach(), before * (0.95 if any(param is one for one in ours[:3]) else 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_elements_without_a_finite_gradient_stay_and_start_over(rule: AdamW8bit, dtype: torch.dtype, bad: float) -> None:
    ours, twin = parameters(dtype), parameters(dtype)
    state, other = (rule.bind([group(params, 0.1)], seed=1) for params in (ours, twin))
    for step in (1, 2):
        for params, one in ((ours, state), (twin, other)):
            set_gradients(params, step)
            if step == 2:
                for param in params:
                    param.grad.view(-1)[3] = bad if params is ours else 0  # type: ignore[union-attr]
            before = [param.detach().clone() for param in params]
            one.step(torch.tensor(1e-3), step)
            if params is ours and step == 2:
                kept = before
    mine = state.state_dict()
    for index, (param, before_step, clean) in enumerate(zip(ours, kept, twin, strict=True)):
        assert param.view(-1)[3] == before_step.view(-1)[3]
        rest = torch.arange(param.numel()) != 3
        assert torch.equal(param.view(-1)[rest], clean.view(-1)[rest])
        zero = {"m": 127, "v": 0} if param.numel() >= 4096 else {"m": 0, "v": 0}
        assert all(mine[f"layer{index}.weight.{moment}"].view(-1)[3] == value for moment, value in zero.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_bit_exact(rule: AdamW8bit, tmp_path: Any, dtype: torch.dtype) -> None:
    whole, params = parameters(dtype), parameters(dtype)
    one, two = rule.bind([group(whole, 0.1)], seed=9), rule.bind([group(params, 0.1)], seed=9)
    for step in range(1, 7):
        set_gradients(whole, step)
        one.step(rate(step), step)
        if step == 4:
            save_file(two.state_dict(), tmp_path / "optimizer.safetensors")
            two = rule.bind([group(params, 0.1)], seed=9)
            two.load_state_dict(load_file(tmp_path / "optimizer.safetensors"))
        set_gradients(params, step)
        two.step(rate(step), step)
    assert all(torch.equal(a, b) for a, b in zip(whole, params, strict=True))
    ends = one.state_dict(), two.state_dict()
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_bfloat16_parameters_follow_the_float32_ones_on_average(rule: AdamW8bit) -> None:
    """Updates of a tenth of a bfloat16 step would be lost by rounding to nearest; stochastic rounding keeps their sum."""
    exact, half = nn.Parameter(torch.ones(40_000)), nn.Parameter(torch.ones(40_000, dtype=torch.bfloat16))
    states = [rule.bind([group([param])], seed=4) for param in (exact, half)]
    for step in range(1, 41):
        for param, state in zip((exact, half), states, strict=True):
            param.grad = torch.ones_like(param)
            state.step(torch.tensor(4e-4), step)
    moved = 1 - exact.detach().mean().item()
    assert moved == pytest.approx(0.016, rel=0.02)
    assert 1 - half.detach().float().mean().item() == pytest.approx(moved, rel=0.02)


def test_state_bytes_are_what_is_allocated(rule: AdamW8bit) -> None:
    for shape in SHAPES:
        param = nn.Parameter(torch.zeros(shape))
        state = rule.bind([group([param])], seed=0)
        states = state._states
        held = sum(tensor.nbytes for pair in (states.codes, states.absmax, states.exact) for tensor in pair)
        padding = 0 if math.prod(shape) >= 4096 else 8 * (-math.prod(shape) % 256)
        assert rule.state_bytes(shape) == held - padding
    assert rule.state_bytes((1024, 1024)) / 1024**2 == pytest.approx(2.03125)


def test_a_state_of_another_layout_is_refused_by_name(rule: AdamW8bit) -> None:
    state = rule.bind([group(parameters())], seed=0)
    good = {name: tensor.clone() for name, tensor in state.state_dict().items()}
    for change, said in (
        ({"layer0.weight.m": None}, "layer0.weight.m: uint8 (64, 64) wanted, none found"),
        ({"layer0.weight.m": torch.zeros(64, 64)}, "layer0.weight.m: uint8 (64, 64) wanted, float32 (64, 64) found"),
        ({"layer5.weight.v_absmax": torch.zeros(3)}, "layer5.weight.v_absmax: float32 (40,) wanted, float32 (3,) found"),
        ({"other.m": torch.zeros(3)}, "other.m: none wanted, float32 (3,) found"),
    ):
        changed = {name: tensor for name, tensor in {**good, **change}.items() if tensor is not None}
        with pytest.raises(ResumeError) as caught:
            state.load_state_dict(changed)
        assert said in caught.value.problems[0].what
        assert caught.value.problems[0].where
        assert "--fresh" in caught.value.problems[0].how


def test_the_offer_builds_from_the_options_of_the_core() -> None:
    (offer,) = register_optimizers()
    core = CoreOptions(model="m", adamw_beta1=0.8, adamw_beta2=0.7, adamw_epsilon=1e-3)
    assert offer.load() is build
    assert build(None, Context(config=core)) == AdamW8bit(beta1=0.8, beta2=0.7, epsilon=1e-3)
