"""The adapter ``bottleneck`` and its options."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from surogate_core.errors import Problem
from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc, ge, normal_name

if TYPE_CHECKING:
    from surogate_core.contracts import Site
    from surogate_core.plan import Plan


def _not_empty(instance: object, attribute: Any, value: list[str]) -> None:
    if not value:
        raise ValueError("must name at least one layer")


@frozen(kw_only=True)
class Options:
    """Options of `adapter = "bottleneck"`."""

    bottleneck_size: int = field(default=64, validator=ge(1), metadata=doc("Width of the adapter between its two linear layers."))
    bottleneck_target_modules: list[str] = field(
        factory=lambda: ["o_proj", "down_proj"],
        validator=_not_empty,
        metadata=doc(
            "Linear layers behind which an adapter is put, by last part or end of their name: those that end attention and MLP."
        ),
    )


@hookimpl
def register_adapters() -> list[Offer]:
    summary = "Linear, ReLU, Linear behind attention and MLP of each block, with a residual connection."
    return [Offer("bottleneck", Options, build="surogate_adapter_bottleneck.bottleneck:build", summary=summary)]


def named(site: Site, target: str) -> bool:
    """A target is a whole name or an end of it at a dot."""
    return site.layer is not None and site.kind == "linear" and (site.name == target or site.name.endswith(f".{target}"))


@hookimpl
def check_plan(plan: Plan, device: str) -> list[Problem]:
    """Targets that name no linear layer of a block."""
    core = plan.config.core
    if not core.lora or normal_name(core.adapter) != "bottleneck":
        return []
    there = sorted({site.role for site in plan.sites if site.kind == "linear" and site.layer is not None})
    return [
        Problem(
            f"{json.dumps(target)} matches no linear layer of this model's blocks",
            where="bottleneck_target_modules",
            how=f"name those that end attention and MLP; there are {', '.join(there) or 'none'}",
        )
        for target in plan.config.of(Options).bottleneck_target_modules
        if not any(named(site, target) for site in plan.sites)
    ]
