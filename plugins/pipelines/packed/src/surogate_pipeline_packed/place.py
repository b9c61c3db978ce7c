"""Parts → corpus: which samples are placed, whole, cut or in pieces, and what becomes of the others. All of a part at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import define, field
from numpy.typing import NDArray

from surogate_core.errors import DataError
from surogate_pipeline_packed.corpus import Corpus, Ints, Joined, Reasons, Sources
from surogate_pipeline_packed.images.borders import cuts, outside, oversized
from surogate_pipeline_packed.images.sight import Sight
from surogate_pipeline_packed.images.table import Gallery, moved, within
from surogate_pipeline_packed.ledger import FATES, SHOWN, Bad, Ledger
from surogate_pipeline_packed.part import COUNT, FILE, KIND, LENGTH, MARKER, NUMBER, REASON, Part
from surogate_pipeline_packed.spill import Growing

UNTRAINED = "no trained token"
NAMES = (*FATES, UNTRAINED, "longer than max_length", f"{UNTRAINED} left by truncation", "empty", "an image longer than max_length")
KEPT, SPLIT, TRUNCATED, NOTHING, TOO_LONG, NOTHING_LEFT, EMPTY, TOO_LARGE = range(len(NAMES))


@define
class Gathered:
    """Samples of one side on their way to a corpus."""

    files: list[str] = field(factory=list)
    tokens: list[NDArray[np.int32]] = field(factory=list)
    weights: list[NDArray[np.float32]] = field(factory=list)
    pieces: Growing = field(factory=lambda: Growing(3))
    places: Growing = field(factory=lambda: Growing(3))
    reasons: list[tuple[Ints, tuple[str, ...]]] = field(factory=list)
    kinds: dict[str, list[int]] = field(factory=dict)  # samples, samples with a trained token
    markers: dict[str, str] = field(factory=dict)
    images: list[Ints] = field(factory=list)
    blobs: list[NDArray[np.uint8]] = field(factory=list)
    size: int = 0

    def open(self, names: Sequence[str]) -> int:
        self.files += names
        return len(self.files) - len(names)

    def add(self, part: Part, first_file: int, limit: int, how: str, ledger: Ledger) -> None:
        """Place the samples of a part, at most ``limit`` tokens of each unless they are split (``how``), and count what became of
        them. A row's fate is that of its first sample that is used."""
        lengths = part.samples[:, LENGTH]
        ends = np.cumsum(lengths)
        cut = Cut.of(part, ends - lengths, ends, limit, how)
        self._count_kinds(part, cut.trained > 0)
        _count_tokens(ledger, cut, lengths, limit, how)
        self._count_rows(ledger, part, cut.fates, first_file)
        pieces, owners, numbers, lost = cut.pieces(limit, part.images)
        if len(part.images):
            kept = int(within(part.images, pieces[:, 0], pieces[:, 1]).sum())
            ledger.images.update(read=len(part.images), kept=kept, dropped=len(part.images) - kept)
        if lost:
            ledger.dropped_tokens[f"{UNTRAINED} in a piece"] += lost
            ledger.tokens["split"] -= lost
        if len(pieces):
            rows = part.rows[np.repeat(np.arange(len(part.rows)), part.rows[:, COUNT])[owners]]
            self.pieces.add(pieces + self.size)
            self.places.add(np.column_stack([first_file + rows[:, FILE], rows[:, NUMBER], numbers]))
            self.images.append(moved(part.images, self.size, sum(map(len, self.blobs))))
            self.blobs.append(part.blob)
            self.tokens.append(part.tokens)
            self.weights.append(part.weights)
            self.reasons.append((part.reasons, part.words))
            self.size += len(part.tokens)

    def _count_kinds(self, part: Part, trained: NDArray[np.bool_]) -> None:
        kinds, first, of = np.unique(part.samples[:, KIND], return_index=True, return_inverse=True)
        samples, good = np.bincount(of, minlength=len(kinds)), np.bincount(of[trained], minlength=len(kinds))
        for i in np.argsort(first):
            word = part.words[kinds[i]]
            counted = self.kinds.setdefault(word, [0, 0])
            counted[0] += int(samples[i])
            counted[1] += int(good[i])
            self.markers.setdefault(word, part.words[part.samples[first[i], MARKER]])

    def _count_rows(self, ledger: Ledger, part: Part, fates: Ints, first_file: int) -> None:
        rows = part.rows
        counts = rows[:, COUNT]
        starts = np.cumsum(counts) - counts
        found = np.full(len(rows), EMPTY)
        found[counts > 0] = fates[starts[counts > 0]]
        for row in np.flatnonzero((counts > 1) & (found > TRUNCATED)):
            used = [fate for fate in fates[starts[row] : starts[row] + counts[row]] if fate <= TRUNCATED]
            found[row] = used[0] if used else found[row]
        bad = rows[:, REASON] >= 0
        found[bad] = len(NAMES) + rows[bad, REASON]
        kinds, first, amounts = np.unique(found, return_index=True, return_counts=True)
        for kind, amount, at in ((int(kinds[i]), int(amounts[i]), int(first[i])) for i in np.argsort(first)):
            name = NAMES[kind] if kind < len(NAMES) else part.words[kind - len(NAMES)]
            (ledger.rows if kind <= TRUNCATED else ledger.dropped_rows)[name] += amount
            if kind > TRUNCATED:
                ledger.first.setdefault(name, f"{self.files[first_file + rows[at, FILE]]}:{rows[at, NUMBER]}")
        ledger.rows_read += len(rows)
        ledger.unusable += int(bad.sum())
        for file, number, _, reason in rows[np.flatnonzero(bad)[: max(0, SHOWN - len(ledger.bad))]].tolist():
            ledger.bad.append(Bad(f"{self.files[first_file + file]}:{number}", part.words[reason]))

    def check_kinds(self, key: str) -> None:
        """Refuse data in which a kind of sample has nothing to train."""
        for kind, (samples, trained) in self.kinds.items():
            if samples and not trained:
                marker = self.markers[kind] or "assistant text"
                raise DataError(
                    f'no sample of kind "{kind}" has a trained token ({samples:,} samples): {marker} was not found in them',
                    key,
                    "check the roles and fields of the rows, `loss` in messages, and the chat template",
                )
        if not self.pieces.count:
            raise DataError("no sample is left to train on", key, "raise max_length or use another truncation_strategy")

    def corpus(self, sight: Sight | None = None) -> Corpus:
        """``sight`` is how the model sees images, if it does."""
        pieces, places = self.pieces.array(), self.places.array()
        tokens = Joined.of(self.tokens)
        reasons = Reasons(tuple(self.reasons), tokens.starts)
        images = None
        if sight is not None and any(map(len, self.images)):
            images = Gallery(np.concatenate(self.images), Joined.of(self.blobs), sight)
        return Corpus(tokens, Joined.of(self.weights), pieces, Sources(tuple(self.files), places), reasons, images)


@define
class Cut:
    """What is used of each sample of a part: (S,) each, places in the part's tokens.

    fates           index into NAMES
    starts, stops   the tokens that are used, of those that are
    trained         tokens of the whole sample with a weight above 0
    positive        (n + 1,) tokens with a weight above 0 before each place
    """

    fates: Ints
    starts: Ints
    stops: Ints
    trained: Ints
    positive: Ints

    @classmethod
    def of(cls, part: Part, starts: Ints, ends: Ints, limit: int, how: str) -> Cut:
        positive: Ints = np.zeros(len(part.weights) + 1, dtype=np.int64)
        np.cumsum(part.weights > 0, out=positive[1:])
        trained = positive[ends] - positive[starts]
        over = (ends - starts > limit) & (trained > 0)
        fates = np.full(len(starts), KEPT)
        fates[trained == 0] = NOTHING
        fates[over] = {"split": SPLIT, "delete": TOO_LONG}.get(how, TRUNCATED)
        starts, stops = starts.copy(), ends.copy()
        if how in ("left", "right"):
            if how == "left":
                starts[over] = ends[over] - limit
            else:
                stops[over] = starts[over] + limit
            # The first token of what is left has nothing before it.
            if len(part.images):
                outside(part.images, starts, stops, np.flatnonzero(over), later=how == "left")
            fates[over & (positive[stops] == positive[np.minimum(starts + 1, stops)])] = NOTHING_LEFT
        elif how == "split" and len(part.images):
            fates[oversized(part.images, starts, stops, np.flatnonzero(over), limit)] = TOO_LARGE
        return cls(fates, starts, stops, trained, positive)

    def pieces(self, limit: int, images: Ints) -> tuple[Ints, Ints, Ints, int]:
        """(P, 3) start, stop, end of the pieces; their samples; their numbers within these from 1, 0 for whole samples; and how
        many tokens are in pieces that have nothing to train."""
        used = np.flatnonzero(self.fates <= TRUNCATED)
        lengths = self.stops[used] - self.starts[used]
        # A last piece of one token would have no label of its own.
        counts = np.where(lengths > limit, -(-lengths // limit) - (lengths % limit == 1), 1)
        owners = np.repeat(used, counts)
        within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        start = self.starts[owners] + within * limit
        end = self.stops[owners]
        stop = np.minimum(start + limit, end)
        if len(images) and (self.fates[used] == SPLIT).any():
            owners, within, start, stop = self._around(used, limit, images)
            end = self.stops[owners]
        split = self.fates[owners] == SPLIT
        keep = ~split | (self.positive[np.minimum(stop + 1, end)] > self.positive[np.minimum(start + 1, end)])
        numbers = np.where(split, within + 1, 0)
        return np.column_stack([start, stop, end])[keep], owners[keep], numbers[keep], int((stop - start)[~keep].sum())

    def _around(self, used: Ints, limit: int, images: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """Pieces that cut no image: their samples, numbers within these from 0, starts and stops."""
        found = [
            (sample, number, start, stop)
            for sample in used.tolist()
            for number, (start, stop) in enumerate(cuts(images, int(self.starts[sample]), int(self.stops[sample]), limit))
        ]
        owners, numbers, starts, stops = np.array(found, dtype=np.int64).reshape(-1, 4).T
        return owners, numbers, starts, stops


def _count_tokens(ledger: Ledger, cut: Cut, lengths: Any, limit: int, how: str) -> None:
    used = cut.stops - cut.starts
    ledger.tokens_read += int(lengths.sum())
    shorter = np.flatnonzero(used < lengths)
    if len(shorter):
        ledger.dropped_tokens[f"truncated ({how})"] += int((lengths - used).sum())
    kinds, first = np.unique(cut.fates, return_index=True)
    for fate in kinds[np.argsort(first)].tolist():
        amount = int(used[cut.fates == fate].sum())
        (ledger.tokens if fate <= TRUNCATED else ledger.dropped_tokens)[NAMES[fate]] += amount
