"""Formats and pipelines that break one promise each, and what the check says of them."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from surogate_testing import check_format, check_pipeline

from surogate_core.contracts import Batch, Sample, Step

ROWS, LENGTH = 13, 8
"""Rows of one epoch and positions of a row; row n holds two documents of n % 3 + 2 and 3 tokens, and padding."""


class Format:
    def __init__(self, fault: str):
        self.fault, self.asked = fault, 0
        self.overlong = "cut" if fault == "overlong" else "split"

    def encode(self, row: dict[str, str]) -> list[Sample]:
        self.asked += 1
        weights = {"short": [1.0], "negative": [0.0, 1.0, -1.0], "infinite": [0.0, 1.0, float("inf")]}
        ids = [1, 2, self.asked if self.fault == "moods" else 3]
        return [Sample(input_ids=ids, weights=weights.get(self.fault, [0.0, 1.0, 0.5]))]


FORMATS = {
    "overlong": "overlong is 'cut'",
    "short": "as many weights as tokens",
    "negative": "finite and not negative",
    "infinite": "finite and not negative",
    "moods": "the same row gave two answers",
}


@pytest.mark.parametrize("fault", FORMATS)
def test_format(fault: str) -> None:
    good: Any = Format("")
    check_format(good, [{"text": "a"}])
    with pytest.raises(AssertionError, match=FORMATS[fault]):
        check_format(Format(fault), [{"text": "a"}])  # type: ignore[arg-type]


def test_a_format_that_is_settled_first() -> None:
    def settling(**answer: Any) -> Any:
        return SimpleNamespace(overlong="split", settle=lambda rows: SimpleNamespace(**answer))

    check_format(settling(type="text", options=None, why="a column"), [{"text": "a"}])
    with pytest.raises(AssertionError, match="what settle answers has no 'why'"):
        check_format(settling(type="text", options=None), [{"text": "a"}])
    kinds = iter(["text", "instruction"])
    fickle: Any = SimpleNamespace(overlong="split", settle=lambda rows: SimpleNamespace(type=next(kinds), options=None, why=""))
    with pytest.raises(AssertionError, match="settled in two ways"):
        check_format(fickle, [{"text": "a"}])


class Pipeline:
    """Rows 0 to 13, in an order of each epoch's own; it is ``Pipeline``, ``Data`` and ``Batches`` at once."""

    def __init__(self, seed: int, fault: str, batch_size: int = 2, accumulation: int = 2):
        self.seed, self.fault, self.batch_size, self.accumulation = seed, fault, batch_size, accumulation
        self.rows = 5 if fault == "few" else ROWS
        self.fill, self.asked = 1.0, 0
        self.fingerprint = str(id(self)) if fault == "fingerprint" else "same"
        read = self.rows + (fault == "loses")
        dropped = {"too long": {1}} if fault == "set" else {}
        counts = {"read": read, "kept": self.rows, "split": 0, "truncated": 0, "dropped": dropped}
        self.ledger = {"rows": counts, "tokens": counts}

    def prepare(self, tokenizer: Any, report: Any, live: bool = False) -> Pipeline:
        return self

    def training(self, batch_size: int, accumulation: int) -> Pipeline:
        return Pipeline(self.seed, self.fault, batch_size, accumulation)

    def validation(self, batch_size: int) -> Pipeline | None:
        held = Pipeline(self.seed, self.fault, batch_size)
        held.rows += self.fault == "validation"
        held.fault = ""
        return held

    def steps(self, epochs: int) -> int:
        if self.fault == "steps":
            return self.rows * epochs // 4
        return -(-self.rows * epochs // (self.batch_size * self.accumulation))

    def order(self, epoch: int) -> list[int]:
        seed = 0 if self.fault == "seedless" else self.seed
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(100 * seed + epoch)).tolist()
        return [order[0], *order[:-1]] if self.fault == "repeats" else order

    def step(self, index: int, epochs: int | None = None) -> Step:
        if self.fault == "iterator":
            index, self.asked = self.asked, self.asked + 1
        count = self.batch_size * self.accumulation
        stream = range(index * count, (index + 1) * count)
        if self.fault == "by batch" and self.batch_size == 4:
            stream = stream[::-1]
        end = self.rows * (epochs or 99) + 2 * (self.fault == "goes on")
        chosen = [self.order(at // self.rows)[at % self.rows] if at < end else -1 for at in stream]
        batches = [self.batch(chosen[at : at + self.batch_size]) for at in range(0, count, self.batch_size)]
        if self.fault == "one batch":
            batches = batches[:1]
        if self.fault == "ragged":
            batches[0] = Batch(**{name: getattr(batches[0], name)[:, :-1] for name in NAMES})
        weight = sum(float(batch.weights.sum()) for batch in batches) * (2 if self.fault == "weight" else 1)
        trained = sum(int((batch.weights > 0).sum()) for batch in batches) + (self.fault == "trained")
        tokens = 10**6 if self.fault == "tokens" else trained
        return Step(batches=tuple(batches), weight=weight, tokens=tokens, trained=trained, sources=(), epoch=0.0)

    def all_rows(self) -> Iterator[Batch]:
        rows = min(self.rows, ROWS)
        for at in range(0, rows, 2):
            yield self.batch([at, at + 1 if at + 1 < rows else -1])

    def batch(self, rows: list[int]) -> Batch:
        shape = (len(rows), LENGTH)
        ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
        weights, positions = torch.zeros(shape), torch.zeros(shape, dtype=torch.long)
        documents = torch.full(shape, 2, dtype=torch.int32)
        for place, row in enumerate(rows):
            at = 0
            for number, length in enumerate((row % 3 + 2, 3) if row >= 0 else ()):
                here = slice(at, at + length)
                ids[place, here] = torch.arange(length) + 10 * row + number
                labels[place, at : at + length - 1] = ids[place, at + 1 : at + length] + (self.fault == "labels")
                weights[place, at : at + length - 1] = 1.0
                positions[place, here] = torch.arange(length) + (self.fault == "starts")
                documents[place, here] = number
                at += length
            positions[place, at:] = torch.arange(LENGTH - at) + (self.fault == "starts")
        if self.fault == "counts":
            positions *= 2
        if self.fault == "silent":
            labels[weights == 0] = 0
        if self.fault == "dtype":
            ids = ids.int()
        if self.fault == "shape":
            weights = weights[:, :-1]
        return Batch(input_ids=ids, labels=labels, weights=weights, position_ids=positions, document_ids=documents)


NAMES = [field.name for field in attrs.fields(Batch)[:-1]]
PIPELINES = {
    "fingerprint": "prepared twice, have two fingerprints",
    "set": "the ledger is not plain JSON",
    "loses": "the ledger: 14 rows read, 13 accounted for",
    "few": "5 rows of one epoch: too few to see an order",
    "steps": "is 6 for 13 rows, 4 a step",
    "iterator": "step 6 is another one when it is asked for without those before it",
    "one batch": "step 0: 1 micro-batches, wanted 2",
    "ragged": "step 0: micro-batches of several shapes",
    "dtype": "step 0: input_ids is torch.int32, wanted torch.int64",
    "shape": "step 0: weights is .2, 7., input_ids another shape",
    "silent": "labels are -100 where the weight is 0, and nowhere else",
    "starts": "the positions of a document do not start at 0",
    "counts": "the positions of a document do not count by 1",
    "labels": "a label is not the token that follows in its document",
    "weight": "weight .*, the batches' are",
    "trained": "trained .*, the batches have",
    "tokens": "tokens 1000000, trained",
    "repeats": "2 rows are left out of two epochs",
    "goes on": "2 rows come more often than once an epoch",
    "by batch": "1 x 4 rows of a step are others than 2 x 2",
    "seedless": "two seeds give one order",
    "validation": "validation: all_rows gives 13 rows, there are 14",
}


def check(fault: str) -> None:
    make: Any = lambda seed: Pipeline(seed, fault)  # noqa: E731
    check_pipeline(make, None)


def test_a_good_one() -> None:
    check("")


@pytest.mark.parametrize("fault", PIPELINES)
def test_pipeline(fault: str) -> None:
    with pytest.raises(AssertionError, match=PIPELINES[fault]):
        check(fault)
