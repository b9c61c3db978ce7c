"""Built files, kept by the hash of everything that they were made from.

A file is built aside and renamed into place: a reader sees all of it or nothing, and of two processes that build the same file both
succeed, because what they rename is the same.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def directory() -> Path:
    """``SUROGATE_NATIVE_CACHE``, or ``surogate/native`` in the user's cache directory."""
    if place := os.environ.get("SUROGATE_NATIVE_CACHE"):
        return Path(place)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "surogate" / "native"


def built(name: str, build: Callable[[Path], None]) -> Path:
    """The file ``name`` of the cache, after ``build(path)`` has written it aside where it was missing."""
    kept = directory() / name
    if kept.is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".build-") as aside:
        made = Path(aside) / name
        build(made)
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.replace(kept)
    return kept
