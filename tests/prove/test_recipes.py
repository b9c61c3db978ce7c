"""A glimpse of the comparison with ``make test``; the sweep with ``make prove``, kept in ``docs/proof/recipes.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recipes
from training import SEEDS, texts

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "proof" / "recipes.json"


def test_the_documentation_has_the_gaps_that_are_kept_and_they_are_within_their_goals() -> None:
    kept = json.loads(RESULTS.read_text())
    wanted = {(model, recipe, seed) for model, names in recipes.COMPARED.items() for recipe in names for seed in SEEDS}
    assert {(run["model"], run["recipe"], run["seed"]) for run in kept["runs"]} == wanted
    assert recipes.summary(kept["runs"]) == kept["summary"]
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert recipes.table(kept["summary"]) in page
    assert recipes.sentences(kept["summary"]) in page
    assert recipes.beyond(kept["summary"]) == []


def test_thirty_steps_stay_near_bf16(shared_data: Path, tmp_path: Path) -> None:
    texts(shared_data, tmp_path, held_out=2_000)
    names = ("bf16", "nvfp4", "nvfp4_quartet")
    losses = {name: recipes.run(shared_data, tmp_path, "stories260K", name, 1, 30, sequence_len=64) for name in names}
    assert losses["bf16"] < 0.9 * math.log(512), "it learns"
    for name in ("nvfp4", "nvfp4_quartet"):
        assert losses[name] != losses["bf16"]
        assert losses[name] / losses["bf16"] - 1 <= 0.04, losses


def test_twenty_steps_with_fp8_end_near_bf16(shared_data: Path, tmp_path: Path) -> None:
    texts(shared_data, tmp_path, held_out=4_000)
    model = "stories260K, pretrained"
    plain, ours = (recipes.run(shared_data, tmp_path, model, recipe, 1, 20) for recipe in ("bf16", "fp8_hybrid"))
    assert ours != plain
    assert ours == pytest.approx(plain, rel=0.01)


def test_goals_and_orders_can_be_missed() -> None:
    def gaps(**means: float) -> dict[str, dict[str, object]]:
        names = {"fp8": "fp8_hybrid", "without": "nvfp4, no 4/6", "quartet": "nvfp4_quartet"}
        return {names.get(name, name): {"gap": mean, "by seed": [mean - 0.1, mean, mean + 0.2]} for name, mean in means.items()}

    good, bad = gaps(fp8=0.4, nvfp4=2.0, without=2.5, quartet=1.5), gaps(fp8=0.6, nvfp4=5.0, without=2.0, quartet=9.0)
    assert recipes.beyond({"one": good, "other": bad}) == ["other: fp8_hybrid", "other: nvfp4"]
    near = {"nvfp4": {"by seed": [0.0, 0.5, 1.2]}, "nvfp4, no 4/6": {"by seed": [0.6, 0.0, 0.8]}}
    assert list(recipes.orders(good).values()) == ["holds", "holds"]
    assert list(recipes.orders(bad).values()) == ["does not hold", "does not hold"]
    assert set(recipes.orders({**near, "nvfp4_quartet": near["nvfp4"]}).values()) == {"is open (within the seeds' spread)", "holds"}


def test_a_sweep_goes_on_where_it_was(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str, int]] = []

    def run(data: Path, place: Path, model: str, recipe: str, seed: int) -> float:
        done.append((model, recipe, seed))
        if len(done) == 7:
            raise SystemExit("stopped")
        return 3.0 + 0.03 * recipes.COMPARED[model].index(recipe) + 0.01 * seed

    monkeypatch.setattr(recipes, "run", run)
    results = tmp_path / "results.json"
    with pytest.raises(SystemExit):
        recipes.everything(shared_data, tmp_path, results, ("stories260K",))
    assert len(json.loads(results.read_text())["runs"]) == 6
    found = recipes.everything(shared_data, tmp_path, results, ("stories260K",))["stories260K"]
    assert len(done) == 16
    assert len({*done}) == 15
    assert found["nvfp4"]["gap"] == pytest.approx(100 * 0.03 / 3.02, abs=0.01)
    assert len(found["nvfp4_quartet, no 4/6"]["by seed"]) == 3


def test_the_larger_model_has_20_million_parameters(shared_data: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    recipes.prepare(shared_data, tmp_path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path / "qwen3-20m"))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(20e6, rel=0.05)


@pytest.mark.prove("the sweep takes hours")
def test_gaps_to_bf16(kept_by: Callable[..., Any], shared_data: Path) -> None:
    kept = kept_by("recipes.py", RESULTS, "--data", str(shared_data))
    assert kept["summary"].keys() == recipes.MODELS.keys()
