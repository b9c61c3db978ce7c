"""Mapped arrays hold what was put into them, and no memory of the process."""

from __future__ import annotations

import numpy as np
import pytest
from surogate_pipeline_packed import spill
from surogate_pipeline_packed.spill import Growing, spilled, taken


@pytest.mark.parametrize("width", [None, 3])
@pytest.mark.parametrize("sizes", [[], [0], [5], [0, 4, 0, 7, 1, 0], [40] * 9])
def test_blocks_are_joined(monkeypatch: pytest.MonkeyPatch, width: int | None, sizes: list[int]) -> None:
    monkeypatch.setattr(spill, "SMALL", 12)
    random = np.random.default_rng(0)
    blocks = [random.integers(0, 1 << 40, (size,) if width is None else (size, width)) for size in sizes]
    wanted = np.concatenate([np.zeros((0,) if width is None else (0, width), dtype=np.int64), *blocks])
    made = spilled([block.copy() for block in blocks], width)
    assert made.dtype == np.int64
    assert np.array_equal(made, wanted)
    assert isinstance(made, np.memmap) == (wanted.size >= 12)
    monkeypatch.setattr(spill, "BLOCK", 4)
    which = random.permutation(len(wanted))[: len(wanted) // 2]
    assert np.array_equal(taken(made, which), wanted[which])


def test_a_block_that_changes_afterwards_does_not_change_what_was_added() -> None:
    block = np.arange(4)
    growing = Growing()
    growing.add(block)
    block[:] = 9
    assert growing.array().tolist() == [0, 1, 2, 3]
