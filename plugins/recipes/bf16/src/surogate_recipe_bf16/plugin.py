"""The recipe ``bf16``: no conversion, no scales."""

from __future__ import annotations

from typing import TYPE_CHECKING

from surogate_core.errors import Problem
from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, normal_name

if TYPE_CHECKING:
    from surogate_core.plan import Plan


@hookimpl
def register_recipes() -> list[Offer]:
    return [
        Offer(
            "bf16",
            None,
            build="surogate_recipe_bf16.linear:build",
            summary="Linear layers in the model's own dtype (model_dtype bf16 or fp32), on any device.",
        )
    ]


@hookimpl
def check_plan(plan: Plan, device: str) -> list[Problem]:
    core = plan.config.core
    if normal_name(core.recipe) != "bf16" or core.model_dtype != "bf16" or device != "cuda":
        return []
    from surogate_recipe_bf16.linear import check_device

    return check_device()
