"""One run at a time in a directory: an operating-system lock, so that a killed run (even by kill -9) leaves none behind."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from surogate_core.errors import ResumeError

LOCK = ".surogate.lock"
OWNER = ".surogate.lock.json"


class OutputLock:
    """``with OutputLock(output_dir, checkpoint_dir): ...`` holds every directory named, creating those that are missing.

    Runs that share one of their directories exclude each other. Raises ResumeError naming the process that holds it.
    """

    def __init__(self, *directories: Path):
        self.directories = sorted({path.resolve() for path in directories})
        self._held = ExitStack()

    def __enter__(self) -> OutputLock:
        with ExitStack() as held:
            for directory in self.directories:
                try:
                    directory.mkdir(parents=True, exist_ok=True)
                    held.enter_context(FileLock(directory / LOCK, timeout=0))
                    owner = {"pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
                    (directory / OWNER).write_text(json.dumps(owner))
                except Timeout:
                    raise ResumeError(
                        f"another run is using this directory: {_owner(directory)}",
                        where=str(directory),
                        how="wait for it, stop it, or choose another output_dir and checkpoint_dir",
                    ) from None
                except OSError as error:
                    raise ResumeError(
                        f"cannot write here: {error.strerror}", where=str(directory), how="choose another output_dir"
                    ) from error
            self._held = held.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held.close()


def _owner(directory: Path) -> str:
    try:
        owner = json.loads((directory / OWNER).read_bytes())
        return f"process {owner['pid']}, started {owner['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "a process that has only just started"
