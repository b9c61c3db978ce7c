"""Shards: parts on disk, as safetensors files whose arrays are mapped, not read.

A shard is written aside, flushed and renamed, so a name in the directory means a whole file. Its metadata has a BLAKE2b digest of
arrays and words: a file that was damaged later is found when it is opened, and is worth as much as one that is missing.

How many rows a shard has depends on nothing but the rows before it and in it (:func:`full`), so processes that tokenise the same
data write the same files, and a file that was lost is made again with the same borders.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np

from surogate_pipeline_packed.part import Part, arrays

SUFFIX = ".safetensors"
LEAST_ROWS = 64
MOST_TOKENS = 4 << 20
LEAST_TOKENS = 1 << 19
KINDS: dict[str, np.dtype[Any]] = {"I32": np.dtype("<i4"), "F32": np.dtype("<f4"), "I64": np.dtype("<i8"), "U8": np.dtype("u1")}


def full(start: int, rows: int, tokens: int) -> bool:
    """Whether a shard that starts at row ``start`` has enough. A sixteenth of what precedes it, so that a kill costs little of what
    was done, and there are few files; and no more tokens than memory takes lightly, which of large data, where files would become
    too many to be mapped, are more."""
    return rows >= max(LEAST_ROWS, start // 16) or tokens >= min(MOST_TOKENS, max(LEAST_TOKENS, 2 * start))


def name(start: int) -> str:
    return f"rows-{start:012d}{SUFFIX}"


def start_of(path: Path) -> int:
    return int(path.name.removeprefix("rows-").removesuffix(SUFFIX))


def write(path: Path, part: Part) -> None:
    """Store ``part``. Raises OSError."""
    from safetensors.numpy import save_file

    columns = arrays(part)
    words = json.dumps(part.words)
    # One entry: the library writes several in any order, and equal parts are to be equal files.
    metadata = {"part": json.dumps({"blake2b": _digest(columns, words), "words": words})}
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(dict(columns), aside, metadata)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    flush_directory(path.parent)


def flush_directory(path: Path) -> None:
    """Make renames in a directory last, where the system can."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read(path: Path) -> Part | None:
    """The part stored at ``path``, its arrays mapped; None when the file is missing or damaged."""
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        size = int.from_bytes(mapped[:8], "little")
        header = json.loads(mapped[8 : 8 + size])
        metadata = json.loads(header.pop("__metadata__")["part"])
        columns = {key: _array(mapped, 8 + size, entry) for key, entry in header.items()}
        part = Part(**columns, words=tuple(json.loads(metadata["words"])))
        return part if _digest(arrays(part), metadata["words"]) == metadata["blake2b"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _array(mapped: mmap.mmap, base: int, entry: dict[str, Any]) -> np.ndarray:
    start, stop = entry["data_offsets"]
    kind = KINDS[entry["dtype"]]
    if not 0 <= start <= stop <= len(mapped) - base:
        raise ValueError("outside of the file")
    return np.frombuffer(mapped, kind, (stop - start) // kind.itemsize, base + start).reshape(entry["shape"])


def _digest(columns: Any, words: str) -> str:
    digest = hashlib.blake2b(words.encode(), digest_size=16)
    for array in columns.values():
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data if array.size else b"")
    return digest.hexdigest()
