"""Batches as a pure function of the step number: there is no iterator state, so the position in the data *is* the step.

Rows are packed once, from the seed. Epoch e visits them in a permutation drawn from (seed, e); epochs follow each other without a
gap, and step i takes the rows [i · R, (i + 1) · R) of that stream, with R = batch size × accumulation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from surogate_core.contracts import Batch, Step
from surogate_pipeline_packed.corpus import Corpus
from surogate_pipeline_packed.pack import pack

EMPTY = -1


class Batches:
    """Packed batches of one corpus. ``rows`` are the packed rows of one epoch, ``fill`` the share of their positions in use.

    ``left`` pads rows on the left. ``free`` lays the rows of a micro-batch end to end in one row (1, S') without padding, where S'
    is what they fill (at least one position, which pads a micro-batch without pieces).
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        sequence_len: int,
        batch_size: int,
        accumulation: int,
        seed: int,
        packing: bool,
        pad_id: int,
        left: bool = False,
        free: bool = False,
    ):
        self.corpus = corpus
        self.sequence_len = sequence_len
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.seed = seed
        self.pad_id = pad_id
        self.left = left
        self.free = free
        self._rows = pack(corpus.lengths, sequence_len, seed, packing)
        self.rows = len(self._rows)
        self.fill = float(corpus.lengths.sum() / max(1, self.rows * sequence_len))
        self._permutation = lru_cache(maxsize=2)(lambda epoch: np.random.default_rng([seed, 2, epoch]).permutation(self.rows))

    def steps(self, epochs: int) -> int:
        """Optimizer steps of ``epochs`` epochs; the last one is padded with empty rows."""
        return -(-self.rows * epochs // (self.batch_size * self.accumulation))

    def step(self, index: int, epochs: int | None = None) -> Step:
        """Step ``index``, from 0. The stream of rows ends after ``epochs`` and empty rows follow; without it, it goes on."""
        count = self.batch_size * self.accumulation
        stream = range(index * count, (index + 1) * count)
        chosen = [
            int(self._permutation(at // self.rows)[at % self.rows]) if epochs is None or at < epochs * self.rows else EMPTY
            for at in stream
        ]
        batches, pieces, weight, trained = [], [], 0.0, 0
        for at in range(0, count, self.batch_size):
            batch, placed = self._batch(chosen[at : at + self.batch_size])
            batches.append(batch)
            pieces.append(placed)
            weight += float(batch.weights.double().sum())
            trained += int((batch.weights > 0).sum())
        placed = np.concatenate(pieces)
        done = stream.stop / self.rows
        return Step(
            batches=tuple(batches),
            weight=weight,
            tokens=self._length(placed),
            trained=trained,
            sources=tuple(self.corpus.sources[int(piece)] for piece in placed),
            epoch=done if epochs is None else min(done, float(epochs)),
        )

    def all_rows(self) -> Iterator[Batch]:
        """Every row once, in order, in micro-batches of one shape; the last one is padded with empty rows."""
        for at in range(0, self.rows, self.batch_size):
            rows = list(range(at, min(at + self.batch_size, self.rows)))
            yield self._batch(rows + [EMPTY] * (self.batch_size - len(rows)))[0]

    def _length(self, pieces: NDArray[np.int64]) -> int:
        places = self.corpus.pieces[pieces]
        return int((places[:, 1] - places[:, 0]).sum())

    def _batch(self, rows: Sequence[int]) -> tuple[Batch, NDArray[np.int64]]:
        """The micro-batch of these packed rows, and the pieces in it."""
        import torch

        order, starts = self._rows.order, self._rows.starts
        members = [order[starts[row] : starts[row + 1]] if row != EMPTY else order[:0] for row in rows]
        used = [self._length(pieces) for pieces in members]
        if self.free:
            members, used = [np.concatenate(members)], [sum(used)]
        width = max(used[0], 1) if self.free else self.sequence_len
        shape = (len(members), width)
        ids = np.full(shape, self.pad_id, dtype=np.int64)
        labels = np.full(shape, -100, dtype=np.int64)
        weights = np.zeros(shape, dtype=np.float32)
        positions = np.zeros(shape, dtype=np.int64)
        documents = np.zeros(shape, dtype=np.int32)
        for row, pieces in enumerate(members):
            pad = np.arange(width - used[row])
            at = first = len(pad) if self.left else 0
            for number, (start, stop, end) in enumerate(self.corpus.pieces[pieces].tolist()):
                here = slice(at, at + stop - start)
                labelled = min(stop, end - 1) - start  # positions that have a next token
                ids[row, here] = self.corpus.tokens[start:stop]
                labels[row, at : at + labelled] = self.corpus.tokens[start + 1 : start + 1 + labelled]
                weights[row, at : at + labelled] = self.corpus.weights[start + 1 : start + 1 + labelled]
                positions[row, here] = np.arange(stop - start)
                documents[row, here] = number
                at += stop - start
            padding = slice(0, first) if self.left else slice(at, width)
            positions[row, padding] = pad
            documents[row, padding] = len(pieces)
        labels[weights == 0] = -100
        arrays = {"input_ids": ids, "labels": labels, "weights": weights, "position_ids": positions, "document_ids": documents}
        placed = np.concatenate(members)
        images = self.corpus.images
        inputs = images.inputs(self.corpus.pieces[placed]) if images is not None else {}
        return Batch(**{name: torch.from_numpy(array) for name, array in arrays.items()}, inputs=inputs), placed
