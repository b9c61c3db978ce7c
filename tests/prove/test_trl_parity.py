"""TRL's ids and labels with ``make prove``, where TRL is installed; kept in ``docs/proof/trl_parity.json``, always checked."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve()
RESULTS = HERE.parents[2] / "docs" / "proof" / "trl_parity.json"


def check(result: dict) -> None:
    summary = result["summary"]
    assert summary["equal"] + summary["differing by line breaks that TRL trains"] == summary["samples"]
    for one in result["comparisons"]:
        if one["given to surogate"] == "marked":
            assert (one["equal"], one["differing"]) == (one["samples"], {})


def test_the_kept_result_covers_every_sample() -> None:
    result = json.loads(RESULTS.read_text())
    check(result)
    sizes = {(one["data"], one["samples"]) for one in result["comparisons"]}
    assert sizes == {("gsm8k", 2000), ("instruction", 1100), ("sgd-tools", 240)}


@pytest.mark.prove("it takes two minutes")
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed: pip install trl")
def test_every_sample(kept_by: Callable[..., Any], shared_data: Path) -> None:
    check(kept_by("trl_parity.py", RESULTS, "--data", str(shared_data)))
