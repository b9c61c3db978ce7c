"""What this plugin offers: the command `verify`."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_commands() -> list[Offer]:
    build = "surogate_command_verify.verify:verify"
    return [Offer("verify", None, build=build, summary="Check exact resume, or gradients by batch split.")]
