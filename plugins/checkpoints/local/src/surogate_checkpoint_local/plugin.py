"""What this plugin offers: checkpoints in directories of the local file system."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_checkpoints() -> list[Offer]:
    summary = "Directories of the local file system: written aside, flushed, renamed."
    return [Offer("local", None, build="surogate_checkpoint_local.store:build", summary=summary)]
