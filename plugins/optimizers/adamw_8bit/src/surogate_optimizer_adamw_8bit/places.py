"""Where the parameters lie in the arena, and the stretches in which it is worked through in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from attrs import frozen
from surogate_native_adam8 import BLOCK
from torch import Tensor

from surogate_core.contracts import ParamGroup

SMALL = 4096
"""Tensors below this many values keep float32 moments."""


def padded(count: int) -> int:
    return -(-count // BLOCK) * BLOCK


@frozen(eq=False)
class Place:
    """One parameter, from ``start`` in the arena."""

    name: str
    param: Tensor
    start: int
    weight_decay: float

    @property
    def end(self) -> int:
        return self.start + padded(self.param.numel())


def place(groups: Sequence[ParamGroup]) -> tuple[list[Place], int]:
    """All parameters, those below ``SMALL`` last, and where these begin."""
    places: list[Place] = []
    coded = end = 0
    for small in (False, True):
        coded = end
        for group in groups:
            for name, param in zip(group.names, group.params, strict=True):
                if (param.numel() < SMALL) is small:
                    places.append(Place(name, param, end, group.weight_decay))
                    end = places[-1].end
    return places, coded


@frozen(eq=False)
class Stretch:
    """[start, stop) of the arena with one weight decay, with codes or without. ``pieces`` are (parameter, from, to, offset)."""

    start: int
    stop: int
    weight_decay: float
    pieces: tuple[tuple[Tensor, int, int, int], ...]

    def gather(self, values: Callable[[Tensor, int, int], Tensor | None], device: torch.device) -> Tensor:
        """Of each parameter ``values(parameter, from, to)``, in float32; padding, and what is None, 0."""
        flat = torch.zeros(self.stop - self.start, device=device)
        for param, first, last, offset in self.pieces:
            found = values(param, first, last)
            if found is not None:
                flat[offset : offset + last - first].copy_(found)
        return flat


def of_param(param: Tensor, first: int, last: int) -> Tensor:
    return param.detach().reshape(-1)[first:last]


def of_grad(param: Tensor, first: int, last: int) -> Tensor | None:
    return None if param.grad is None else param.grad.reshape(-1)[first:last]


def stretches(places: Sequence[Place], coded: int, size: int) -> Iterator[Stretch]:
    """At most ``size`` values each. None of them crosses ``coded`` or has parameters of two weight decays."""
    runs: list[list[Place]] = []
    for one in places:
        alike = runs and runs[-1][-1].weight_decay == one.weight_decay and one.start != coded
        if alike:
            runs[-1].append(one)
        else:
            runs.append([one])
    for run in runs:
        for start in range(run[0].start, run[-1].end, size):
            stop = min(start + size, run[-1].end)
            pieces = []
            for one in run:
                first, last = max(0, start - one.start), min(one.param.numel(), stop - one.start)
                if first < last:
                    pieces.append((one.param, first, last, one.start + first - start))
            yield Stretch(start, stop, run[0].weight_decay, tuple(pieces))
