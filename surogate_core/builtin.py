"""What the core itself offers, registered like any plugin's: schedules and the parallelism of one process."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_schedules() -> list[Offer]:
    return [
        Offer("linear", None, build="surogate_core.train.schedules:linear", summary="Straight line to the final rate."),
        Offer("cosine", None, build="surogate_core.train.schedules:cosine", summary="Half a cosine to the final rate."),
        Offer("constant", None, build="surogate_core.train.schedules:constant", summary="The base rate, but for the cooldown."),
        Offer(
            "wsd",
            None,
            build="surogate_core.train.schedules:constant",
            summary="Constant, then the cooldown (default: the last tenth).",
        ),
    ]


@hookimpl
def register_parallelisms() -> list[Offer]:
    return [Offer("single", None, build="surogate_core.train.single:build", summary="One process, one device.")]
