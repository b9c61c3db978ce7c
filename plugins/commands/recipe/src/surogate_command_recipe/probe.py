"""A recipe whose layers can be switched to plain products, and that shows what goes through them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from attrs import define, field
from torch import Tensor, nn

from surogate_core.contracts import FollowsSteps, Recipe, Site

Seen = Callable[[str, nn.Module, Tensor, Tensor, Tensor], None]
"""``seen(site, compute, x (M, K), weight (N, K), dy (M, N))``."""


@define(eq=False)
class Probed:
    """:class:`~surogate_core.contracts.Recipe` around another. ``plain``: layers compute ``F.linear``; ``seen`` is called for each
    layer in the backward pass."""

    inner: Recipe
    plain: bool = False
    seen: Seen | None = None
    probes: dict[str, Probe] = field(factory=dict)

    def claim(self, site: Site) -> str | None:
        return self.inner.claim(site)

    def linear(self, site: Site) -> Probe:
        self.probes[site.name] = Probe(site.name, self.inner.linear(site), self)
        return self.probes[site.name]

    def stepped(self, computes: Mapping[str, nn.Module]) -> None:
        if isinstance(self.inner, FollowsSteps) and not self.plain:
            modules = {name: self.probes[name].compute for name in computes}
            self.inner.stepped({name: module for name, module in modules.items() if isinstance(module, nn.Module)})


class Probe(nn.Module):
    compute: Any

    def __init__(self, name: str, compute: Callable[..., Tensor], recipe: Probed):
        super().__init__()
        self.name, self.compute, self.recipe = name, compute, recipe

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = (F.linear if self.recipe.plain else self.compute)(x, weight, bias)
        seen = self.recipe.seen
        if seen is not None and y.requires_grad:
            rows, kept = x.detach().flatten(0, -2), weight.detach()

            def look(dy: Tensor) -> None:
                with torch.no_grad():
                    seen(self.name, self.compute, rows, kept, dy.detach().flatten(0, -2))

            y.register_hook(look)
        return y
