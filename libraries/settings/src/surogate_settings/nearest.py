"""Which known word a mistyped one was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def distance(a: str, b: str, limit: int) -> int:
    """Edits between two words: insert, delete, replace, or swap two neighbours (optimal string alignment, the restricted
    Damerau-Levenshtein distance). Gives up and returns ``limit + 1`` when it is above ``limit``."""
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
        if min(row) > limit and min(before) > limit:
            return limit + 1
    return row[-1]


def nearest(word: str, choices: Collection[str]) -> list[str]:
    """All choices that are equally near to ``word``, nearest only; empty when none is near. Case does not count."""
    low = word.lower()
    for limit in range(max(2, len(word) // 3) + 1):
        if found := sorted(choice for choice in choices if distance(low, choice.lower(), limit) <= limit):
            return found
    return difflib.get_close_matches(low, choices, n=3, cutoff=0.7)


def did_you_mean(word: str, choices: Collection[str]) -> str:
    """``did you mean "a" or "b"?``, or all choices when none is near."""
    if found := nearest(word, choices):
        return "did you mean " + " or ".join(f'"{choice}"' for choice in found) + "?"
    return "choose one of " + ", ".join(f'"{choice}"' for choice in sorted(choices)) if choices else ""
