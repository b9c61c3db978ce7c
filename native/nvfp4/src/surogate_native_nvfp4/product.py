"""The matrix product of two quantised matrices, on any device.

q * s has at most 6 significant bits and lies in [2**-10, 2688]: it is exact in bfloat16, and so is every product of two in float32.
What is left to the order of operations is the float32 sum, as in a block-scaled matrix unit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from surogate_native_nvfp4.blocks import Blocks


def product(a: Blocks, b: Blocks) -> Tensor:
    """a · b^T: (rows of a, columns) x (rows of b, columns) -> (rows of a, rows of b), float32."""
    return multiply(a.scaled(), b.scaled(), a.decode * b.decode)


def multiply(a: Tensor, b: Tensor, alpha: Tensor) -> Tensor:
    """``alpha`` · a · b^T in float32, of matrices whose values are exact in bfloat16: through bfloat16 matrix units with float32
    sums on a GPU, in float32 on a CPU."""
    if a.device.type == "cuda":
        return torch.mm(a.to(torch.bfloat16), b.to(torch.bfloat16).t(), out_dtype=torch.float32).mul_(alpha)
    return torch.mm(a.to(torch.float32), b.to(torch.float32).t()).mul_(alpha)
