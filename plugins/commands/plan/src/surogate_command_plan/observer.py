"""The observer: after the second step, the memory that it took beside what was planned.

On a GPU that is torch's own count of allocated bytes, always. With ``debug_memory_breakdown``, on any device, the tensors of the
second step are counted by buffer; on the CPU this is the only measure, and without the option nothing is measured there: the
resident memory of a process has libraries and pages in it that no plan can know.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from surogate_command_plan.plugin import Options
from surogate_core.contracts import ObserverContext, RunInfo

STEP = 2


def build(options: Options, context: ObserverContext) -> Memory | None:
    if not options.debug_memory_breakdown and context.device != "cuda":
        return None
    return Memory(options.debug_memory_breakdown, context.device, context.log)


class Memory:
    def __init__(self, breakdown: bool, device: str, log: Callable[[dict[str, Any]], None]):
        self._breakdown, self._device, self._log = breakdown, device, log
        self._stack = contextlib.ExitStack()
        self._mark: Callable[[str], None] = lambda name: None
        self._tally: Any = None
        self._steps = 0

    def part_finished(self, run: RunInfo, name: str) -> None:
        """Begins when the data of the second step are there, ends with its update."""
        if name == "data":
            self._steps += 1
            if self._steps == STEP:
                self._begin(run)
        elif self._steps == STEP:
            self._mark(name)
            if name == "optimizer":
                self._stack.close()

    def step_finished(self, run: RunInfo, record: dict[str, Any]) -> None:
        if record["step"] == run.resumed + STEP:
            self._tell(run, record["step"])

    def _begin(self, run: RunInfo) -> None:
        if self._device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        if not self._breakdown:
            return
        from surogate_command_plan.labels import held, labelled
        from surogate_command_plan.tally import Tally

        self._tally = Tally(device=self._device)
        for label, tensors in held(run.model, run.optimizer.state_dict()).items():
            self._tally.hold(tensors, label)
        self._mark = self._stack.enter_context(labelled(self._tally, run.model, run.plan.model_source.blocks(run.model)))
        self._stack.enter_context(self._tally)

    def _tell(self, run: RunInfo, step: int) -> None:
        from surogate_command_plan.show import bytes_of, memory_lines
        from surogate_command_plan.tally import Memory as Found
        from surogate_command_plan.tally import Peak

        memory = self._planned(run)
        measured = Found(self._tally.peaks).peak if self._tally is not None else None
        how = "tensors of this step, counted"
        if self._device == "cuda":
            import torch

            allocated = torch.cuda.max_memory_allocated()
            measured, how = Peak(allocated, measured.parts if measured else {}), "torch's CUDA allocator"
        if memory is None or measured is None:
            return
        planned = memory.peak
        compared = planned.total - planned.parts.get("framework", 0)
        text = f"peak memory of step {step}: {bytes_of(measured.total)} ({how}), planned {bytes_of(compared)}"
        text += f" ({compared / measured.total - 1:+.1%})"
        self._log({"kind": "notice", "step": step, "text": text})
        if self._breakdown:
            for line in memory_lines({"planned": planned, "measured": measured}):
                self._log({"kind": "notice", "step": step, "text": line})

    def _planned(self, run: RunInfo) -> Any:
        if self._device == "cuda":
            from surogate_command_plan.rehearse import rehearse

            return rehearse(run.plan, "cuda")
        from surogate_command_plan.apart import rehearse_apart

        return rehearse_apart([run.config.resolved()])[0]
