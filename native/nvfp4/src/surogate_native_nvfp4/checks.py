"""The NVFP4 quantiser, for ``make gpu-check``."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import torch
from surogate_native_kit.checks import Check, Shape
from torch import Tensor

from surogate_native_nvfp4 import BLOCK, draws, formats, kernel
from surogate_native_nvfp4.blocks import quantise

KEY = (0x12345678, 0xFEDCBA98)


def _matrix(dtype: torch.dtype, shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    x = (draw(*shape) * torch.exp2((draw(shape[0], 1) * 4).round())).to(dtype)
    return x, x.float().abs().max().reshape(1), torch.tensor([(5 << 32) + 1])


def _kernel(square: bool, four: bool, drawn: bool, x: Tensor, amax: Tensor, step: Tensor) -> Sequence[Tensor]:
    key = KEY if drawn else None
    codes, scales, fake = kernel.quantise_on_gpu(x, amax, square=square, four_over_six=four, key=key, step=step, fake=True)
    assert fake is not None
    return codes, scales, fake


def _reference(square: bool, four: bool, drawn: bool, x: Tensor, amax: Tensor, step: Tensor) -> Sequence[Tensor]:
    width = -(-x.shape[1] // BLOCK) * BLOCK
    bits = draws.bits16(draws.words(x.shape[0] * width // 2, KEY, step[0]), x.shape[0], width) if drawn else None
    made = quantise(x, square=square, four_over_six="mse" if four else None, bits=bits)
    return made.packed(), formats.swizzle(made.scale_bytes()).view(torch.uint8), made.scaled().to(torch.bfloat16).contiguous()


def _check(dtype: torch.dtype, square: bool, four: bool, drawn: bool) -> Check:
    return Check(
        name=kernel.name_of(dtype, square=square, four_over_six=four, drawn=drawn),
        inputs=functools.partial(_matrix, dtype),
        kernel=functools.partial(_kernel, square, four, drawn),
        reference=functools.partial(_reference, square, four, drawn),
        shapes=((1, 1), (17, 33), (130, 80), (200, 16)),
        large=(8192, 8192),
        traffic=lambda shape: shape[0] * shape[1] * (16 * dtype.itemsize + 8 + 1 + 32) // 16,
        baseline=("torch", functools.partial(_reference, square, four, drawn)),
    )


CHECKS = tuple(
    _check(dtype, square, four, drawn)
    for dtype in (torch.bfloat16, torch.float32)
    for square, four, drawn in itertools.product((False, True), repeat=3)
    if not (square and drawn)
)
