"""What became of the rows: nothing is lost without being counted.

Rows read = kept + split + truncated + dropped, and tokens likewise; a truncated sample's cut tokens are dropped tokens.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from attrs import Factory, define, frozen

SHOWN = 10
FATES = ("kept", "split", "truncated")


@frozen
class Bad:
    """A row that cannot be used."""

    source: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


@define
class Ledger:
    """Counts by what happened. ``rows`` and ``tokens`` have the keys kept, split and truncated; ``dropped_rows`` and
    ``dropped_tokens`` have reasons, and ``first`` names the first dropped row of each. ``unusable`` counts the rows that could not
    be read or encoded; ``bad`` names the first. ``weighted`` says what the weights of the data sets made of what was kept.
    ``images``: those read = kept + dropped; those of rows that cannot be used are not among them."""

    rows_read: int = 0
    tokens_read: int = 0
    rows: Counter[str] = Factory(Counter)
    tokens: Counter[str] = Factory(Counter)
    dropped_rows: Counter[str] = Factory(Counter)
    dropped_tokens: Counter[str] = Factory(Counter)
    unusable: int = 0
    bad: list[Bad] = Factory(list)
    first: dict[str, str] = Factory(dict)
    weighted: dict[str, dict[str, Any]] = Factory(dict)
    images: Counter[str] = Factory(Counter)

    def add(self, other: Ledger) -> None:
        self.rows_read += other.rows_read
        self.tokens_read += other.tokens_read
        self.unusable += other.unusable
        for name in ("rows", "tokens", "dropped_rows", "dropped_tokens", "images"):
            getattr(self, name).update(getattr(other, name))
        self.bad = (self.bad + other.bad)[:SHOWN]
        self.first = other.first | self.first
        self.weighted |= other.weighted

    def balanced(self) -> bool:
        """True when every row and token that came in is accounted for."""
        return (
            self.rows_read == self.rows.total() + self.dropped_rows.total()
            and self.tokens_read == self.tokens.total() + self.dropped_tokens.total()
            and self.images["read"] == self.images["kept"] + self.images["dropped"]
        )

    def record(self) -> dict[str, Any]:
        """Plain values for the loggers."""
        return {
            "rows": {"read": self.rows_read, **{fate: self.rows[fate] for fate in FATES}, "dropped": dict(self.dropped_rows)},
            "tokens": {
                "read": self.tokens_read,
                **{fate: self.tokens[fate] for fate in FATES},
                "dropped": dict(self.dropped_tokens),
            },
            "unusable": self.unusable,
            "bad": [str(bad) for bad in self.bad],
            "first": dict(self.first),
            **({"images": dict(self.images)} if self.images else {}),
            **({"weighted": self.weighted} if self.weighted else {}),
        }

    def lines(self) -> list[str]:
        """For people: one line for rows, one for tokens, the first unusable rows, and the first of each other reason."""
        unusable = {bad.reason for bad in self.bad}
        return [
            _line("rows", self.rows_read, self.rows, self.dropped_rows),
            _line("tokens", self.tokens_read, self.tokens, self.dropped_tokens),
            *([_images(self.images)] if self.images else []),
            *(f"unusable: {bad}" for bad in self.bad),
            *(f"dropped ({reason}), first: {source}" for reason, source in self.first.items() if reason not in unusable),
        ]


def _images(counts: Counter[str]) -> str:
    dropped = f" + {counts['dropped']:,} dropped with their text" if counts["dropped"] else ""
    return f"images: {counts['read']:,} read = {counts['kept']:,} kept{dropped}"


def _line(what: str, read: int, counts: Counter[str], dropped: Counter[str]) -> str:
    parts = [f"{counts[fate]:,} {fate}" for fate in FATES if counts[fate]]
    parts += [f"{count:,} dropped ({reason})" for reason, count in dropped.most_common()]
    return f"{what}: {read:,} read = " + (" + ".join(parts) or "0 kept")
