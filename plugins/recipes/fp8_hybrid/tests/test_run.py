"""Runs: what the plan says and refuses, resuming bit for bit, adapters, and how far training is from bf16."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import surogate_core
from surogate_core import testing
from surogate_core.config import load
from surogate_core.errors import ConfigError, PlanError
from surogate_core.host import load_host
from surogate_core.plan import Plan, make_plan

TEXT = [{"text": f"Number {number} is followed by {number + 1}; twice {number} is {2 * number}."} for number in range(60)]
ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def config(tmp_path: Path, tiny: Path) -> dict[str, Any]:
    return {
        "model": str(tiny),
        "recipe": "fp8-hybrid",
        "recipe_backend": "emulated",
        "optimizer": "adamw",
        "sequence_len": 64,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "max_steps": 6,
        "save_steps": 6,
        "eval_steps": 6,
        "learning_rate": 1e-2,
        "final_lr_fraction": 1.0,  # the rate of a step does not depend on the length of the run
        "dataloader_num_workers": 0,
        "datasets": [{"path": str(testing.write_rows(tmp_path / "text.jsonl", TEXT)), "type": "text"}],
    }


def plan(config: dict[str, Any], **changes: Any) -> Plan:
    host = load_host()
    return make_plan(load({**config, **changes}, host), host)


def test_every_linear_of_the_blocks_is_claimed(config: dict[str, Any]) -> None:
    made = plan(config)
    assert {str(slots.compute).split()[0] for slots in made.slots.values()} == {"surogate-recipe-fp8-hybrid"}


def test_small_layers_can_be_left_out(config: dict[str, Any]) -> None:
    sizes = {site.name: min(site.shape) for site in plan(config).sites if site.kind == "linear" and site.layer is not None}
    assert len(set(sizes.values())) > 1, "the tiny model has layers of different size"
    least = max(sizes.values())
    made = plan(config, fp8_min_dim=least)
    assert {name for name, slots in made.slots.items() if slots.compute is None} == {n for n, size in sizes.items() if size < least}
    assert f"smaller than fp8_min_dim = {least}" in made.render()


@pytest.mark.parametrize(
    ("changes", "said", "how"),
    [
        ({"fp8_min_dim": 100_000}, r"computes no layer of this model \(smaller than fp8_min_dim = 100000\)", "lower fp8_min_dim"),
        ({"skip_quant_first_layers": 9}, r"computes no layer of this model \(skip_quant\)", "lower"),
        ({"kernels": "native"}, "this machine has no GPU", 'kernels = "auto"'),
        ({"recipe_backend": "auto"}, r"fp8_hybrid needs sm_89\+, this machine has no GPU", 'recipe_backend = "emulated"'),
        ({"recipe_backend": "native"}, r"fp8_hybrid needs sm_89\+, this machine has no GPU", 'recipe = "bf16", which runs here'),
    ],
)
def test_what_cannot_be_had_is_refused(config: dict[str, Any], changes: dict[str, Any], said: str, how: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, and this is about one without: CUDA_VISIBLE_DEVICES= hides it")
    with pytest.raises(PlanError, match=said) as caught:
        plan(config, **changes)
    assert how in caught.value.problems[0].how


@pytest.mark.parametrize("key", ["fp8_amax_history", "fp8_min_dim"])
def test_options_out_of_range_are_refused(config: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        plan(config, **{key: -1})
    if key == "fp8_amax_history":
        with pytest.raises(ConfigError, match="fp8_amax_history = 0: wanted a whole number >= 1"):
            plan(config, fp8_amax_history=0)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_stopping_and_continuing_changes_nothing(config: dict[str, Any], tmp_path: Path, lora: bool, dtype: str) -> None:
    """With accumulation, recomputed activations and an evaluation in the middle of one of the two runs."""
    config |= {"lora": lora, "model_dtype": dtype, "fp8_amax_history": 3, "recompute": True}
    whole = surogate_core.run({**config, "output_dir": str(tmp_path / "whole")})
    surogate_core.run({**config, "output_dir": str(tmp_path / "parts")}, max_steps=3)
    parts = surogate_core.run({**config, "output_dir": str(tmp_path / "parts"), "eval_steps": 2})
    assert whole.checkpoint is not None
    assert parts.checkpoint is not None
    weights = "adapter_model.safetensors" if lora else "model.safetensors"
    for name in (weights, "optimizer.safetensors", "recipe.safetensors"):
        one, two = (load_file(summary.checkpoint / name) for summary in (whole, parts))
        assert one.keys() == two.keys()
        assert not [key for key, tensor in one.items() if not torch.equal(tensor, two[key])]
    scales = load_file(whole.checkpoint / "recipe.safetensors")
    assert {tensor.dtype for tensor in scales.values()} == {torch.float32}
    assert all((tensor > 0).all() for key, tensor in scales.items() if key.endswith("scale"))
    assert not [key for key in load_file(whole.checkpoint / weights) if "history" in key]


def losses(config: dict[str, Any], place: Path, **changes: Any) -> list[float]:
    import json

    summary = surogate_core.run({**config, "output_dir": str(place), **changes})
    records = [json.loads(line) for line in (summary.output_dir / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "step"]


def test_training_stays_near_bf16_and_options_have_an_effect(config: dict[str, Any], tmp_path: Path) -> None:
    config["learning_rate"] = 2e-3
    plain = losses(config, tmp_path / "bf16", recipe="bf16")
    ours = losses(config, tmp_path / "fp8")
    assert ours != plain
    assert ours[-1] == pytest.approx(plain[-1], rel=0.01)
    assert ours[-1] < ours[0]
    short = losses(config, tmp_path / "short", fp8_amax_history=1)
    assert short[:2] == ours[:2], "the window has one step of history in it either way"
    assert short != ours


def test_a_model_from_scratch_keeps_its_scales_in_float32(config: dict[str, Any], tmp_path: Path) -> None:
    assert losses(config, tmp_path / "out", from_scratch=True, lora=False, max_steps=2)
    (path,) = (tmp_path / "out").glob("checkpoint-*/recipe.safetensors")
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float32}


def documented() -> str:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]


def test_the_recipe_of_the_documentation_trains_on_these_kernels(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = documented()
    assert len(source.splitlines()) <= 60
    (tmp_path / "acme_e4m3.py").write_text(source)
    spec = importlib.util.spec_from_file_location("acme_e4m3", tmp_path / "acme_e4m3.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "acme_e4m3", module)
    spec.loader.exec_module(module)
    (offer,) = module.register_recipes()
    made = offer.load()(None, testing.context())
    testing.check_recipe(made, bound=0.05)
    weight = torch.nn.Parameter(torch.zeros(32, 48))
    wanted = torch.randn(32, 48, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    compute = made.linear(testing.site(32, 48))
    x = torch.randn(256, 48, generator=torch.Generator().manual_seed(2))
    for _ in range(150):
        (compute(x, weight, None) - x @ wanted.t()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (weight - wanted).norm() < 0.05 * wanted.norm()
