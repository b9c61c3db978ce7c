"""Linear layers whose three products have a dtype of their own: ``matmul_dtype`` forward, ``gradient_dtype`` backward.

    y  = x · W^T        both operands in ``forward``
    dx = dy · W         dy in ``backward``
    dW = dy^T · x       dy in ``backward``

"fp32" and "bf16" convert both operands; sums are float32. The FP8 products pair E4M3 with E4M3 forward and E5M2 (dy) with E4M3 (W
or x) backward, each tensor scaled by its own largest value; sizes that FP8 products cannot divide are padded with zeros. Results
have the dtype that came in, rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from attrs import frozen
from surogate_native_fp8 import cast_transpose, current_scale, scaled_mm
from surogate_native_fp8.reference import E4M3, E5M2
from torch import Tensor

Dtype = Literal["fp32", "bf16", "e4m3", "e5m2"]


@frozen
class Dtypes:
    """``forward`` is no E5M2, ``backward`` no E4M3. ``native``: cuBLASLt multiplies FP8; otherwise emulated, exact products in
    float32."""

    forward: Dtype
    backward: Dtype
    native: bool
    kernels: str

    def compute(self) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """``f(x (..., K), weight (N, K), bias) -> y (..., N)``."""

        def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            y = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, self).view(*x.shape[:-1], weight.shape[0])
            return y if bias is None else y + bias

        return torch.compiler.disable(linear) if "e4m3" in (self.forward, self.backward) or self.backward == "e5m2" else linear

    def product(self, a: Tensor, b: Tensor, dtype: Dtype, out: torch.dtype) -> Tensor:
        """a (M, K) · b (N, K)^T -> (M, N) in ``out``; "e5m2": a in E5M2, b in E4M3."""
        if dtype in ("fp32", "bf16"):
            return _plain(a, b, torch.float32 if dtype == "fp32" else torch.bfloat16, out)
        left, of_left = self._quantised(a, e5m2=dtype == "e5m2")
        right, of_right = self._quantised(b, e5m2=False)
        y = scaled_mm(left, right, of_left, of_right, out, fast=dtype == "e4m3", native=self.native)
        return y[: a.shape[0], : b.shape[0]]

    def _quantised(self, x: Tensor, e5m2: bool) -> tuple[Tensor, Tensor]:
        """Padded bytes with the contracted dimension last, and the inverse scale (1,)."""
        scale = current_scale(x, E5M2 if e5m2 else E4M3)
        amax = x.new_zeros(1, dtype=torch.float32)
        if x.is_contiguous() or not x.t().is_contiguous():
            return cast_transpose(x, scale, amax, e5m2=e5m2, kernels=self.kernels)[0], 1 / scale
        return cast_transpose(x.t(), scale, amax, e5m2=e5m2, transpose=True, kernels=self.kernels)[1], 1 / scale


def _plain(a: Tensor, b: Tensor, dtype: torch.dtype, out: torch.dtype) -> Tensor:
    """Both operands in ``dtype``, float32 sums, rounded once to ``out``."""
    a, b = a.to(dtype), b.to(dtype)
    if dtype == out:
        return a @ b.t()
    if dtype == torch.bfloat16 and a.device.type == "cuda":
        return torch.mm(a, b.t(), out_dtype=torch.float32).to(out)
    return (a.float() @ b.float().t()).to(out)  # products of bfloat16 are exact in float32


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtypes: Dtypes) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dtypes = dtypes
        return dtypes.product(x, weight, dtypes.forward, x.dtype).contiguous()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        product, dtype = ctx.dtypes.product, ctx.dtypes.backward
        dx = product(dy, weight.t(), dtype, x.dtype) if ctx.needs_input_grad[0] else None
        dw = product(dy.t(), x.t(), dtype, weight.dtype) if ctx.needs_input_grad[1] else None
        return dx, dw, None
