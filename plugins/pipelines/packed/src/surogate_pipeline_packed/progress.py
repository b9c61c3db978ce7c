"""How far the encoding is: a bar with rate and time left on a terminal, a line now and then when stderr is piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_SECONDS = 10.0
Tell = Callable[[int], None]
"""Told the number of rows that are done."""


@contextmanager
def shown(name: str, done: int, total: Callable[[], int | None], live: bool) -> Iterator[Tell]:
    """Show progress on stderr while the block runs. ``done`` rows are there already; ``total()`` counts all (asked only when it is
    shown), None where that would cost too much; nothing is shown unless ``live``."""
    if not live:
        yield lambda rows: None
    elif sys.stderr.isatty():
        with _bar(name, done, total()) as tell:
            yield tell
    else:
        yield lines(name, done, total(), lambda text: print(text, file=sys.stderr, flush=True))


@contextmanager
def _bar(name: str, done: int, total: int | None) -> Iterator[Tell]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    started = time.monotonic()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=total, completed=done, rate="")

        def tell(rows: int) -> None:
            progress.update(task, completed=rows, rate=f"{rate(rows - done, started):,.0f} rows/s")

        yield tell


def lines(name: str, done: int, total: int | None, say: Callable[[str], None], seconds: float = LINE_SECONDS) -> Tell:
    """At most one line in ``seconds``."""
    started = last = time.monotonic()

    def tell(rows: int) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            speed = rate(rows - done, started)
            left = f", {(total - rows) / speed:,.0f} s left" if speed and total is not None else ""
            of = "" if total is None else f" of {total:,}"
            say(f"{name}: {rows:,}{of} rows, {speed:,.0f} rows/s{left}")

    return tell


def rate(rows: int, started: float) -> float:
    """Rows a second since ``started``."""
    return rows / max(1e-9, time.monotonic() - started)
