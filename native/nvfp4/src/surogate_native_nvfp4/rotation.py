"""Hadamard transforms along the contracted dimension of a product.

With H orthogonal, (A H)(B H)^T = A B^T: the product does not change, but an outlier is spread over its whole group before it is
quantised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from surogate_native_nvfp4.blocks import columns_first

RHT_SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)
"""Signs of the 16-wide transform: the same for all layers and steps (Transformer Engine, ``get_wgrad_sign_vector``)."""


def signs_of(device: torch.device) -> Tensor:
    """:data:`RHT_SIGNS` as float32 (16,)."""
    return torch.tensor(RHT_SIGNS, dtype=torch.float32, device=device)


def rotate(x: Tensor, signs: Tensor) -> Tensor:
    """x · diag(signs) · H / sqrt(n) on each n = len(signs) columns of a matrix (rows, columns): float32 (rows, columns), the
    columns padded with zeros to whole groups and outermost in memory. H is Sylvester's Hadamard matrix, n a power of two.

    The sums are butterflies (neighbours 1, 2, 4, ... apart) in float32, then one multiplication: on every device the same bits.
    """
    size = signs.numel()
    groups = columns_first(x, size) * signs[:, None]
    count, _, rows = groups.shape
    near = 1
    while near < size:
        left, right = groups.view(count, size // (2 * near), 2, near, rows).unbind(2)
        groups = torch.stack((left + right, left - right), dim=2)
        near *= 2
    return groups.view(count * size, rows).mul_(size**-0.5).t()
