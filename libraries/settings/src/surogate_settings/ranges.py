"""Bounds of numbers."""

from __future__ import annotations

from typing import Any

from attrs import frozen


@frozen
class Range:
    """An attrs validator for numbers that can say what it wants and describe itself to the JSON schema."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __call__(self, instance: object, attribute: Any, value: Any) -> None:
        if value is None:
            return
        good = (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )
        if not good:
            raise ValueError(f"must be {self}, not {value!r}")

    def __str__(self) -> str:
        parts = [(self.low, ">="), (self.above, ">"), (self.high, "<="), (self.below, "<")]
        return " and ".join(f"{sign} {bound:g}" for bound, sign in parts if bound is not None)

    def schema(self) -> dict[str, float]:
        names = {
            "minimum": self.low,
            "exclusiveMinimum": self.above,
            "maximum": self.high,
            "exclusiveMaximum": self.below,
        }
        return {key: bound for key, bound in names.items() if bound is not None}


def ge(bound: float) -> Range:
    return Range(low=bound)


def gt(bound: float) -> Range:
    return Range(above=bound)


def between(low: float, high: float) -> Range:
    return Range(low=low, high=high)
