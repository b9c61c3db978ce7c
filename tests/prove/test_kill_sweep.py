"""A sample of the sweep with every ``make test``; 300 kills with ``make prove``, kept in ``docs/proof/kills.json``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "proof" / "kills.json"


def test_twenty_kills(kept_by: Callable[..., Any], tmp_path: Path) -> None:
    summary = kept_by("kill_sweep.py", tmp_path / "kills.json", "--kills", "20", "--chain", "4")["summary"]
    assert summary["kills"] >= 20
    assert summary["chains that differ"] == 0


@pytest.mark.prove("300 kills take half an hour")
def test_three_hundred_kills(kept_by: Callable[..., Any]) -> None:
    summary = kept_by("kill_sweep.py", RESULTS, "--kills", "300", "--chain", "1")["summary"]
    assert summary["kills"] >= 300
    assert summary["chains that differ"] == 0
