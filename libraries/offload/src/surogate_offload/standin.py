"""A device for tests: memory of the CPU under another name, counted, and copies that are as late or as early as they may be."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Literal

import torch
from attrs import define, field
from torch import Tensor


@define(eq=False)
class Copy:
    """A copy that was asked for. ``run`` is None once it has run; those before it in its stream, and ``after``, come first."""

    run: Callable[[], object] | None
    before: Copy | None
    after: Copy | None

    def finish(self) -> None:
        for other in (self.before, self.after):
            if other is not None:
                other.finish()
        self.before = self.after = None
        if self.run is not None:
            self.run()
            self.run = None


@define(eq=False)
class StandIn:
    """``late``: a copy runs when somebody waits for it. ``early``: at once, as if the stream had been idle. Work on the device
    itself runs at once in both, so what must be waited for and is not shows as a wrong number.

    copies, bytes  of copies, by direction
    now, peak      bytes of the device's memory from ``empty``
    held           bytes of pinned memory
    """

    order: Literal["late", "early"] = "late"
    copies: dict[str, int] = field(factory=lambda: {"in": 0, "out": 0})
    bytes: dict[str, int] = field(factory=lambda: {"in": 0, "out": 0})
    now: int = 0
    peak: int = 0
    held: int = 0
    _last: dict[str, Copy | None] = field(factory=lambda: {"in": None, "out": None})

    def empty(self, count: int, dtype: torch.dtype) -> Tensor:
        tensor = torch.empty(count, dtype=dtype)
        # nobody may rely on what was in the memory
        tensor.view(torch.uint8).fill_(0xFE)
        self._take(tensor)
        return tensor

    def _take(self, tensor: Tensor) -> None:
        size = tensor.untyped_storage().nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(tensor.untyped_storage(), self._give, size)

    def _give(self, size: int) -> None:
        self.now -= size

    def pinned(self, count: int, dtype: torch.dtype) -> Tensor:
        tensor = torch.zeros(count, dtype=dtype)
        self.held += tensor.nbytes
        return tensor

    def fetch(self, buffer: Tensor, host: Tensor, after: Copy | None) -> Copy:
        return self._ask("in", buffer, host, after)

    def store(self, host: Tensor, buffer: Tensor, after: Copy | None) -> Copy:
        return self._ask("out", host, buffer, after)

    def _ask(self, way: str, target: Tensor, source: Tensor, after: Copy | None) -> Copy:
        self.copies[way] += 1
        self.bytes[way] += source.nbytes
        copy = Copy(lambda: target.copy_(source), self._last[way], after)
        self._last[way] = copy
        if self.order == "early":
            copy.finish()
        return copy

    def here(self) -> None:
        """The computation is always done."""

    def wait(self, mark: Copy | None) -> None:
        if mark is not None:
            mark.finish()

    def settle(self) -> None:
        for copy in self._last.values():
            self.wait(copy)
