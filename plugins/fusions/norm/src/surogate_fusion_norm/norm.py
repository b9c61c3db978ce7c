"""Root mean square norm (Zhang and Sennrich, arXiv 1910.07467, equation 4) as one function with its own backward.

transformers writes it as six operations whose results autograd keeps, three of them float32 tensors of the input's size. Here the
input and one number a row are kept, and the backward works in place:

    r = (mean(x²) + eps)^-1/2,  h = x·r,  y = h·w
    dx = r·(dy·w - h·mean(dy·w·h)),  dw = sum over rows of dy·h

A module is claimed when, with random weights and inputs so small that eps counts, it and this function give the same numbers,
forward and backward: a norm with weights 1 + w, with a bias, or that takes the mean off first is left as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn

from surogate_core.contracts import Context, Site
from surogate_core.plan.alike import alike

EPSILONS = ("variance_epsilon", "eps", "epsilon")
AGREE = 1e-5
"""Largest difference of float32 results, relative to the largest value."""


@define
class Norms:
    """``known`` remembers the answer for each kind of module: a model repeats the same few norms."""

    known: dict[tuple[type, tuple[int, ...], float], str | None] = field(factory=dict)

    def claim(self, site: Site, module: nn.Module) -> str | None:
        epsilon = _epsilon(module)
        if site.kind != "norm":
            return "not a norm"
        if epsilon is None or [name for name, _ in module.named_parameters()] != ["weight"]:
            return "not one weight and one epsilon"
        key = type(module), site.shape, epsilon
        if key not in self.known:
            self.known[key] = None if _same(module, epsilon) else "computes something else than a root mean square norm"
        return self.known[key]

    def forward(self, module: nn.Module) -> Callable[..., Tensor]:
        epsilon = _epsilon(module)
        assert epsilon is not None
        return partial(_call, module, epsilon)


def build(options: None, context: Context) -> Norms:
    return Norms()


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x (..., N) times the inverse root of its rows' mean squares, times ``weight`` (N,), in x's dtype. Inside it is float32, or
    float64 for float64; like transformers' it is rounded to x's dtype before the weight comes in."""
    return _RMSNorm.apply(x, weight, epsilon)


def _call(module: nn.Module, epsilon: float, x: Tensor) -> Tensor:
    return rms_norm(x, module.get_parameter("weight"), epsilon)


def _epsilon(module: nn.Module) -> float | None:
    found = [value for name in EPSILONS if isinstance(value := getattr(module, name, None), float)]
    return found[0] if len(found) == 1 else None


def _same(module: nn.Module, epsilon: float) -> bool:
    generator = torch.Generator().manual_seed(0)
    own = copy.deepcopy(module).to_empty(device="cpu").float()
    weight = own.get_parameter("weight")
    width = weight.shape[-1]
    weight.data = torch.randn(width, generator=generator, device="cpu")

    def same(size: float) -> bool:
        x = (torch.randn(3, width, generator=generator, device="cpu") * size).requires_grad_()
        return alike(partial(own, x), partial(rms_norm, x, weight, epsilon), (x, weight), AGREE)

    return same(1.0) and same(epsilon**0.5)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=exact).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        y = (x * r).to(x.dtype)
        return y.mul_(weight) if weight.dtype == x.dtype else y * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, r = ctx.saved_tensors
        width = x.shape[-1]
        h = (x * r).view(-1, width)
        slope = grad.reshape(-1, width).to(h.dtype)
        both = h * slope
        grad_weight = both.sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        w = weight.to(h.dtype)
        mean = torch.mv(both, w).div_(width)[:, None]
        d = torch.mul(slope, w, out=both).sub_(h.mul_(mean)).mul_(r.view(-1, 1))
        return d.to(x.dtype).view(x.shape), grad_weight, None
