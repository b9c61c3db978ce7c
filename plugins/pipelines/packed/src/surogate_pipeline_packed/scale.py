"""``loss_scale``: which text is trained, and how much each part of it weighs.

A value is names joined with ``+``: at most one of the bases ``default`` (all assistant turns), ``last_round`` (those after the last
user message) and ``all`` (everything), and any number of weightings: ``ignore_empty_think``, and JSON files that map regular
expressions to weights, ``{"<tool_call>.*?</tool_call>": 2.0}``. Each match in the trained text has the weight of its turn times
that of the expression; where matches overlap, the later expression counts.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from attrs import frozen

BASES = ("default", "last_round", "all")
EMPTY_THINK = "ignore_empty_think"
NAMES = (*BASES, EMPTY_THINK)
THINK = r"<think>\s*</think>\s*"

Span = tuple[int, int, float, str]
"""Characters [start, stop) of a text, the weight of predicting the tokens that start in them, and why they weigh that much."""


@frozen
class LossScale:
    """A parsed value: the base and the expressions with their weights, in order."""

    base: str
    patterns: tuple[tuple[re.Pattern[str], float], ...]

    @classmethod
    def of(cls, value: str) -> LossScale:
        """Raises ValueError, in words for the user: an unknown name, two bases, a file that cannot be read or holds no weights."""
        parts = value.split("+")
        bases = [part for part in parts if part in BASES]
        if len(bases) > 1:
            raise ValueError(f"can have one of {_quoted(bases)}, not both")
        patterns: list[tuple[re.Pattern[str], float]] = []
        for part in parts:
            if part == EMPTY_THINK:
                patterns.append((re.compile(THINK), 0.0))
            elif part not in BASES:
                patterns += _read(part)
        return cls(bases[0] if bases else "default", tuple(patterns))

    @property
    def background(self) -> float:
        """Weight of text that is not the assistant's."""
        return 1.0 if self.base == "all" else 0.0

    def matches(self, text: str, start: int, stop: int, weight: float, place: str) -> Iterator[Span]:
        """What the expressions make of text[start:stop], the ``place``, a stretch of weight ``weight``; later spans prevail."""
        for pattern, factor in self.patterns if weight else ():
            for found in pattern.finditer(text[start:stop]):
                if found.end() > found.start():
                    name = EMPTY_THINK if pattern.pattern == THINK else f"loss_scale pattern {pattern.pattern}"
                    why = told(weight * factor, place, f"{name}, x{factor:g}")
                    yield start + found.start(), start + found.end(), weight * factor, why


def told(weight: float, what: str, rule: str = "") -> str:
    """Why a token weighs what it does, for the preview: ``assistant turn 2: trained (default)``."""
    said = "trained" if weight == 1 else f"trained, weight {weight:g}" if weight else "masked"
    return f"{what}: {said} ({rule})" if rule else f"{what}: {said}"


def valid(instance: object, attribute: Any, value: str) -> None:
    """An attrs validator."""
    LossScale.of(value)


def _read(name: str) -> list[tuple[re.Pattern[str], float]]:
    path = Path(name).expanduser()
    if not path.is_file():
        near = get_close_matches(name, NAMES, n=1)
        hint = f'; did you mean "{near[0]}"?' if near else ""
        raise ValueError(f'wanted {_quoted(NAMES)}, joined with +, or a JSON file of weights; "{name}" is neither{hint}')
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(table, dict) or not all(_weight(value) for value in table.values()):
        raise ValueError(f"{name} has no object of regular expressions with weights from 0 on")
    try:
        return [(re.compile(pattern, re.DOTALL), float(weight)) for pattern, weight in table.items()]
    except re.error as error:
        raise ValueError(f"{name}: {error.pattern!r} is no regular expression: {error}") from error


def _weight(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def _quoted(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names)
