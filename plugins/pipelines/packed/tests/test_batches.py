"""Packing and batches: nothing lost, nothing mixed, the step number is the position."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from surogate_pipeline_packed.batches import Batches
from surogate_pipeline_packed.corpus import Corpus, Sources, cut, hold_out
from surogate_pipeline_packed.pack import WINDOW, pack


def corpus(lengths: list[int] | np.ndarray, limit: int = 64, seed: int = 0) -> Corpus:
    """Samples of these lengths with random tokens and weights, cut at ``limit``."""
    random = np.random.default_rng(seed)
    ends = np.cumsum(lengths)
    pieces = [piece for end, length in zip(ends, lengths, strict=True) for piece in cut(int(end - length), int(end), limit)]
    tokens = random.integers(1, 30000, int(ends[-1]), dtype=np.int32)
    weights = random.choice([0, 0.5, 1], int(ends[-1])).astype(np.float32)
    weights[ends - lengths] = 0
    places = np.array([(0, i + 1, 0) for i in range(len(pieces))])
    return Corpus(tokens, weights, np.array(pieces), Sources(("f",), places))


def batches(data: Corpus, **options: object) -> Batches:
    settings = {"sequence_len": 64, "batch_size": 3, "accumulation": 2, "seed": 7, "packing": True, "pad_id": 0} | options
    return Batches(data, **settings)  # type: ignore[arg-type]


def pairs_of_samples(data: Corpus, lengths: list[int]) -> Counter:
    """(previous token, token, weight) for everything that is trained, from the samples alone."""
    seen: Counter = Counter()
    start = 0
    for length in lengths:
        for i in range(start + 1, start + length):
            if data.weights[i] > 0:
                seen[int(data.tokens[i - 1]), int(data.tokens[i]), float(data.weights[i])] += 1
        start += length
    return seen


def pairs_of_rows(made: list) -> Counter:
    seen: Counter = Counter()
    for batch in made:
        for row, position in torch.nonzero(batch.labels != -100).tolist():
            token, label = int(batch.input_ids[row, position]), int(batch.labels[row, position])
            seen[token, label, float(batch.weights[row, position])] += 1
    return seen


LENGTHS = [1, 2, 3, 63, 64, 65, 66, 128, 129, 130, 200, *range(5, 60, 7)]


@pytest.mark.parametrize("packing", [True, False])
def test_every_trained_token_is_in_the_rows_once(packing: bool) -> None:
    data = corpus(LENGTHS)
    made = batches(data, packing=packing)
    wanted = pairs_of_samples(data, LENGTHS)
    assert pairs_of_rows(list(made.all_rows())) == wanted
    steps = [made.step(i, epochs=2) for i in range(made.steps(2))]
    assert pairs_of_rows([batch for step in steps for batch in step.batches]) == Counter({k: 2 * n for k, n in wanted.items()})
    assert sum(step.trained for step in steps) == 2 * wanted.total()
    assert sum(step.weight for step in steps) == pytest.approx(2 * sum(key[2] * n for key, n in wanted.items()))
    assert sum(step.tokens for step in steps) == 2 * data.lengths.sum()
    assert sum(len(step.sources) for step in steps) == 2 * len(data)


def test_rows_keep_documents_apart() -> None:
    data = corpus(LENGTHS)
    for batch in batches(data).all_rows():
        assert batch.input_ids.shape == batch.labels.shape == (3, 64)
        assert (batch.input_ids.dtype, batch.labels.dtype, batch.weights.dtype) == (torch.int64, torch.int64, torch.float32)
        assert (batch.position_ids.dtype, batch.document_ids.dtype) == (torch.int64, torch.int32)
        for row in range(3):
            documents, positions = batch.document_ids[row].tolist(), batch.position_ids[row].tolist()
            assert documents == sorted(documents)
            assert documents[0] == 0
            for number in set(documents):
                places = [p for p, d in zip(positions, documents, strict=True) if d == number]
                assert places == list(range(len(places)))
            assert len(set(documents)) == documents[-1] + 1
            padding = batch.input_ids[row] == 0  # tokens of the corpus start from 1
            assert set(batch.document_ids[row][padding].tolist()) <= {documents[-1]}
            assert not (padding & (batch.labels[row] != -100)).any()
        assert torch.equal(batch.labels == -100, batch.weights == 0)


def test_step_is_pure_and_epochs_differ() -> None:
    data = corpus(list(np.random.default_rng(1).integers(5, 64, 200)))
    one, other = batches(data), batches(data)
    last = one.steps(3) - 1
    backwards = [one.step(i, epochs=3) for i in range(last, -1, -1)][::-1]
    for i in (0, last // 2, last):
        again = other.step(i, epochs=3)
        assert again.sources == backwards[i].sources
        assert (again.weight, again.tokens, again.epoch) == (backwards[i].weight, backwards[i].tokens, backwards[i].epoch)
        for a, b in zip(again.batches, backwards[i].batches, strict=True):
            assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("input_ids", "labels", "document_ids"))
    seen = [source for step in backwards for source in step.sources]
    epochs = [seen[i * len(data) : (i + 1) * len(data)] for i in range(3)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert batches(data, seed=8).step(0).sources != one.step(0).sources
    assert backwards[-1].epoch == 3.0


def test_last_step_is_padded_with_empty_rows() -> None:
    data = corpus([64] * 8)
    made = batches(data)
    assert (made.rows, made.steps(1), made.steps(3)) == (8, 2, 4)
    last = made.step(1, epochs=1)
    assert len(last.batches) == 2
    assert last.tokens == 2 * 64
    empty = last.batches[1]
    assert (empty.input_ids == 0).all()
    assert (empty.labels == -100).all()
    assert (empty.weights == 0).all()
    assert made.step(1).tokens == 6 * 64  # without an end the next epoch follows


def test_micro_batches_share_rows_whatever_their_shape() -> None:
    data = corpus(LENGTHS * 4)
    wide, deep = batches(data, batch_size=6, accumulation=1), batches(data, batch_size=1, accumulation=6)
    for i in range(wide.steps(1)):
        a, b = wide.step(i), deep.step(i)
        assert a.sources == b.sources
        assert torch.equal(a.batches[0].labels, torch.cat([batch.labels for batch in b.batches]))


def test_fill_of_ordinary_lengths() -> None:
    lengths = np.clip(np.random.default_rng(3).lognormal(5.0, 1.0, 20000).astype(np.int64), 2, 2048)
    made = batches(corpus(lengths, limit=2048), sequence_len=2048)
    assert made.fill >= 0.99
    assert made.fill == pytest.approx(sum(int((b.input_ids > 0).sum()) for b in made.all_rows()) / (made.rows * 2048))


def test_packing_is_best_fit_decreasing() -> None:
    """Against the plain quadratic definition."""
    lengths = np.random.default_rng(5).integers(1, 100, 500)
    rooms: list[int] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        best = min(fitting, key=lambda i: rooms[i], default=None)
        if best is None:
            rooms.append(100 - length)
        else:
            rooms[best] -= length
    rows = pack(lengths, 100, seed=0)
    used = [int(lengths[rows.order[rows.starts[r] : rows.starts[r + 1]]].sum()) for r in range(len(rows))]
    assert sorted(used) == sorted(100 - room for room in rooms)
    assert sorted(rows.order.tolist()) == list(range(500))


def test_packing_more_pieces_than_a_window_holds() -> None:
    lengths = np.random.default_rng(6).integers(1, 2049, 200_000)
    rows = pack(lengths, 2048, seed=0)
    assert sorted(rows.order.tolist()) == list(range(200_000))
    assert len(rows.order) > WINDOW
    assert (np.add.reduceat(lengths[rows.order], rows.starts[:-1]) <= 2048).all()


def test_fingerprint_sees_tokens_weights_and_pieces() -> None:
    data = corpus([20, 30])
    prints = {data.fingerprint(), corpus([20, 30], seed=1).fingerprint(), corpus([20, 30], limit=10).fingerprint()}
    weights = data.weights.copy()
    weights[3] += 1
    prints.add(Corpus(data.tokens, weights, data.pieces, data.sources).fingerprint())
    assert len(prints) == 4
    assert data.fingerprint() == corpus([20, 30]).fingerprint()


def test_held_out_pieces_are_disjoint_and_seeded() -> None:
    data = corpus([10] * 100)
    train, held = hold_out(data, 0.1, seed=1)
    assert held is not None
    assert (len(train), len(held)) == (90, 10)
    starts = [set(part.pieces[:, 0].tolist()) for part in (train, held)]
    assert not starts[0] & starts[1]
    assert starts[0] | starts[1] == set(data.pieces[:, 0].tolist())
    assert hold_out(data, 0.1, seed=1)[0].fingerprint() == train.fingerprint()
    assert hold_out(data, 0.1, seed=2)[0].fingerprint() != train.fingerprint()
    assert hold_out(data, 0.0, seed=1) == (data, None)
    assert hold_out(corpus([10]), 0.5, seed=1)[1] is None


def test_sources_name_parts() -> None:
    names = Sources(("a.jsonl", "b.txt"), np.array([(0, 17, 0), (1, 1, 3)]))
    assert list(names) == ["a.jsonl:17", "b.txt:1#3"]
    assert names[-1:] == ["b.txt:1#3"]


def test_fingerprint_is_of_the_data_wherever_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a restatement that knows no blocks: lengths, whether pieces go on, then tokens and weights of each run of pieces."""
    import hashlib

    whole = corpus([3, 70, 64, 65, 200, 5, 130, 1, 2, 9])
    for data in (whole, whole.take(np.array([0, 1, 2, 5, 6, 8, 9, 11])), whole.take(np.array([4, 3])), *hold_out(whole, 0.4, 1)):
        assert data is not None
        digest = hashlib.blake2b(digest_size=16)
        starts, stops, ends = data.pieces.T.tolist()
        digest.update(np.array([b - a for a, b in zip(starts, stops, strict=True)], "<i8").tobytes())
        digest.update(np.array([c > b for b, c in zip(stops, ends, strict=True)], "<i8").tobytes())
        for array in (data.tokens, data.weights):
            for i, (start, stop, end) in enumerate(zip(starts, stops, ends, strict=True)):
                ends_run = i + 1 == len(starts) or starts[i + 1] != stop
                digest.update(np.asarray(array[start : min(stop + 1, end) if ends_run else stop]).tobytes())
        for block in (1, 2, 3, 1 << 14):
            monkeypatch.setattr("surogate_pipeline_packed.corpus.PIECES", block)
            assert data.fingerprint() == digest.hexdigest()
            counts = [int((data.weights[a + 1 : min(b + 1, c)] > 0).sum()) for a, b, c in zip(starts, stops, ends, strict=True)]
            assert data.trained().tolist() == counts
