"""Norms, activations and rotary positions, for ``make gpu-check``. Sums and exponentials may differ in their last bits: results are
close, not equal. The E4M3 copies are compared as what they stand for."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from surogate_native_kit.checks import Check, Run, Shape
from torch import Tensor

from surogate_native_norm_act import kernel, reference

EPSILON = 1e-6
CLOSE = {torch.bfloat16: 2e-3, torch.float32: 2e-6}
EMITTED = 5e-3
"""Of results with E4M3 copies, where a value near a tie may fall to the other side."""


def _numbers(found: Sequence[Tensor]) -> Sequence[Tensor]:
    return [tensor.float() for tensor in found]


def _norm_inputs(dtype: torch.dtype, shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    return (*(draw(*shape).to(dtype) for _ in range(2)), draw(shape[1]).to(dtype), torch.tensor([50.0]), torch.tensor([0.5]))


def _norm(side: ModuleType, x: Tensor, residual: Tensor, weight: Tensor, scale: Tensor, amax: Tensor) -> Sequence[Tensor]:
    return _numbers((*side.rms_norm(x, residual, weight, EPSILON, scale, amax), amax))


def _back_inputs(dtype: torch.dtype, shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    r, dy, dr = (draw(*shape).to(dtype) for _ in range(3))
    return r, draw(shape[1]).to(dtype), (r.float().square().mean(-1) + EPSILON).rsqrt(), dy, dr


def _swiglu_inputs(dtype: torch.dtype, shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    return (draw(shape[0], 2 * shape[1]) * 2).to(dtype), torch.tensor([40.0]), torch.tensor([0.5])


def _swiglu(side: ModuleType, both: Tensor, scale: Tensor, amax: Tensor) -> Sequence[Tensor]:
    return _numbers((*side.swiglu(both, scale, amax), amax))


def _head_inputs(dtype: torch.dtype, shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    angles = draw(shape[0], shape[2] // 2).repeat(1, 2)
    return draw(*shape).to(dtype), draw(shape[2]).to(dtype), angles.cos(), angles.sin()


def _head_back_inputs(dtype: torch.dtype, shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    given = _head_inputs(dtype, shape, draw)
    return *given, (given[0].float().square().mean(-1) + EPSILON).rsqrt(), draw(*shape).to(dtype)


def _matrices(count: int, more: int = 0) -> Callable[[Shape], int]:
    """Bytes of so many bfloat16 matrices and of so many of one byte a value."""
    return lambda shape: functools.reduce(lambda a, b: a * b, shape) * (2 * count + more)


ROWS = ((1, 1), (3, 40), (5, 33), (2, 4104))
HEADS = ((1, 1, 64), (5, 3, 128), (3, 2, 256))
KINDS: tuple[
    tuple[str, Callable[..., Sequence[Tensor]], Callable[[ModuleType], Run], tuple[Shape, ...], Shape, Callable[[Shape], int]], ...
]
KINDS = (
    ("rms_norm", _norm_inputs, lambda side: functools.partial(_norm, side), ROWS, (16384, 4096), _matrices(4, 1)),
    ("rms_norm_backward", _back_inputs, lambda side: side.rms_norm_backward, ROWS, (16384, 4096), _matrices(6)),
    ("swiglu", _swiglu_inputs, lambda side: functools.partial(_swiglu, side), ROWS, (8192, 12288), _matrices(3, 1)),
    (
        "swiglu_backward",
        lambda dtype, shape, draw: [(draw(shape[0], 2 * shape[1]) * 2).to(dtype), draw(*shape).to(dtype)],
        lambda side: lambda both, dh: [side.swiglu_backward(both, dh)],
        ROWS,
        (8192, 12288),
        _matrices(5),
    ),
    (
        "head_rotary",
        _head_inputs,
        lambda side: lambda *given: side.head_rotary(*given, EPSILON),
        HEADS,
        (16384, 32, 128),
        _matrices(2),
    ),
    ("head_rotary_backward", _head_back_inputs, lambda side: side.head_rotary_backward, HEADS, (16384, 32, 128), _matrices(6)),
)
CHECKS = tuple(
    Check(
        name=f"{name} {kernel.NAMES[dtype]}",
        inputs=functools.partial(inputs, dtype),
        kernel=run(kernel),
        reference=run(reference),
        shapes=shapes,
        large=large,
        traffic=lambda shape, times=dtype.itemsize // 2, traffic=traffic: times * traffic(shape),  # type: ignore[misc]
        close=max(CLOSE[dtype], EMITTED if name in ("rms_norm", "swiglu") else 0),
        baseline=("torch", run(reference)),
    )
    for name, inputs, run, shapes, large, traffic in KINDS
    for dtype in (torch.bfloat16, torch.float32)
)
