"""Loggers, each fed by a thread of its own: a slow one does not hold up a step, one that fails does not stop the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from surogate_core.contracts import KeepsState, Logger
from surogate_core.offers import Offer

WAITING = 10_000
"""Records that may wait for one logger; what comes while so many wait is left out for it."""
PATIENCE = 30.0
"""Seconds that all loggers together get to finish."""


class Fanout:
    """Sends each record to every logger, in order. A logger that raises, falls behind or does not finish is named once, with its
    owner: after raising it gets nothing more; while ``waiting`` records wait for it, it gets no others."""

    def __init__(
        self,
        loggers: Iterable[tuple[Offer, Logger]],
        notice: Callable[[str], None],
        *,
        waiting: int = WAITING,
        patience: float = PATIENCE,
    ):
        self._feeds = [_Feed(offer, logger, notice, waiting) for offer, logger in loggers]
        self._patience = patience

    def log(self, record: Mapping[str, Any]) -> None:
        """``record`` is what :meth:`Records.write` returned: hiding secrets takes longer than all the rest."""
        for feed in self._feeds:
            feed.put(dict(record))

    def states(self) -> dict[str, Any]:
        """Name → what the logger of this name wants to know when the run is continued (:class:`KeepsState`)."""
        return {feed.offer.name: state for feed in self._feeds if (state := feed.state()) is not None}

    def add_seconds(self, taken: dict[str, float]) -> None:
        """Add to distribution → seconds what its loggers worked so far, in threads of their own."""
        for feed in self._feeds:
            name = feed.offer.owner.distribution
            taken[name] = taken.get(name, 0.0) + feed.seconds

    def drain(self) -> None:
        """Wait until every logger has what it was sent, within the time that they get to finish."""
        marks = [(feed, threading.Event()) for feed in self._feeds]
        for feed, mark in marks:
            feed.queue.put(mark)
        self._wait([(feed, mark.wait) for feed, mark in marks if feed.thread])

    def close(self) -> None:
        """Let every logger finish and close it. Closing twice does nothing."""
        left, self._feeds = self._feeds, []
        for feed in left:
            feed.stop()
        self._wait([(feed, feed.join) for feed in left])

    def _wait(self, feeds: Iterable[tuple[_Feed, Callable[[float], bool]]]) -> None:
        end = time.monotonic() + self._patience
        for feed, wait in feeds:
            if not wait(0.0 if feed.stuck else max(0.0, end - time.monotonic())):
                feed.stuck = True
                feed.name(f"has not finished after {self._patience:g} s; {feed.queue.qsize()} records are missing in it")


class _Feed:
    """One logger with its queue and its thread, which alone calls ``log`` and ``close``; it starts with the first record."""

    def __init__(self, offer: Offer, logger: Logger, notice: Callable[[str], None], waiting: int):
        self.queue: SimpleQueue[dict[str, Any] | threading.Event | None] = SimpleQueue()
        self.thread: threading.Thread | None = None
        self.stuck = False
        self.offer = offer
        self._logger, self._notice, self._waiting = logger, notice, waiting
        self._named = self._failed = False
        self.seconds = 0.0

    def put(self, record: dict[str, Any]) -> None:
        if self._failed:
            return
        if self.queue.qsize() >= self._waiting:
            self.name(f"is {self._waiting:,} records behind; it does not get those that come meanwhile")
            return
        self.queue.put(record)
        self._start()

    def stop(self) -> None:
        self.queue.put(None)
        self._start()

    def state(self) -> dict[str, Any] | None:
        try:
            return dict(self._logger.state()) if isinstance(self._logger, KeepsState) else None
        except Exception as error:
            self.name(f"raised {type(error).__name__} in state: {error}")
            return None

    def join(self, seconds: float) -> bool:
        assert self.thread is not None
        self.thread.join(seconds)
        return not self.thread.is_alive()

    def name(self, what: str) -> None:
        if not self._named:
            self._named = True
            self._notice(f"{self.offer.owner}: {type(self._logger).__name__} {what}")

    def _start(self) -> None:
        if self.thread is None:
            self.thread = threading.Thread(target=self._work, name=f"log {self.offer.name}", daemon=True)
            self.thread.start()

    def _work(self) -> None:
        while (record := self.queue.get()) is not None:
            if isinstance(record, threading.Event):
                record.set()
            elif not self._failed:
                begun = time.perf_counter()
                try:
                    self._logger.log(record)
                    self.seconds += time.perf_counter() - begun
                except BaseException as error:
                    self._failed = True
                    self.name(f"raised {type(error).__name__} in log and gets no more records: {error}")
                    with suppress(BaseException):
                        self._logger.close()
        if not self._failed:
            try:
                self._logger.close()
            except BaseException as error:
                self.name(f"raised {type(error).__name__} in close: {error}")
