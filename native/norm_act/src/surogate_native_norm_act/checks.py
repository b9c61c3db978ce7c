"""Norms, activations and rotary positions, for ``make gpu-check``. Sums and exponentials may differ in their last bits: results are
close, not equal. The FP8 copies are compared as what they stand for."""

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
"""Of FP8 copies, where a value near a tie may fall to the other side."""
COPIES = {"rms_norm": (3, 5), "swiglu": (1, 3), "swiglu_backward": (1, 3), "head_rotary": (2, 4)}
"""Which result is one, of how many."""


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
Inputs = Callable[[torch.dtype, Shape, Callable[..., Tensor]], Sequence[Tensor]]


def _close(name: str, close: float) -> float | list[float]:
    if name not in COPIES:
        return close
    copy, count = COPIES[name]
    return [EMITTED if number == copy else close for number in range(count)]


def _both(
    name: str,
    inputs: Inputs,
    run: Callable[[ModuleType], Run],
    shapes: Sequence[Shape],
    large: Shape,
    traffic: Callable[[Shape], int],
) -> list[Check]:
    """A check for bfloat16 and one for float32. ``traffic``: of bfloat16."""
    return [
        Check(
            name=f"{name} {kernel.NAMES[dtype]}",
            inputs=functools.partial(inputs, dtype),
            kernel=run(kernel),
            reference=run(reference),
            shapes=shapes,
            large=large,
            traffic=functools.partial(lambda times, shape: times * traffic(shape), dtype.itemsize // 2),
            close=_close(name, CLOSE[dtype]),
            baseline=("torch", run(reference)),
        )
        for dtype in (torch.bfloat16, torch.float32)
    ]


def _swiglu_back_inputs(dtype: torch.dtype, shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    return (draw(shape[0], 2 * shape[1]) * 2).to(dtype), draw(*shape).to(dtype), torch.tensor([4000.0]), torch.tensor([0.5])


def _swiglu_back(side: ModuleType, both: Tensor, dh: Tensor, scale: Tensor, amax: Tensor) -> Sequence[Tensor]:
    return _numbers((*side.swiglu_backward(both, dh, scale, amax), amax))


def _head_forward_inputs(dtype: torch.dtype, shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    return *_head_inputs(dtype, shape, draw), torch.tensor([40.0]), torch.tensor([0.5])


def _head(side: ModuleType, *given: Tensor) -> Sequence[Tensor]:
    *values, scale, amax = given
    return _numbers((*side.head_rotary(*values, EPSILON, scale, amax), amax))


TALL, WIDE, MANY = (16384, 4096), (8192, 12288), (16384, 32, 128)
CHECKS = (
    *_both("rms_norm", _norm_inputs, lambda side: functools.partial(_norm, side), ROWS, TALL, _matrices(4, 1)),
    *_both("rms_norm_backward", _back_inputs, lambda side: side.rms_norm_backward, ROWS, TALL, _matrices(6)),
    *_both("swiglu", _swiglu_inputs, lambda side: functools.partial(_swiglu, side), ROWS, WIDE, _matrices(3, 1)),
    *_both("swiglu_backward", _swiglu_back_inputs, lambda side: functools.partial(_swiglu_back, side), ROWS, WIDE, _matrices(5, 2)),
    *_both("head_rotary", _head_forward_inputs, lambda side: functools.partial(_head, side), HEADS, MANY, _matrices(2, 1)),
    *_both("head_rotary_backward", _head_back_inputs, lambda side: side.head_rotary_backward, HEADS, MANY, _matrices(6)),
)
