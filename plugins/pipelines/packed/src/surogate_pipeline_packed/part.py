"""Encoded rows as columns: what a worker hands back, what a shard holds, and what is placed in a corpus.

A part knows nothing of ``max_length``, ``max_bad_rows`` or the place of its rows in a run: those come afterwards, so that they can
change without encoding anything again, and so that what comes from a shard cannot differ from what was encoded just now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from surogate_core.contracts import Sample
from surogate_core.errors import BadRow
from surogate_pipeline_packed.images.table import NO_BYTES, NONE, moved, table_of

Ints = NDArray[np.int64]
FILE, NUMBER, COUNT, REASON = range(4)
LENGTH, KIND, MARKER = range(3)
UNSAID = "the format does not say why"


@frozen(eq=False)
class Part:
    """Rows of one data set, in order.

    tokens   int32 (n,): the samples one behind the other
    weights  float32 (n,): weight of predicting tokens[i]; 0 at the first token of each sample
    samples  int64 (S, 3): number of tokens; kind and marker as indices into ``words``
    rows     int64 (R, 4): file, number in it from 1, number of samples, and the index of the reason in ``words`` why the row cannot
             be used (-1: it can)
    reasons  int64 (K, 2): the first token of each run, ascending, and the index in ``words`` of why it weighs what it does
    words    the texts that the columns name
    images   int64 (I, 13) and ``blob`` uint8: the images in the samples, see images/table.py
    """

    tokens: NDArray[np.int32]
    weights: NDArray[np.float32]
    samples: Ints
    rows: Ints
    reasons: Ints
    words: tuple[str, ...]
    images: Ints = NONE
    blob: NDArray[np.uint8] = NO_BYTES

    @property
    def size(self) -> int:
        """How much it is, in tokens of eight bytes."""
        return len(self.tokens) + len(self.blob) // 8


class Words(dict[str, int]):
    """Text → its index, given when first asked for."""

    def __missing__(self, text: str) -> int:
        self[text] = len(self)
        return self[text]


def part_of(results: Sequence[tuple[int, int, Sequence[Sample] | BadRow]]) -> Part:
    """(file, number, samples or why there are none) of each row → their part."""
    words = Words()
    rows, samples, reasons, pictures, size = [], [], [], [], 0
    tokens, weights = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for file, number, result in results:
        if isinstance(result, BadRow):
            rows.append((file, number, 0, words[result.reason]))
            continue
        rows.append((file, number, len(result), -1))
        for sample in result:
            samples.append((len(sample.input_ids), words[sample.kind], words[sample.marker]))
            reasons += [
                (size + first, words[why]) for first, why in sample.reasons or ((0, UNSAID),) if first < len(sample.input_ids)
            ]
            pictures += [(size, picture) for picture in sample.images]
            size += len(sample.input_ids)
            tokens.append(np.asarray(sample.input_ids, dtype=np.int32))
            weight = np.array(sample.weights, dtype=np.float32)
            weight[:1] = 0  # nothing precedes the first token
            weights.append(weight)
    tables = _table(samples, 3), _table(rows, 4), _table(reasons, 2)
    return Part(np.concatenate(tokens), np.concatenate(weights), *tables, tuple(words), *table_of(pictures))


def join(parts: Sequence[Part]) -> Part:
    """Parts that follow each other → one, with one list of words."""
    if len(parts) == 1:
        return parts[0]
    words = Words()
    samples, rows, reasons, images = [], [], [], []
    size = blob = 0
    for part in parts:
        places = np.array([words[word] for word in part.words] + [-1], dtype=np.int64)  # -1 stays -1
        samples.append(np.column_stack([part.samples[:, LENGTH], places[part.samples[:, KIND]], places[part.samples[:, MARKER]]]))
        rows.append(np.column_stack([part.rows[:, :REASON], places[part.rows[:, REASON]]]))
        reasons.append(np.column_stack([part.reasons[:, 0] + size, places[part.reasons[:, 1]]]))
        images.append(moved(part.images, size, blob))
        size, blob = size + len(part.tokens), blob + len(part.blob)
    return Part(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.weights for part in parts]),
        np.concatenate(samples),
        np.concatenate(rows),
        np.concatenate(reasons),
        tuple(words),
        np.concatenate(images),
        np.concatenate([part.blob for part in parts]),
    )


def arrays(part: Part) -> Mapping[str, NDArray[Any]]:
    """The columns by name, in the order in which they are stored. Those of images are there where there are images."""
    names = ("tokens", "weights", "samples", "rows", "reasons", *(("images", "blob") if len(part.images) else ()))
    return {name: getattr(part, name) for name in names}


def _table(rows: Sequence[tuple[int, ...]], width: int) -> Ints:
    return np.array(rows, dtype=np.int64).reshape(-1, width)
