"""The logger: plain lines when output is piped; on a terminal a progress line that stays below them; silence when asked.

Piped output has a line for each step up to ten, then about two hundred over the run, and always the last; ``metrics.jsonl`` has
them all. On a terminal no line is broken within a word, and the progress line leaves figures out rather than wrap.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from surogate_core.contracts import LoggerContext
from surogate_logger_console import lines

RECENT = 20
"""Steps whose mean time tells how long the rest takes."""
REDRAW = 0.1
"""Seconds between two drawings of the progress line."""
STYLES = {"decision": "bold yellow", "failed": "bold red"}
"""What is not printed plain on a terminal, by the first word of its line."""


def build(options: None, context: LoggerContext) -> Console:
    return Console(terminal=context.terminal and os.environ.get("TERM") not in ("dumb", "unknown"), quiet=context.quiet)


class Console:
    def __init__(self, *, terminal: bool, quiet: bool, stream: TextIO | None = None):
        self._stream = stream or sys.stdout
        self._quiet = quiet
        self._progress = _Progress(self._stream) if terminal and not quiet else None
        self._run_record: Mapping[str, Any] = {}
        self._first_loss: float | None = None
        self._peak = 0
        self._gpu: Mapping[str, Any] = {}
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
        self._run_record = record
        self._print(*lines.banner(record))

    def _step(self, record: Mapping[str, Any]) -> None:
        step, total = record["step"], self._run_record.get("steps")
        if self._first_loss is None and not self._run_record.get("resumed"):
            self._first_loss = record.get("loss")
        if record.get("seconds") is not None:
            self._times.append(record["seconds"])
        self._peak = max(self._peak, record.get("memory") or 0)
        self._gpu = record.get("gpu") or self._gpu
        eta = (total - step) * sum(self._times) / len(self._times) if total and self._times else None
        known = {**record, "gpu": self._gpu}
        if self._progress:
            self._progress.show(lambda width: lines.step_line(known, total, eta, width), step, total)
        elif step <= 10 or step == total or step % max(1, (total or 0) // 200) == 0:
            self._print(lines.step_line(known, total, eta))

    def _end(self, record: Mapping[str, Any]) -> None:
        if self._progress:
            self._progress.close()
        self._print("", *lines.summary(record, self._first_loss, self._run_record, self._peak))

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
    """A bar and the last step's line at the bottom of the terminal, through rich. Text that scrolls goes above it, also what others
    write to stderr meanwhile. It is drawn by the thread that logs; there is no other."""

    BAR, ROOM = 20, 100
    """Columns of the bar, and those that a terminal must have to get one."""

    def __init__(self, stream: TextIO):
        from rich.console import Console as Terminal
        from rich.live import Live

        self._terminal = Terminal(file=stream, highlight=False)
        self._live = Live(
            console=self._terminal,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._fit: Callable[[int], str] = lambda width: ""
        self._drawn = 0.0
        self._running = False

    def show(self, fit: Callable[[int], str], step: int, total: int | None) -> None:
        """``fit(width)``: the line in so many columns."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        self._fit = fit
        if self._running and time.monotonic() - self._drawn < REDRAW and step != total:
            return
        if not self._running:
            self._live.start()
            self._running = True
        width = self._terminal.width - 1  # a full line makes some terminals begin the next one
        bar = total is not None and width >= self.ROOM
        line = Text(fit(width - self.BAR - 1 if bar else width), no_wrap=True, overflow="crop")
        shown: Table | Text = line
        if bar:
            shown = Table.grid(padding=(0, 1, 0, 0))
            shown.add_row(ProgressBar(total=total, completed=step, width=self.BAR), line)
        self._live.update(shown, refresh=True)
        self._drawn = time.monotonic()

    def above(self, text: str) -> None:
        style = STYLES.get(text.partition(" ")[0])
        self._terminal.print(lines.fold(text, self._terminal.width), markup=False, style=style, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away; the last step's line stays."""
        if self._running:
            self._running = False
            self._live.stop()
            self.above(self._fit(self._terminal.width))
