"""What this plugin offers: four shapes of the learning rate's decay."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer

SHAPES = "surogate_schedule_standard.shapes"


@hookimpl
def register_schedules() -> list[Offer]:
    return [
        Offer("linear", None, build=f"{SHAPES}:linear", summary="Straight line to the final rate."),
        Offer("cosine", None, build=f"{SHAPES}:cosine", summary="Half a cosine to the final rate."),
        Offer("constant", None, build=f"{SHAPES}:constant", summary="The base rate, but for the cooldown."),
        Offer("wsd", None, build=f"{SHAPES}:constant", summary="Constant, then the cooldown (default: the last tenth)."),
    ]
