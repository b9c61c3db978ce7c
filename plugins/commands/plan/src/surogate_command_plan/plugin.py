"""What this plugin offers: the command `plan`, and the observer `memory`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc

if TYPE_CHECKING:
    from surogate_core.contracts import RunInfo
    from surogate_core.errors import Problem


@frozen(kw_only=True)
class Options:
    """Options of the observer ``memory``. They cannot change the result of a run."""

    debug_memory_breakdown: bool = field(
        default=False,
        metadata=doc(
            "Count the tensors of the second step, by buffer, and show them beside the plan. That step is slower.", passive=True
        ),
    )


@hookimpl
def register_commands() -> list[Offer]:
    build = "surogate_command_plan.command:plan"
    return [Offer("plan", None, build=build, summary="Show what a run would build, and its memory, steps and parameters.")]


@hookimpl
def register_observers() -> list[Offer]:
    build = "surogate_command_plan.observer:build"
    return [Offer("memory", Options, build=build, summary="The measured peak of the second step against the planned one.")]


@hookimpl
def memory_exhausted(run: RunInfo, part: str, step: int) -> Problem | None:
    from surogate_command_plan.exhausted import explain

    return explain(run, part, step)
