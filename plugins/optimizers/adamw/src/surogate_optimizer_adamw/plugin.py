"""The optimizer ``adamw``. Its rates and decays are options of the core (``adamw_beta1`` ...)."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_optimizers() -> list[Offer]:
    return [
        Offer(
            "adamw",
            None,
            build="surogate_optimizer_adamw.update:build",
            summary="torch's fused AdamW with both moments in float32: 8 bytes of state per parameter.",
        )
    ]
