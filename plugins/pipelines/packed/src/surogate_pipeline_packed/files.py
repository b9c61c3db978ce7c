"""Kinds of files, wherever they are stored: jsonl, json, csv, txt (each also as .gz), parquet, arrow.

A reader holds one row at a time (a parquet reader one batch of them), except that a .txt file is one row. What breaks a single row
is told as its reason; what makes the rest of the file unreadable, or its rows uncountable, ends the run.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from attrs import frozen

from surogate_core.errors import BadRow, DataError
from surogate_pipeline_packed.jsontext import NOT_UTF8, Elements, columns, parse_element, parse_line

Raw = tuple[int, Any]
BUFFER = 1 << 20
BATCH = 1000
GZIP = b"\x1f\x8b"
UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@frozen
class Reader:
    """``raw()`` yields (number, unparsed row); ``parse`` makes columns of one or raises BadRow; ``count()`` is their number.

    ``origin`` is what the rows come from: files, which count with their content, and words that name one state of the data for ever
    (a revision). Without one, what was made of the rows cannot be kept for another run. ``countable`` is false where counting would
    read all rows over a network.
    """

    name: str
    raw: Callable[[], Iterator[Raw]]
    parse: Callable[[Any], dict[str, Any]]
    count: Callable[[], int]
    origin: tuple[Path | str, ...] = ()
    countable: bool = True


@frozen
class Stored:
    """A file: ``name`` as rows are called by it, ``place`` for messages, size in bytes, and ``opened`` for its bytes, buffered.
    ``local`` is its path if it has one; ``origin`` as a reader has it."""

    name: str
    place: str
    size: int
    opened: Callable[[], BinaryIO]
    local: Path | None = None
    origin: tuple[Path | str, ...] = ()

    @property
    def zipped(self) -> bool:
        return self.name.lower().endswith(".gz")

    @property
    def kind(self) -> str:
        """``.jsonl`` of ``rows.JSONL.gz``; ``.gz`` is left where such a file cannot be read compressed."""
        plain = Path(self.name.lower().removesuffix(".gz")).suffix
        return plain if not self.zipped or plain in ZIPPED else ".gz"


def on_disk(path: Path, name: str) -> Stored:
    return Stored(name, str(path), path.stat().st_size, lambda: path.open("rb"), path, (path,))


def reader_of(file: Stored) -> Reader:
    """The reader for a file of one of KINDS. Raises DataError for a file that is not what its name says."""
    return KINDS[file.kind](file)


@contextmanager
def _content(file: Stored) -> Iterator[BinaryIO]:
    """The bytes of a text file, unpacked, behind a byte order mark."""
    try:
        with file.opened() as stored:
            if file.zipped:
                with gzip.GzipFile(fileobj=stored) as plain, io.BufferedReader(plain, BUFFER) as data:
                    yield _after_mark(data, file)
            else:
                yield _after_mark(stored, file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"the gzip file is damaged: {error}", file.place, "fetch or write it again") from error
    except OSError as error:
        if file.local is None:
            raise
        raise DataError(f"the file cannot be read: {error.strerror}", file.place, "check the file and its permissions") from error


def _after_mark(data: BinaryIO, file: Stored) -> BinaryIO:
    start = data.peek(4)[:4]  # type: ignore[attr-defined]
    if start.startswith(UTF8_MARK):
        data.read(len(UTF8_MARK))
    elif start.startswith(UTF16_MARKS):
        raise DataError("the file is UTF-16", file.place, "save it as UTF-8")
    elif start.startswith(GZIP):
        raise DataError("the file is compressed with gzip, and its name does not say so", file.place, f"name it {file.name}.gz")
    return data


def _counted(file: Stored, raw: Callable[[], Iterator[Raw]], parse: Callable[[Any], dict[str, Any]]) -> Reader:
    return Reader(file.name, raw, parse, lambda: sum(1 for _ in raw()), file.origin)


# ---------------------------------------------------------------- text
def _jsonl(file: Stored) -> Reader:
    def raw() -> Iterator[Raw]:
        # Bytes are split at \n alone; text would be split at U+2028 too, which JSON strings may hold.
        with _content(file) as data:
            yield from ((number, line) for number, line in enumerate(data, 1) if line.strip())

    return _counted(file, raw, parse_line)


def _json(file: Stored) -> Reader:
    """An array of objects; a file of JSON lines with the wrong ending is read as what it is."""
    with _content(file) as data:
        first = next((line for line in iter(lambda: data.readline(BUFFER), b"") if line.strip()), b"").strip()
    if first == b"{":
        raise DataError(
            "the file is one JSON object over several lines", file.place, "write an array of objects, or one object a line (.jsonl)"
        )
    if not first.startswith(b"["):
        return _jsonl(file)

    def raw() -> Iterator[Raw]:
        with _content(file) as data:
            yield from Elements(data, file.place)

    return _counted(file, raw, parse_element)


def _csv(file: Stored) -> Reader:
    """Every value is text, as written; the first line names the columns."""
    return _counted(file, partial(_csv_rows, file), _csv_row)


def _csv_rows(file: Stored) -> Iterator[Raw]:
    csv.field_size_limit(1 << 30)
    with _content(file) as data, io.TextIOWrapper(data, encoding="utf-8", errors="surrogateescape", newline="") as text:
        reader = csv.reader(text, strict=True)
        names: list[str] | None = None
        number, values, failed = 0, [""], False
        while True:
            line = reader.line_num + 1
            try:
                values, failed = next(reader), False
            except StopIteration:
                return
            except csv.Error as error:
                failed = True
                if names is None or reader.line_num > line:
                    what = f"not CSV from line {line} to {reader.line_num}: {error}"
                    raise DataError(what, file.place, "close the quotes that open there") from error
            if names is None:
                names = _header(values, file)
            elif failed or values:
                number += 1
                yield number, (names, None if failed else values)


def _header(names: list[str], file: Stored) -> list[str]:
    if not all(map(_is_text, names)):
        raise DataError("the names of the columns are not UTF-8", f"{file.place}, line 1", "save the file as UTF-8")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f'there are two columns "{twice[0]}"', f"{file.place}, line 1", "rename one of them")
    return names


def _csv_row(raw: tuple[list[str], list[str] | None]) -> dict[str, Any]:
    names, values = raw
    if values is None:
        raise BadRow("not CSV")
    if len(values) != len(names):
        raise BadRow("another number of columns than the first line")
    if not all(map(_is_text, values)):
        raise BadRow(NOT_UTF8)
    return dict(zip(names, values, strict=True))


def _is_text(value: str) -> bool:
    """False for bytes that were not UTF-8, which Python reads as lone surrogates."""
    return value.isascii() or not any("\udc80" <= char <= "\udcff" for char in value)


def _text(file: Stored) -> Reader:
    def raw() -> Iterator[Raw]:
        with _content(file) as data:
            yield 1, data.read()

    return Reader(file.name, raw, _document, lambda: 1, file.origin)


def _document(data: bytes) -> dict[str, Any]:
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError as error:
        raise BadRow(f"{NOT_UTF8} (byte {error.start})") from error


# ---------------------------------------------------------------- tables
def _parquet(file: Stored) -> Reader:
    from pyarrow import ArrowException, ArrowInvalid, default_memory_pool, parquet

    try:
        # Buffered reading: without it, pyarrow holds a whole row group, which many writers make a whole file.
        table = parquet.ParquetFile(file.local or file.opened(), buffer_size=BUFFER, pre_buffer=False)
    except ArrowInvalid as error:
        raise DataError(f"not a parquet file: {error}", file.place, "fetch or write the file again") from error

    def raw() -> Iterator[Raw]:
        number = 0
        try:
            for batch in table.iter_batches(batch_size=BATCH):
                for number, row in enumerate(batch.to_pylist(), number + 1):  # noqa: B020
                    yield number, row
                default_memory_pool().release_unused()  # Arrow's allocator keeps freed pages otherwise
        except (ArrowException, OSError) as error:
            what = f"the parquet file is damaged: {str(error).splitlines()[0]}"
            raise DataError(what, f"{file.place}, after row {number}", "fetch or write the file again") from error

    return Reader(file.name, raw, columns, lambda: table.metadata.num_rows, file.origin)


def _arrow(file: Stored) -> Reader:
    from datasets import Dataset
    from pyarrow import ArrowException

    if file.local is None:
        raise DataError("arrow files are mapped into memory, so they must be on disk", file.place, "download it, or use parquet")
    try:
        return of_dataset(file.name, Dataset.from_file(str(file.local)))
    except (ArrowException, OSError) as error:
        raise DataError(f"not an arrow file: {error}", file.place, "fetch or write the file again") from error


def of_dataset(name: str, dataset: Any) -> Reader:
    """The rows of a datasets.Dataset."""
    from datasets.features.features import require_decoding

    # Files that the library keeps, and its own fingerprint of what was done with them; a data set in memory has no files.
    files = tuple(Path(entry["filename"]) for entry in dataset.cache_files)
    origin = (*files, dataset._fingerprint) if files else ()
    if any(require_decoding(feature) for feature in dataset.features.values()):
        # Images and sounds as they are stored: decoding is no matter of reading, and one broken image is to break one row.
        stored = dataset.with_format("arrow")
        return Reader(name, lambda: enumerate((row.to_pylist()[0] for row in stored), 1), columns, lambda: len(dataset), origin)
    return Reader(name, lambda: enumerate(dataset, 1), columns, lambda: len(dataset), origin)


ZIPPED = (".jsonl", ".json", ".csv", ".txt")
KINDS: dict[str, Callable[[Stored], Reader]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".txt": _text,
}
READABLE = f"{', '.join(KINDS)} (and {', '.join(f'{kind}.gz' for kind in ZIPPED)})"
