"""A sample of the sweep with every ``make test``; 300 kills with ``make prove``, kept in ``docs/proof/kills.json``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve()


def sweep(*words: str, results: Path) -> dict[str, object]:
    command = [sys.executable, str(HERE.with_name("kill_sweep.py")), *words, "--results", str(results)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return json.loads(results.read_text())["summary"]


def test_twenty_kills(tmp_path: Path) -> None:
    summary = sweep("--kills", "20", "--chain", "4", results=tmp_path / "kills.json")
    assert isinstance(summary["kills"], int)
    assert summary["kills"] >= 20
    assert summary["chains that differ"] == 0


@pytest.mark.prove("300 kills take half an hour")
def test_three_hundred_kills() -> None:
    results = HERE.parents[2] / "docs" / "proof" / "kills.json"
    summary = sweep("--kills", "300", "--chain", "1", results=results)
    assert isinstance(summary["kills"], int)
    assert summary["kills"] >= 300
    assert summary["chains that differ"] == 0
