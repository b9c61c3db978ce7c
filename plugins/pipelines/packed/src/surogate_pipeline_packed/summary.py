"""What the data phase made, for people: lengths and how full the rows are."""

from __future__ import annotations

from collections.abc import Iterator

from surogate_pipeline_packed.corpus import Corpus, Ints, spread
from surogate_pipeline_packed.pipeline import PackedData

BAR = 40


def lines(data: PackedData) -> Iterator[str]:
    """The ledger, and of each side a histogram of lengths and the rows of one epoch."""
    yield from data.prepared.ledger.lines()
    sides = {"training": (data.prepared.train, data.training(1, 1))}
    held = data.validation(1)
    if data.prepared.validation is not None and held is not None:
        sides["validation"] = (data.prepared.validation, held)
    for name, (corpus, batches) in sides.items():
        lengths = corpus.lengths
        yield f"{name}: {len(corpus):,} pieces, {int(lengths.sum()):,} tokens, {_trained(corpus):,} trained"
        yield from histogram(lengths)
        yield f"{name}: {batches.rows:,} rows of {batches.sequence_len:,}, {batches.fill:.2%} full"
    yield f"fingerprint: {data.fingerprint}"


def histogram(lengths: Ints) -> Iterator[str]:
    """A line for each power of two between the shortest and the longest, with its share of the pieces."""
    found = list(spread(lengths))
    most = max(count for *_, count in found)
    for low, high, count in found:
        bar = "#" * round(BAR * count / most)
        yield f"  {low:>7,} to {high:>7,} tokens {count:>9,} {count / len(lengths):>6.1%} {bar}".rstrip()


def _trained(corpus: Corpus) -> int:
    return int(corpus.trained().sum())
