"""The quantizer ``fp8_block``, chosen by ``qlora_fp8``, and its options."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc


@frozen(kw_only=True)
class Options:
    """Options of `qlora_fp8 = true`."""

    qlora_fp8: bool = field(
        default=False, metadata=doc("Hold the frozen weights in 8-bit floating point (E4M3), with a scale for each square tile.")
    )
    qlora_block_size: Literal[64, 128, 256] = field(default=128, metadata=doc("Side of these tiles."))


@hookimpl
def register_quantizers() -> list[Offer]:
    return [
        Offer(
            "fp8_block",
            Options,
            build="surogate_quantizer_fp8_block.tiles:build",
            summary="Frozen weights in E4M3 with a scale for each square tile.",
            key="qlora_fp8",
        )
    ]
