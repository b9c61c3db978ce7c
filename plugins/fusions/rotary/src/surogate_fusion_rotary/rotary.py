"""Rotary positions (Su et al., arXiv 2104.09864, equation 34) of queries and keys as one function with its own backward.

transformers writes them as a product with the cosines, two negated and joined halves, a product with the sines and a sum, and
autograd takes each of them back. Here a half of the result is the product with the cosines and one product more, added in place:

    y₁ = x₁·c₁ - x₂·s₁,  y₂ = x₂·c₂ + x₁·s₂
    dx₁ = dy₁·c₁ + dy₂·s₂,  dx₂ = dy₂·c₂ - dy₁·s₁

Attention modules of transformers call a function of their own source file by name. That of a claimed module is called with the same
code, for which this name stands for :func:`rotate`; nothing is changed in transformers. A module is claimed when, with random
inputs, the function of its file and this one give the same numbers, forward and backward: interleaved pairs, or parts of heads, are
left as they are.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn

from surogate_core.contracts import Context, Site
from surogate_core.plan.alike import alike

NAME = "apply_rotary_pos_emb"
AGREE = 1e-5
"""Largest difference of float32 results, relative to the largest value."""


@define
class Rotary:
    """``known`` remembers the answer for each class of attention, ``made`` its code."""

    known: dict[type, str | None] = field(factory=dict)
    made: dict[type, types.FunctionType] = field(factory=dict)

    def claim(self, site: Site, module: nn.Module) -> str | None:
        if site.kind != "attention":
            return "not attention"
        kind = type(module)
        if kind not in self.known:
            self.known[kind] = _refusal(kind.forward)
        return self.known[kind]

    def forward(self, module: nn.Module) -> Callable[..., Any]:
        kind = type(module)
        if kind not in self.made:
            self.made[kind] = _with(kind.forward, rotate)
        return types.MethodType(self.made[kind], module)


def build(options: None, context: Context) -> Rotary:
    return Rotary()


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """q and k (B, heads, S, D), or (B, S, heads, D) with ``unsqueeze_dim`` 2, turned by cos and sin (B, S, D); in their dtypes."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return _Turn.apply(q, cos, sin), _Turn.apply(k, cos, sin)


def _refusal(forward: Any) -> str | None:
    if not isinstance(forward, types.FunctionType) or NAME not in forward.__code__.co_names:
        return f"does not call {NAME}"
    theirs = forward.__globals__.get(NAME)
    return None if callable(theirs) and _same(theirs) else "turns other pairs of values"


def _with(forward: Any, function: Callable[..., Any]) -> types.FunctionType:
    """The same code, for which ``NAME`` is ``function``."""
    names = {**forward.__globals__, NAME: function}
    found = types.FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    found.__kwdefaults__ = forward.__kwdefaults__
    return found


def _same(theirs: Callable[..., tuple[Tensor, Tensor]]) -> bool:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu")

    for place in (1, 2):
        shapes = [(2, heads, 3, 16) if place == 1 else (2, 3, heads, 16) for heads in (4, 2)]
        q, k = (draw(*shape).requires_grad_() for shape in shapes)
        cos, sin = draw(2, 3, 16), draw(2, 3, 16)
        given: dict[str, Any] = {"q": q, "k": k, "cos": cos, "sin": sin, "unsqueeze_dim": place}
        if not alike(partial(theirs, **given), partial(rotate, **given), (q, k), AGREE):
            return False
    try:
        theirs(draw(2, 4, 3, 16), draw(2, 2, 3, 16), draw(2, 3, 8), draw(2, 3, 8))
    except (RuntimeError, TypeError, ValueError):
        return True  # it takes whole heads alone, as this one
    return False


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        y = x * cos
        half = x.shape[-1] // 2
        y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        d = grad * cos
        half = grad.shape[-1] // 2
        d[..., :half].addcmul_(grad[..., half:], sin[..., half:])
        d[..., half:].addcmul_(grad[..., :half], sin[..., :half], value=-1)
        return d, None, None
