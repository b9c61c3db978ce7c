"""What the plan says of a run whose device had no more memory."""

from __future__ import annotations

from surogate_command_plan.command import memory_of
from surogate_command_plan.fit import cheapest, lines_of
from surogate_command_plan.labels import PHASES
from surogate_command_plan.rehearse import rehearse
from surogate_command_plan.show import bytes_of
from surogate_core.contracts import RunInfo
from surogate_core.errors import Problem
from surogate_core.host import load_host

PLANNED = {"forward": PHASES[:1], "backward": PHASES[1:3], "optimizer": PHASES[3:], "eval": PHASES[:1]}
ROOM = 0.9
"""Of the memory that was not enough: what is advised has to fit in it with room to spare, for other processes and fragments."""


def explain(run: RunInfo, part: str, step: int) -> Problem | None:
    """For a GPU; nothing where the plan cannot be made. For the CPU, too, nothing: who called the run may compute on, and a
    rehearsal for the CPU leaves tensors without values behind."""
    device = run.plan.device
    memory = rehearse(run.plan, device) if device != "cpu" else None
    if memory is None:
        return None
    figure = max(memory.phases[phase].total for phase in PLANNED[part] if phase in memory.phases)
    size = memory_of(device)
    room = ROOM * min(size or memory.total, memory.total)
    changes, left = cheapest(run.config, run.config.resolved(), load_host(), [], room, device)
    has = f", {bytes_of(size)} of memory" if size else ""
    how = f"{', '.join(lines_of(changes))}: {bytes_of(left)} planned" if changes else "take a smaller model or shorter rows"
    return Problem(
        f"out of memory in step {step}, {part}: {bytes_of(figure)} planned for it{has}",
        where=f"memory of the device ({device}); checkpoints are intact",
        how=how,
    )
