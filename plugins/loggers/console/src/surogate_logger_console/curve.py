"""The loss curve of a run: its points, and a drawing of them in plain text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import Factory, define

WIDTH, HEIGHT, LEVELS = 64, 14, 10
"""Characters of the drawing, without its axes, and those left of it."""


@define
class Curve:
    """(step, loss) of optimizer steps and of evaluations, and the steps of checkpoints, each in order of steps."""

    train: list[tuple[int, float]] = Factory(list)
    evals: list[tuple[int, float]] = Factory(list)
    checkpoints: list[int] = Factory(list)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in a ``step`` or ``eval`` record; other kinds, and losses that are not numbers, add nothing."""
        points = {"step": self.train, "eval": self.evals}.get(record.get("kind", ""))
        loss = record.get("loss")
        if points is not None and loss is not None and math.isfinite(loss):
            points.append((record["step"], loss))


def read_curve(path: Path, until: int) -> Curve:
    """The points up to step ``until`` from a ``metrics.jsonl``; a missing file or a torn line has none."""
    curve = Curve()
    if not path.exists():
        return curve
    for line in path.read_bytes().split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("step", 0) > until:
            continue
        if record.get("kind") == "checkpoint":
            curve.checkpoints.append(record["step"])
        curve.add(record)
    return curve


def draw(curve: Curve, columns: int = WIDTH + LEVELS) -> str:
    """``*`` is the mean training loss of the steps that share a column, ``o`` the evaluation loss, ``^`` a checkpoint. In at most
    ``columns`` characters a line, if there are 20."""
    width = max(10, min(WIDTH, columns - LEVELS))
    first, last = curve.train[0][0], curve.train[-1][0]
    span = max(1, last - first)

    def column(step: int) -> int:
        place = (step - first) * (width - 1) // span if span < width else (step - first) * width // (span + 1)
        return min(width - 1, max(0, place))

    sums: dict[int, tuple[float, int]] = {}
    for step, loss in curve.train:
        total, count = sums.get(column(step), (0.0, 0))
        sums[column(step)] = (total + loss, count + 1)
    means = {place: total / count for place, (total, count) in sums.items()}
    levels = [*means.values(), *(loss for _, loss in curve.evals)]
    low, high = min(levels), max(levels)
    scale = (HEIGHT - 1) / (high - low) if high > low else 0.0

    def row(loss: float) -> int:
        return round((high - loss) * scale)

    grid = [[" "] * width for _ in range(HEIGHT)]
    for place, mean in means.items():
        grid[row(mean)][place] = "*"
    for step, loss in curve.evals:
        grid[row(loss)][column(step)] = "o"
    marks = [" "] * width
    for step in curve.checkpoints:
        marks[column(step)] = "^"
    legend = ["* training", *(["o evaluation"] if curve.evals else []), *(["^ checkpoint"] if curve.checkpoints else [])]
    lines = ["loss (" + ", ".join(legend) + ")"]
    if len(lines[0]) > columns:
        lines = ["loss", *(f"  {mark}" for mark in legend)]
    for index, cells in enumerate(grid):
        level = f"{high - index / scale if scale else high:8.3f}" if index % 3 == 0 or index == HEIGHT - 1 else " " * 8
        lines.append(f"{level} |{''.join(cells)}".rstrip())
    lines.append(" " * 9 + "+" + "-" * width)
    lines.append((" " * LEVELS + "".join(marks)).rstrip())
    lines.append(" " * LEVELS + f"{first}" + f"step {last}".rjust(width - len(str(first))))
    return "\n".join(line for line in lines if line.strip())
