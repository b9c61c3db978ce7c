"""JSON as data sets hold it, strictly: a line, or an array of any size that is decoded element by element.

Python's decoder takes the last of two equal keys, which would lose a field without a word; here it is a fault of the row. So are
bytes that are not UTF-8, and half of a surrogate pair, which no tokenizer can take.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from attrs import Factory, define, frozen

from surogate_core.errors import BadRow, DataError

BLOCK = 1 << 20
NEAR = 16
"""Characters. A fault this close to the end of what has been read may be a word that was cut there."""
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
SPACE = re.compile(r"[ \t\n\r]*")
NOT_UTF8 = "not UTF-8"


def parse_line(line: bytes) -> dict[str, Any]:
    """The object in one line. Raises BadRow."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRow(NOT_UTF8) from error
    try:
        row = _LINE.decode(text)
    except (ValueError, RecursionError) as error:
        raise BadRow("not JSON") from error
    if HALF_PAIR.search(text):
        _check_pairs(row)
    return columns(row)


def columns(row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise BadRow(f"not a JSON object but {type(row).__name__}")
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise BadRow(_twice(pairs))
    return row


def _twice(pairs: list[tuple[str, Any]]) -> str:
    names = [name for name, _ in pairs]
    return f"key {next(name for name in names if names.count(name) > 1)[:40]!r} twice in an object"


_LINE = json.JSONDecoder(object_pairs_hook=_unique)


def _check_pairs(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadRow("half of a surrogate pair") from error


@frozen
class Element:
    """One element of an array: as it is written, its value, and what is wrong with its keys."""

    text: str
    value: Any
    fault: str


def parse_element(element: Element) -> dict[str, Any]:
    """The object that an element is. Raises BadRow."""
    if not element.text.isascii():
        try:
            element.text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadRow(NOT_UTF8) from error
    if element.fault:
        raise BadRow(element.fault)
    if HALF_PAIR.search(element.text):
        _check_pairs(element.value)
    return columns(element.value)


@define
class Elements:
    """The elements of the array in ``data``, with their numbers from 1; never more than the longest is held, twice.

    Raises DataError where the text is no array: after a fault in it, nothing tells where the next element starts.
    """

    data: BinaryIO
    place: str
    text: str = ""
    at: int = 0
    faults: list[str] = Factory(list)
    bytes_to_text: Any = Factory(lambda: codecs.getincrementaldecoder("utf-8")("surrogateescape"))

    def __iter__(self) -> Iterator[tuple[int, Element]]:
        decoder = json.JSONDecoder(object_pairs_hook=self._noted)
        if self._next() != "[":
            raise self._error(0, "no array")
        self.at += 1
        number, closed = 0, self._next() == "]"
        while not closed:
            number += 1
            yield number, self._element(decoder, number)
            char = self._next()
            if char not in ("]", ","):
                raise self._error(number, "',' or ']' is wanted after it" if char else "the file ends after it")
            closed = char == "]"
            self.at += not closed
        self.at += 1
        if self._next():
            raise self._error(number, "there is more after the array")

    def _element(self, decoder: json.JSONDecoder, number: int) -> Element:
        self._next()
        while True:
            self.faults.clear()
            failed: json.JSONDecodeError | None = None
            end = len(self.text)
            try:
                value, end = decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                failed = error
            except RecursionError as error:
                raise self._error(number, "nested too deeply") from error
            else:
                if end < len(self.text):
                    break
            # What ends with the block, or is wrong near its end, may go on in the next one.
            cut = failed is None or failed.pos >= len(self.text) - NEAR or failed.msg.startswith("Unterminated string")
            if not (cut and self._more()):
                if failed is not None:
                    raise self._error(number, failed.msg) from failed
                break
        element = Element(self.text[self.at : end], value, self.faults[0] if self.faults else "")
        self.at = end
        return element

    def _noted(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) != len(pairs):
            self.faults.append(_twice(pairs))
        return row

    def _next(self) -> str:
        """The next character that is not white space, "" at the end of the file."""
        while True:
            space = SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text) or not self._more():
                return self.text[self.at : self.at + 1]

    def _more(self) -> bool:
        block = self.data.read(max(BLOCK, len(self.text) - self.at))
        self.text = self.text[self.at :] + self.bytes_to_text.decode(block, not block)
        self.at = 0
        return bool(block)

    def _error(self, number: int, what: str) -> DataError:
        return DataError(
            f"not JSON: {what}", f"{self.place}, element {number}", "write an array of objects, or one object a line (.jsonl)"
        )
