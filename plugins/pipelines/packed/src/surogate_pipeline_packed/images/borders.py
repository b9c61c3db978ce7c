"""Where samples with images may be cut: an image is used whole, with the markers around it, or not at all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from surogate_pipeline_packed.images.table import START, STOP

Ints = NDArray[np.int64]


def blocks(table: Ints, start: int, end: int) -> list[tuple[int, int]]:
    """(start, stop) of the images in a sample's tokens [start, end)."""
    first, last = np.searchsorted(table[:, START], [start, end])
    return [(int(row[START]), int(row[STOP])) for row in table[first:last]]


def outside(table: Ints, starts: Ints, ends: Ints, which: Ints, *, later: bool) -> None:
    """Move those of ``starts`` (``later``) or ``ends`` that lie within an image behind it, or before it. In place."""
    places = starts if later else ends
    for sample in which.tolist():
        row = int(np.searchsorted(table[:, START], places[sample])) - 1  # the last image that begins before
        if row >= 0 and table[row, STOP] > places[sample]:
            places[sample] = table[row, STOP if later else START]


def oversized(table: Ints, starts: Ints, ends: Ints, which: Ints, limit: int) -> Ints:
    """Those of the samples ``which`` that have an image of more than ``limit`` tokens."""
    long = [sample for sample in which.tolist() if any(b - a > limit for a, b in blocks(table, starts[sample], ends[sample]))]
    return np.array(long, dtype=np.int64)


def cuts(table: Ints, start: int, end: int, limit: int) -> Iterator[tuple[int, int]]:
    """Pieces (start, stop) of at most ``limit`` tokens of a sample, as long as they can be. No image is longer than ``limit``."""
    inside, at = blocks(table, start, end), start
    while at < end:
        stop = min(at + limit, end)
        stop = next((a for a, b in inside if a < stop < b), stop)
        if at == start or stop - at > 1 or stop < end:
            yield at, stop
        at = stop
