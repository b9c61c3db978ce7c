"""What this plugin offers: the command `matrix`, which `surogate plugins --matrix` calls too."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_commands() -> list[Offer]:
    build = "surogate_command_matrix.command:matrix"
    return [Offer("matrix", None, build=build, summary="Which adapters, quantizers, recipes and models go together.")]
