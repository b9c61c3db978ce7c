"""Rows → parts: encode in chunks, in this process or in several, always in the order of the rows.

A chunk is encoded by the same function everywhere, and nothing in it depends on other chunks, so the corpus is the same for every
number of workers.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import islice
from multiprocessing import get_all_start_methods, get_context, parent_process
from multiprocessing.context import BaseContext
from typing import Any

from attrs import frozen

from surogate_core.config.options import CoreOptions
from surogate_core.contracts import Format, FormatContext, Sample
from surogate_core.errors import BadRow, DataError
from surogate_core.offers import Offer
from surogate_pipeline_packed.chat import Renderer, background, weigh
from surogate_pipeline_packed.images.sight import Sight, Watched
from surogate_pipeline_packed.part import Part, part_of
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.read import Row

CHUNK = 64
QUEUED = 8  # chunks a worker
SMALL_BYTES = 16 << 20
"""Data below this size are encoded faster than workers start."""


@frozen
class Job:
    """All that is needed to build a format, here or in a worker."""

    offer: Offer
    options: Any
    core: CoreOptions
    own: Options
    tokenizer: Any
    sight: Sight | None = None

    def build(self) -> Format:
        context = FormatContext(
            config=self.core,
            tokenizer=self.tokenizer,
            system=self.own.system,
            background=background(self.own.loss_scale),
            render=Renderer.of(self.own, self.tokenizer, self.sight),
            weigh=partial(weigh, self.tokenizer),
        )
        form = self.offer.load()(self.options, context)
        return form if self.sight is None else Watched(form, self.sight)


def encode_rows(form: Format, rows: Sequence[Row]) -> Part:
    """What the rows give."""
    usable = [row.columns for row in rows if row.columns is not None]
    # A format may offer encode_batch(rows) -> per row its samples or a BadRow, where the tokenizer is faster on many texts.
    batch = getattr(form, "encode_batch", None)
    results = iter(batch(usable) if batch else (_encode(form, columns) for columns in usable))
    return part_of([(row.file, row.number, next(results) if row.columns is not None else BadRow(row.reason)) for row in rows])


def _encode(form: Format, columns: dict[str, Any]) -> Sequence[Sample] | BadRow:
    try:
        return form.encode(columns)
    except BadRow as bad:
        return bad


def workers_for(own: Options, form: Format, size: int) -> int:
    """Processes to encode with: as configured, or none for small data and formats whose tokenizer is parallel itself."""
    if own.dataloader_num_workers is not None:
        return own.dataloader_num_workers
    if size < SMALL_BYTES or hasattr(form, "encode_batch"):
        return 0
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode(rows: Iterator[Row], job: Job, form: Format, workers: int) -> Iterator[Part]:
    """What ``rows`` give, in order, CHUNK rows a part."""
    chunks = iter(lambda: list(islice(rows, CHUNK)), [])
    return _spread(chunks, job, form, workers) if workers else (encode_rows(form, chunk) for chunk in chunks)


def _spread(chunks: Iterator[list[Row]], job: Job, form: Format, workers: int) -> Iterator[Part]:
    """With worker processes. They take seconds to start; until the first of them is ready this process encodes itself."""
    queue: deque[Future[Part]] = deque()
    with ProcessPoolExecutor(workers, _context(job), initializer=_start, initargs=(job,)) as pool:
        try:
            ready = pool.submit(_ready)
            for chunk in chunks:
                if not ready.done():
                    yield encode_rows(form, chunk)
                    continue
                queue.append(pool.submit(_work, chunk))
                if len(queue) > QUEUED * workers:
                    yield queue.popleft().result()
            while queue:
                yield queue.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process that tokenises ended",
                f"dataloader_num_workers = {workers}",
                'use fewer or 0; a Python script that starts a run needs `if __name__ == "__main__":`',
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _context(job: Job) -> BaseContext:
    """Processes that do not inherit the threads of this one. Where there is a fork server, it imports what is slow once for all."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, type(job.tokenizer).__module__])
    return context


_FORMAT: list[Format] = []  # of a worker process, filled once by _start


def _start(job: Job) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
    _FORMAT.append(job.build())


def _end_with_parent() -> None:
    """A pool's process does not notice that its parent was killed."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _ready() -> None:
    """Done as soon as a worker has started."""


def _work(chunk: list[Row]) -> Part:
    return encode_rows(_FORMAT[0], chunk)
