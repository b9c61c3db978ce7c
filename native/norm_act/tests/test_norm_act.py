"""Definitions against torch's autograd in float64 and transformers' own modules; kernel bodies on the host; machine code."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from surogate_native_kit import ARCHITECTURES, Source, cubin
from surogate_native_kit.checks import poisoned
from surogate_native_kit.compiler import disassemble
from surogate_native_norm_act import (
    head_rotary,
    head_rotary_backward,
    kernel,
    ops,
    reference,
    rms_norm,
    rms_norm_backward,
    swiglu,
    swiglu_backward,
)
from torch import Tensor
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

EPSILON = 1e-6
SIDES = [reference, kernel]


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(function: Any, *inputs: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(result, a random slope, gradients) in float64."""
    wide = [tensor.double().requires_grad_() for tensor in inputs]
    y = function(*wide)
    slope = drawn(*y.shape, seed=9)
    return y.detach(), slope, list(torch.autograd.grad(y, wide, slope.double()))


def near(found: Tensor, wanted: Tensor) -> None:
    assert float((found.double() - wanted).norm() / wanted.norm()) < 2e-6


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_norm_and_its_gradients_are_torchs(side: Any, with_residual: bool) -> None:
    x, other, weight = drawn(5, 36), drawn(5, 36, seed=2), drawn(36, seed=3)
    residual = other if with_residual else None
    scale, amax = torch.tensor([20.0]), torch.tensor([0.25])
    r, y, rstd, copy = side.rms_norm(x, residual, weight, EPSILON, scale, amax)
    r = x + other if with_residual else x
    wanted, slope, (dx, dw) = gradients(lambda x, w: F.rms_norm(x, (36,), w, EPSILON), r, weight)
    near(y, wanted)
    assert amax.item() == y.abs().max().item()
    expected = (y * 20).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(copy.view(torch.uint8), expected.view(torch.uint8))
    near(rstd, (r.double().square().mean(-1) + EPSILON).rsqrt())
    found = side.rms_norm_backward(r, weight, rstd, slope, None)
    near(found[0], dx)
    near(found[1], dw)
    near(side.rms_norm_backward(r, weight, rstd, slope, other)[0], dx + other.double())


@pytest.mark.parametrize("side", SIDES)
def test_bf16_is_rounded_as_the_models_module_rounds(side: Any) -> None:
    module = Qwen3RMSNorm(64, eps=EPSILON).to(torch.bfloat16)
    module.weight.data = drawn(64, seed=3).bfloat16()
    x = drawn(7, 64).bfloat16()
    _, y, _, copy = side.rms_norm(x, None, module.weight.data, EPSILON, None, None)
    assert (y != module(x)).sum() <= 2, "a sum in another order may move a value over a tie"
    assert copy.numel() == 0


@pytest.mark.parametrize("side", SIDES)
def test_swiglu_and_its_gradient_are_torchs(side: Any) -> None:
    both = drawn(6, 2 * 44) * 3
    wanted, slope, (gradient,) = gradients(lambda both: F.silu(both[:, :44]) * both[:, 44:], both)
    amax = torch.zeros(1)
    h, copy = side.swiglu(both, torch.tensor([10.0]), amax)
    near(h, wanted)
    assert amax.item() == h.abs().max().item()
    assert torch.equal(copy.float(), (h * 10).clamp(-448, 448).to(torch.float8_e4m3fn).float())
    scale, amax = torch.tensor([6000.0]), torch.zeros(1)
    found, copy = side.swiglu_backward(both, slope, scale, amax)
    near(found, gradient)
    assert amax.item() == found.abs().max().item() > 57344 / 6000, "some saturate"
    assert copy.dtype == torch.float8_e5m2
    assert torch.equal(copy.float(), (found * 6000).clamp(-57344, 57344).to(torch.float8_e5m2).float())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("size", kernel.HEADS)
def test_head_norm_and_rotary_are_transformers(side: Any, size: int) -> None:
    tokens, heads = 5, 3
    x, weight = drawn(tokens, heads, size), drawn(size, seed=3)
    angles = drawn(tokens, size // 2, seed=4).repeat(1, 2)
    cosine, sine = angles.cos(), angles.sin()

    def theirs(x: Tensor, w: Tensor) -> Tensor:
        normed = F.rms_norm(x, (size,), w, EPSILON).transpose(0, 1)[None]
        turned, _ = apply_rotary_pos_emb(normed, normed, cosine.double()[None], sine.double()[None])
        return turned[0].transpose(0, 1)

    wanted, slope, (dx, dw) = gradients(theirs, x, weight)
    scale, amax = torch.tensor([100.0]), torch.tensor([0.25])
    y, rstd, copy = side.head_rotary(x, weight, cosine, sine, EPSILON, scale, amax)
    near(y, wanted)
    assert amax.item() == y.abs().max().item()
    assert torch.equal(copy.float(), (y * 100).clamp(-448, 448).to(torch.float8_e4m3fn).float())
    found = side.head_rotary_backward(x, weight, cosine, sine, rstd, slope)
    near(found[0], dx)
    near(found[1], dw)


def test_the_kernel_says_which_heads_it_takes() -> None:
    with pytest.raises(ValueError, match="heads of 96 values: the kernel takes 64, 128, 256"):
        kernel.head_rotary(drawn(1, 1, 96), drawn(96), drawn(1, 96), drawn(1, 96), EPSILON, None, None)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("columns", [16, 13])
def test_what_is_emitted_in_bf16_is_of_what_is_written(side: Any, columns: int) -> None:
    """Of several blocks of threads, the last of which is not full; nothing is emitted that was not asked for."""
    both, dh = drawn(300, 2 * columns).bfloat16(), drawn(300, columns, seed=2).bfloat16()
    x, weight, angles = drawn(70, 3, 64).bfloat16(), drawn(64).bfloat16(), drawn(70, 64)
    for op, given, dtype in (
        (side.swiglu_backward, (both, dh), torch.float8_e5m2),
        (side.head_rotary, (x, weight, angles.cos(), angles.sin(), EPSILON), torch.float8_e4m3fn),
    ):
        amax = torch.zeros(1)
        with poisoned():
            found, *_, copy = op(*given, torch.tensor([30.0]), amax)
        assert amax.item() == found.float().abs().max().item()
        assert torch.equal(copy.float(), (found.float() * 30).to(dtype).float())
        with poisoned():
            plain, *_, copy = op(*given, None, None)
        assert torch.equal(plain, found)
        assert (copy.numel(), copy.dtype) == (0, dtype)


def test_ops_are_their_definitions_on_the_cpu_and_shapes_on_meta() -> None:
    x, weight, angles = drawn(4, 3, 64), drawn(64), drawn(4, 64)
    flat, one = x.flatten(0, 1), torch.ones(1)
    calls = {
        "rms_norm": (flat, flat, weight, EPSILON, one, None),
        "rms_norm_backward": (flat, weight, torch.ones(12), flat, None),
        "swiglu": (flat, one, None),
        "swiglu_backward": (flat, flat[:, :32].contiguous(), one, None),
        "head_rotary": (x, weight, angles, angles, EPSILON, one, None),
        "head_rotary_backward": (x, weight, angles, angles, torch.ones(4, 3), x),
    }
    assert set(calls) == set(ops._META)
    for name, given in calls.items():
        op = getattr(torch.ops.surogate_norm_act, name)
        found, wanted = op(*given), getattr(reference, name)(*given)
        for mine, theirs in zip(found, wanted, strict=True):
            assert torch.equal(mine.float(), theirs.float())
        torch.library.opcheck(op.default, given, test_utils=("test_schema", "test_faketensor"))
    amax = torch.zeros(1)
    rms_norm(flat, None, weight, EPSILON, amax=amax)
    swiglu(flat, amax=amax)
    assert amax.item() > 1
    assert rms_norm_backward(flat, weight, torch.ones(12), flat)[0].shape == flat.shape
    assert swiglu_backward(flat, flat[:, :32])[0].shape == flat.shape
    assert head_rotary_backward(x, weight, angles, angles, head_rotary(x, weight, angles, angles, EPSILON)[1], x)[1].shape == (64,)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("source", [kernel.NORM, kernel.SWIGLU, kernel.ROTARY], ids=lambda source: source.path.stem)
def test_what_the_kernels_compile_to(source: Source, arch: str) -> None:
    """16-byte loads and stores, no spills."""
    text = disassemble(cubin(source, arch))
    kernels = {part.split(",")[0]: part for part in re.split(r"\.section\s+\.text\.", text)[1:]}
    assert len(kernels) == {"norm": 6, "swiglu": 4, "rotary": 4}[source.path.stem]
    for name, body in kernels.items():
        assert not re.findall(r"\b(?:STL|LDL)\b", body), name
        assert len(re.findall(r"\bLDG\.E\.128", body)) >= 2, name
        assert "weight" in name or re.findall(r"\bSTG\.E\.128", body), name
