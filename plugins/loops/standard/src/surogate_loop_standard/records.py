"""The run's own records, and what must never be in them.

``metrics.jsonl`` is JSON Lines, one object a record, with ``kind`` and usually ``step``. A float that is not finite, for which JSON
has no number, is the string ``"nan"``, ``"inf"`` or ``"-inf"``. All other characters than ASCII are escaped.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from surogate_core.errors import SaveFailed
from surogate_core.train import durable

HIDDEN = "***"
SECRET_NAME = re.compile(r"(?:^|_)(?:token|secret|password|passwd|credentials?)$|(?:_|^api|^access|^private)key$", re.IGNORECASE)
VOCABULARY = re.compile(r"^(?:bos|eos|pad|unk|sep|cls|mask|image|video|audio)_token$", re.IGNORECASE)
SECRET_TEXT = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bgh[opsur]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}|\bglpat-[\w-]{20,}|\bsk-[\w-]{20,}|\bAKIA[A-Z0-9]{16}"
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)|(?<=Bearer )[\w.~+/=-]{8,}"
)
SHORTEST = 6  # a shorter value of an environment variable is no secret, and would be found in ordinary words


def redact(value: Any, environ: Mapping[str, str] = os.environ) -> Any:
    """A copy of nested plain data in which secrets are ``"***"``: strings under keys that name one (``..._token``, ``..._key``,
    ``..._secret``, ``password``), values of environment variables with such names wherever they occur in a string, and what has the
    shape of a token or of a password in a URL. Numbers, and the vocabulary's tokens (``pad_token``), are left alone."""
    known = {text for name, text in environ.items() if SECRET_NAME.search(name) and len(text) >= SHORTEST}
    return _redact(value, sorted(known, key=len, reverse=True))


def _redact(value: Any, known: Iterable[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: HIDDEN if _is_secret(key, one) else _redact(one, known) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(one, known) for one in value]
    if isinstance(value, str):
        for text in known:
            value = value.replace(text, HIDDEN)
        return SECRET_TEXT.sub(HIDDEN, value)
    return value


def _is_secret(key: Any, value: Any) -> bool:
    name = str(key)
    return isinstance(value, str) and bool(value) and bool(SECRET_NAME.search(name)) and not VOCABULARY.match(name)


def encode(record: Mapping[str, Any]) -> bytes:
    """One line of strict JSON with its line end. Objects that JSON does not have (paths) become text."""
    return (json.dumps(_finite(record), allow_nan=False, default=str) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


class Records:
    """Appends to ``metrics.jsonl``. Opened for a run that continues from ``resumed_step`` (0: a new one), it first drops, in one
    atomic replacement, the records of later steps, which will be run again, and lines torn by the death of a process.

    Each record is with the operating system when ``write`` returns: killing the process loses none. SaveFailed if it cannot be.
    """

    def __init__(self, path: Path, resumed_step: int):
        self.path = path
        try:
            durable.make_directory(path.parent)
            held = path.read_bytes() if path.exists() else b""
            lines = held.split(b"\n")
            kept = b"".join(line + b"\n" for line in lines if _stays(line, resumed_step))
            if kept != held:
                durable.replace_file(path, kept)
            self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._failed(error) from error

    def write(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the record as it was written, without its secrets."""
        clean: dict[str, Any] = redact(record)
        data = encode(clean)
        try:
            while data:
                data = data[os.write(self._handle, data) :]
        except OSError as error:
            raise self._failed(error) from error
        return clean

    def flush(self) -> None:
        """Bring all records to the disk, so that a power failure does not lose those of steps that a checkpoint holds."""
        try:
            durable.flush(self.path)
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _failed(self, error: OSError) -> SaveFailed:
        return SaveFailed(
            f"{self.path.name} cannot be written: {error.strerror}",
            where=str(self.path),
            how="free space or make output_dir writable, then start the same command again: it continues from the last checkpoint",
        )


def _stays(line: bytes, resumed_step: int) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    step = record.get("step", 0) if isinstance(record, dict) else None
    return isinstance(step, int | float) and step <= resumed_step
