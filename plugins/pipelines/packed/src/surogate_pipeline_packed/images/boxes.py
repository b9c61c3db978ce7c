"""Boxes and points in an image as text, in the coordinates that a model was taught (``norm_bbox``).

norm1000  thousandths of the image's width and height, as Qwen3-VL and InternVL have it
none      pixels of the image as the model gets it: after it was resized, as Qwen2.5-VL has it

Data say by ``bbox_type`` which coordinates they hold: ``real`` (pixels of the image as it is stored) or ``norm1`` (0 to 1). These
are the names of ms-swift's custom data sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from surogate_core.errors import BadRow

Size = tuple[int, int]


def written(box: Mapping[str, Any], sizes: Sequence[tuple[Size, Size]], norm: str | None) -> str:
    """A box ``[x, y, x, y, …]`` as text. ``sizes``: (width, height) of each image, as stored and as the model gets it. Raises
    BadRow."""
    if norm is None:
        raise BadRow('a box, and no norm_bbox: set "norm1000" or "none", whichever the model was taught')
    values, number, kind = box.get("bbox"), box.get("image_id") or 0, box.get("bbox_type") or "real"
    if not isinstance(values, list | tuple) or len(values) < 2 or len(values) % 2 or not all(map(_number, values)):
        raise BadRow("a box that is no list of numbers, two a point")
    if kind not in ("real", "norm1"):
        raise BadRow(f"bbox_type {str(kind)[:20]!r}: wanted real or norm1")
    if not isinstance(number, int) or not 0 <= number < len(sizes):
        raise BadRow("a box in an image that the row does not have")
    stored, given = sizes[number]
    unit = (1, 1) if kind == "norm1" else stored
    target = (1000, 1000) if norm == "norm1000" else given
    if any(not 0 <= value <= unit[i % 2] for i, value in enumerate(values)):
        raise BadRow("a box outside of its image")
    return str([round(value / unit[i % 2] * target[i % 2]) for i, value in enumerate(values)])


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
