"""The fusion ``norm``: no options, it takes every norm that it can compute."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_fusions() -> list[Offer]:
    return [
        Offer(
            "norm",
            None,
            build="surogate_fusion_norm.norm:build",
            summary="Root mean square norms: fewer passes over memory, forward and backward, and less kept between them.",
        )
    ]
