"""Tensors that are only read, used group after group, up and down: the group in use is on the device, the next one on its way."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from attrs import define, field
from torch import Tensor

from surogate_offload.device import Device, Mark
from surogate_offload.turns import cut, size_of


@define(eq=False)
class Away:
    """Tensors of one owner, as one block in the host's memory. ``full``: the block has values. ``buffer``: they are on the device
    as well, or on their way (``there``)."""

    group: int
    shapes: tuple[torch.Size, ...]
    rooms: tuple[Tensor, ...]
    host: Tensor
    full: bool = False
    buffer: Tensor | None = None
    stored: Mark = None
    there: Mark = None

    def inside(self, block: Tensor) -> tuple[Tensor, ...]:
        """The tensors in ``host`` or in ``buffer``."""
        return tuple(room.view(shape) for room, shape in zip(cut(block, self.rooms), self.shapes, strict=True))


@define(eq=False)
class Ahead:
    """All groups of one model, numbered in the order of their use in a forward pass, which a backward pass goes through the other
    way. Of two neighbours at most one is fetched ahead, so that the device holds two groups."""

    device: Device
    _groups: dict[int, list[weakref.ref[Away]]] = field(factory=dict)
    _at: int | None = None

    def room(self, group: int, like: Sequence[Tensor]) -> Away:
        """Pinned memory for tensors of these shapes and dtypes, without values."""
        rooms = tuple(torch.empty(tensor.numel(), dtype=tensor.dtype, device="meta") for tensor in like)
        away = Away(group, tuple(tensor.shape for tensor in like), rooms, self.device.pinned(size_of(rooms), torch.uint8))
        self._groups.setdefault(group, []).append(weakref.ref(away))
        return away

    def fill(self, away: Away, tensors: Sequence[Tensor]) -> None:
        """Values that are on the host already. Before the first use."""
        for room, tensor in zip(away.inside(away.host), tensors, strict=True):
            room.copy_(tensor)
        away.full = True

    def put(self, away: Away, tensors: Sequence[Tensor]) -> None:
        """Store these values, which are on the device."""
        if away.there is not None:  # what was on its way is not read from the block any more
            self.device.wait(away.there)
        away.buffer = away.there = None
        for room, tensor in zip(cut(away.host, away.rooms), tensors, strict=True):
            away.stored = self.device.store(room, tensor.detach().reshape(-1), self.device.here())
        away.full = True

    def forget(self, away: Away) -> None:
        """Its values are not used any more. They are not fetched until others are put there."""
        if away.there is not None:
            self.device.wait(away.there)
        away.full, away.buffer, away.there = False, None, None

    def get(self, away: Away) -> tuple[Tensor, ...]:
        """The tensors on the device, for a use that starts now; the other tensors of the group, and those of the next, set out as
        well. What is returned must not be held on to."""
        if away.group != self._at:
            self._move(away.group)
        self._bring(away)
        self.device.wait(away.there)
        assert away.buffer is not None
        return away.inside(away.buffer)

    def _move(self, group: int) -> None:
        """To another group: the others are let go, the next one in this direction, or the other where there is none, comes."""
        alive = {number: [away for held in own if (away := held())] for number, own in self._groups.items()}
        order = sorted(number for number, own in alive.items() if own)
        place = order.index(group)
        down = (self._at is not None and self._at > group and place > 0) or place == len(order) - 1
        self._at, following = group, order[max(place - 1, 0) if down else place + 1]
        for number in order:
            for away in () if number in (group, following) else alive[number]:
                self._let_go(away)
        for away in (*alive[group], *(alive[following] if following != group else ())):
            self._bring(away)

    def _bring(self, away: Away) -> None:
        if away.buffer is None and away.full:
            away.buffer = self.device.empty(len(away.host), torch.uint8)
            if away.stored is not None:
                self.device.wait(away.stored)
            away.there = self.device.fetch(away.buffer, away.host, self.device.here())

    def _let_go(self, away: Away) -> None:
        if away.there is not None:  # fetched and perhaps not used: its memory may be another's next
            self.device.wait(away.there)
        away.buffer = away.there = None
