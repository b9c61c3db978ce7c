"""What the FP8 kernels compute, in plain torch on any device: the definition, which the kernels equal bit for bit.

Scales multiply: q = cast(x · scale), and the product of two quantised matrices is divided by both scales.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0}
"""Largest finite value."""
STEP = 16
"""FP8 GEMMs want every dimension divisible by this; tensors are padded with zeros."""


def padded(size: int) -> int:
    return -(-size // STEP) * STEP


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Nearest value, ties to even, saturating, infinity included; not a number stays so. Clamps first: torch's own casts
    disagree about what overflows."""
    return x.float().clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)


def current_scale(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(1,) float32: what puts the largest value of x on the largest of ``dtype``; 1 where x is all zero or not finite."""
    amax = x.abs().amax().float().reshape(1) if x.numel() else x.new_zeros(1, dtype=torch.float32)
    # A number over a tensor would be its reciprocal times the number: a bit away from what update_scales makes of the same amax.
    fresh = (torch.full_like(amax, LARGEST[dtype]) / amax).clamp(max=torch.finfo(torch.float32).max)
    return torch.where((amax > 0) & amax.isfinite(), fresh, torch.ones_like(fresh))


def cast_transpose(x: Tensor, scale: Tensor, amax: Tensor, e5m2: bool, transpose: bool) -> tuple[Tensor, Tensor]:
    """x (M, K), bfloat16 or float32 → q (M', K') and its transpose (K', M'), or an empty tensor unless ``transpose``; M' and K' are
    M and K rounded up to 16. ``amax`` (1,) becomes the larger of itself and max |x|, in x's own units."""
    dtype = E5M2 if e5m2 else E4M3
    rows, columns = x.shape
    if x.numel():
        torch.maximum(amax, x.abs().amax().float(), out=amax)
    q = cast(x.float() * scale, dtype)
    q = F.pad(q.view(torch.uint8), (0, padded(columns) - columns, 0, padded(rows) - rows)).view(dtype)
    turned = q.view(torch.uint8).t().contiguous().view(dtype) if transpose else q.new_empty(0)
    return q, turned


def update_scales(history: Tensor, scale: Tensor, inverse: Tensor, largest: Tensor) -> None:
    """Delayed scaling (TransformerEngine, common/recipe/delayed_scaling.cu), in place, for all tensors at once.

    history  (n, L) float32: column 0 stages the amax of the step that ends, the others are the oldest to the newest
    scale    (n,): becomes largest / max(history); stays where that maximum is 0, infinite or not a number; at most FLT_MAX
    inverse  (n, 4): column 0 is 1 / scale; the rest keeps each value on an address that cuBLASLt takes
    largest  (n,) of the format

    Then the histories roll, except where nothing was staged: a module that did not run keeps what it knows.
    """
    most = history.amax(1)
    usable = (most > 0) & most.isfinite()
    fresh = (largest / most).clamp(max=torch.finfo(torch.float32).max)
    scale.copy_(torch.where(usable, fresh, scale))
    inverse[:, 0] = torch.where(usable, 1 / fresh, inverse[:, 0])
    rolled = history.roll(-1, 1)
    rolled[:, -1] = history[:, 0]
    rolled[:, 0] = 0
    history.copy_(torch.where(history[:, :1] == 0, history, rolled))


def scaled_mm(a: Tensor, b: Tensor, inverse_a: Tensor, inverse_b: Tensor, dtype: torch.dtype) -> Tensor:
    """a (M, K) · b (N, K)^T, both FP8, in float32, times both inverse scales, rounded once to ``dtype``. Products of FP8 values are
    exact in float32 (and in TF32); the order of summation is all in which this differs from the tensor cores."""
    return ((a.float() @ b.float().t()) * (inverse_a * inverse_b)).to(dtype)
