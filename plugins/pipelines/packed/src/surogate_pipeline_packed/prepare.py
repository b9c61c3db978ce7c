"""The data phase: read, encode, cut, hold out; with every row and token in the ledger."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from attrs import define, field, frozen

from surogate_core.config import CoreOptions, DatasetOptions
from surogate_core.errors import DataError
from surogate_core.offers import Offer
from surogate_pipeline_packed.corpus import Corpus, Sources, cut, hold_out
from surogate_pipeline_packed.ledger import Ledger
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.read import open_source
from surogate_pipeline_packed.templates import apply_template
from surogate_pipeline_packed.tokenise import EMPTY, Encoded, Job, encode
from surogate_pipeline_packed.weights import weighted

REPORT_SECONDS = 2.0
UNTRAINED = "no trained token"


@frozen
class Prepared:
    """What the data phase gives. ``fingerprint`` covers everything that changes what is trained on: tokens, weights, pieces."""

    train: Corpus
    validation: Corpus | None
    ledger: Ledger
    fingerprint: str


@frozen
class Work:
    """What the data phase works with: the options, how to find a format's offer, the tokenizer, and where progress is told."""

    core: CoreOptions
    own: Options
    format: Callable[[str], Offer]
    tokenizer: Any
    report: Callable[[str], None]


def prepare(work: Work) -> Prepared:
    """Read and encode all data sets. The tokenizer gets the chat template that the run trains with, so that what is saved beside
    the weights serves what was trained.

    Raises DataError: no data set, nothing in one, too many unusable rows, a kind of sample without a trained token.
    """
    core = work.core
    apply_template(work.own.template, work.tokenizer)
    ledger = Ledger()
    train, files = _side(core.datasets, "datasets", core.train_seed, work, ledger)
    if core.validation_datasets:
        held, _ = _side(core.validation_datasets, "validation_datasets", core.eval_seed, work, ledger)
    else:
        train, held = hold_out(train, work.own.validation_split_ratio, core.train_seed)
    # Repeated after holding out: a copy of a piece that validates must not be trained on.
    train, told = weighted(train, files, [options.weight for options in core.datasets or ()], core.train_seed)
    for name, line in told.items():
        ledger.weighted[name] = line
        work.report(f"{name}: weight {line['weight']:g}: {line['pieces']:,} pieces -> {line['placed']:,} an epoch")
    return Prepared(train, held, ledger, train.fingerprint())


def _side(datasets: Sequence[DatasetOptions] | None, key: str, seed: int, work: Work, ledger: Ledger) -> tuple[Corpus, list[int]]:
    """The samples of one side, and the index of the first file of each data set."""
    if not datasets:
        raise DataError("no data set is configured", key, f'add a table [[{key}]] with path and type = "text"')
    gathered = Gathered()
    files: list[int] = []
    for index, options in enumerate(datasets):
        where = f"{key}[{index}]"
        job = Job(work.format(options.type), options.format_options, work.core, work.own, work.tokenizer)
        form = job.build()
        limit, how = work.core.sequence_len, "split"
        if form.overlong != "split":
            limit, how = work.own.max_length or limit, work.own.truncation_strategy
        source = open_source(options, where, seed)
        counted = Ledger()
        first_file = gathered.open(source.files)
        files.append(first_file)
        for row in encode(source, job, form, _progress(work.report, f"{where} {options.path}")):
            gathered.add(row, first_file, limit, how, counted)
        _check(counted, options, where, work.own.max_bad_rows)
        for line in counted.lines():
            work.report(f"{where} {options.path}: {line}")
        ledger.add(counted)
    gathered.check_kinds(key)
    return gathered.corpus(), files


@define
class Gathered:
    """Samples of one side on their way to a corpus."""

    files: list[str] = field(factory=list)
    tokens: list[np.ndarray] = field(factory=list)
    weights: list[np.ndarray] = field(factory=list)
    pieces: list[tuple[int, int, int]] = field(factory=list)
    places: list[tuple[int, int, int]] = field(factory=list)
    kinds: dict[str, list[int]] = field(factory=lambda: defaultdict(lambda: [0, 0]))  # samples, samples with a trained token
    markers: dict[str, str] = field(factory=dict)
    size: int = 0

    def open(self, names: Sequence[str]) -> int:
        self.files += names
        return len(self.files) - len(names)

    def add(self, row: list[Encoded], first_file: int, limit: int, how: str, ledger: Ledger) -> None:
        """Place the samples of one row and count what became of them. A row's fate is that of its first sample that is used."""
        for sample in row:
            place = f"{self.files[first_file + sample.file]}:{sample.number}"
            if sample.reason == EMPTY:
                ledger.rows_read += 1
                ledger.drop(place, EMPTY)
                return
            if sample.tokens is None:
                ledger.refuse(place, sample.reason)
                return
        ledger.rows_read += 1
        fates = [self._place(sample, first_file, limit, how, ledger) for sample in row]
        used = [fate for fate in fates if fate in ("kept", "split", "truncated")]
        if used:
            ledger.rows[used[0]] += 1
        else:
            ledger.drop(place, fates[0])

    def _place(self, sample: Encoded, first_file: int, limit: int, how: str, ledger: Ledger) -> str:
        """Place one sample, at most ``limit`` tokens of it unless it is split (``how``). Returns its fate, or why it is dropped."""
        tokens, weights = sample.tokens, sample.weights
        assert tokens is not None
        assert weights is not None
        ledger.tokens_read += len(tokens)
        kind = self.kinds[sample.kind]
        kind[0] += 1
        self.markers.setdefault(sample.kind, sample.marker)
        fate, dropped = "kept", ""
        if not (weights[1:] > 0).any():
            dropped = UNTRAINED
        elif len(tokens) > limit:
            kind[1] += 1
            fate = "split" if how == "split" else "truncated"
            if how == "delete":
                dropped = "longer than max_length"
            elif fate == "truncated":
                ledger.dropped_tokens[f"truncated ({how})"] += len(tokens) - limit
                part = slice(-limit, None) if how == "left" else slice(limit)
                tokens, weights = tokens[part], weights[part]
                dropped = "" if (weights[1:] > 0).any() else f"{UNTRAINED} left by truncation"
        else:
            kind[1] += 1
        if dropped:
            ledger.dropped_tokens[dropped] += len(tokens)
            return dropped
        self._cut(sample, tokens, weights, limit, fate, first_file, ledger)
        return fate

    def _cut(
        self, sample: Encoded, tokens: np.ndarray, weights: np.ndarray, limit: int, fate: str, first_file: int, ledger: Ledger
    ) -> None:
        weights = weights.copy()
        weights[0] = 0
        for part, (start, stop, end) in enumerate(cut(0, len(tokens), limit), 1):
            if fate == "split" and not (weights[start + 1 : min(stop + 1, end)] > 0).any():
                ledger.dropped_tokens[f"{UNTRAINED} in a piece"] += stop - start
                ledger.tokens[fate] -= stop - start
                continue
            self.pieces.append((self.size + start, self.size + stop, self.size + end))
            self.places.append((first_file + sample.file, sample.number, part if fate == "split" else 0))
        ledger.tokens[fate] += len(tokens)
        self.tokens.append(tokens)
        self.weights.append(weights)
        self.size += len(tokens)

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
        if not self.pieces:
            raise DataError("no sample is left to train on", key, "raise max_length or use another truncation_strategy")

    def corpus(self) -> Corpus:
        return Corpus(
            np.concatenate(self.tokens),
            np.concatenate(self.weights),
            np.array(self.pieces, dtype=np.int64),
            Sources(tuple(self.files), np.array(self.places, dtype=np.int64)),
        )


def _check(ledger: Ledger, options: DatasetOptions, where: str, allowed: float) -> None:
    place = f'{where}.path = "{options.path}"'
    if not ledger.rows_read:
        raise DataError("the data set is empty", place, "give a data set with at least one row")
    if ledger.unusable > allowed * ledger.rows_read:
        first = "; ".join(str(bad) for bad in ledger.bad)
        raise DataError(
            f"{ledger.unusable:,} of {ledger.rows_read:,} rows cannot be used, more than max_bad_rows = {allowed:g}: {first}",
            place,
            "mend the rows or the field names, or raise max_bad_rows",
        )


def _progress(report: Callable[[str], None], name: str) -> Callable[[int], None]:
    """Says how far the encoding is, at most once in REPORT_SECONDS."""
    started = last = time.monotonic()

    def tell(rows: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= REPORT_SECONDS:
            last = now
            report(f"{name}: {rows:,} rows, {rows / (now - started):,.0f} a second")

    return tell
