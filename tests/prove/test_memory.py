"""The memory plan with ``make prove``; what it found is kept in ``docs/proof/memory.json`` and always checked, and a few
configurations are measured again."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve()
RESULTS = HERE.parents[2] / "docs" / "proof" / "memory.json"
_spec = importlib.util.spec_from_file_location("prove_memory", HERE.with_name("memory.py"))
assert _spec is not None
assert _spec.loader is not None
prove: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(prove)


def check(results: dict[str, Any]) -> None:
    for name, one in results.items():
        assert 0.95 <= one["planned"] / one["measured"] <= 1.05, name
        if name.startswith("qlora"):
            assert one["loading / final"] <= 1.3, name


def test_the_kept_results() -> None:
    results = json.loads(RESULTS.read_text())
    assert results.keys() <= prove.CASES.keys()
    check(results)


def test_a_sample_is_as_planned(tmp_path: Path) -> None:
    cases = {name: prove.CASES[name] for name in prove.SAMPLE}
    models = prove.make_models(tmp_path, {case.get("shape", "deep") for case in cases.values()})
    configs = [prove.config_of(case, models) for case in cases.values()]
    planned = prove.rehearse_apart(configs)
    check({name: prove.one(memory, prove.plan_of(config)) for name, config, memory in zip(cases, configs, planned, strict=True)})


@pytest.mark.prove("it takes some minutes")
def test_every_configuration() -> None:
    command = [sys.executable, str(HERE.with_name("memory.py")), "--results", str(RESULTS)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    results = json.loads(RESULTS.read_text())
    assert results.keys() == prove.CASES.keys()
    check(results)
