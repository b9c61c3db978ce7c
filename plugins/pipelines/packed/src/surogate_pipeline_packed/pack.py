"""Packing: which pieces share a row.

Best-fit decreasing (Johnson 1973): pieces from long to short, each into the row with the least room that still holds it. Rows
are found by their room in a bit set held in one Python integer, so that a piece costs one shift. Pieces are shuffled first and
packed window by window, so that neighbours in the data are spread over rows.
"""

from __future__ import annotations

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from surogate_pipeline_packed.spill import Growing

Ints = NDArray[np.int64]
WINDOW = 1 << 16


@frozen(eq=False)
class Rows:
    """Row r holds the pieces ``order[starts[r]:starts[r + 1]]``, from left to right."""

    order: Ints
    starts: Ints

    def __len__(self) -> int:
        return len(self.starts) - 1


def pack(lengths: Ints, room: int, seed: int, packing: bool = True) -> Rows:
    """Rows of at most ``room`` positions for pieces of ``lengths`` (P,), each at least 1 and at most ``room``."""
    if not packing:
        return Rows(np.arange(len(lengths)), np.arange(len(lengths) + 1))
    shuffled = np.random.default_rng([seed, 0]).permutation(len(lengths))
    order, starts, placed = Growing(), Growing(), 0
    starts.add(np.zeros(1, dtype=np.int64))
    for at in range(0, len(shuffled), WINDOW):
        window = shuffled[at : at + WINDOW]
        window = window[np.argsort(-lengths[window], kind="stable")]
        rows = _best_fit(window.tolist(), lengths[window].tolist(), room)
        order.add(np.array([piece for row in rows for piece in row], dtype=np.int64))
        starts.add(placed + np.cumsum([len(row) for row in rows]))
        placed += len(window)
    return Rows(order.array(), starts.array())


def _best_fit(pieces: list[int], lengths: list[int], room: int) -> list[list[int]]:
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(room + 1)]  # rows with exactly this much room left
    present = 0  # bit k is set when by_room[k] is not empty
    for piece, length in zip(pieces, lengths, strict=True):
        fitting = present >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1
            row = by_room[left].pop()
            if not by_room[left]:
                present ^= 1 << left
            rows[row].append(piece)
        else:
            left, row = room, len(rows)
            rows.append([piece])
        left -= length
        if left:
            by_room[left].append(row)
            present |= 1 << left
    return rows
