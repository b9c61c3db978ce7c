"""What the kernels compute, in plain torch on any device."""

from __future__ import annotations

import torch
from torch import Tensor

LOWER = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334)
MIDDLE = (-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224)
UPPER = (0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)
LEVELS = (*LOWER, *MIDDLE, *UPPER)
"""NF4 (Dettmers et al., arXiv 2305.14314, appendix E), by code."""


def nf4(codes: Tensor, absmax: Tensor, values: int, block: int, dtype: torch.dtype) -> Tensor:
    """codes (values / 2,) uint8, the first code of a byte in its high half; absmax (values / block,) float32; both rounded up →
    (values,): level · absmax in float32, rounded once."""
    both = torch.stack((codes >> 4, codes & 15), 1).flatten()[:values].int()
    return (levels(codes.device)[both] * absmax.repeat_interleave(block)[:values]).to(dtype)


def levels(device: torch.device) -> Tensor:
    return torch.tensor(LEVELS, dtype=torch.float32, device=device)


def tiles(codes: Tensor, scales: Tensor, tile: int, dtype: torch.dtype) -> Tensor:
    """codes (N, K) E4M3, scales (N / tile, K / tile) float32, rounded up → (N, K): code · scale in float32, rounded once."""
    rows, columns = codes.shape
    spread = scales.repeat_interleave(tile, 0)[:rows].repeat_interleave(tile, 1)[:, :columns]
    return (codes.float() * spread).to(dtype)
