"""A corpus: all samples of one side (training or validation) as flat arrays, cut into pieces that fit a row.

A sample of n tokens has n − 1 things to learn: tokens[i] predicted from what precedes it, with weight weights[i]. A sample that
fits is one piece. A longer one is cut every ``limit`` tokens, and the last position of a piece has the next piece's first token
as its label, so that every token but the sample's first stays trained exactly once. A last piece of a single token would have no
label of its own and is not placed.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from attrs import evolve, frozen
from numpy.typing import NDArray

from surogate_pipeline_packed.images.table import Gallery
from surogate_pipeline_packed.spill import taken

Ints = NDArray[np.int64]


def spread(lengths: Ints) -> Iterator[tuple[int, int, int]]:
    """(least, most, how many) for each power of two between the shortest and the longest; nothing of no lengths."""
    counts = np.bincount(np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64))
    for power in range(next(iter(np.flatnonzero(counts).tolist()), 0), len(counts)):
        yield (1 << power >> 1) + 1 if power else 1, 1 << power, int(counts[power])


BLOCK = 1 << 22  # values hashed at a time: what is mapped is not to be read into memory as a whole
PIECES = 1 << 14  # pieces looked at at a time


@frozen(eq=False)
class Joined:
    """Arrays of one dtype read as one, without joining them: they may be mapped files. ``starts`` says where each begins."""

    arrays: tuple[NDArray[Any], ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, arrays: Sequence[NDArray[Any]]) -> Joined:
        starts = np.cumsum([0, *map(len, arrays)]).tolist()
        return cls(tuple(arrays), tuple(starts))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, at: int | slice) -> Any:
        """One value, or the values of a slice without a step; those of a slice within one array are no copy."""
        if not isinstance(at, slice):
            array = bisect_right(self.starts, at) - 1
            return self.arrays[array][at - self.starts[array]]
        start, stop, _ = at.indices(len(self))
        array = bisect_right(self.starts, start) - 1
        if array < len(self.arrays) and stop <= self.starts[array + 1]:
            return self.arrays[array][start - self.starts[array] : max(start, stop) - self.starts[array]]
        last = bisect_right(self.starts, max(start, stop - 1))
        bases = zip(self.arrays[array:last], self.starts[array:last], strict=True)
        return np.concatenate([part[max(0, start - base) : max(0, stop - base)] for part, base in bases])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.concatenate(self.arrays).astype(dtype or self.arrays[0].dtype, copy=False)


@frozen(eq=False)
class Sources(Sequence[str]):
    """Names of pieces, made when asked for: ``file.jsonl:17``, and ``file.txt:1#3`` for the third piece of a sample.

    files   names of files, by index
    places  int64 (P, 3): file, row from 1, number of the piece within its sample from 1 (0: the sample is one piece)
    """

    files: tuple[str, ...]
    places: Ints

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        file, row, part = (int(value) for value in self.places[index])
        return f"{self.files[file]}:{row}" + (f"#{part}" if part else "")


@frozen(eq=False)
class Reasons:
    """Why tokens weigh what they do. ``parts``, in the order of the tokens, are runs (K, 2) (first token in the part, index of the
    reason) with the reasons; ``starts`` says where each part begins."""

    parts: tuple[tuple[Ints, tuple[str, ...]], ...]
    starts: tuple[int, ...]

    def of(self, start: int, stop: int) -> list[tuple[int, str]]:
        """The runs of tokens[start:stop], which are of one sample: first token, counted from ``start``, and reason."""
        number = bisect_right(self.starts, start) - 1
        runs, words = self.parts[number]
        first, last = start - self.starts[number], stop - self.starts[number]
        at = int(np.searchsorted(runs[:, 0], first, side="right")) - 1
        end = int(np.searchsorted(runs[:, 0], last, side="left"))
        return [(max(0, place - first), words[word]) for place, word in runs[at:end].tolist()]


@frozen(eq=False)
class Corpus:
    """All samples of one side, flat.

    tokens   int32 (n,)
    weights  float32 (n,): weight of predicting tokens[i]; 0 at the first token of each sample
    pieces   int64 (P, 3): start, stop, end. tokens[start:stop] is placed in a row; if stop < end the sample goes on, and
             tokens[stop] is the label of the piece's last position
    sources  (P,) names of the pieces, shown when a step fails
    reasons  for the preview
    images   those in the pieces, None where there are none
    """

    tokens: NDArray[np.int32] | Joined
    weights: NDArray[np.float32] | Joined
    pieces: Ints
    sources: Sequence[str]
    reasons: Reasons | None = None
    images: Gallery | None = None

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def lengths(self) -> Ints:
        """(P,) positions that each piece takes in a row."""
        return self.pieces[:, 1] - self.pieces[:, 0]

    def trained(self) -> Ints:
        """(P,) labels of each piece with a weight above 0."""
        counts = (
            np.count_nonzero(self.weights[start + 1 : min(stop + 1, end)] > 0)
            for block in self._blocks()
            for start, stop, end in block.tolist()
        )
        return np.fromiter(counts, dtype=np.int64, count=len(self.pieces))

    def _blocks(self) -> Iterator[Ints]:
        yield from (self.pieces[at : at + PIECES] for at in range(0, len(self.pieces), PIECES))

    def take(self, which: Ints) -> Corpus:
        """The same tokens with a part of the pieces; sources stay lazy."""
        sources = self.sources
        if isinstance(sources, Sources):
            sources = evolve(sources, places=taken(sources.places, which))
        else:
            sources = [sources[i] for i in which]
        return evolve(self, pieces=taken(self.pieces, which), sources=sources)

    def fingerprint(self) -> str:
        """BLAKE2b of what is trained on, 32 hexadecimal digits: lengths of pieces, whether they go on, and their tokens, weights
        and last labels, and the images in them, in order. The same on every machine, and wherever the tokens lie."""
        digest = hashlib.blake2b(digest_size=16)
        for block in self._blocks():
            digest.update(np.ascontiguousarray(block[:, 1] - block[:, 0], dtype="<i8").data)
        for block in self._blocks():
            digest.update(np.ascontiguousarray(block[:, 2] > block[:, 1], dtype="<i8").data)
        for array, kind in ((self.tokens, "<i4"), (self.weights, "<f4")):
            for start, end in self._runs():
                for at in range(start, end, BLOCK):
                    digest.update(np.ascontiguousarray(array[at : min(at + BLOCK, end)], dtype=kind).data)
        if self.images is not None:
            digest.update(self.images.digests(self.pieces))
        return digest.hexdigest()

    def _runs(self) -> Iterator[tuple[int, int]]:
        """[start, end) of the tokens of pieces that follow each other, with the last label: read in one."""
        first: int | None = None
        for at, block in zip(range(0, len(self.pieces), PIECES), self._blocks(), strict=True):
            starts, stops, ends = block.T
            after = self.pieces[at + PIECES, 0] if at + PIECES < len(self.pieces) else -1
            first = int(starts[0]) if first is None else first
            for last in np.flatnonzero(np.append(starts[1:], after) != stops).tolist():
                assert first is not None
                yield first, int(min(stops[last] + 1, ends[last]))
                first = int(starts[last + 1]) if last + 1 < len(block) else None


def cut(start: int, end: int, limit: int) -> Iterator[tuple[int, int, int]]:
    """Pieces (start, stop, end) of at most ``limit`` positions of the sample tokens[start:end]."""
    for at in range(start, end, limit):
        if at == start or end - at > 1:
            yield at, min(at + limit, end), end


def hold_out(corpus: Corpus, ratio: float, seed: int) -> tuple[Corpus, Corpus | None]:
    """Training and validation parts of a corpus: a share ``ratio`` of its pieces (at least one, if there are two or more), drawn
    with ``seed``. None when there is nothing to hold out."""
    count = min(max(1, round(ratio * len(corpus))), len(corpus) - 1) if ratio > 0 else 0
    if count <= 0:
        return corpus, None
    order = np.random.default_rng([seed, 1]).permutation(len(corpus))
    return corpus.take(np.sort(order[count:])), corpus.take(np.sort(order[:count]))
