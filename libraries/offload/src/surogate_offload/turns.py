"""Pieces of host memory, one after another in two buffers of the device: while one is worked on, the next comes in and the last one
goes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from surogate_offload.device import Device, Mark

ALIGNED = 256


def in_turns(device: Device, pieces: Sequence[Sequence[Tensor]], read: Sequence[Sequence[Tensor]] = ()) -> Iterator[list[Tensor]]:
    """For each piece, a list of one-dimensional pinned tensors, their copies on the device; what the caller has made of these by
    the time it asks for the next piece goes back to the host. ``read``: more tensors of each piece, which come after the others
    and do not go back. What the device computes afterwards comes after the last of these copies; ``device.settle`` is for the
    host."""
    if not pieces:
        return
    wanted = [[*piece, *more] for piece, more in zip(pieces, read or [()] * len(pieces), strict=True)]
    buffers = [device.empty(max(map(size_of, wanted)), torch.uint8) for _ in range(min(2, len(pieces)))]
    free: list[Mark] = [device.here()] * len(buffers)

    def fetch(index: int) -> tuple[list[Tensor], list[Mark]]:
        turn = index % len(buffers)
        parts = cut(buffers[turn], wanted[index])
        return parts, [device.fetch(part, host, free[turn]) for part, host in zip(parts, wanted[index], strict=True)]

    coming = fetch(0)
    for index, piece in enumerate(pieces):
        parts, marks = coming
        if index + 1 < len(pieces):
            coming = fetch(index + 1)
        for mark in marks:
            device.wait(mark)
        yield parts
        done = free[index % len(buffers)] = device.here()
        for host, part in zip(piece, parts, strict=False):
            free[index % len(buffers)] = device.store(host, part, done)  # the last one ends after the others
    for mark in free:  # or the next pass would bring in what is not there yet
        device.wait(mark)


def size_of_turns(pieces: Sequence[Sequence[Tensor]]) -> int:
    """Bytes of the device that :func:`in_turns` takes for them."""
    return min(2, len(pieces)) * max(map(size_of, pieces), default=0)


def _padded(tensor: Tensor) -> int:
    return -(-tensor.nbytes // ALIGNED) * ALIGNED


def size_of(piece: Sequence[Tensor]) -> int:
    """Bytes of the memory in which :func:`cut` makes room for these tensors."""
    return sum(map(_padded, piece))


def cut(buffer: Tensor, piece: Sequence[Tensor]) -> list[Tensor]:
    """Room in a buffer of bytes for each of these tensors: one-dimensional views, of their dtypes."""
    parts = []
    start = 0
    for tensor in piece:
        parts.append(buffer[start : start + tensor.nbytes].view(tensor.dtype))
        start += _padded(tensor)
    return parts
