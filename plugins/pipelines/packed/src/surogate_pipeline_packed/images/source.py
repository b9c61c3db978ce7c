"""An image as a row names it → its bytes, and the bytes → pixels.

Bytes as the row has them, or those of a file; a PIL image becomes PNG, which loses nothing. Nothing is fetched from the network: a
run is to find the same images when it continues.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from attrs import frozen

from surogate_core.errors import BadRow, DataError

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
KEYS = ("bytes", "image", "path", "url", "image_url")
"""What an object that stands for an image may hold it under; ``bytes`` and ``path`` are those of the datasets library."""


@frozen
class Encoded:
    """The bytes of an image. ``path``, ``size`` and ``mtime`` (ns) are of the file that they were read from; "" and 0 for bytes in
    the row."""

    data: bytes
    path: str = ""
    size: int = 0
    mtime: int = 0


def read(value: Any, roots: Sequence[Path]) -> Encoded:
    """The bytes of an image: bytes, a PIL image, a path (from the first of ``roots`` that has it), ``file://``, a data URL, or an
    object with one of these. Raises BadRow."""
    if isinstance(value, bytes | bytearray | memoryview):
        return Encoded(bytes(value))
    if isinstance(value, Mapping):
        given = next((value[key] for key in KEYS if value.get(key) is not None), None)
        if given is None:
            raise BadRow("an image without content")
        return read(given, roots)
    if isinstance(value, str):
        return _named(value, roots)
    if hasattr(value, "save") and hasattr(value, "getbbox"):  # a PIL image; Pillow need not be there to say so
        file = io.BytesIO()
        value.save(file, "PNG")
        return Encoded(file.getvalue())
    raise BadRow(f"an image that is {type(value).__name__}")


def _named(text: str, roots: Sequence[Path]) -> Encoded:
    found = SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    if scheme == "data":
        return Encoded(_data_url(text))
    if scheme in ("http", "https"):
        raise BadRow("an image on the network: fetch it first, and give its path")
    if scheme == "file":
        return _file(Path(unquote(urlsplit(text).path)), roots)
    if scheme and text[found.end() :].startswith("//"):  # type: ignore[union-attr]
        raise BadRow(f"an image at an address {scheme}://: fetch it first, and give its path")
    return _file(Path(text).expanduser(), roots)


def _data_url(text: str) -> bytes:
    head, comma, body = text.partition(",")
    if not comma or not head.endswith(";base64"):
        raise BadRow("a data URL of an image that is not base64")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRow("a data URL of an image that is not base64") from error


def _file(path: Path, roots: Sequence[Path]) -> Encoded:
    for candidate in [path] if path.is_absolute() else [root / path for root in roots]:
        try:
            with candidate.open("rb") as file:
                known = os.fstat(file.fileno())
                return Encoded(file.read(), str(candidate.absolute()), known.st_size, known.st_mtime_ns)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:  # a directory, no permission, a name that no file can have
            raise BadRow("an image file that cannot be read") from error
    raise BadRow("missing image file")


def pixels(data: bytes) -> Any:
    """The PIL image (RGB, turned as its EXIF tag says) in the bytes of a file. Raises BadRow for a broken one."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError("images need Pillow", "datasets", "pip install 'surogate-pipeline-packed[images]'") from error
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # decoders raise errors of every kind for broken data
        raise BadRow("broken image") from error
