"""What this plugin offers: the command `explain`."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_commands() -> list[Offer]:
    build = "surogate_command_explain.command:explain"
    return [Offer("explain", None, build=build, summary="Show value, origin, owner and consumer of each key.")]
