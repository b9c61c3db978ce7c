"""The quantizer ``bnb_nf4``, chosen by ``qlora_bnb``, and its options."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc


@frozen(kw_only=True)
class Options:
    """Options of `qlora_bnb = true`."""

    qlora_bnb: bool = field(
        default=False, metadata=doc("Hold the frozen weights in bitsandbytes' NF4 format: about 4.1 bits a weight.")
    )
    qlora_bnb_block_size: Literal[64, 128, 256, 512] = field(
        default=64, metadata=doc("Weights that share a scale; fewer are more precise and larger.")
    )
    qlora_bnb_double_quant: bool = field(
        default=True, metadata=doc("Quantise these scales too, to 8 bits: 4.13 instead of 4.5 bits a weight for blocks of 64.")
    )


@hookimpl
def register_quantizers() -> list[Offer]:
    return [
        Offer(
            "bnb_nf4",
            Options,
            build="surogate_quantizer_bnb_nf4.nf4:build",
            summary="Frozen weights in bitsandbytes' NF4 format, byte for byte.",
            key="qlora_bnb",
        )
    ]
