"""The fusion ``rotary``: no options, it takes every attention whose positions it can compute."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_fusions() -> list[Offer]:
    return [
        Offer(
            "rotary",
            None,
            build="surogate_fusion_rotary.rotary:build",
            summary="Rotary positions of queries and keys: fewer passes over memory, forward and backward.",
        )
    ]
