from __future__ import annotations

from collections import deque

import pytest
from surogate_settings.nearest import did_you_mean, distance, nearest


def neighbours(word: str, letters: str) -> set[str]:
    """Words one insertion, deletion, substitution or swap of neighbours away, by construction."""
    cut = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    return (
        {a + b[1:] for a, b in cut if b}
        | {a + c + b for a, b in cut for c in letters}
        | {a + c + b[1:] for a, b in cut if b for c in letters}
        | {a + b[1] + b[0] + b[2:] for a, b in cut if len(b) > 1}
    ) - {word}


def test_distance_counts_the_edits_of_a_breadth_first_walk() -> None:
    """Each word within two edits has the number of steps of the shortest walk, or fewer letters were edited twice."""
    seen, queue = {"abc": 0}, deque(["abc"])
    while queue:
        word = queue.popleft()
        if seen[word] < 2:
            for other in neighbours(word, "abx"):
                if other not in seen:
                    seen[other] = seen[word] + 1
                    queue.append(other)
    assert len(seen) > 150
    for word, steps in seen.items():
        assert distance("abc", word, 4) in (steps, steps + 1)  # the restricted distance edits no letter twice
        if steps < 2:
            assert distance("abc", word, 4) == steps


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [("", "", 0), ("ca", "abc", 3), ("kitten", "sitting", 3), ("warmpu", "warmup", 1), ("abcd", "badc", 2), ("", "abc", 3)],
)
def test_known_distances(a: str, b: str, wanted: int) -> None:
    assert distance(a, b, 9) == distance(b, a, 9) == wanted
    assert distance(a, b, wanted) == wanted


def test_gives_up_above_the_limit() -> None:
    assert distance("kitten", "sitting", 2) == 3
    assert distance("a", "abcdefgh", 2) == 3


def test_nearest_gives_all_that_are_equally_near_and_ignores_case() -> None:
    assert nearest("qlora_fp", ["qlora_fp4", "qlora_fp8", "qlora_bnb"]) == ["qlora_fp4", "qlora_fp8"]
    assert nearest("Learning_Rate", ["learning_rate", "learning_rat"]) == ["learning_rate"]
    assert nearest("zzz", ["learning_rate"]) == []


def test_did_you_mean_lists_all_choices_when_none_is_near() -> None:
    assert did_you_mean("q", ["linear", "cosine"]) == 'choose one of "cosine", "linear"'
    assert did_you_mean("q", []) == ""
