"""What this plugin offers: the command `report`."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_commands() -> list[Offer]:
    build = "surogate_command_report.command:report"
    return [Offer("report", None, build=build, summary="Write one page with the curves and figures of runs.")]
