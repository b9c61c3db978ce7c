"""One JSON object a line (RFC 8259 objects, separated by a line feed alone), flushed after each record.

A continued run keeps the records up to the step that it starts from and drops those of the steps that it is about to replay, so
that the file reads as if the run had never been interrupted. A new run moves an existing file aside instead of mixing two runs.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surogate_core.contracts import LoggerContext
from surogate_core.errors import SaveFailed
from surogate_logger_jsonl.plugin import Options


def build(options: Options, context: LoggerContext) -> JsonLines | None:
    if not options.log_file:
        return None
    try:
        return JsonLines(Path(options.log_file), context.resumed)
    except OSError as error:
        raise _failed(Path(options.log_file), error) from error


class JsonLines:
    def __init__(self, path: Path, resumed: int):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if resumed:
                _cut(path, resumed)
            elif path.stat().st_size:
                path.rename(_free_name(path))
        self._file = path.open("ab")

    def log(self, record: Mapping[str, Any]) -> None:
        """Raises SaveFailed when the file cannot be written."""
        try:
            self._file.write(json.dumps(_plain(record), ensure_ascii=False, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise _failed(self.path, error) from error

    def close(self) -> None:
        self._file.close()


def _cut(path: Path, resumed: int) -> None:
    """Keep what was written up to step ``resumed``. A record without a step (a notice) belongs to the step before it; a line torn
    by a crash is no record."""
    kept = []
    reached = 0
    for line in path.read_bytes().split(b"\n"):  # not splitlines(): U+2028 is legal within a JSON string
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict):
            continue
        reached = record.get("step", reached)
        if reached <= resumed:
            kept.append(line + b"\n")
    aside = path.with_name(path.name + ".new")
    with aside.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _free_name(path: Path) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return candidate


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _failed(path: Path, error: OSError) -> SaveFailed:
    how = "free some space or set another log_file; the checkpoints are intact"
    return SaveFailed(f"the log file cannot be written: {error.strerror}", where=str(path), how=how)
