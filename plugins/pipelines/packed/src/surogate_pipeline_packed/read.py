"""Rows of a data set: local jsonl, json, csv, parquet, arrow and txt files, directories of one kind, and Hub data sets.

A reader yields raw rows without understanding them (a line of a jsonl file), so that a sample of the rows costs no parsing of the
others. Parsing gives a dict, or the reason why there is none; a bad row never ends the reading.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from attrs import frozen

from surogate_core.config.options import DatasetOptions
from surogate_core.errors import BadRow, DataError

Raw = tuple[int, Any]
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
SAVED = ("dataset_dict.json", "state.json")  # what datasets.save_to_disk leaves in a directory


@frozen
class Row:
    """A row: index of its file, number in it from 1, and its columns, or the reason why it cannot be read."""

    file: int
    number: int
    columns: dict[str, Any] | None
    reason: str = ""


@frozen
class Reader:
    """``raw()`` yields (number, unparsed row); ``parse`` makes columns of one or raises BadRow; ``count()`` is their number.

    ``origin`` is what the rows come from: files, which count with their content, and words that name one state of the data for ever
    (a revision). Without one, what was made of the rows cannot be kept for another run.
    """

    name: str
    raw: Callable[[], Iterator[Raw]]
    parse: Callable[[Any], dict[str, Any]]
    count: Callable[[], int]
    origin: tuple[Path | str, ...] = ()


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


def open_source(options: DatasetOptions, key: str, seed: int) -> Source:
    """Find the files, or the Hub data set, that ``options`` names. ``key`` is where the config names it (``datasets[0]``).

    Raises DataError for a missing path, a directory without data or with two kinds of them, and a Hub data set that cannot be read.
    """
    where = f'{key}.path = "{options.path}"'
    path = Path(options.path).expanduser()
    if "://" in options.path:
        raise DataError("addresses cannot be read directly", where, "download the files and give their directory")
    if path.is_dir():
        if any((path / name).is_file() for name in SAVED):
            return Source((_saved(path, options, where),), _size([path]), options.samples, seed)
        files = _of_one_kind(path, where)
        readers = tuple(KINDS[file.suffix](file, file.relative_to(path).as_posix()) for file in files)
        return Source(readers, _size(files), options.samples, seed)
    if path.is_file():
        if path.suffix not in KINDS:
            raise DataError(f'files of kind "{path.suffix}" cannot be read', where, f"use one of {', '.join(KINDS)}")
        return Source((KINDS[path.suffix](path, path.name),), path.stat().st_size, options.samples, seed)
    if path.suffix in KINDS or not HUB_ID.fullmatch(options.path):
        raise DataError("there is no such file or directory", where, f"paths start from {Path.cwd()}")
    return Source((_hub(options, where),), 0, options.samples, seed)


# ---------------------------------------------------------------- kinds of files
def _parse_line(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise BadRow("not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise BadRow("not JSON") from error
    return _columns(row)


def _columns(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise BadRow(f"not a JSON object but {type(row).__name__}")
    return row


def _lines(path: Path) -> Iterator[Raw]:
    # A binary file is split at \n alone; text would be split at U+2028 too, which JSON strings may hold.
    with path.open("rb") as file:
        _skip_mark(file)
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def _skip_mark(file: BinaryIO) -> None:
    if file.read(3) != b"\xef\xbb\xbf":
        file.seek(0)


def _jsonl(path: Path, name: str) -> Reader:
    return _counted(name, partial(_lines, path), _parse_line, path)


def _json(path: Path, name: str) -> Reader:
    """An array of objects; a file of JSON lines with the wrong ending is read as what it is."""
    with path.open("rb") as file:
        _skip_mark(file)
        start = file.read(4096).lstrip()
    if not start.startswith(b"["):
        return _jsonl(path, name)

    def raw() -> Iterator[Raw]:
        try:
            rows = json.loads(path.read_bytes())
        except ValueError as error:
            raise DataError(f"not JSON: {error}", str(path), "an array of objects is wanted, or JSON lines") from error
        yield from enumerate(rows, 1)

    return _counted(name, raw, _columns, path)


def _csv(path: Path, name: str) -> Reader:
    """Every value is text, as written; the first line names the columns."""

    def raw() -> Iterator[Raw]:
        csv.field_size_limit(1 << 30)
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from enumerate(csv.DictReader(file, strict=True), 1)

    return _counted(name, raw, _csv_row, path)


def _csv_row(row: dict[Any, Any]) -> dict[str, Any]:
    if None in row or None in row.values():
        raise BadRow("another number of columns than the first line")
    if any("\udc80" <= char <= "\udcff" for value in row.values() for char in value):
        raise BadRow("not UTF-8")
    return row


def _text(path: Path, name: str) -> Reader:
    return Reader(name, lambda: iter([(1, path)]), _document, lambda: 1, (path,))


def _document(path: Path) -> dict[str, Any]:
    try:
        return {"text": path.read_bytes().decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8 (byte {error.start})") from error


def _parquet(path: Path, name: str) -> Reader:
    from pyarrow import ArrowInvalid, parquet

    try:
        table = parquet.ParquetFile(path)
    except ArrowInvalid as error:
        raise DataError(f"not a parquet file: {error}", str(path), "fetch or write the file again") from error
    batches = partial(table.iter_batches, batch_size=1000)

    def raw() -> Iterator[Raw]:
        yield from enumerate((row for batch in batches() for row in batch.to_pylist()), 1)

    return Reader(name, raw, _columns, lambda: table.metadata.num_rows, (path,))


def _arrow(path: Path, name: str) -> Reader:
    from datasets import Dataset

    return _of_dataset(name, Dataset.from_file(str(path)))


KINDS: dict[str, Callable[[Path, str], Reader]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".txt": _text,
}


# ---------------------------------------------------------------- the datasets library
def _of_dataset(name: str, dataset: Any) -> Reader:
    # Files that the library keeps, and its own fingerprint of what was done with them; a data set in memory has no files.
    files = tuple(Path(entry["filename"]) for entry in dataset.cache_files)
    origin = (*files, dataset._fingerprint) if files else ()
    return Reader(name, lambda: enumerate(dataset, 1), _columns, lambda: len(dataset), origin)


def _saved(path: Path, options: DatasetOptions, where: str) -> Reader:
    """A directory that datasets.save_to_disk wrote."""
    from datasets import DatasetDict, load_from_disk

    dataset = load_from_disk(str(path))
    if isinstance(dataset, DatasetDict):
        if options.split not in dataset:
            raise DataError(f'there is no split "{options.split}"', where, f"use one of {', '.join(dataset)}")
        dataset = dataset[options.split]
    return _of_dataset(path.name, dataset)


def _hub(options: DatasetOptions, where: str) -> Reader:
    from datasets import load_dataset

    try:
        dataset = load_dataset(options.path, name=options.subset, split=options.split)
    except Exception as error:  # the library raises its own, the Hub's and the network's errors
        raise DataError(
            f"neither a local path nor a data set of the Hub that can be read: {type(error).__name__}: {_first_line(error)}",
            f"{where}, subset {options.subset!r}, split {options.split!r}",
            "check path, subset, split and the network; private data sets need HF_TOKEN",
        ) from error
    return _of_dataset(options.path, dataset)


# ---------------------------------------------------------------- helpers
def _counted(name: str, raw: Callable[[], Iterator[Raw]], parse: Callable[[Any], dict[str, Any]], path: Path) -> Reader:
    return Reader(name, raw, parse, lambda: sum(1 for _ in raw()), (path,))


def _of_one_kind(directory: Path, where: str) -> list[Path]:
    inside = (path for path in directory.rglob("*") if not any(part.startswith(".") for part in path.relative_to(directory).parts))
    files = sorted(path for path in inside if path.suffix in KINDS and path.is_file())
    kinds = sorted({path.suffix for path in files})
    if not files:
        raise DataError("the directory holds no data", where, f"files of one of {', '.join(KINDS)} are wanted")
    if len(kinds) > 1:
        raise DataError(f"the directory holds files of several kinds: {', '.join(kinds)}", where, "name one file, or split them up")
    return files


def _size(paths: Sequence[Path]) -> int:
    files = (file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]))
    return sum(file.stat().st_size for file in files if file.is_file())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
