"""A glimpse of the comparison with ``make test``; the sweep with ``make prove``, kept in ``docs/proof/recipe_fp8.json``."""

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
def proof() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe_fp8", HERE.with_name("recipe_fp8.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_twenty_steps_end_near_bf16(proof: ModuleType, shared_data: Path, tmp_path: Path) -> None:
    proof.prepare(shared_data, tmp_path)
    text = (tmp_path / "validation.txt").read_text(encoding="utf-8")
    (tmp_path / "validation.txt").write_text(text[:4_000], encoding="utf-8")
    plain, ours = (proof.run(shared_data, tmp_path, recipe, 1, 20) for recipe in ("bf16", "fp8_hybrid"))
    assert ours != plain
    assert ours == pytest.approx(plain, rel=0.01)


def test_a_sweep_goes_on_where_it_was(
    proof: ModuleType, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int]] = []

    def run(data: Path, place: Path, recipe: str, seed: int) -> float:
        done.append((recipe, seed))
        return 4.0 if recipe == "bf16" else 4.0 + 0.02 * seed

    monkeypatch.setattr(proof, "run", run)
    found = proof.sweep(shared_data, tmp_path, tmp_path / "results.json")
    assert found == {"gap": 1.0, "by seed": [0.5, 1.0, 1.5]}
    assert json.loads((tmp_path / "results.json").read_text())["summary"] == found
    assert len(done) == 6
    assert proof.sweep(shared_data, tmp_path, tmp_path / "results.json") == found
    assert len(done) == 6


@pytest.mark.prove("the sweep takes ten minutes")
def test_the_gap_after_three_hundred_steps(shared_data: Path) -> None:
    results = HERE.parents[2] / "docs" / "proof" / "recipe_fp8.json"
    command = [sys.executable, str(HERE.with_name("recipe_fp8.py")), "--data", str(shared_data), "--results", str(results)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert json.loads(results.read_text())["summary"]["gap"] <= 0.5
