"""Rows of a data set: files and directories here or in a cloud, what the datasets library saved, and Hub data sets.

A reader yields raw rows without understanding them (a line of a jsonl file), so that a sample of the rows costs no parsing of the
others. Parsing gives a dict, or the reason why there is none; a bad row never ends the reading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen

from surogate_core.config.options import DatasetOptions
from surogate_core.errors import BadRow, DataError
from surogate_pipeline_packed.files import KINDS, READABLE, Reader, Stored, on_disk, reader_of
from surogate_pipeline_packed.library import SAVED, carded, has_card, hub, saved
from surogate_pipeline_packed.remote import guarded, remote_files, told

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in the names of files that say which split they are, as on the Hub."""


@frozen
class Row:
    """A row: index of its file, number in it from 1, and its columns, or the reason why it cannot be read."""

    file: int
    number: int
    columns: dict[str, Any] | None
    reason: str = ""


@frozen
class Source:
    """An opened data set. ``files`` name its readers in order; ``size`` is in bytes, 0 when unknown."""

    readers: tuple[Reader, ...]
    size: int
    samples: int | None
    seed: int

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(reader.name for reader in self.readers)

    @property
    def origins(self) -> tuple[tuple[Path | str, ...], ...]:
        return tuple(reader.origin for reader in self.readers)

    @property
    def countable(self) -> bool:
        """Whether :meth:`count` costs little beside reading the rows."""
        return all(reader.countable for reader in self.readers)

    def count(self) -> int:
        """Number of rows that :meth:`rows` gives; reads the data."""
        total = sum(reader.count() for reader in self.readers)
        return total if self.samples is None else min(total, self.samples)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """All rows in order, or ``samples`` of them drawn with ``seed``, still in order. Of these, the rows from ``start`` to
        before ``stop``; those before ``start`` are not parsed."""
        chosen = self._chosen()
        at = taken = -1
        for file, reader in enumerate(self.readers):
            for number, raw in reader.raw():
                at += 1
                if chosen is not None and not chosen[at]:
                    continue
                taken += 1
                if stop is not None and taken >= stop:
                    return
                if taken < start:
                    continue
                try:
                    yield Row(file, number, reader.parse(raw))
                except BadRow as bad:
                    yield Row(file, number, None, bad.reason)

    def _chosen(self) -> np.ndarray | None:
        if self.samples is None:
            return None
        total = sum(reader.count() for reader in self.readers)
        chosen = np.zeros(total, dtype=bool)
        chosen[np.random.default_rng([self.seed, 3]).permutation(total)[: self.samples]] = True
        return chosen


def open_source(options: DatasetOptions, key: str, seed: int, streaming: bool = False) -> Source:
    """Find the files, or the Hub data set, that ``options`` names. ``key`` is where the config names it (``datasets[0]``).
    ``streaming``: what the datasets library would copy first is read as it arrives.

    Raises DataError for a missing path or address, a directory without data or with two kinds of them, and a data set that
    cannot be read.
    """
    where = f'{key}.path = "{options.path}"'
    if "://" in options.path:
        objects = remote_files(options.path, where)
        with told(options.path, where):
            readers = [guarded(reader, options.path, where) for reader in _readers(objects, options.path, options, where)]
        return Source(tuple(readers), sum(file.size for file in objects), options.samples, seed)
    path = Path(options.path).expanduser()
    if path.is_dir():
        if any((path / name).is_file() for name in SAVED):
            return Source((saved(path, options, where),), _size(path), options.samples, seed)
        if has_card(path):
            return Source((carded(path, options, where, streaming),), _size(path), options.samples, seed)
        files = [on_disk(file, file.relative_to(path).as_posix()) for file in sorted(path.rglob("*")) if file.is_file()]
    elif path.is_file():
        files = [on_disk(path, path.name)]
    elif KINDS.keys() & {path.suffix, *path.suffixes[-2:]} or not HUB_ID.fullmatch(options.path):
        raise DataError("there is no such file or directory", where, f"paths start from {Path.cwd()}")
    else:
        return Source((hub(options, where, streaming),), 0, options.samples, seed)
    readers = _readers(files, str(path), options, where)
    return Source(tuple(readers), sum(file.size for file in files), options.samples, seed)


def _readers(found: Sequence[Stored], place: str, options: DatasetOptions, where: str) -> list[Reader]:
    """Readers of the file at ``place``, or of those in the directory there that are data of the wanted split."""
    if options.subset is not None:
        how = "remove subset; a directory has subsets if a data set card (README.md) names them"
        raise DataError("files have no subsets", f"{where}, subset {options.subset!r}", how)
    if [file.place for file in found] == [place]:
        if found[0].kind not in KINDS:
            raise DataError(f'files of kind "{found[0].kind}" cannot be read', where, f"use one of {READABLE}")
        return [reader_of(found[0])]
    files = [file for file in found if file.kind in KINDS and not any(part.startswith(".") for part in Path(file.name).parts)]
    kinds = sorted({file.kind for file in files})
    if not files:
        raise DataError("the directory holds no data", where, f"files of one of {READABLE} are wanted")
    if len(kinds) > 1:
        raise DataError(f"the directory holds files of several kinds: {', '.join(kinds)}", where, "name one file, or split them up")
    return [reader_of(file) for file in _of_split(files, options.split, where)]


def _of_split(files: Sequence[Stored], wanted: str, where: str) -> list[Stored]:
    """All files, unless their names tell of splits."""
    splits = [split_of(file.name) for file in files]
    named = [split for split in SPLITS if split in splits]
    if not named or named == [wanted]:
        return list(files)
    if None in splits:
        other = files[splits.index(None)].name
        what = f"the directory has files of the split {' and '.join(named)}, and {other}, which is of none"
        raise DataError(what, where, "name one file, or split them up")
    if wanted not in named:
        raise DataError(f'there is no split "{wanted}"', where, f"use one of {', '.join(named)}")
    return [file for file, split in zip(files, splits, strict=True) if split == wanted]


def split_of(name: str) -> str | None:
    """The split that a file's name, or that of a directory around it, tells: ``data/test-00000-of-00001.parquet`` is ``test``."""
    words = set(re.split(r"[-._ 0-9/]+", name.lower()))
    return next((split for split, keywords in SPLITS.items() if words & set(keywords)), None)


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
