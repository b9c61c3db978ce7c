"""What this plugin offers: the command `schema`."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_commands() -> list[Offer]:
    build = "surogate_command_schema.command:schema"
    return [Offer("schema", None, build=build, summary="Print the JSON Schema of the installed keys.")]
