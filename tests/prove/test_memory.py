"""The memory plan anew with ``make prove``; what it found once is kept in ``docs/proof/memory.json`` and always checked, and a few
configurations are measured again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import memory
import pytest

HERE = Path(__file__).resolve()
RESULTS = HERE.parents[2] / "docs" / "proof" / "memory.json"


def check(results: dict[str, Any]) -> None:
    for name, one in results.items():
        assert 0.95 <= one["planned"] / one["measured"] <= 1.05, name
        if name.startswith("qlora"):
            assert one["loading / final"] <= 1.3, name


def test_the_kept_results() -> None:
    results = json.loads(RESULTS.read_text())
    assert results.keys() == memory.CASES.keys()
    check(results)


PAIRS = {
    "lora": "lora, recompute",
    **{f"qlora {name}": f"qlora {name}, recompute" for name in memory.FORMATS},
    "full, 10 rows": "full, 10 rows, recompute",
    "words, lora": "words, lora, lmhead_chunks 8",
    "long rows, lora, bf16": "long rows, lora, bf16, attn_bwd_chunks 4",
}


@pytest.mark.parametrize("more", PAIRS)
def test_what_is_there_to_save_memory_saves_what_the_plan_says(more: str) -> None:
    kept = json.loads(RESULTS.read_text())
    saved, planned = (kept[more][name] - kept[PAIRS[more]][name] for name in ("measured", "planned"))
    assert saved > 0.04 * kept[more]["measured"]
    assert planned == pytest.approx(saved, rel=0.1)


def test_a_sample_is_as_planned(kept_by: Callable[..., Any], tmp_path: Path) -> None:
    """In a process of its own: what earlier tests have left is given back whenever it likes, and would be taken off the figure."""
    results = kept_by("memory.py", tmp_path / "memory.json", "--only", *memory.SAMPLE)
    assert results.keys() == set(memory.SAMPLE)
    check(results)


@pytest.mark.prove("it takes some minutes")
def test_every_configuration(kept_by: Callable[..., Any], tmp_path: Path) -> None:
    results = kept_by("memory.py", tmp_path / "memory.json")
    assert results.keys() == memory.CASES.keys()
    check(results)
