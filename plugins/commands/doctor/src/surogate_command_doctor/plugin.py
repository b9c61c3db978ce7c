"""What this plugin offers: the command `doctor`."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_commands() -> list[Offer]:
    build = "surogate_command_doctor.doctor:doctor"
    return [Offer("doctor", None, build=build, summary="Show versions, devices and what is wrong, ready to paste.")]
