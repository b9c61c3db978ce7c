"""What the kernels compute, in plain torch on any device. Sums may be taken in another order by a kernel.

Inputs are bfloat16 or float32, arithmetic is float32. Where an op may emit: ``scale`` (1,) float32 asks for a copy of the
result in E4M3, of gradients in E5M2, cast(result · scale), ``amax`` (1,) float32 becomes the larger of itself and the largest
magnitude of the result; either may be None, and without ``scale`` the copy is empty.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from surogate_native_fp8.reference import E4M3, E5M2, cast
from torch import Tensor


def emitted(result: Tensor, scale: Tensor | None, amax: Tensor | None, dtype: torch.dtype = E4M3) -> Tensor:
    """The copy in ``dtype``; ``amax`` is updated in place."""
    if amax is not None and result.numel():
        torch.maximum(amax, result.abs().amax().float(), out=amax)
    return result.new_empty(0, dtype=dtype) if scale is None else cast(result.float() * scale, dtype)


def rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, epsilon: float, scale: Tensor | None, amax: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x (M, N), weight (N,) → r = x + residual (empty without a residual), y = r · rstd · weight, rstd (M,) float32, y in E4M3.
    r and r · rstd are rounded to the dtype of x on the way, as in the models' own modules."""
    r = x if residual is None else x + residual
    wide = r.float()
    rstd = (wide.square().mean(-1) + epsilon).rsqrt()
    y = (wide * rstd[:, None]).to(x.dtype) * weight
    return x.new_empty(0) if residual is None else r, y, rstd, emitted(y, scale, amax)


def rms_norm_backward(r: Tensor, weight: Tensor, rstd: Tensor, dy: Tensor, dr: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of x, and of the residual alike, (M, N), and of weight (N,), float32. ``dr``: the gradient of r itself."""
    h, slope = r.float() * rstd[:, None], dy.float()
    along = slope * weight.float()
    dx = rstd[:, None] * (along - h * (along * h).mean(-1, keepdim=True))
    return (dx if dr is None else dx + dr.float()).to(r.dtype), (slope * h).sum(0)


def swiglu(both: Tensor, scale: Tensor | None, amax: Tensor | None) -> tuple[Tensor, Tensor]:
    """both (M, 2 F) = gate | up → silu(gate) · up (M, F), and it in E4M3. silu(gate) is rounded on the way."""
    gate, up = both.chunk(2, -1)
    h = F.silu(gate) * up
    return h, emitted(h, scale, amax)


def swiglu_backward(both: Tensor, dh: Tensor, scale: Tensor | None, amax: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradient of ``both`` (M, 2 F), and it in E5M2."""
    gate, up = (half.float() for half in both.chunk(2, -1))
    share, slope = gate.sigmoid(), dh.float()
    found = torch.cat((slope * up * share * (1 + gate * (1 - share)), slope * gate * share), -1).to(both.dtype)
    return found, emitted(found, scale, amax, E5M2)


def head_rotary(
    x: Tensor, weight: Tensor, cosine: Tensor, sine: Tensor, epsilon: float, scale: Tensor | None, amax: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """x (T, heads, D), weight (D,), cosine and sine (T, D) float32 → y, each head normed and turned to its place; rstd (T, heads);
    y in E4M3."""
    wide = x.float()
    rstd = (wide.square().mean(-1) + epsilon).rsqrt()
    z = ((wide * rstd[..., None]).to(x.dtype) * weight).float()
    y = (z * cosine[:, None] + _turned(z) * sine[:, None]).to(x.dtype)
    return y, rstd, emitted(y, scale, amax)


def head_rotary_backward(
    x: Tensor, weight: Tensor, cosine: Tensor, sine: Tensor, rstd: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x (T, heads, D) and of weight (D,), float32."""
    slope = dy.float()
    dz = (slope * cosine[:, None] - _turned(slope * sine[:, None])).to(x.dtype)
    dx, dw = rms_norm_backward(x.flatten(0, 1), weight, rstd.flatten(), dz.flatten(0, 1), None)
    return dx.view(x.shape), dw


def _turned(z: Tensor) -> Tensor:
    first, second = z.chunk(2, -1)
    return torch.cat((-second, first), -1)
