"""The recipe ``bf16``: no conversion and no scales, unless a product is given a dtype of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from surogate_core.errors import Problem
from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc, normal_name

if TYPE_CHECKING:
    from surogate_core.plan import Plan
    from surogate_recipe_bf16.products import Dtype


@frozen(kw_only=True)
class Options:
    """Options of `recipe = "bf16"`."""

    matmul_dtype: Literal["fp32", "bf16", "e4m3"] | None = field(
        default=None, metadata=doc("Operands of the forward products of linear layers; `model_dtype` if not set.")
    )
    gradient_dtype: Literal["fp32", "bf16", "e5m2"] | None = field(
        default=None,
        metadata=doc(
            "Gradients of outputs, as operands of the backward products; the other operand is E4M3 beside `e5m2`. If not set, "
            "`matmul_dtype`, or `e5m2` where that is `e4m3`."
        ),
    )

    def products(self, model_dtype: Literal["fp32", "bf16"]) -> tuple[Dtype, Dtype]:
        """Dtypes of the forward and of the backward products."""
        forward = self.matmul_dtype or model_dtype
        return forward, self.gradient_dtype or ("e5m2" if forward == "e4m3" else forward)


@hookimpl
def register_recipes() -> list[Offer]:
    return [
        Offer(
            "bf16",
            Options,
            build="surogate_recipe_bf16.linear:build",
            summary="Linear layers in the model's own dtype (model_dtype bf16 or fp32), on any device.",
        )
    ]


@hookimpl
def check_plan(plan: Plan, device: str) -> list[Problem]:
    core = plan.config.core
    if normal_name(core.recipe) != "bf16":
        return []
    own = plan.config.of(Options)
    eight = next((f'{key} = "{getattr(own, key)}"' for key in ("matmul_dtype", "gradient_dtype") if getattr(own, key) in EIGHT), "")
    how = 'set recipe_backend = "emulated", which runs the exact arithmetic on any device, or choose fp32 or bf16'
    if core.recipe_backend == "emulated":
        eight = ""
    if device != "cuda":
        where = f'{eight.split(" = ")[0]} and recipe = "bf16"'
        return [Problem(f"{eight} needs sm_89+, this machine has no GPU", where=where, how=how)] if eight else []
    from surogate_recipe_bf16.linear import ADA, AMPERE, check_device

    problems = check_device(eight, ADA, how) if eight else []
    if core.model_dtype == "bf16":
        problems += check_device('model_dtype = "bf16"', AMPERE, 'set model_dtype = "fp32", or run on an Ampere or newer GPU')
    return problems


EIGHT = ("e4m3", "e5m2")
