"""A glimpse of the comparison with ``make test``; the sweep with ``make prove``, kept in ``docs/proof/recipes_nvfp4.json``."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).resolve()


@pytest.fixture
def sweep() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipes_nvfp4", HERE.with_name("recipes_nvfp4.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_thirty_steps_stay_near_bf16(sweep: ModuleType, shared_data: Path, tmp_path: Path) -> None:
    sweep.prepare(shared_data, tmp_path)
    text = (tmp_path / "validation.txt").read_text(encoding="utf-8")
    (tmp_path / "validation.txt").write_text(text[:2_000], encoding="utf-8")
    names = ("bf16", "nvfp4", "nvfp4_quartet")
    losses = {name: sweep.run(shared_data, tmp_path, "stories260K", name, 1, 30, sequence_len=64) for name in names}
    assert losses["bf16"] < 0.9 * math.log(512), "it learns"
    for name in ("nvfp4", "nvfp4_quartet"):
        assert losses[name] != losses["bf16"]
        assert losses[name] / losses["bf16"] - 1 <= sweep.GOAL, losses


def test_the_claims_can_fail(sweep: ModuleType) -> None:
    def gaps(**means: float) -> dict[str, dict[str, object]]:
        names = {"nvfp4": means["nvfp4"], "nvfp4, no 4/6": means["without"], "nvfp4_quartet": means["quartet"]}
        return {name: {"gap": mean, "by seed": [mean - 0.1, mean, mean + 0.2]} for name, mean in names.items()}

    assert all(sweep.reached(gaps(nvfp4=2.0, without=2.5, quartet=1.5)).values())
    assert list(sweep.reached(gaps(nvfp4=5.0, without=2.0, quartet=9.0)).values()) == [False, False, False]


def test_a_sweep_goes_on_where_it_was(
    sweep: ModuleType, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str, int]] = []

    def run(data: Path, place: Path, model: str, recipe: str, seed: int) -> float:
        done.append((model, recipe, seed))
        if len(done) == 7:
            raise SystemExit("stopped")
        return 3.0 + 0.03 * list(sweep.RECIPES).index(recipe) + 0.01 * seed

    monkeypatch.setattr(sweep, "run", run)
    results = tmp_path / "results.json"
    with pytest.raises(SystemExit):
        sweep.Sweep(shared_data, tmp_path, results).everything(("stories260K",))
    assert len(json.loads(results.read_text())["runs"]) == 6
    found = sweep.Sweep(shared_data, tmp_path, results).everything(("stories260K",))["stories260K"]
    assert len(done) == 16
    assert len({*done}) == 15
    assert found["nvfp4"]["gap"] == pytest.approx(100 * 0.03 / 3.02, abs=0.01)
    assert len(found["nvfp4_quartet, no 4/6"]["by seed"]) == 3


def test_the_larger_model_has_20_million_parameters(sweep: ModuleType, shared_data: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    sweep.prepare(shared_data, tmp_path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path / "qwen3-20m"))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(20e6, rel=0.05)


@pytest.mark.prove("the sweep takes hours")
def test_gaps_to_bf16(shared_data: Path) -> None:
    results = HERE.parents[2] / "docs" / "proof" / "recipes_nvfp4.json"
    command = [sys.executable, str(HERE.with_name("recipes_nvfp4.py")), "--data", str(shared_data), "--results", str(results)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
