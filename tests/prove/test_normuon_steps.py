"""A glimpse of the comparison with ``make test``; the sweep with ``make prove``, kept in ``docs/proof/normuon_steps.json``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import normuon_steps as steps
import pytest
from training import SEEDS, texts

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "proof" / "normuon_steps.json"


def test_the_kept_summary_is_that_of_the_kept_runs() -> None:
    kept = json.loads(RESULTS.read_text())
    assert steps.summary(kept["runs"]) == kept["summary"]


def test_thirty_steps_are_enough_to_tell(shared_data: Path, tmp_path: Path) -> None:
    texts(shared_data, tmp_path, held_out=10_000)
    losses = {name: steps.run(shared_data, tmp_path, name, rate, 1, 30) for name, rate in steps.START.items()}
    assert losses["normuon"] < losses["adamw"] - 0.1


def test_where_the_loss_is_reached() -> None:
    curve = {300: 4.0, 400: 3.5, 500: 3.25}
    assert steps.crossing(curve, 3.75) == 350
    assert steps.crossing(curve, 3.3) == 480
    assert steps.crossing(curve, 4.1) == 300
    assert steps.crossing(curve, 3.0) is None


def test_the_sweep_goes_on_until_the_best_rate_lies_between_worse_ones(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a second sweep on the same results runs nothing again."""
    done: list[tuple[str, float]] = []

    def run(data: Path, place: Path, optimizer: str, rate: float, seed: int, count: int) -> float:
        done.append((optimizer, rate))
        best = {"adamw": 0.016, "normuon": 0.002}[optimizer]
        return 3.0 + max(rate / best, best / rate) + 0.001 * seed + 0.01 * (600 - count) - 0.5 * (optimizer == "normuon")

    monkeypatch.setattr(steps, "run", run)
    results = tmp_path / "results.json"
    summary = steps.Sweep(shared_data, tmp_path, results).everything()
    assert list(summary["adamw, mean loss by learning rate"]) == ["0.002", "0.004", "0.008", "0.016", "0.032"]
    assert list(summary["normuon, mean loss by learning rate"]) == ["0.001", "0.002", "0.004", "0.008", "0.016"]
    assert (summary["steps of normuon to that loss"], summary["share"]) == (550, pytest.approx(550 / 600, abs=1e-3))
    assert len(done) == len(SEEDS) * (10 + len(steps.FEWER))
    again = len(done)
    assert steps.Sweep(shared_data, tmp_path, results).everything() == summary
    assert len(done) == again


@pytest.mark.prove("the sweep takes an hour")
def test_at_most_85_percent_of_the_steps(kept_by: Callable[..., Any], shared_data: Path) -> None:
    assert kept_by("normuon_steps.py", RESULTS, "--data", str(shared_data))["summary"]["share"] <= 0.85
