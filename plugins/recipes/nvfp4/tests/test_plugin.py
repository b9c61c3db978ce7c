from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from surogate_native_nvfp4 import operands
from surogate_recipe_nvfp4 import linear, plugin

import surogate_core
from surogate_core import testing
from surogate_core.config import load
from surogate_core.errors import ConfigError, PlanError
from surogate_core.host import load_host
from surogate_core.plan import Plan, build, make_plan

ROWS = [{"text": f"{number} and {number + 3} and then {number * 7}"} for number in range(24)]
Go = Callable[..., tuple[Path, list[float]]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Any]:
    rows = testing.write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", ROWS)
    return {
        "model": str(tiny),
        "recipe": "nvfp4",
        "recipe_backend": "emulated",
        "sequence_len": 64,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "save_steps": 10,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "optimizer": "adamw",
        "dataloader_num_workers": 0,
        "validation_split_ratio": 0.0,
        "lora": False,
        "datasets": [{"path": str(rows), "type": "text"}],
    }


@pytest.fixture(scope="module")
def go(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Go:
    def run(**changes: Any) -> tuple[Path, list[float]]:
        out = changes.pop("output_dir", None) or str(tmp_path_factory.mktemp("out"))
        summary = surogate_core.run({**base, "output_dir": out, **changes})
        assert summary.checkpoint is not None
        lines = (summary.output_dir / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return summary.checkpoint, [record["loss"] for record in records if record["kind"] == "step"]

    return run


@pytest.fixture(scope="module")
def plain(go: Go) -> dict[str, tuple[Path, list[float]]]:
    return {recipe: go(recipe=recipe) for recipe in ("nvfp4", "nvfp4_quartet")}


@pytest.mark.parametrize("recipe", ["nvfp4", "nvfp4-quartet"])
def test_a_continued_run_has_the_same_bits(go: Go, plain: Any, recipe: str, tmp_path: Path) -> None:
    """Weights, counters of draws and losses: 3 steps, against 1 and 2 more. Draws go on where they were."""
    whole, losses = plain[recipe.replace("-", "_")]
    go(recipe=recipe, output_dir=str(tmp_path), max_steps=1)
    continued, found = go(recipe=recipe, output_dir=str(tmp_path))
    assert found == losses
    for name in ("model.safetensors", "recipe.safetensors"):
        one, two = load_file(whole / name), load_file(continued / name)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    counters = load_file(whole / "recipe.safetensors")
    assert len(counters) == 14
    assert {int(value) for value in counters.values()} == {6}


@pytest.mark.parametrize("recipe", ["nvfp4", "nvfp4_quartet"])
def test_recompute_changes_no_bit(go: Go, plain: Any, recipe: str) -> None:
    assert go(recipe=recipe, recompute=False)[1] == plain[recipe][1]


@pytest.mark.parametrize(
    "option",
    [{"fp4_four_over_six": False}, {"no_fp4_hadamard": True}, {"no_fp4_stochastic_rounding": True}, {"train_seed": 5}],
    ids=str,
)
@pytest.mark.parametrize("recipe", ["nvfp4", "nvfp4_quartet"])
def test_each_option_changes_the_losses(go: Go, plain: Any, recipe: str, option: dict[str, Any]) -> None:
    assert go(recipe=recipe, **option)[1] != plain[recipe][1]


def test_the_recipes_are_not_bf16_and_not_each_other(go: Go, plain: Any) -> None:
    found = [plain["nvfp4"][1], plain["nvfp4_quartet"][1], go(recipe="bf16")[1]]
    assert len({tuple(losses) for losses in found}) == 3
    assert max(abs(losses[0] - found[2][0]) for losses in found) < 0.02 * found[2][0]


def test_lora_keeps_the_quantised_base(go: Go) -> None:
    checkpoint, losses = go(lora=True)
    assert losses != go(lora=True, recipe="bf16")[1]
    assert {int(value) for value in load_file(checkpoint / "recipe.safetensors").values()} == {6}
    adapter = load_file(checkpoint / "adapter_model.safetensors")
    assert all(value.any() for name, value in adapter.items() if "lora_B" in name)


@pytest.mark.parametrize("recipe", ["nvfp4", "nvfp4_quartet"])
@pytest.mark.parametrize("backend", ["auto", "native"])
def test_a_device_without_it_is_refused(go: Go, recipe: str, backend: str) -> None:
    with pytest.raises(PlanError, match=rf"{recipe} needs sm_100\+, this machine has no GPU") as caught:
        go(recipe=recipe, recipe_backend=backend)
    assert 'recipe_backend = "emulated"' in caught.value.problems[0].how


def planned(base: dict[str, Any], **changes: Any) -> Plan:
    host = load_host()
    return make_plan(load({**base, "output_dir": "out", **changes}, host), host)


@pytest.mark.parametrize("recipe", ["nvfp4", "nvfp4_quartet"])
@pytest.mark.parametrize("capability", [(10, 0), (12, 0)], ids=str)
@pytest.mark.parametrize("kernels", ["auto", "native", "reference"])
def test_a_device_with_it_is_told_that_it_is_unverified(
    base: dict[str, Any], monkeypatch: pytest.MonkeyPatch, recipe: str, capability: tuple[int, int], kernels: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    for backend in ("auto", "native"):
        plan = planned(base, recipe=recipe, recipe_backend=backend, kernels=kernels)
        assert plan.recipe.rules.native
        assert "notice       4-bit products on this GPU are unverified on hardware" in plan.render()
    plan = planned(base, recipe=recipe)
    assert not plan.recipe.rules.native
    assert "unverified" not in plan.render()


@pytest.mark.parametrize("recipe", ["nvfp4", "nvfp4_quartet"])
def test_a_device_below_it_is_refused(base: dict[str, Any], monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with pytest.raises(PlanError, match=rf"{recipe} needs sm_100\+, this machine has a GPU of compute capability 9.0") as caught:
        planned(base, recipe=recipe, recipe_backend="native")
    how = caught.value.problems[0].how
    assert 'set recipe = "fp8_hybrid", which runs here, or recipe_backend = "emulated"' in how


@pytest.mark.parametrize("recipe", ["nvfp4", "nvfp4_quartet"])
def test_a_native_run_by_the_definitions_has_the_losses_of_an_emulated_one(
    go: Go, plain: Any, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """On a CPU that is said to have 4-bit products."""
    monkeypatch.setattr(build, "_lacks", lambda offer, device: None)
    checkpoint, losses = go(recipe=recipe, recipe_backend="native")
    assert losses == pytest.approx(plain[recipe][1], rel=1e-4)
    records = [json.loads(line) for line in (checkpoint.parent / "metrics.jsonl").read_text().splitlines()]
    assert linear.UNVERIFIED in [record["text"] for record in records if record["kind"] == "notice"]


@pytest.mark.parametrize("backend", ["auto", "native", "emulated"])
@pytest.mark.parametrize("capability", [None, (8, 0), (9, 0), (10, 0), (12, 0)], ids=str)
def test_cudnn_is_refused_on_every_device(
    go: Go, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, backend: str
) -> None:
    if capability:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(PlanError) as caught:
        go(fp4_backend="cudnn", recipe_backend=backend)
    (found,) = caught.value.problems
    if backend == "emulated":
        assert "fp4_backend = 'cudnn' cannot be used: emulation calls no library" in found.what
    elif capability and capability >= (10, 0):
        assert "fp4_backend = 'cudnn' cannot be used: no product by it has ever run" in found.what
        assert "only the order of scales that it reads is tested" in found.what
    else:
        assert "nvfp4 needs sm_100+" in found.what
    assert found.where
    assert found.how


def test_fp4_backend_that_cannot_be_used_is_refused(go: Go) -> None:
    with pytest.raises(PlanError, match="fp4_backend = 'cudnn' cannot be used: emulation calls no library"):
        go(fp4_backend="cudnn")
    with pytest.raises(ConfigError, match="fp4_backend"):
        go(fp4_backend="cublas")


@pytest.mark.parametrize("recipe", ["nvfp4", "nvfp4_quartet"])
def test_kernels_change_no_bit(go: Go, plain: Any, recipe: str) -> None:
    assert go(recipe=recipe, kernels="reference")[1] == plain[recipe][1]
    assert go(recipe=recipe, kernels="native")[1] == plain[recipe][1]


def test_kernels_that_are_not_there_are_refused(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = plugin._native("nvfp4", "cuda")
    assert "nvfp4, emulated, runs no native kernels on a GPU in this version" in found.what
    operands.available.cache_clear()
    operands._program.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(PlanError, match="no-such-compiler"):
        go(kernels="native")


def test_first_and_last_layers_stay_in_the_models_dtype(go: Go, plain: Any) -> None:
    checkpoint, losses = go(skip_quant_first_layers=1)
    assert losses != plain["nvfp4"][1]
    assert {name.split(".")[2] for name in load_file(checkpoint / "recipe.safetensors")} == {"1"}
