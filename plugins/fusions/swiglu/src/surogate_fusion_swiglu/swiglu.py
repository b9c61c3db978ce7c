"""Gated feed-forward block (Shazeer, arXiv 2002.05202, equation 6, SwiGLU) with a function of its own between its linear layers.

transformers writes ``down(silu(gate(x)) * up(x))``, and autograd keeps gate, silu(gate), up and the product, the widest tensors of
a layer. Here silu(gate) is not kept but computed again in the backward pass, which works in place:

    h = silu(e)·g,  de = dh·g·s·(1 + e·(1 - s)),  dg = dh·e·s,  s = 1 / (1 + exp(-e))

Values are rounded where transformers' are: bit for bit the same numbers come out. A module is claimed when it and this function,
between small random linear layers, do give the same: a clamp, another activation or a factor is left as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from attrs import define, field
from torch import Tensor, nn

from surogate_core.contracts import Context, Site
from surogate_core.plan.alike import alike

ROLES = ("gate_proj", "up_proj", "down_proj")
HIDDEN, WIDE = 4, 6
"""Sizes of the small layers."""


@define
class SwiGLU:
    """``known`` remembers the answer for each kind of block: a model repeats the same one."""

    known: dict[tuple[type, tuple[str, ...]], str | None] = field(factory=dict)

    def claim(self, site: Site, module: nn.Module) -> str | None:
        if site.kind != "mlp":
            return "not a feed-forward block"
        if not all(isinstance(getattr(module, role, None), nn.Linear) for role in ROLES):
            return f"has other layers than {', '.join(ROLES)}"
        key = type(module), tuple(repr(part) for name, part in module.named_children() if name not in ROLES)
        if key not in self.known:
            self.known[key] = None if _same(module) else "computes something else than down(silu(gate) * up)"
        return self.known[key]

    def forward(self, module: nn.Module) -> Callable[..., Tensor]:
        return partial(_call, module)


def build(options: None, context: Context) -> SwiGLU:
    return SwiGLU()


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, of equal shapes and in their dtype; silu(gate) is rounded to it on the way."""
    return _Gated.apply(gate, up)


def _call(module: Any, x: Tensor) -> Tensor:
    return module.down_proj(swiglu(module.gate_proj(x), module.up_proj(x)))


def _same(module: nn.Module) -> bool:
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = copy.copy(module)
        shapes = ((HIDDEN, WIDE), (HIDDEN, WIDE), (WIDE, HIDDEN))
        small = {role: nn.Linear(*shape) for role, shape in zip(ROLES, shapes, strict=True)}
        own._modules = {**module._modules, **small}
        x = (torch.randn(64, HIDDEN) * 8).requires_grad_()
    return alike(partial(own, x), partial(_call, own, x), (x, *[layer.weight for layer in small.values()]))


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        slope = grad * up
        torch.ops.aten.silu_backward.grad_input(slope, gate, grad_input=slope)
        return slope, F.silu(gate).mul_(grad)
