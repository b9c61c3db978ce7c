"""What this plugin offers: the loop that trains by next-token prediction."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_loops() -> list[Offer]:
    summary = "Next-token loss over the whole step's weight, clipping, update; records, evaluation, checkpoints, resume."
    return [Offer("standard", None, build="surogate_loop_standard.standard:build", summary=summary)]
