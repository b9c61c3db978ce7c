"""A corpus: all samples of one side (training or validation) as flat arrays, cut into pieces that fit a row.

A sample of n tokens has n − 1 things to learn: tokens[i] predicted from what precedes it, with weight weights[i]. A sample that
fits is one piece. A longer one is cut every ``limit`` tokens, and the last position of a piece has the next piece's first token
as its label, so that every token but the sample's first stays trained exactly once. A last piece of a single token would have no
label of its own and is not placed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

Ints = NDArray[np.int64]


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
class Corpus:
    """All samples of one side, flat.

    tokens   int32 (n,)
    weights  float32 (n,): weight of predicting tokens[i]; 0 at the first token of each sample
    pieces   int64 (P, 3): start, stop, end. tokens[start:stop] is placed in a row; if stop < end the sample goes on, and
             tokens[stop] is the label of the piece's last position
    sources  (P,) names of the pieces, shown when a step fails
    """

    tokens: NDArray[np.int32]
    weights: NDArray[np.float32]
    pieces: Ints
    sources: Sequence[str]

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def lengths(self) -> Ints:
        """(P,) positions that each piece takes in a row."""
        return self.pieces[:, 1] - self.pieces[:, 0]

    def trained(self) -> Ints:
        """(P,) labels of each piece with a weight above 0."""
        counts = np.concatenate([[0], np.cumsum(self.weights > 0)])
        last = np.minimum(self.pieces[:, 1] + 1, self.pieces[:, 2])
        return counts[last] - counts[np.minimum(self.pieces[:, 0] + 1, last)]

    def take(self, which: Ints) -> Corpus:
        """The same tokens with a part of the pieces; sources stay lazy."""
        sources = self.sources
        if isinstance(sources, Sources):
            return Corpus(self.tokens, self.weights, self.pieces[which], Sources(sources.files, sources.places[which]))
        return Corpus(self.tokens, self.weights, self.pieces[which], [sources[i] for i in which])

    def fingerprint(self) -> str:
        """BLAKE2b of tokens, weights and pieces, 32 hexadecimal digits; the same on every machine."""
        digest = hashlib.blake2b(digest_size=16)
        for array, kind in ((self.tokens, "<i4"), (self.weights, "<f4"), (self.pieces, "<i8")):
            digest.update(f"{array.shape}".encode())
            digest.update(np.ascontiguousarray(array, dtype=kind).data)
        return digest.hexdigest()


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
