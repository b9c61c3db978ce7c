"""NVFP4: E2M1 values with an E4M3 scale for each block of 16 and one float32 scale for the matrix.

A value is q * s * S, with q in E2M1, s the E4M3 scale of its block and S the matrix's decode scale. Sources of the arithmetic and
of its order: Transformer Engine (NVFP4 reference quantiser), "Four Over Six" (arXiv 2512.02010).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from surogate_native_nvfp4 import formats

BLOCK = 16
FOUR_OVER_SIX_MAX = 256.0
"""The largest block scale for 6, so that the one for 4, half as large again, still fits E4M3."""
FLOAT_MAX = torch.finfo(torch.float32).max
Metric = Literal["mse", "mae", "abs_max"]


@frozen(eq=False)
class Blocks:
    """A quantised matrix of ``rows`` x ``columns`` (padded with zeros to whole blocks), held column by column.

    grid    float32 (columns / 16, 16, rows): E2M1 values
    scales  float32 (columns / 16, rows): E4M3 values, one for 16 columns of a row; of a 16 x 16 block each row has a copy
    decode  float32 scalar: the matrix's decode scale S; NaN when the matrix has a value that is not finite
    """

    grid: Tensor
    scales: Tensor
    decode: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.grid.shape[2], self.grid.shape[0] * self.grid.shape[1]

    def scaled(self) -> Tensor:
        """q * s, (rows, columns) float32, columns outermost in memory. Exact, in bfloat16 too: at most 6 significant bits."""
        return (self.grid * self.scales[:, None]).flatten(0, 1).t()

    def dequantised(self) -> Tensor:
        """q * s * S, (rows, columns) float32."""
        return self.scaled() * self.decode

    def codes(self) -> Tensor:
        """E2M1 codes, (rows, columns) uint8."""
        return formats.e2m1_codes(self.grid).flatten(0, 1).t().contiguous()

    def packed(self) -> Tensor:
        """(rows, columns / 2) uint8, the even column in the low half of a byte."""
        return formats.pack(self.codes())

    def scale_bytes(self) -> Tensor:
        """(rows, columns / 16) in ``torch.float8_e4m3fn``; :func:`formats.swizzle` puts them in the order that kernels read."""
        return self.scales.t().contiguous().to(torch.float8_e4m3fn)


def unpack(packed: Tensor, scales: Tensor, decode: Tensor) -> Blocks:
    """What ``packed()``, ``scale_bytes()`` and ``decode`` of a :class:`Blocks` stand for."""
    values = formats.e2m1_values(formats.unpack(packed)).t().contiguous()
    return Blocks(values.unflatten(0, (-1, BLOCK)), scales.to(torch.float32).t().contiguous(), decode)


# Below, constants are divided by or into as tensors: for a Python number torch multiplies by a reciprocal (a number over a tensor
# everywhere, a tensor over a number on a GPU), which rounds twice.


def columns_first(x: Tensor, block: int = BLOCK) -> Tensor:
    """Matrix (rows, columns) of any float dtype as float32 (columns / block, block, rows), columns padded with zeros: every
    operation then runs along rows, which lie together. No copy where the matrix is the transpose of such a tensor."""
    wide = x.t().to(torch.float32).contiguous()
    if lacking := -wide.shape[0] % block:
        wide = F.pad(wide, (0, 0, 0, lacking))
    return wide.unflatten(0, (-1, block))


def encode_scale(amax: Tensor, limit: float, top: float) -> tuple[Tensor, Tensor]:
    """(encode, decode) scale of a matrix, float32 scalars: ``limit * top / amax``, at most FLT_MAX, 1 for a matrix of zeros, and
    its reciprocal. An amax that is not finite gives NaN as the decode scale, so that it shows in every product."""
    encode = torch.full_like(amax, limit * top).div_(amax).clamp_max_(FLOAT_MAX)
    encode = torch.where((amax == 0) | (encode == 0), torch.ones_like(encode), encode)
    return encode, torch.where(amax.isfinite(), encode.reciprocal(), torch.full_like(encode, float("nan")))


def quantise(
    x: Tensor,
    *,
    square: bool = False,
    four_over_six: Metric | None = None,
    bits: Tensor | None = None,
    limit: float = formats.E2M1_MAX,
    amax: Tensor | None = None,
) -> Blocks:
    """Quantise a matrix (rows, columns) of any float dtype along its columns.

    square         one scale for 16 x 16 values instead of 1 x 16: the matrix and its transpose then quantise to the same values
    four_over_six  let each block map its largest value to 6 or to 4, whichever has the smaller error of this kind; ties take 6
    bits           integers in [0, 65536), (rows, columns padded to 16): round stochastically with them. The choice of four over six
                   is made on values rounded to nearest, so that the drawn values stay unbiased
    limit          the value that a block's largest is mapped to, 6 by default. 6 * 16/17 leaves room for a scale that was rounded
                   down, without which stochastic rounding would be biased by clipping
    amax           largest magnitude of the whole matrix where ``x`` is a part of it, float32 scalar

    Raises ValueError for what is not a matrix.
    """
    if x.dim() != 2:
        raise ValueError(f"a matrix is quantised, not a tensor of shape {tuple(x.shape)}")
    cells = columns_first(x)
    if amax is None:
        amax = _amax(cells) if cells.numel() else cells.new_zeros(())
    block = cells.abs().amax(1)
    if square:
        block = _over_rows(block, torch.amax)
    if four_over_six is None:
        encode, decode = encode_scale(amax, limit, formats.E4M3_MAX)
        scales = formats.e4m3(block * (encode * (1.0 / limit)))
        factors = _factors(scales, decode)
    else:
        encode, decode = encode_scale(amax, limit, FOUR_OVER_SIX_MAX)
        raw = block / torch.full_like(amax, limit) * encode
        scales, factors, grid = _choose(cells, raw, decode, four_over_six, square)
        if bits is None:
            return Blocks(grid, scales, decode)
    scaled = cells * factors[:, None]
    if bits is None:
        return Blocks(formats.e2m1(scaled), scales, decode)
    return Blocks(formats.e2m1_stochastic(scaled, _as_cells(bits, cells)), scales, decode)


def _choose(cells: Tensor, raw: Tensor, decode: Tensor, metric: Metric, square: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Four over six: (scales, encode factors, values rounded to nearest). ``raw``: block scales that map the largest value to 6."""
    both = formats.e4m3(torch.stack((raw, raw * 1.5)))  # the two candidates, (2, blocks, rows)
    factors = _factors(both, decode)
    grid = formats.e2m1(cells * factors[:, :, None])
    error = (grid * (both * decode)[:, :, None]).sub_(cells)
    if metric == "mse":
        error = _tree(error.mul_(error), 2)
    elif metric == "mae":
        error = _tree(error.abs_(), 2)
    else:
        error = error.abs_().amax(2)
    if square:
        error = _over_rows(error.flatten(0, 1), torch.amax if metric == "abs_max" else _tree).view(both.shape)
    better = error[1] < error[0]
    scales, factor = (torch.where(better, part[1], part[0]) for part in (both, factors))
    return scales, factor, torch.where(better[:, None], grid[1], grid[0])


def _factors(scales: Tensor, decode: Tensor) -> Tensor:
    """What values of a block are multiplied by: 1 / (s * S), at most FLT_MAX; 0 where s is 0."""
    return torch.where(scales == 0, torch.zeros_like(scales), (scales * decode).reciprocal_().clamp_max_(FLOAT_MAX))


def _amax(cells: Tensor) -> Tensor:
    return torch.maximum(cells.amax(), -cells.amin())


def _tree(values: Tensor, dim: int) -> Tensor:
    """Sum along a dimension whose size is a power of two: halves are added until one is left, on every device in this order."""
    while values.shape[dim] > 1:
        first, second = values.chunk(2, dim)
        values = first + second
    return values.squeeze(dim)


def _over_rows(values: Tensor, reduce: object) -> Tensor:
    """(blocks, rows) reduced over each 16 rows, with a copy for each of them."""
    rows = values.shape[1]
    tiles = F.pad(values, (0, -rows % BLOCK)).unflatten(1, (-1, BLOCK))
    return reduce(tiles, 2).repeat_interleave(BLOCK, dim=1)[:, :rows]  # type: ignore[operator]


def _as_cells(bits: Tensor, cells: Tensor) -> Tensor:
    """Random bits (rows, columns) in the shape of the cells."""
    if bits.numel() != cells.numel():
        raise ValueError(f"random bits of shape {tuple(bits.shape)} for {cells.shape[2]} rows of {cells.shape[0] * BLOCK} values")
    return bits.t().reshape(cells.shape)
