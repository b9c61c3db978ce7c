"""MS-EDEN, the unbiased quantiser of Quartet II (arXiv 2601.22813): values are rounded to nearest, and the bias of that is taken
out by a factor for each rotated group, which is rounded stochastically into the block scales."""

from __future__ import annotations

import torch
from torch import Tensor

from surogate_native_nvfp4 import formats
from surogate_native_nvfp4.blocks import BLOCK, FLOAT_MAX, Blocks, _amax, _tree, columns_first

LIMIT = 6.0 / (17 / 16 * 0.93)
"""What a block's largest value is mapped to: a little clipping costs less than a coarser grid."""
TOP = 255.99
"""The largest block scale, so that its correction cannot leave E4M3."""


def decode_scale(amax: Tensor) -> Tensor:
    """Of a matrix, float32 scalar: 1 for one of zeros, NaN for an amax that is not finite."""
    decode = torch.where(amax == 0, torch.ones_like(amax), amax / torch.full_like(amax, TOP) / torch.full_like(amax, LIMIT))
    return torch.where(amax.isfinite(), decode, torch.full_like(decode, float("nan")))


def quantise_eden(x: Tensor, bits: Tensor | None, *, group: int = 128, amax: Tensor | None = None) -> Blocks:
    """Quantise a rotated matrix (rows, columns) along its columns; unbiased over the signs of the rotation and ``bits``.

    bits   integers in [0, 65536), (rows, columns padded to ``group`` / 16), for the scales; None rounds them to nearest
    group  columns that were rotated together: 128
    amax   largest magnitude of the whole matrix where ``x`` is a part of it
    """
    cells = columns_first(x, group).unflatten(1, (-1, BLOCK)).flatten(0, 1)  # (columns / 16, 16, rows)
    if amax is None:
        amax = _amax(cells) if cells.numel() else cells.new_zeros(())
    decode = decode_scale(amax)
    scales = formats.e4m3(cells.abs().amax(1) / torch.full_like(amax, LIMIT) / decode)
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    scaled = cells / (scales * decode).clamp(max=FLOAT_MAX)[:, None]
    grid = formats.e2m1(scaled)

    def of_group(values: Tensor) -> Tensor:  # (columns / 16, 16, rows) -> (groups, rows)
        return _tree(values.flatten(0, 1).unflatten(0, (-1, group)), 1)

    along = of_group(scaled * grid)
    factor = torch.where(along == 0, torch.ones_like(along), of_group(scaled.mul_(scaled)) / along)
    wanted = scales * factor.repeat_interleave(group // BLOCK, dim=0)
    scales = formats.e4m3(wanted) if bits is None else formats.e4m3_stochastic(wanted, bits.t().reshape(scales.shape))
    return Blocks(grid, scales, decode)
