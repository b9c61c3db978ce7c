"""The recipes ``nvfp4`` and ``nvfp4_quartet``; they share their options."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc


@frozen(kw_only=True)
class Options:
    """Options of the recipes `nvfp4` and `nvfp4_quartet`."""

    fp4_backend: Literal["cutlass", "cudnn"] = field(
        default="cutlass", metadata=doc("Library of the 4-bit matrix products on a GPU that has them. Emulation uses none.")
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
            summary="Quartet II: 4-bit NVFP4 with unbiased gradients from 128-wide rotations and stochastic block scales (MS-EDEN).",
        ),
    ]
