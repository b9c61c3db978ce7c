"""Rows → corpus: encode in chunks, in this process or in several, always in the order of the rows.

A chunk is encoded by the same function everywhere, and nothing in it depends on other chunks, so the corpus is the same for every
number of workers.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from surogate_core.config.options import CoreOptions
from surogate_core.contracts import Format, FormatContext, Sample
from surogate_core.errors import BadRow, DataError
from surogate_core.offers import Offer
from surogate_pipeline_packed.chat import Renderer, background, weigh
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.read import Row, Source

CHUNK = 256
EMPTY = "empty"
SMALL_BYTES = 64 << 20
"""Data below this size are encoded faster than workers start."""


@frozen
class Job:
    """All that is needed to build a format, here or in a worker."""

    offer: Offer
    options: Any
    core: CoreOptions
    own: Options
    tokenizer: Any

    def build(self) -> Format:
        context = FormatContext(
            config=self.core,
            tokenizer=self.tokenizer,
            system=self.own.system,
            background=background(self.own.loss_scale),
            render=Renderer.of(self.own, self.tokenizer),
            weigh=partial(weigh, self.tokenizer),
        )
        return self.offer.load()(self.options, context)


@frozen
class Encoded:
    """One sample of a row as arrays, or the reason why the row gave none."""

    file: int
    number: int
    tokens: NDArray[np.int32] | None
    weights: NDArray[np.float32] | None
    kind: str = ""
    marker: str = ""
    reason: str = ""


def encode_rows(form: Format, rows: Sequence[Row]) -> list[list[Encoded]]:
    """What each row gives: its samples, or one entry with a reason."""
    usable = [row.columns for row in rows if row.columns is not None]
    # A format may offer encode_batch(rows) -> per row its samples or a BadRow, where the tokenizer is faster on many texts.
    batch = getattr(form, "encode_batch", None)
    results = iter(batch(usable) if batch else (_encode(form, columns) for columns in usable))
    return [_arrays(row, next(results) if row.columns is not None else BadRow(row.reason)) for row in rows]


def _encode(form: Format, columns: dict[str, Any]) -> Sequence[Sample] | BadRow:
    try:
        return form.encode(columns)
    except BadRow as bad:
        return bad


def _arrays(row: Row, result: Sequence[Sample] | BadRow) -> list[Encoded]:
    if isinstance(result, BadRow):
        return [Encoded(row.file, row.number, None, None, reason=result.reason)]
    if not result:
        return [Encoded(row.file, row.number, None, None, reason=EMPTY)]
    return [
        Encoded(
            row.file,
            row.number,
            np.asarray(sample.input_ids, dtype=np.int32),
            np.asarray(sample.weights, dtype=np.float32),
            sample.kind,
            sample.marker,
        )
        for sample in result
    ]


def workers_for(own: Options, form: Format, size: int) -> int:
    """Processes to encode with: as configured, or none for small data and formats whose tokenizer is parallel itself."""
    if own.dataloader_num_workers is not None:
        return own.dataloader_num_workers
    if size < SMALL_BYTES or hasattr(form, "encode_batch"):
        return 0
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode(source: Source, job: Job, form: Format, report: Callable[[int], None]) -> Iterator[list[Encoded]]:
    """What each row of ``source`` gives, in order. ``report`` is told the number of rows done."""
    rows = source.rows()
    chunks = iter(lambda: list(islice(rows, CHUNK)), [])
    workers = workers_for(job.own, form, source.size)
    done = 0
    for results in _spread(chunks, job, workers) if workers else (encode_rows(form, chunk) for chunk in chunks):
        yield from results
        done += len(results)
        report(done)


def _spread(chunks: Iterator[list[Row]], job: Job, workers: int) -> Iterator[list[list[Encoded]]]:
    waiting: deque[Future[list[list[Encoded]]]] = deque()
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start, initargs=(job,)) as pool:
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_work, chunk))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process that tokenises ended",
                f"dataloader_num_workers = {workers}",
                'use fewer or 0; a Python script that starts a run needs `if __name__ == "__main__":`',
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_FORMAT: list[Format] = []  # of a worker process, filled once by _start


def _start(job: Job) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    _FORMAT.append(job.build())


def _work(chunk: list[Row]) -> list[list[Encoded]]:
    return encode_rows(_FORMAT[0], chunk)
