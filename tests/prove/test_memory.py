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


def test_a_sample_is_as_planned(tmp_path: Path) -> None:
    cases = {name: memory.CASES[name] for name in memory.SAMPLE}
    models = memory.make_models(tmp_path, {case.get("shape", "deep") for case in cases.values()})
    configs = [memory.config_of(case, models) for case in cases.values()]
    planned = memory.rehearse_apart(configs)
    check({name: memory.one(peak, memory.plan_of(config)) for name, config, peak in zip(cases, configs, planned, strict=True)})


@pytest.mark.prove("it takes some minutes")
def test_every_configuration(kept_by: Callable[..., Any], tmp_path: Path) -> None:
    results = kept_by("memory.py", tmp_path / "memory.json")
    assert results.keys() == memory.CASES.keys()
    check(results)
