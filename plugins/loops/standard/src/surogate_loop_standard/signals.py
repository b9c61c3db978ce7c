"""Being asked to stop, or to save: by a signal, or by a file."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TRIGGER = "SAVE"


class StopRequest:
    """The first SIGINT or SIGTERM sets ``requested`` to its name and says so; the second raises KeyboardInterrupt at once.

    A signal that is being ignored (a job started with nohup or in the background of a script) stays ignored. Outside of the main
    thread, where Python allows no handlers, nothing is installed.
    """

    def __init__(self, say: Callable[[str], None], output_dir: Path):
        self.requested: str | None = None
        self._trigger = output_dir / TRIGGER
        self._say = say
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                previous = signal.getsignal(number)
                if previous not in (signal.SIG_IGN, None):
                    self._previous[number] = previous
                    signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            for one in self._previous:
                signal.signal(one, signal.default_int_handler if one == signal.SIGINT else signal.SIG_DFL)
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
        line = f"{self.requested}: stopping after this step; once more aborts"
        try:
            self._say(line)
        except RuntimeError:  # the signal came in the middle of a write to the same stream
            with suppress(OSError):
                os.write(2, f"{line}\n".encode())

    def save_now(self) -> bool:
        """Whether a checkpoint was asked for with ``touch OUTPUT_DIR/SAVE``, once: the file is removed."""
        try:
            self._trigger.unlink()
        except OSError:
            return False
        return True
