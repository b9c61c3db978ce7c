"""Images beside the tokens: as columns of a part, and as what a corpus gives the model.

A row of the table is an image. The bytes that it speaks of lie one behind the other in ``blob``: the path of the image's file, then
what is kept of the image. On the fly that is nothing where there is a file, and else the bytes of the image as the row has them;
ahead it is the pixels that the model gets, float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from surogate_core.errors import BadRow, DataError
from surogate_pipeline_packed.images.sight import Picture, Sight, digest
from surogate_pipeline_packed.images.source import pixels

if TYPE_CHECKING:
    from surogate_pipeline_packed.part import Part

Ints = NDArray[np.int64]
COLUMNS = 13
START, STOP, TIME, HEIGHT, WIDTH, AT, NAMED, END, AHEAD, SIZE, MTIME, DIGEST = range(COLUMNS - 1)
"""Tokens [START, STOP) with the markers; patches; blob[AT:NAMED] is the path and blob[NAMED:END] the content, pixels if AHEAD; size
and time of the file; DIGEST and the column behind it are BLAKE2b of the image's bytes as they were read."""
NONE: Ints = np.zeros((0, COLUMNS), dtype=np.int64)
NO_BYTES: NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)


def table_of(pictures: Sequence[tuple[int, Picture]]) -> tuple[Ints, NDArray[np.uint8]]:
    """Table and blob of images, each with the place of its sample's first token."""
    if not pictures:
        return NONE, NO_BYTES
    rows, blob, at = [], [], 0
    for base, picture in pictures:
        name, encoded = picture.encoded.path.encode("utf-8", "surrogateescape"), picture.encoded
        kept = b"" if name else encoded.data
        if picture.pixels is not None:
            kept = picture.pixels.astype("<f4", copy=False).tobytes()
        named, end = at + len(name), at + len(name) + len(kept)
        place = (base + picture.start, base + picture.stop, *picture.grid, at, named, end)
        rows.append((*place, int(picture.pixels is not None), encoded.size, encoded.mtime, *np.frombuffer(picture.digest, "<i8")))
        blob += [name, kept]
        at = end
    return np.array(rows, dtype=np.int64), np.frombuffer(b"".join(blob), dtype=np.uint8)


def moved(table: Ints, tokens: int, blob: int) -> Ints:
    """The table of a part whose tokens and blob come behind so many others."""
    shift = np.zeros(COLUMNS, dtype=np.int64)
    shift[[START, STOP]] = tokens
    shift[[AT, NAMED, END]] = blob
    return table + shift


def fresh(part: Part) -> bool:
    """Whether the files of a part's images are as they were: size and time of the last change."""
    return all(
        _state(_text(part.blob[row[AT] : row[NAMED]])) == (row[SIZE], row[MTIME]) for row in part.images if row[NAMED] > row[AT]
    )


def within(table: Ints, starts: Ints, stops: Ints) -> Ints:
    """(P,) how many whole images lie in tokens [start, stop) of each piece."""
    return np.maximum(np.searchsorted(table[:, STOP], stops, "right") - np.searchsorted(table[:, START], starts), 0)


def _state(path: str) -> tuple[int, int] | None:
    try:
        known = Path(path).stat()
    except OSError:
        return None
    return known.st_size, known.st_mtime_ns


def _text(data: Any) -> str:
    return bytes(data).decode("utf-8", "surrogateescape")


@frozen(eq=False)
class Gallery:
    """The images of a corpus. ``blob`` may be mapped files, read as one."""

    table: Ints
    blob: Any
    sight: Sight

    def of(self, start: int, stop: int) -> Ints:
        """Rows of the table of the images in tokens [start, stop)."""
        first, last = np.searchsorted(self.table[:, START], [start, stop])
        return self.table[first:last]

    def inputs(self, pieces: Ints) -> dict[str, Any]:
        """``pixel_values`` (patches, values) float32 and ``image_grid_thw`` (I, 3) int64 of these pieces' images, in order; nothing
        where they have none. Raises DataError when an image has changed since it was tokenised."""
        import torch

        rows = [row for start, stop, _ in pieces.tolist() for row in self.of(start, stop)]
        if not rows:
            return {}
        values = np.concatenate([self._pixels(row) for row in rows])
        grid = np.stack([row[TIME : WIDTH + 1] for row in rows])
        return {"pixel_values": torch.from_numpy(values), "image_grid_thw": torch.from_numpy(grid)}

    def _bytes(self, start: int, stop: int) -> bytes:
        return bytes(self.blob[int(start) : int(stop)]) if stop > start else b""

    def _pixels(self, row: Ints) -> NDArray[np.float32]:
        path, kept = _text(self._bytes(row[AT], row[NAMED])), self._bytes(row[NAMED], row[END])
        grid = tuple(row[TIME : WIDTH + 1].tolist())
        if row[AHEAD]:
            return np.frombuffer(kept, dtype="<f4").reshape(int(np.prod(grid)), -1)
        how = "put it back as it was, or start again with --fresh, which tokenises it anew"
        try:
            data = Path(path).read_bytes() if path else kept
            if digest(data) != row[DIGEST:].astype("<i8").tobytes():
                raise DataError("an image has changed since it was tokenised", path, how)
            values, found = self.sight.given(pixels(data))
        except (OSError, BadRow) as error:
            raise DataError("an image can no longer be read", path or "an image in a row", how) from error
        if found != grid:
            raise DataError("an image has another number of patches than when it was tokenised", path or "an image in a row", how)
        return values

    def digests(self, pieces: Ints) -> bytes:
        """What the images of these pieces are, in order: digests of their bytes, and their patches."""
        rows = [row for start, stop, _ in pieces.tolist() for row in self.of(start, stop)]
        kept = [*range(TIME, WIDTH + 1), DIGEST, DIGEST + 1]
        return b"".join(np.ascontiguousarray(row[kept], dtype="<i8").tobytes() for row in rows)
