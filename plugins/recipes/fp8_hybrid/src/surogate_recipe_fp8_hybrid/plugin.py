"""The recipe ``fp8_hybrid``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from surogate_core.errors import Problem
from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc, ge, normal_name

if TYPE_CHECKING:
    from surogate_core.plan import Plan


@frozen(kw_only=True)
class Options:
    """Options of `recipe = "fp8_hybrid"`."""

    fp8_amax_history: int = field(
        default=16, validator=ge(1), metadata=doc("Optimizer steps whose largest value sets the scale of a tensor.")
    )
    fp8_min_dim: int = field(
        default=0,
        validator=ge(0),
        metadata=doc(
            "Linear layers with fewer inputs or outputs than this stay in the model's dtype, which is faster for small ones."
        ),
    )


@hookimpl
def register_recipes() -> list[Offer]:
    return [
        Offer(
            "fp8_hybrid",
            Options,
            build="surogate_recipe_fp8_hybrid.linear:build",
            requires="sm_89+",
            summary="Linear layers in FP8: E4M3 forward, E5M2 backward, delayed scaling.",
        )
    ]


@hookimpl
def check_plan(plan: Plan, device: str) -> list[Problem]:
    core = plan.config.core
    if normal_name(core.recipe) != "fp8_hybrid":
        return []
    problems = []
    if core.kernels == "native" and device != "cuda":
        what, how = 'kernels = "native", and this machine has no GPU', 'set kernels = "auto", or run on a GPU'
        problems.append(Problem(what, where='kernels and recipe = "fp8_hybrid"', how=how))
    if not any(slots.compute for slots in plan.slots.values()):
        reasons = ", ".join(sorted({slots.left for slots in plan.slots.values()}))
        what = f"fp8_hybrid computes no layer of this model ({reasons or 'it has no linear layers that can be claimed'})"
        how = 'lower fp8_min_dim, skip_quant_first_layers or skip_quant_last_layers, or set recipe = "bf16"'
        problems.append(Problem(what, where='recipe = "fp8_hybrid"', how=how))
    return problems
