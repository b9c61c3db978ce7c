"""The whole matrix anew with ``make prove``; what it found once is kept in ``docs/proof/matrix.json`` and always checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from surogate_command_matrix.matrix import cells

from surogate_core.host import load_host

HERE = Path(__file__).resolve()
RESULTS = HERE.parents[2] / "docs" / "proof" / "matrix.json"


def check(kept: dict) -> None:
    assert kept
    for name, one in kept.items():
        assert one["planned"], f"{name}: the plan said otherwise"
        if "losses" in one:
            first, second = one["losses"]
            assert math.isfinite(first), name
            assert math.isfinite(second), name
            assert first != second, f"{name}: nothing was trained"
        else:
            assert one["refused"], name


def names() -> set[str]:
    return {" × ".join((cell.adapter, cell.quantizer, cell.recipe, cell.kind)) for cell in cells(load_host())}


def test_the_kept_results() -> None:
    kept = json.loads(RESULTS.read_text())
    assert names() <= kept.keys()
    check(kept)


@pytest.mark.prove("it takes a quarter of an hour")
def test_every_cell(kept_by: Callable[..., Any], tmp_path: Path) -> None:
    found = kept_by("matrix.py", tmp_path / "matrix.json")
    assert found.keys() == names()
    check(found)
