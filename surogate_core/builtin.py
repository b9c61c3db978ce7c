"""What the core itself offers, registered like any plugin's: the parallelism of one process."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_parallelisms() -> list[Offer]:
    return [Offer("single", None, build="surogate_core.train.single:build", summary="One process, one device.")]
