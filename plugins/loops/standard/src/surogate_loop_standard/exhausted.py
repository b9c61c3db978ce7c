"""A step that the device has no memory for: in which part of it, and what plugins know about that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from attrs import define

from surogate_core.contracts import RunInfo
from surogate_core.errors import OutOfMemory
from surogate_loop_standard.loop import Progress
from surogate_loop_standard.observers import Observers

NEXT = {"data": "forward", "forward": "backward"}
ADVICE = "set recompute = true, per_device_train_batch_size = 1 with more gradient_accumulation_steps, or a shorter sequence_len"


@define
class Underway:
    """The part of a step that is under way, told by those that have ended. ``batches``: micro-batches of a step."""

    batches: int
    ended: str = "data"
    backwards: int = 0

    def mark(self, name: str) -> None:
        self.backwards = 0 if name == "data" else self.backwards + (name == "backward")
        self.ended = name

    @property
    def part(self) -> str:
        if self.ended == "backward":
            return "forward" if self.backwards < self.batches else "optimizer"
        return NEXT.get(self.ended, "eval")


def exhausted(error: RuntimeError) -> bool:
    """Whether torch could not get memory. Its allocator for the CPU has no error of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


@contextlib.contextmanager
def out_of_memory_is_explained(observers: Observers, run: RunInfo, underway: Underway, progress: Progress) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not exhausted(error):
            raise
        part, step = underway.part, progress.step + (underway.part != "eval")
        said = str(error).splitlines()[0]
    else:
        return
    # the error is gone, and with it the frames that held the step's tensors
    answers = observers.tell("memory_exhausted", run=run, part=part, step=step)
    problems = [answer for _, answer in answers if answer is not None]
    if problems:
        raise OutOfMemory(problems[:1])
    raise OutOfMemory(f"out of memory in step {step}, {part}", where=said, how=ADVICE)
