"""The dynamic 8-bit format: 256 values between -1 and 1, dense near 0, and one float32 scale for each block of 256 values.

Source: Dettmers, "8-Bit Approximations for Parallelism in Deep Learning" (arXiv 1511.04561) and Dettmers et al., "8-bit Optimizers
via Block-wise Quantization" (arXiv 2110.02861). Moments use a signed map for m and an unsigned one for v.

The nearest code is found without a search. The upper 16 bits of a float32 name an interval ("cell") so narrow that at most one
boundary between two codes lies inside; a table of 65,536 cells gives the code at the cell's lower end and that boundary, and one
comparison decides. Ties go to the smaller value.

bitsandbytes' CUDA kernel, unlike its CPU code, never lets a negative moment become 0. Then a value that gets no more gradients
keeps the smallest negative m while its v becomes 0, and moves up for ever by that m over epsilon; here it comes to rest.
"""

from __future__ import annotations

import torch
from attrs import frozen
from torch import Tensor

BLOCK = 256
_CELLS = 1 << 16


def dynamic_map(signed: bool) -> Tensor:
    """The 256 values in ascending order, float32. The signed map has 1 but not -1."""
    values = [torch.tensor([0.0, 1.0])]
    for exponent in range(7):
        count = 2**exponent if signed else 2 ** (exponent + 1)
        edges = torch.linspace(0.1, 1, count + 1)
        means = 10.0 ** (exponent - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += [means, -means] if signed else [means]
    return torch.cat(values).sort().values


@frozen(eq=False)
class Codebook:
    """One map on one device. ``bases`` (65536, uint8) and ``bounds`` (65536, float32) are the tables described above; ``zero`` is
    the code of 0."""

    values: Tensor
    bases: Tensor
    bounds: Tensor
    offset: int
    zero: int

    def dequantize(self, codes: Tensor, absmax: Tensor) -> Tensor:
        """(n,) uint8 and (n / 256,) float32 → (n,) float32."""
        values = torch.index_select(self.values, 0, codes.to(torch.int32))
        values.view(-1, BLOCK).mul_(absmax[:, None])
        return values

    def quantize_(self, values: Tensor, codes: Tensor, absmax: Tensor) -> None:
        """Write the codes and block scales of ``values`` (n,), finite float32. ``values`` is used up: it holds scaled ones."""
        blocks = values.view(-1, BLOCK)
        torch.amax(blocks.abs(), dim=1, out=absmax)
        # a block of zeros has scale 0 and codes of value 0
        blocks.mul_(absmax.clamp(min=torch.finfo(torch.float32).tiny).reciprocal_()[:, None])
        cells = values.view(torch.int32).bitwise_right_shift(16)
        if self.offset:
            cells.add_(self.offset)
        above = values > torch.index_select(self.bounds, 0, cells)
        torch.add(torch.index_select(self.bases, 0, cells), above.view(torch.uint8), out=codes)


def codebook(signed: bool, device: torch.device) -> Codebook:
    values = dynamic_map(signed)
    zero = int((values < 0).sum())
    bounds = (values[:-1] + values[1:]) / 2
    bounds = torch.cat([bounds, torch.tensor([torch.inf])])
    # cells in the order of the index: for the signed map the negative half (arithmetic shift) comes first
    offset = _CELLS // 2 if signed else 0
    upper = torch.arange(_CELLS, dtype=torch.int32) - offset
    lower_end = torch.where(upper < 0, (upper << 16) | 0xFFFF, upper << 16).view(torch.float32)
    bases = torch.searchsorted(bounds, lower_end).clamp_(max=255)
    return Codebook(values.to(device), bases.to(torch.uint8).to(device), bounds[bases].to(device), offset, zero)
