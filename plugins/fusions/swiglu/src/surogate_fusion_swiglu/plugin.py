"""The fusion ``swiglu``: no options, it takes every feed-forward block that it can compute."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_fusions() -> list[Offer]:
    return [
        Offer(
            "swiglu",
            None,
            build="surogate_fusion_swiglu.swiglu:build",
            summary="Gated feed-forward blocks: of their four wide tensors three are kept for the backward pass.",
        )
    ]
