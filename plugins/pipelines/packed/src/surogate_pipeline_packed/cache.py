"""The cache of tokenised data sets: a directory of entries, one a key.

    <cache>/tokenised/<key>/about.json               what it was made from
                            rows-<start>.safetensors the shards, named by their first row
                            complete.json            rows and tokens; written last
    <cache>/locks/<key>                              held while an entry is written or removed
    <cache>/files/                                   digests of files, see keys.py

An entry is written under its lock, which the operating system frees when a process is killed. Where locks do not work, two
processes write the same files, each by renaming, and both are right.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import frozen
from filelock import FileLock, Timeout

from surogate_pipeline_packed import shard
from surogate_pipeline_packed.images.table import fresh
from surogate_pipeline_packed.keys import Parts, changed, key_of
from surogate_pipeline_packed.part import Part

ABOUT, COMPLETE = "about.json", "complete.json"
LOCK_ERRORS = (OSError, NotImplementedError)


def directory(option: str | None) -> Path:
    """Where the cache is: `cache_dir`, the environment's SUROGATE_CACHE, or `surogate` in the user's cache directory."""
    chosen = option or os.environ.get("SUROGATE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "surogate"


@frozen
class Entry:
    """The shards of one key. ``label`` says in words what they are made from."""

    root: Path
    parts: Parts
    label: Parts

    @property
    def key(self) -> str:
        return key_of(self.parts)

    @property
    def path(self) -> Path:
        return self.root / "tokenised" / self.key

    @contextmanager
    def locked(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the entry. ``waiting`` is called when another process does."""
        try:
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / "locks" / self.key)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                waiting()
                lock.acquire()
        except LOCK_ERRORS:
            yield
            return
        try:
            yield
        finally:
            lock.release()

    def open(self) -> None:
        """Make the directory, and say in it what it is for. Raises OSError."""
        self.path.mkdir(parents=True, exist_ok=True)
        for left in self.path.glob(".*"):  # of a writer that was killed
            left.unlink(missing_ok=True)
        if not (self.path / ABOUT).is_file():
            _put(self.path / ABOUT, {"label": dict(self.label), "parts": dict(self.parts), "made": time.time()})

    def shards(self) -> dict[int, Part]:
        """The whole shards by their first row; damaged ones, and those with images whose files have changed, are left out."""
        found = {shard.start_of(path): shard.read(path) for path in sorted(self.path.glob(f"rows-*{shard.SUFFIX}"))}
        return {start: part for start, part in found.items() if part is not None and fresh(part)}

    def rows(self) -> int | None:
        """How many rows the data set has, None while that is not known."""
        done = _get(self.path / COMPLETE)
        return int(done["rows"]) if done else None

    def finish(self, rows: int, tokens: int) -> None:
        _put(self.path / COMPLETE, {"rows": rows, "tokens": tokens})

    def touch(self) -> None:
        """Note that the entry was used."""
        with suppress(OSError):
            os.utime(self.path / ABOUT)

    def nearest(self) -> list[str] | None:
        """What has changed since the most similar entry that was made from the same path and format; None without one."""
        mine = {name: self.label.get(name) for name in ("path", "type")}
        kin = [about for about in listed(self.root) if {name: about.label.get(name) for name in mine} == mine]
        return min((changed(about.parts, self.parts) for about in kin if about.key != self.key), key=len, default=None)


@frozen
class About:
    """An entry as `surogate cache` shows it. Times are seconds since 1970; ``rows`` is None for one that is not complete."""

    path: Path
    label: Parts
    parts: Parts
    made: float
    used: float
    size: int
    rows: int | None
    tokens: int | None

    @property
    def key(self) -> str:
        return self.path.name


def listed(root: Path) -> list[About]:
    """All entries, the one used last first."""
    found = []
    for path in (root / "tokenised").glob("*"):
        about = None if path.name.startswith(".") else _get(path / ABOUT)
        if not about:
            continue
        done = _get(path / COMPLETE) or {}
        try:
            used = (path / ABOUT).stat().st_mtime
            size = sum(file.stat().st_size for file in path.iterdir())
        except OSError:  # it is being removed
            continue
        label, parts = about.get("label", {}), about.get("parts", {})
        found.append(About(path, label, parts, about.get("made", used), used, size, done.get("rows"), done.get("tokens")))
    return sorted(found, key=lambda about: -about.used)


def remove(root: Path, about: About) -> bool:
    """Remove an entry, unless a process is writing it. A process that reads it keeps what it has mapped."""
    (root / "locks").mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / "locks" / about.key)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except LOCK_ERRORS:
        pass
    try:
        gone = about.path.with_name(f".{about.key}.{os.getpid()}")
        about.path.rename(gone)  # from one moment to the next, so that no half of it is ever found
        shutil.rmtree(gone)
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()
    return True


def _put(path: Path, content: dict[str, Any]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    shard.flush_directory(path.parent)


def _get(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
        return content if isinstance(content, dict) else None
    except (OSError, ValueError):
        return None
