"""What is made of a tensor for several uses, and where it is kept between them. ``state`` is compared: when it differs from that of
the last call, what was kept is made anew."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from attrs import define
from torch import Tensor, nn

from surogate_offload.ahead import Ahead, Away

Make = Callable[[], tuple[Tensor, ...]]


@define(eq=False)
class Kept:
    """On the device. Of tensors that are no parameters, which were made for one use, nothing is kept, unless ``all``."""

    all: bool = False
    _kept: tuple[Hashable, tuple[Tensor, ...]] | None = None

    def get(self, weight: Tensor, state: Hashable, make: Make) -> tuple[Tensor, ...]:
        if not self.all and not isinstance(weight, nn.Parameter):
            return make()
        if self._kept is None or self._kept[0] != state:
            self._kept = state, make()
        return self._kept[1]

    def forget(self) -> None:
        self._kept = None


@define(eq=False)
class Unkept:
    """Made for every use."""

    def get(self, weight: Tensor, state: Hashable, make: Make) -> tuple[Tensor, ...]:
        return make()

    def forget(self) -> None:
        """There is nothing to forget."""


@define(eq=False)
class Offloaded:
    """In the memory of the host, as part of a group of :class:`~surogate_offload.Ahead`."""

    ahead: Ahead
    group: int
    _away: Away | None = None
    _state: Any = None

    def get(self, weight: Tensor, state: Hashable, make: Make) -> tuple[Tensor, ...]:
        if self._away is not None and self._away.full and self._state == state:
            return self.ahead.get(self._away)
        made = make()
        if self._away is None:
            self._away = self.ahead.room(self.group, made)
        self.ahead.put(self._away, made)
        self._state = state
        return made

    def forget(self) -> None:
        if self._away is not None:
            self.ahead.forget(self._away)


@define(eq=False)
class Lasting:
    """Of a tensor that never changes but is made anew for each use: kept in ``into``. ``made``: it is there, and the tensor is not
    read any more."""

    into: Kept | Offloaded
    made: bool = False

    def get(self, weight: Tensor, state: Hashable, make: Make) -> tuple[Tensor, ...]:
        found = self.into.get(weight, None, make)
        self.made = True
        return found

    def forget(self) -> None:
        """It never changes."""
