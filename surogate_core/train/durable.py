"""Every write, flush, rename and removal of a save goes through the functions of this file.

That makes a save something that can be tested call by call: the tests kill the process at each of them and let each of them fail.
The first group are single system operations; the second is built from them alone. Callers use ``durable.write(...)``, never
an imported name, so that a test which replaces one function replaces it everywhere.

A rename is atomic on POSIX file systems, and lasting once the directory that holds the name has been flushed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


# ---------------------------------------------------------------- single operations
def make_directory(path: Path) -> None:
    """Create a directory and its parents; no error if it exists."""
    path.mkdir(parents=True, exist_ok=True)


def write(path: Path, data: bytes) -> None:
    """Write a file, replacing what it held. Not atomic and not flushed: for names that nobody reads yet."""
    path.write_bytes(data)


def flush(path: Path) -> None:
    """fsync a file, or a directory (its names)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rename(source: Path, target: Path) -> None:
    """Rename; a file or link at ``target`` is replaced, a directory that is not empty is not (OSError)."""
    source.replace(target)


def link(path: Path, target: str) -> None:
    """Make a symbolic link at ``path``, which must not exist."""
    path.symlink_to(target)


def unlink(path: Path) -> None:
    """Remove a file or link."""
    path.unlink()


def remove_directory(path: Path) -> None:
    """Remove an empty directory."""
    path.rmdir()


# ---------------------------------------------------------------- built from them
def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (UTF-8, indented). ValueError for numbers that JSON does not have, TypeError for other objects."""
    write(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file atomically and lastingly: a reader sees the old content or the new one."""
    aside = path.with_name(f".{path.name}.partial")
    write(aside, data)
    flush(aside)
    rename(aside, path)
    flush(path.parent)


def replace_link(path: Path, target: str) -> None:
    """Point a relative link at ``target`` atomically and lastingly."""
    aside = path.with_name(f".{path.name}.partial")
    if os.path.lexists(aside):
        unlink(aside)
    link(aside, target)
    rename(aside, path)
    flush(path.parent)


def files(directory: Path) -> Iterator[Path]:
    """All files below a directory, sorted."""
    return (path for path in sorted(directory.rglob("*")) if not path.is_dir())


def flush_tree(directory: Path) -> None:
    """fsync every file below a directory, whoever wrote it, and every directory, itself included."""
    for path in sorted(directory.rglob("*")):
        flush(path)
    flush(directory)


def remove_tree(directory: Path) -> None:
    """Remove a directory and all below it. Links are removed, not followed."""
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            unlink(path)
    remove_directory(directory)
