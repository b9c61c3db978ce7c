"""Data: formats of rows, and pipelines. Shapes: B rows of a micro-batch, S positions of a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from surogate_core.contracts import Batch, Batches, Data, Format, Pipeline, Step
from surogate_testing.plain import plain

DTYPES = {
    "input_ids": torch.int64,
    "labels": torch.int64,
    "weights": torch.float32,
    "position_ids": torch.int64,
    "document_ids": torch.int32,
}


def check_format(encoder: Format, rows: Sequence[Mapping[str, Any]]) -> None:
    """As many weights as tokens, weights finite and not negative, the same answer twice. One that is to be settled first is asked
    for nothing but its ``settle``."""
    assert encoder.overlong in ("split", "truncate"), f'overlong is {encoder.overlong!r}, wanted "split" or "truncate"'
    if settle := getattr(encoder, "settle", None):
        reading, again = settle(rows), settle(rows)
        for name in ("type", "options", "why"):
            assert hasattr(reading, name), f"what settle answers has no {name!r}"
        assert (reading.type, reading.options) == (again.type, again.options), "the same rows were settled in two ways"
        return
    for row in rows:
        samples = encoder.encode(row)
        for one, two in zip(samples, encoder.encode(row), strict=True):
            assert len(one.input_ids) == len(one.weights), "as many weights as tokens"
            assert all(0 <= weight < float("inf") for weight in one.weights), "weights are finite and not negative"
            assert list(one.input_ids) == list(two.input_ids), "the same row gave two answers"


def check_pipeline(make: Callable[[int], Pipeline], tokenizer: Any) -> None:
    """``make(seed)`` gives the pipeline of a configuration with this ``train_seed``, on data of at least 13 rows of one epoch,
    padded to one length.

    Prepared twice it gives the same data, of which nothing is lost without being counted, and another seed another order. A step
    is a function of its number: asked for backwards, by another object, it is the same, so that a run continues where it was.
    Batches are what :class:`~surogate_core.contracts.Batch` says. In each epoch every row comes once, so no two processes get the
    same one; the rows of a step depend on the product of batch size and accumulation alone."""
    data, again, other = (make(seed).prepare(tokenizer, lambda text: None) for seed in (1, 1, 2))
    assert data.fingerprint == again.fingerprint, "the same data, prepared twice, have two fingerprints"
    _accounted(data)
    train, fresh = data.training(2, 2), again.training(2, 2)
    assert train.rows > 12, f"{train.rows} rows of one epoch: too few to see an order, give more data"
    whole = train.steps(2)
    assert whole == -(-train.rows * 2 // 4), f"steps(2) is {whole} for {train.rows} rows, 4 a step"
    steps = [train.step(number, 2) for number in range(whole)]
    for number in reversed(range(whole)):
        same = _rows(fresh.step(number, 2).batches) == _rows(steps[number].batches)
        assert same, f"step {number} is another one when it is asked for without those before it"
    for number, step in enumerate(steps):
        _check_step(step, number)
    _each_row_once(train, steps)
    for batch_size, accumulation in ((4, 1), (1, 4)):
        split = data.training(batch_size, accumulation).step(1, 2)
        assert len(split.batches) == accumulation, f"{len(split.batches)} micro-batches, wanted {accumulation}"
        same = _rows(split.batches) == _rows(steps[1].batches)
        assert same, f"{accumulation} x {batch_size} rows of a step are others than 2 x 2"
    order = [_rows(step.batches) for step in steps]
    others = other.training(2, 2)
    assert order != [_rows(others.step(number, 2).batches) for number in range(others.steps(2))], "two seeds give one order"
    if (held := data.validation(2)) is not None:
        rows = _filled(held.all_rows())
        assert rows.total() == held.rows, f"validation: all_rows gives {rows.total()} rows, there are {held.rows}"


def _accounted(data: Data) -> None:
    ledger = plain(dict(data.ledger), "the ledger")
    for what in ("rows", "tokens"):
        counts = dict(ledger[what])
        read, dropped = counts.pop("read"), counts.pop("dropped")
        found = sum(counts.values()) + sum(dropped.values())
        assert read == found, f"the ledger: {read} {what} read, {found} accounted for"


def _check_step(step: Step, number: int) -> None:
    where = f"step {number}"
    assert len(step.batches) == 2, f"{where}: {len(step.batches)} micro-batches, wanted 2"
    assert len({batch.input_ids.shape for batch in step.batches}) == 1, f"{where}: micro-batches of several shapes"
    for batch in step.batches:
        _check_batch(batch, where)
    weight = sum(float(batch.weights.double().sum()) for batch in step.batches)
    assert abs(step.weight - weight) <= 1e-6 * max(1.0, weight), f"{where}: weight {step.weight}, the batches' are {weight}"
    trained = sum(int((batch.weights > 0).sum()) for batch in step.batches)
    assert step.trained == trained, f"{where}: trained {step.trained}, the batches have {trained} labels with a weight"
    positions = sum(batch.input_ids.numel() for batch in step.batches)
    assert trained <= step.tokens <= positions, f"{where}: tokens {step.tokens}, trained {trained}, positions {positions}"


def _check_batch(batch: Batch, where: str) -> None:
    for name, dtype in DTYPES.items():
        tensor = getattr(batch, name)
        assert tensor.dtype == dtype, f"{where}: {name} is {tensor.dtype}, wanted {dtype}"
        assert tensor.shape == batch.input_ids.shape, f"{where}: {name} is {tuple(tensor.shape)}, input_ids another shape"
    silent = torch.equal(batch.labels == -100, batch.weights == 0)
    assert silent, f"{where}: labels are -100 where the weight is 0, and nowhere else"
    starts = torch.ones_like(batch.input_ids, dtype=torch.bool)
    starts[:, 1:] = batch.document_ids[:, 1:] != batch.document_ids[:, :-1]
    assert not batch.position_ids[starts].any(), f"{where}: the positions of a document do not start at 0"
    ahead = batch.position_ids[:, 1:] - batch.position_ids[:, :-1]
    assert (ahead[~starts[:, 1:]] == 1).all(), f"{where}: the positions of a document do not count by 1"
    inside = (batch.weights[:, :-1] > 0) & ~starts[:, 1:]
    follows = torch.equal(batch.labels[:, :-1][inside], batch.input_ids[:, 1:][inside])
    assert follows, f"{where}: a label is not the token that follows in its document"


def _each_row_once(train: Batches, steps: Sequence[Step]) -> None:
    rows = _filled(train.all_rows())
    assert rows.total() == train.rows, f"all_rows gives {rows.total()} rows, there are {train.rows}"
    seen = _filled(batch for step in steps for batch in step.batches)
    twice = Counter({row: 2 * count for row, count in rows.items()})
    missing, extra = (twice - seen).total(), (seen - twice).total()
    assert not missing, f"{missing} rows are left out of two epochs"
    assert not extra, f"{extra} rows come more often than once an epoch"
    first = train.steps(1)
    short = _filled(batch for number in range(first) for batch in train.step(number, 1).batches)
    assert short == rows, f"with one epoch, {first} steps do not give every row once"


def _rows(batches: Iterable[Batch]) -> list[bytes]:
    """The rows, in order, as bytes."""
    parts = [[getattr(batch, name) for name in DTYPES] for batch in batches]
    return [b"".join(tensor[row].numpy().tobytes() for tensor in part) for part in parts for row in range(len(part[0]))]


def _filled(batches: Iterable[Batch]) -> Counter[bytes]:
    """How often each row comes, without rows that train nothing: those only fill a step."""
    kept: Counter[bytes] = Counter()
    for batch in batches:
        kept.update(row for row, weight in zip(_rows([batch]), batch.weights.sum(1).tolist(), strict=True) if weight)
    return kept
