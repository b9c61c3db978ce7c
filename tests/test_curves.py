from __future__ import annotations

import re
from pathlib import Path

from surogate_core.curves import NO_CURVES, curves

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8")


def fields(kind: str) -> list[str]:
    (row,) = re.findall(rf"^\| `{kind}` \|[^|]*\|(.*)\|$", PAGE.split("## Names of curves")[0], re.MULTILINE)
    return re.findall(r"`(\w+)`", row)


def test_the_page_names_every_curve() -> None:
    named = set(re.findall(r"`((?:train|eval)/\w+)`", PAGE))
    found = {name for kind in ("step", "eval") for name in curves({"kind": kind, **dict.fromkeys(fields(kind), 1.0)})}
    assert found == named
    assert "train/loss" in found


def test_numbers_and_texts_at_any_depth() -> None:
    record = {"kind": "gpu", "step": 3, "watts": {"0": 250.5, "1": {"peak": 300}}, "state": "hot", "none": None, "list": [1, 2]}
    assert curves(record) == {"gpu/watts/0": 250.5, "gpu/watts/1/peak": 300, "gpu/state": "hot"}


def test_what_is_told_once_is_no_curve() -> None:
    for kind in NO_CURVES:
        assert curves({"kind": kind, "step": 1, "loss": 1.0}) == {}
        assert fields(kind) or kind == "ledger"
