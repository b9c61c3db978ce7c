"""A glimpse of the comparison with ``make test``; the sweep with ``make prove``, kept in ``docs/proof/normuon_steps.json``."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve()


@pytest.fixture
def steps() -> ModuleType:
    spec = importlib.util.spec_from_file_location("normuon_steps", HERE.with_name("normuon_steps.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_thirty_steps_are_enough_to_tell(steps: ModuleType, shared_data: Path, tmp_path: Path) -> None:
    steps.prepare(shared_data, tmp_path)
    text = (tmp_path / "validation.txt").read_text(encoding="utf-8")
    (tmp_path / "validation.txt").write_text(text[:10_000], encoding="utf-8")
    losses = {name: steps.run(shared_data, tmp_path, name, rate, 1, 30) for name, rate in steps.START.items()}
    assert losses["normuon"] < losses["adamw"] - 0.1


def test_where_the_loss_is_reached(steps: ModuleType) -> None:
    curve = {300: 4.0, 400: 3.5, 500: 3.25}
    assert steps.crossing(curve, 3.75) == 350
    assert steps.crossing(curve, 3.3) == 480
    assert steps.crossing(curve, 4.1) == 300
    assert steps.crossing(curve, 3.0) is None


def test_the_sweep_goes_on_until_the_best_rate_lies_between_worse_ones(
    steps: ModuleType, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a second sweep on the same results runs nothing again."""
    done: list[tuple[str, float]] = []

    def run(data: Path, place: Path, optimizer: str, rate: float, seed: int, count: int) -> float:
        done.append((optimizer, rate))
        best = {"adamw": 0.016, "normuon": 0.002}[optimizer]
        return 3.0 + max(rate / best, best / rate) + 0.001 * seed + 0.01 * (600 - count) - 0.5 * (optimizer == "normuon")

    monkeypatch.setattr(steps, "run", run)
    results = tmp_path / "results.json"
    sweep = steps.Sweep(shared_data, tmp_path, results)
    summary = sweep.summary()
    assert list(summary["adamw, mean loss by learning rate"]) == ["0.002", "0.004", "0.008", "0.016", "0.032"]
    assert list(summary["normuon, mean loss by learning rate"]) == ["0.001", "0.002", "0.004", "0.008", "0.016"]
    assert (summary["steps of normuon to that loss"], summary["share"]) == (550, pytest.approx(550 / 600, abs=1e-3))
    assert len(done) == len(steps.SEEDS) * (10 + len(steps.FEWER))
    again = len(done)
    assert steps.Sweep(shared_data, tmp_path, results).summary() == summary
    assert len(done) == again


@pytest.mark.prove("the sweep takes an hour")
def test_at_most_85_percent_of_the_steps(shared_data: Path) -> None:
    results = HERE.parents[2] / "docs" / "proof" / "normuon_steps.json"
    command = [sys.executable, str(HERE.with_name("normuon_steps.py")), "--data", str(shared_data), "--results", str(results)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert json.loads(results.read_text())["summary"]["share"] <= 0.85
