"""What this plugin offers: the command `recipe`."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_commands() -> list[Offer]:
    build = "surogate_command_recipe.command:recipe"
    return [Offer("recipe", None, build=build, summary="How far a recipe is from bf16, on your model and data.")]
