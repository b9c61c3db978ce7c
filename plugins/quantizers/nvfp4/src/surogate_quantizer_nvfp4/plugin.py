"""The quantizer ``nvfp4``, chosen by ``qlora_fp4``, and its options."""

from __future__ import annotations

from attrs import field, frozen

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc


@frozen(kw_only=True)
class Options:
    """Options of `qlora_fp4 = true`."""

    qlora_fp4: bool = field(
        default=False,
        metadata=doc("Hold the frozen weights in NVFP4: 4.5 bits a weight. On any device; the arithmetic is the recipe's."),
    )
    qlora_four_over_six: bool = field(
        default=True,
        metadata=doc("Map the largest weight of each block of 16 to 6 or to 4, whichever gives the smaller squared error."),
    )


@hookimpl
def register_quantizers() -> list[Offer]:
    return [
        Offer(
            "nvfp4",
            Options,
            build="surogate_quantizer_nvfp4.blocks:build",
            summary="Frozen weights in NVFP4: E2M1 in blocks of 16, with four over six.",
            key="qlora_fp4",
        )
    ]
