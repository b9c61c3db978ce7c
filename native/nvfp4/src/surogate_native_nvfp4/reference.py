"""The definition of each kernel, from the functions that define its steps: plain torch, on any device. Operands and results are
as in :mod:`surogate_native_nvfp4.kernel`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from surogate_native_nvfp4 import blocks, draws, eden, formats, rotation
from surogate_native_nvfp4.blocks import BLOCK, Blocks
from surogate_native_nvfp4.kernel import GROUP, Results, whole


def operand(x: Tensor, signs: Tensor | None, factor: Tensor | None, turned: bool) -> Tensor:
    """(rows, columns), rotated (and padded for that) where there are signs."""
    values = x if factor is None else x.to(torch.float32) * factor
    matrix = values.t() if turned else values
    return matrix if signs is None else rotation.rotate(matrix, signs)


def rotate(x: Tensor, signs: Tensor, factor: Tensor | None, turned: bool, out: bool) -> tuple[Tensor, Tensor]:
    found = operand(x, signs, factor, turned)
    amax = found.abs().amax().reshape(1) if found.numel() else found.new_zeros(1)
    return _wanted(found, out), amax


def quantise(
    x: Tensor,
    amax: Tensor,
    signs: Tensor | None,
    factor: Tensor | None,
    turned: bool,
    square: bool,
    four_over_six: bool,
    key: Sequence[int],
    step: Tensor | None,
    base: int,
    fake: bool,
) -> Results:
    matrix = operand(x, signs, factor, turned)
    bits = _bits(key, step, base, matrix.shape[0], whole(matrix.shape[1], BLOCK))
    metric: blocks.Metric | None = "mse" if four_over_six else None
    return _results(blocks.quantise(matrix, square=square, four_over_six=metric, bits=bits, amax=amax.view(())), fake)


def quantise_eden(
    x: Tensor,
    amax: Tensor,
    signs: Tensor | None,
    factor: Tensor | None,
    turned: bool,
    key: Sequence[int],
    step: Tensor | None,
    base: int,
    fake: bool,
) -> Results:
    matrix = operand(x, signs, factor, turned)
    bits = _bits(key, step, base, matrix.shape[0], whole(matrix.shape[1], GROUP) // BLOCK)
    return _results(eden.quantise_eden(matrix, bits, group=GROUP, amax=amax.view(())), fake)


def _bits(key: Sequence[int], step: Tensor | None, base: int, rows: int, columns: int) -> Tensor | None:
    if step is None:
        return None
    return draws.Draw((key[0], key[1]), step.view(()), base).bits(rows, columns)


def _results(made: Blocks, fake: bool) -> Results:
    values = made.scaled().to(torch.bfloat16)
    scales = formats.swizzle(made.scale_bytes()).view(torch.uint8)
    return made.packed(), scales, _wanted(values, fake)


def _wanted(values: Tensor, wanted: bool) -> Tensor:
    return values.contiguous() if wanted else values.new_empty(0, values.shape[1])
