"""The logger: plain lines when output is piped; on a terminal a progress line that stays below them; silence when asked.

Piped output has a line for each step up to ten, then about two hundred over the run, and always the last; ``metrics.jsonl`` has
them all.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from surogate_core.contracts import LoggerContext
from surogate_logger_console import lines

RECENT = 20
"""Steps whose mean time tells how long the rest takes."""


def build(options: None, context: LoggerContext) -> Console:
    return Console(terminal=context.terminal, quiet=context.quiet)


class Console:
    def __init__(self, *, terminal: bool, quiet: bool, stream: TextIO | None = None):
        self._stream = stream or sys.stdout
        self._quiet = quiet
        self._progress = _Progress(self._stream) if terminal and not quiet else None
        self._total: int | None = None
        self._resumed = False
        self._first_loss: float | None = None
        self._times: deque[float] = deque(maxlen=RECENT)

    def log(self, record: Mapping[str, Any]) -> None:
        """Print one record. A quiet run prints notices and decisions only, on the error stream."""
        kind = record.get("kind")
        if self._quiet:
            if kind in ("notice", "decision"):
                print(_text(record), file=sys.stderr, flush=True)
            return
        handle: dict[Any, Callable[[Mapping[str, Any]], None]] = {"run": self._run, "step": self._step, "end": self._end}
        handle.get(kind, lambda record: self._print(_text(record)))(record)

    def close(self) -> None:
        if self._progress:
            self._progress.close()

    def _run(self, record: Mapping[str, Any]) -> None:
        self._total = record.get("steps")
        self._resumed = bool(record.get("resumed"))
        self._print(*lines.banner(record))

    def _step(self, record: Mapping[str, Any]) -> None:
        step = record["step"]
        if self._first_loss is None and not self._resumed:
            self._first_loss = record.get("loss")
        if record.get("seconds") is not None:
            self._times.append(record["seconds"])
        eta = None
        if self._total and self._times:
            eta = (self._total - step) * sum(self._times) / len(self._times)
        text = lines.step_line(record, self._total, eta)
        if self._progress:
            self._progress.show(text, step, self._total)
        elif step <= 10 or step == self._total or step % max(1, (self._total or 0) // 200) == 0:
            self._print(text)

    def _end(self, record: Mapping[str, Any]) -> None:
        if self._progress:
            self._progress.close()
        self._print("", *lines.summary(record, self._first_loss))

    def _print(self, *texts: str) -> None:
        for text in texts:
            if self._progress:
                self._progress.above(text)
            else:
                print(text, file=self._stream, flush=True)


def _text(record: Mapping[str, Any]) -> str:
    kind = record.get("kind")
    if kind == "eval":
        return lines.eval_line(record)
    if kind == "checkpoint":
        return lines.checkpoint_line(record)
    if kind == "ledger":
        return lines.ledger_line(record)
    if kind == "decision":
        return lines.decision_line(record)
    return f"{kind}: {record.get('text', '')}"


class _Progress:
    """A bar and the last step's line at the bottom of the terminal, through rich. Text that scrolls goes above it."""

    def __init__(self, stream: TextIO):
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress, TextColumn

        self._terminal = Terminal(file=stream, highlight=False, soft_wrap=True)
        columns = BarColumn(bar_width=20), TextColumn("{task.description}", markup=False)
        self._bar = Progress(*columns, console=self._terminal, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._task = self._bar.add_task("", total=None)
        self._running = False

    def show(self, text: str, step: int, total: int | None) -> None:
        if not self._running:
            self._bar.start()
            self._running = True
        self._bar.update(self._task, completed=step, total=total, description=text)

    def above(self, text: str) -> None:
        self._terminal.print(text, markup=False)

    def close(self) -> None:
        """Take the bar away; the last step's line stays."""
        if self._running:
            self._running = False
            self._bar.stop()
            self._terminal.print(self._bar.tasks[0].description, markup=False)
