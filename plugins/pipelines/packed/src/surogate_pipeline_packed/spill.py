"""Arrays with a row for each piece of the data, in unnamed files of the temporary directory that are mapped: the memory that a run
needs for itself does not grow with its data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from typing import Any

import numpy as np
from attrs import define, field
from numpy.typing import NDArray

Ints = NDArray[np.int64]
SMALL = 1 << 16  # values; as many are no burden
BLOCK = 1 << 14  # rows that are handled at a time


@define
class Growing:
    """Blocks (n,), or (n, ``width``), one behind the other."""

    width: int | None = None
    waiting: list[Ints] = field(factory=list)
    count: int = 0  # values
    written: int = 0
    file: Any = None

    def add(self, block: Ints) -> None:
        self.waiting.append(np.array(block, dtype=np.int64, order="C"))
        self.count += block.size
        if self.count - self.written >= SMALL:
            self.file = self.file or tempfile.TemporaryFile(prefix="surogate-")  # noqa: SIM115  until it is mapped
            self._write()

    def array(self) -> Ints:
        """All of them, (N,) or (N, ``width``). The file goes with the array."""
        tail = () if self.width is None else (self.width,)
        if self.file is None:
            return np.concatenate([np.zeros((0, *tail), dtype=np.int64), *self.waiting])
        with self.file as file:
            self._write()
            file.flush()
            return np.memmap(file, dtype=np.int64, mode="r", shape=(self.count // (self.width or 1), *tail))

    def _write(self) -> None:
        self.file.writelines(block.data for block in self.waiting if block.size)
        self.waiting, self.written = [], self.count


def spilled(blocks: Iterable[Ints], width: int | None = None) -> Ints:
    """The blocks, joined."""
    growing = Growing(width)
    for block in blocks:
        growing.add(block)
    return growing.array()


def taken(array: Ints, which: Ints) -> Ints:
    """``array[which]``."""
    blocks = (array[which[at : at + BLOCK]] for at in range(0, len(which), BLOCK))
    return spilled(blocks, array.shape[1] if array.ndim > 1 else None)
