"""The arithmetic of one LoRA layer, y + s·(dropout(x)·Aᵀ)·Bᵀ: the rank-sized product first, in both directions, so that neither B·A
nor a gradient of the base weight is ever formed.

Without dropout torch's own graph keeps nothing that could be left out: x, which the layers beside share, and the rank-sized
product. With dropout it keeps a dropped copy of x and its noise for every adapted layer; :class:`_Dropped` keeps x, once, and a
mask of one byte a value, and drops again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def add_low_rank(x: Tensor, y: Tensor, a: Tensor, b: Tensor, scale: float, dropout: float) -> Tensor:
    """x (..., K), y (..., N), a (r, K), b (N, r), all of one dtype → (..., N). ``dropout`` is 0 outside of training."""
    flat_x, flat_y = x.flatten(0, -2), y.flatten(0, -2)
    if dropout and not torch.compiler.is_compiling():
        return _Dropped.apply(flat_x, flat_y, a, b, scale, dropout).view(y.shape)
    low = F.linear(F.dropout(flat_x, dropout, bool(dropout)), a) * scale
    return torch.addmm(flat_y, low, b.t()).view(y.shape)


def drop(x: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """What ``F.dropout`` gives, from the same random numbers, and the mask of what is kept."""
    if x.is_cuda:
        dropped, keep = torch.native_dropout(x, rate, True)
        return dropped, keep
    noise = torch.empty_like(x).bernoulli_(1 - rate)
    keep = noise.bool()
    return noise.div_(1 - rate).mul_(x), keep


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, a: Tensor, b: Tensor, scale: float, rate: float) -> Tensor:
        dropped, keep = drop(x, rate)
        low = torch.mm(dropped, a.t()).mul_(scale)
        ctx.save_for_backward(x, keep, a, b, low)
        ctx.scale, ctx.rate = scale, rate
        return torch.addmm(y, low, b.t())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, keep, a, b, low = ctx.saved_tensors
        back = torch.mm(grad, b).mul_(ctx.scale / (1 - ctx.rate))
        grad_x = torch.mm(back, a).mul_(keep) if ctx.needs_input_grad[0] else None
        return grad_x, grad, torch.mm(back.t(), x * keep), torch.mm(grad.t(), low), None, None
