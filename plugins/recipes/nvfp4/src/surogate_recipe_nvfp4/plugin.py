"""The recipes ``nvfp4`` and ``nvfp4_quartet``; they share their options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

from surogate_core.errors import PluginError, Problem
from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc, normal_name

if TYPE_CHECKING:
    from surogate_core.plan import Plan

NAMES = ("nvfp4", "nvfp4_quartet")


@frozen(kw_only=True)
class Options:
    """Options of the recipes `nvfp4` and `nvfp4_quartet`."""

    fp4_backend: Literal["cutlass", "cudnn"] = field(
        default="cutlass",
        metadata=doc(
            "Whose order of block scales the 4-bit matrix products of a GPU read. `cutlass`: that of its Sm1xxBlkScaledConfig; the "
            "products are cuBLASLt's, which reads the same. `cudnn` is not available. Emulation reads none."
        ),
    )
    fp4_four_over_six: bool = field(
        default=True, metadata=doc("Map the largest value of a block to 6 or to 4, whichever has the smaller square error.")
    )
    no_fp4_hadamard: bool = field(
        default=False, metadata=doc("Do not rotate the operands of gradients (16 wide in `nvfp4`, 128 in `nvfp4_quartet`).")
    )
    no_fp4_stochastic_rounding: bool = field(
        default=False, metadata=doc("Round gradients (`nvfp4`) and their block scales (`nvfp4_quartet`) to nearest.")
    )


@hookimpl
def register_recipes() -> list[Offer]:
    return [
        Offer(
            "nvfp4",
            Options,
            build="surogate_recipe_nvfp4.linear:build",
            requires="sm_100+",
            summary="4-bit NVFP4 in all three products of a linear layer: 2-D weight scales, four over six, rotated and "
            "stochastically rounded gradients.",
        ),
        Offer(
            "nvfp4_quartet",
            Options,
            build="surogate_recipe_nvfp4.quartet:build",
            requires="sm_100+",
            summary="Quartet II: 4-bit NVFP4 with unbiased gradients, by 128-wide rotations and stochastic block scales (MS-EDEN).",
        ),
    ]


@hookimpl
def check_plan(plan: Plan, device: str) -> list[Problem]:
    """What was asked for and cannot be had: there is no silent way back to emulation."""
    core = plan.config.core
    if normal_name(core.recipe) not in NAMES:
        return []
    backend, emulated = plan.config.of(Options).fp4_backend, core.recipe_backend == "emulated"
    problems = []
    if backend != "cutlass":
        what = "no product by it has ever run, only the order of scales that it reads is tested"
        why = "emulation calls no library of 4-bit products" if emulated else what
        problems.append(
            Problem(
                f"fp4_backend = {backend!r} cannot be used: {why}",
                where=f'fp4_backend, with recipe_backend = "{core.recipe_backend}"',
                how="leave fp4_backend at its default",
            )
        )
    if core.kernels == "native" and emulated:
        problems += _native(core.recipe, device)
    return problems


def _native(recipe: str, device: str) -> Sequence[Problem]:
    """Why emulation cannot have ``kernels = "native"``: on a CPU there is code for it, which needs a compiler."""
    from surogate_native_nvfp4.operands import available

    if device != "cpu":
        what = f"{recipe}, emulated, runs no native kernels on a GPU in this version, only their definitions in plain torch"
        return [Problem(what, where='kernels = "native"', how='set kernels = "auto" or "reference"')]
    try:
        available("native")
    except PluginError as error:
        return error.problems
    return []
