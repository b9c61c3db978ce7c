"""LoRA on quantised bases with ``make prove``; what it found is kept in ``docs/proof/qlora.json`` and always checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import qlora

HERE = Path(__file__).resolve()
DOCS, RESULTS = HERE.parents[2] / "docs" / "models.md", HERE.parents[2] / "docs" / "proof" / "qlora.json"
BITS = {"nf4": 4 + 8 / 64 + 32 / (64 * 256), "nf4, single quantisation": 4.5, "fp8": 8 + 32 / 128**2}
BITS |= {"nvfp4": 4.5, "nvfp4, without four over six": 4.5}


def check(runs: dict) -> None:
    plain = runs["bf16"]
    for name, one in runs.items():
        assert abs(one["loss, last 20 steps"] / plain["loss, last 20 steps"] - 1) <= 0.02, name
        assert 0.95 <= one["plan's bytes / held"] <= 1.05, name
        assert one["peak while loading / final"] <= 1.3, name
        assert one.get("bits a weight", 0) <= 1.05 * BITS.get(name, 16), name
    assert len({one["first"] for one in runs.values()}) == len(runs), "two formats compute the same"


def test_the_kept_results() -> None:
    kept = json.loads(RESULTS.read_text())
    assert kept["steps"] == 200
    assert kept["runs"].keys() == qlora.SHAPES.keys()
    for runs in kept["runs"].values():
        assert runs.keys() == qlora.FORMATS.keys()
        check(runs)
        assert qlora.table(runs) in DOCS.read_text(encoding="utf-8")


@pytest.mark.prove("it takes half an hour")
def test_every_format(kept_by: Callable[..., Any], shared_data: Path) -> None:
    kept = kept_by("qlora.py", RESULTS, "--data", str(shared_data))
    for runs in kept["runs"].values():
        check(runs)
