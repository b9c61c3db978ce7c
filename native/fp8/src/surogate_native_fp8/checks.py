"""The FP8 kernels and cuBLASLt's products, for ``make gpu-check``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from surogate_native_kit.checks import Check, Shape
from torch import Tensor

from surogate_native_fp8 import ops, reference
from surogate_native_fp8.reference import E4M3, E5M2, LARGEST, cast, current_scale

ODD = ((1, 1), (5, 3), (63, 65), (130, 72), (17, 200))


def _matrix(dtype: torch.dtype, shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    return (draw(*shape) * 30).to(dtype), torch.tensor([7.3]), torch.tensor([0.5])


def _cast(run: Callable[..., Sequence[Tensor]], e5m2: bool, x: Tensor, scale: Tensor, amax: Tensor) -> Sequence[Tensor]:
    return (*run(x, scale, amax, e5m2, True), amax)


def _scales(shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    tensors, length = shape
    return draw(tensors, length).exp(), draw(tensors).exp(), draw(tensors, 4).exp(), torch.full((tensors,), LARGEST[E4M3])


def _update(run: Callable[..., None], *state: Tensor) -> Sequence[Tensor]:
    run(*state)
    return state[:3]


def _operands(dtype: torch.dtype, shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    m, n, k = shape
    a, b = draw(m, k), draw(n, k)
    scales = current_scale(a, dtype), current_scale(b, E4M3)
    return cast(a * scales[0], dtype), cast(b * scales[1], E4M3), 1 / scales[0], 1 / scales[1]


def _product(native: bool, a: Tensor, b: Tensor, inverse_a: Tensor, inverse_b: Tensor) -> Sequence[Tensor]:
    return (ops.scaled_mm(a, b, inverse_a, inverse_b, torch.bfloat16, native=native),)


def _bf16(a: Tensor, b: Tensor, inverse_a: Tensor, inverse_b: Tensor) -> Sequence[Tensor]:
    return (a.to(torch.bfloat16) @ b.to(torch.bfloat16).t(),)


CHECKS = (
    *(
        Check(
            name=f"cast_transpose {ops.NAMES[dtype]} {'e5m2' if e5m2 else 'e4m3'}",
            inputs=functools.partial(_matrix, dtype),
            kernel=functools.partial(_cast, ops.cast_transpose_kernel, e5m2),
            reference=functools.partial(_cast, reference.cast_transpose, e5m2),
            shapes=ODD,
            large=(8192, 8192),
            traffic=lambda shape, size=dtype.itemsize: shape[0] * shape[1] * (size + 2),  # type: ignore[misc]
            baseline=("torch", functools.partial(_cast, reference.cast_transpose, e5m2)),
        )
        for dtype in (torch.bfloat16, torch.float32)
        for e5m2 in (False, True)
    ),
    Check(
        name="update_scales",
        inputs=_scales,
        kernel=functools.partial(_update, ops.update_scales_kernel),
        reference=functools.partial(_update, reference.update_scales),
        shapes=((3, 1), (300, 16), (7, 5)),
        large=(1024, 16),
        traffic=lambda shape: shape[0] * (8 * shape[1] + 12),
        baseline=("torch", functools.partial(_update, reference.update_scales)),
    ),
    *(
        Check(
            name=f"scaled_mm {'e5m2' if dtype == E5M2 else 'e4m3'}",
            inputs=functools.partial(_operands, dtype),
            kernel=functools.partial(_product, True),
            reference=functools.partial(_product, False),
            shapes=((16, 32, 48), (272, 144, 80)),
            large=(8192, 8192, 8192),
            traffic=lambda shape: shape[0] * shape[2] + shape[1] * shape[2] + 2 * shape[0] * shape[1],
            flops=lambda shape: 2 * shape[0] * shape[1] * shape[2],
            close=3e-3,  # of a result in bfloat16
            baseline=("bf16 with casts", _bf16),
            on_host=False,
            needs=(8, 9),
        )
        for dtype in (E4M3, E5M2)
    ),
)
