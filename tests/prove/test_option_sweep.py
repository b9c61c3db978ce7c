"""What the sweep of options kept in ``docs/proof/options.json`` is about today's options, and each has its test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from option_sweep import keys

ROOT = Path(__file__).resolve().parents[2]
KEPT: dict[str, Any] = json.loads((ROOT / "docs" / "proof" / "options.json").read_text())
AGAIN = "run tests/prove/option_sweep.py --results docs/proof/options.json --only"


def test_every_option_was_tried_and_has_a_test_that_fails_without_its_reader() -> None:
    today = {f"{cls.__module__}.{cls.__qualname__}.{key}" for cls, key in keys()}
    tried = {*KEPT["failed"], *KEPT["survived"]}
    assert len(today) > 150
    assert sorted(tried - today) == [], "remove what is no option any more"
    assert sorted(today - tried) == [], f"{AGAIN} {' '.join(sorted(name.rpartition('.')[2] for name in today - tried))}"
    assert KEPT["survived"] == [], "options without a test"


def is_there(node: str) -> bool:
    path, _, test = node.partition("[")[0].partition("::")
    return (ROOT / path).is_file() and f"def {test}(" in (ROOT / path).read_text(encoding="utf-8")


def test_the_tests_that_it_names_are_there() -> None:
    gone = [name for name, node in KEPT["failed"].items() if not is_there(node)]
    assert gone == [], f"{AGAIN} {' '.join(name.rpartition('.')[2] for name in gone)}"
