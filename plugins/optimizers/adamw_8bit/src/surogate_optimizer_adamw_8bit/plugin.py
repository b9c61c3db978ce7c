"""The optimizer ``adamw_8bit``. Its rates and decays are options of the core (``adamw_beta1`` ...)."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_optimizers() -> list[Offer]:
    return [
        Offer(
            "adamw_8bit",
            None,
            build="surogate_optimizer_adamw_8bit.update:build",
            summary="AdamW with both moments in 8 bits, 256 values a block: about 2 bytes of state per parameter.",
        )
    ]
