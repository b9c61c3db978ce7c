"""Curves made small enough for a page: lowest, highest and mean value of each column of pixels, so that no spike is lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

COLUMNS = 900
"""Columns of a curve: about the pixels of a wide screen."""


def short(value: float | None) -> float | None:
    """Six significant digits, which no screen can show more of."""
    if value is None or value == 0:
        return value
    rounded = round(value, 5 - math.floor(math.log10(abs(value))))
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 1e15 else rounded


def thin(steps: Sequence[int], values: Sequence[float | None], columns: int = COLUMNS) -> dict[str, list[Any]]:
    """``x`` and ``y`` with a point a step when there are at most ``columns``; otherwise ``x`` the first step of each column, ``y``
    its mean, ``lo`` and ``hi``. Steps without a value make no point; columns without one are left out."""
    points = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None]
    if len(points) <= columns:
        return {"x": [step for step, _ in points], "y": [short(value) for _, value in points]}
    first, span = points[0][0], max(1, points[-1][0] - points[0][0] + 1)
    groups: dict[int, list[tuple[int, float]]] = {}
    for step, value in points:
        groups.setdefault((step - first) * columns // span, []).append((step, value))
    kept = [groups[place] for place in sorted(groups)]
    return {
        "x": [group[0][0] for group in kept],
        "y": [short(math.fsum(value for _, value in group) / len(group)) for group in kept],
        "lo": [short(min(value for _, value in group)) for group in kept],
        "hi": [short(max(value for _, value in group)) for group in kept],
    }
