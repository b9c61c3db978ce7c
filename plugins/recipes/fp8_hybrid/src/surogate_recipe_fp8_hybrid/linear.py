"""Linear layers in FP8 with delayed scaling (TransformerEngine, common/recipe/delayed_scaling.cu; numbers in arXiv 2209.05433).

    forward          Y  = X8 · W8^T        X, W in E4M3
    input gradient   dX = dY8 · W8         dY in E5M2
    weight gradient  dW = dY8^T · X8

One scale a tensor. It comes from the largest values of the last ``fp8_amax_history`` optimizer steps and is fixed within a step:
all micro-batches of a step stage their maximum, and :meth:`Hybrid.stepped` makes the new scales. A tensor without a history
takes its scale from itself. Frozen weights are quantised once, others once for each optimizer step.

On a GPU the GEMMs are cuBLASLt's, which want K contiguous in both operands: quantising writes the transpose besides. Emulated, the
same bytes are multiplied in float32, where every product is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from surogate_native_fp8 import cast_transpose, current_scale, scaled_mm, update_scales
from surogate_native_fp8.reference import E4M3, E5M2, LARGEST
from surogate_offload import Kept
from torch import Tensor, nn

from surogate_core.contracts import Context, Copies, Site
from surogate_recipe_fp8_hybrid.plugin import Options

X, W, DY = range(3)
"""Rows of the scale buffers."""
FORMATS = (E4M3, E4M3, E5M2)
STATE = ("history", "scale", "inverse")


class Quantised(NamedTuple):
    """``rows`` (M', K') and its transpose ``columns``, padded to multiples of 16; ``inverse`` (1,) of the scale; ``amax`` (1,)."""

    rows: Tensor
    columns: Tensor
    inverse: Tensor
    amax: Tensor


class Hybrid:
    """The recipe. ``native``: cuBLASLt multiplies; otherwise emulated."""

    def __init__(self, options: Options, native: bool, kernels: str):
        self.options, self.native, self.kernels = options, native, kernels

    def claim(self, site: Site) -> str | None:
        least = self.options.fp8_min_dim
        return None if min(site.shape) >= least else f"smaller than fp8_min_dim = {least}"

    def linear(self, site: Site) -> Fp8Linear:
        return Fp8Linear(self.options.fp8_amax_history, self.native, self.kernels)

    @property
    def bounds(self) -> dict[str, float]:
        """For ``surogate recipe report``. E5M2 has 0.053 on normal values; with more, a scale does not fit its tensor."""
        return {"operand": 0.08, "loss": 0.005}

    def operands(self, compute: Fp8Linear, x: Tensor, weight: Tensor, dy: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """X, W and dY as :class:`Fp8Linear` would round them now: (exact, what the products see, whether it is clipped)."""
        found = {}
        for row, (name, exact) in enumerate((("x", x), ("W", weight), ("dy", dy))):
            made = compute.quantise(row, exact, transpose=False)
            seen = made.rows[: exact.shape[0], : exact.shape[1]].float() * made.inverse
            found[name] = exact, seen, exact.abs().float() > LARGEST[FORMATS[row]] * made.inverse
        return found

    def stepped(self, computes: Mapping[str, nn.Module]) -> None:
        """New scales from the maxima that the step staged."""
        if not computes:
            return
        state = [[getattr(module, name) for module in computes.values()] for name in STATE]
        joined = [torch.cat(parts) for parts in state]
        history, scale, inverse = joined
        largest = torch.empty_like(scale)
        for row, dtype in enumerate(FORMATS):
            largest[row :: len(FORMATS)] = LARGEST[dtype]
        update_scales(history, scale, inverse, largest, kernels=self.kernels)
        for parts, whole in zip(state, joined, strict=True):
            torch._foreach_copy_(parts, list(whole.split(len(FORMATS))))
        for module in computes.values():
            if isinstance(module, Fp8Linear):
                module.forget()


def build(options: Options, context: Context) -> Hybrid:
    return Hybrid(options, context.config.recipe_backend != "emulated", context.config.kernels)


class Fp8Linear(nn.Module):
    """The compute of one linear layer: ``f(x (..., K), weight (N, K), bias) -> y (..., N)``.

    history  (3, L) float32, for X, W and dY: the staged maximum, then the oldest to the newest
    scale    (3,) float32, 0 where there is no history yet
    inverse  (3, 4) float32: column 0 is 1 / scale
    """

    history: Tensor
    scale: Tensor
    inverse: Tensor

    def __init__(self, length: int, native: bool, kernels: str):
        super().__init__()
        self.native, self.kernels = native, kernels
        self.register_buffer("history", torch.zeros(len(FORMATS), length))
        self.register_buffer("scale", torch.zeros(len(FORMATS)))
        self.register_buffer("inverse", torch.zeros(len(FORMATS), 4))
        self._known, self._read = [False] * len(FORMATS), -1
        self.copies: Copies = Kept()
        self.trained = True

    @torch.compiler.disable
    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, self)
        y = y.view(*x.shape[:-1], weight.shape[0])
        return y if bias is None else y + bias

    def quantise(self, row: int, x: Tensor, transpose: bool) -> Quantised:
        """x (M, K) in the format of ``row``, by its delayed scale, or by its own maximum where there is no history."""
        e5m2 = FORMATS[row] == E5M2
        if self._has_history(row):
            scale, inverse = self.scale[row : row + 1], self.inverse[row, :1]
        else:
            scale = current_scale(x, FORMATS[row])
            inverse = 1 / scale
        amax = x.new_zeros(1, dtype=torch.float32)
        q, turned = cast_transpose(x, scale, amax, e5m2=e5m2, transpose=transpose and self.native, kernels=self.kernels)
        return Quantised(q, turned if self.native else q.t(), inverse, amax)

    def stage(self, row: int, amax: Tensor) -> None:
        """Remember the largest value of this step. Evaluation leaves no trace in the scales."""
        if self.training:
            staged = self.history[row, :1]
            torch.maximum(staged, amax, out=staged)

    def quantised_weight(self, weight: Tensor) -> Quantised:
        """From the last call where neither the weight nor its scale has changed; a frozen weight's scale cannot change. A weight
        that is no parameter was unpacked for this call: nothing of it is kept, unless ``copies`` says otherwise."""
        self.trained = weight.requires_grad
        state = (weight.data_ptr(), weight._version, self.scale._version if self.trained else None)
        rows, inverse, amax, *turned = self.copies.get(weight, state, lambda: self._tensors(weight))
        return Quantised(rows, turned[0] if turned else rows.t(), inverse, amax)

    def _tensors(self, weight: Tensor) -> tuple[Tensor, ...]:
        made = self.quantise(W, weight.detach(), transpose=True)
        own = (made.rows, made.inverse, made.amax)
        return (*own, made.columns) if self.native else own

    def forget(self) -> None:
        """After an optimizer step: while a dispatch mode watches (how memory is counted), torch's foreach and fused updates change
        weights and scales without a trace in their version counters."""
        self._read = -1
        if self.trained:
            self.copies.forget()

    def _has_history(self, row: int) -> bool:
        """Reads from the device until there is one, which is after the first step."""
        if not self._known[row] and self._read != self.scale._version:
            self._known, self._read = [value > 0 for value in self.scale.tolist()], self.scale._version
        return self._known[row]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: Fp8Linear) -> Tensor:
        x8, w8 = layer.quantise(X, x, transpose=weight.requires_grad), layer.quantised_weight(weight)
        layer.stage(X, x8.amax)
        layer.stage(W, w8.amax)
        ctx.layer, ctx.shape, ctx.dtypes = layer, (x.shape[0], *weight.shape), (x.dtype, weight.dtype)
        # the copy of a parameter is asked for again: where it is kept is not for autograd to say
        ctx.weight, ctx.w8 = (weight, None) if isinstance(weight, nn.Parameter) else (None, w8)
        ctx.save_for_backward(*((x8.columns, x8.inverse) if ctx.needs_input_grad[1] else ()))
        y = scaled_mm(x8.rows, w8.rows, x8.inverse, w8.inverse, x.dtype, fast=True, native=layer.native)
        return y[: x.shape[0], : weight.shape[0]].contiguous()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        layer, (m, n, k), (x_dtype, w_dtype) = ctx.layer, ctx.shape, ctx.dtypes
        saved = ctx.saved_tensors  # before the weight: where the layer is computed again, this is when
        dy8 = layer.quantise(DY, dy, transpose=ctx.needs_input_grad[1])
        layer.stage(DY, dy8.amax)
        dx = dw = None
        if ctx.needs_input_grad[0]:
            w8 = ctx.w8 or layer.quantised_weight(ctx.weight)
            dx = scaled_mm(dy8.rows, w8.columns, dy8.inverse, w8.inverse, x_dtype, native=layer.native)[:m, :k]
        if ctx.needs_input_grad[1]:
            x8, inverse = saved
            dw = scaled_mm(dy8.columns, x8, dy8.inverse, inverse, w_dtype, native=layer.native)[:n, :k]
        return dx, dw, None
