"""`surogate recipe report`: its figures against numpy, ml_dtypes, ordinary runs and separate gradients; its exit codes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import attrs
import ml_dtypes
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from surogate_command_recipe import figures, measure
from surogate_loop_standard.loop import accumulate
from surogate_model_transformers import testing as models_testing
from surogate_recipe_fp8_hybrid.linear import Hybrid

import surogate_core
from surogate_core import testing
from surogate_core.cli.main import main
from surogate_core.config import load
from surogate_core.host import load_host
from surogate_core.plan import make_plan
from surogate_core.train.setup import build

TEXT = [{"text": f"{number} and then " * (1 + number % 5)} for number in range(80)]
STEPS = 4


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("recipe")
    return {
        "model": str(models_testing.tiny_model(place / "model")),
        "output_dir": str(place / "out"),
        "model_dtype": "fp32",
        "recipe_backend": "emulated",
        "lora": False,
        "sequence_len": 64,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "max_steps": STEPS,
        "dataloader_num_workers": 0,
        "datasets": [{"path": str(testing.write_rows(place / "text.jsonl", TEXT)), "type": "text"}],
    }


def written(keys: dict[str, Any], place: Path) -> Path:
    rows = json.dumps(keys["datasets"][0]["path"])
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in keys.items() if key != "datasets"]
    path = place / "config.toml"
    path.write_text("".join(lines) + f'[[datasets]]\npath = {rows}\ntype = "text"\n')
    return path


def command(config: Path, out: Path, *words: str) -> Any:
    return CliRunner().invoke(main, ["recipe", "report", str(config), "--steps", str(STEPS), "--out", str(out), *words])


def test_losses_are_those_of_ordinary_runs(keys: dict[str, Any], tmp_path: Path) -> None:
    done = command(written(keys, tmp_path), tmp_path / "out", "--recipe", "fp8_hybrid", "--recompute", "true")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    for recipe, side in (("fp8_hybrid", "with_recipe"), ("bf16", "plain")):
        surogate_core.run({**keys, "recipe": recipe, "recompute": False, "output_dir": str(tmp_path / recipe)})
        records = [json.loads(line) for line in (tmp_path / recipe / "metrics.jsonl").read_text().splitlines()]
        assert found[side]["losses"] == [record["loss"] for record in records if record["kind"] == "step"]
    later = [np.mean(found[side]["losses"][STEPS // 2 :]) for side in ("with_recipe", "plain")]
    assert found["loss_gap"] == pytest.approx(later[0] / later[1] - 1, abs=1e-12)
    assert "gradient cosine" in done.output.splitlines()[0] or "gradient cosine" in done.output
    assert all(name in done.output for name in found["layers"])
    assert (tmp_path / "out" / "report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert found["with_recipe"]["memory"] > 0 < found["plain"]["memory"]


def test_gradients_are_those_of_models_taken_apart(keys: dict[str, Any]) -> None:
    """At this rate the weights stay the model's own; without random draws the recipe has no state."""
    own = {"recipe": "nvfp4", "no_fp4_stochastic_rounding": True, "learning_rate": 1e-15, "weight_decay": 0.0}
    host = load_host()
    report = measure.measure(load({**keys, **own, "recompute": False}, host), host, STEPS, lambda text: None)

    def gradients(**changes: Any) -> dict[str, np.ndarray[Any, Any]]:
        plan = make_plan(load({**keys, **own, **changes, "recompute": False}, host), host)
        rows = plan.pipeline.prepare(plan.model_source.tokenizer(), print).training(2, 2)
        trainee = build(plan)
        step = rows.step(STEPS)
        accumulate(trainee.model.train(), attrs.evolve(step, batches=step.batches[:1]), plan.parallelism, plan.model_source.loss)
        named = zip(trainee.names, trainee.parameters, strict=True)
        return {name: parameter.grad.double().numpy().ravel() for name, parameter in named if parameter.grad is not None}

    with_recipe, plain = gradients(), gradients(recipe="bf16")

    def cosine(one: Any, other: Any) -> float:
        return float(one @ other / np.sqrt((one @ one) * (other @ other)))

    for name, layer in report.layers.items():
        assert layer.gradient == pytest.approx(cosine(with_recipe[f"{name}.weight"], plain[f"{name}.weight"]), abs=1e-9)
        assert layer.gradient < 0.9999
    whole = [np.concatenate([side[name] for name in plain]) for side in (with_recipe, plain)]
    assert report.gradient == pytest.approx(cosine(*whole), abs=1e-9)


def matrices() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for shape in ((32, 48), (64, 48), (32, 64))]


def test_fp8_operands_equal_ml_dtypes() -> None:
    host = load_host()
    recipe = host.offer("recipes", "fp8_hybrid").load()(
        host.offer("recipes", "fp8_hybrid").options(),
        testing.context(recipe_backend="emulated"),  # type: ignore[misc]
    )
    compute = recipe.linear(testing.site(64, 48))
    x, weight, dy = matrices()
    compute.history[:, 1] = torch.tensor([1.5, 4.0, 1e6])  # x is larger than its history knows, dy much smaller
    recipe.stepped({"one": compute})
    found = measure.layer(recipe, compute, x, weight, dy)
    for name, tensor, kind, amax in (
        ("x", x, ml_dtypes.float8_e4m3fn, 1.5),
        ("W", weight, ml_dtypes.float8_e4m3fn, 4.0),
        ("dy", dy, ml_dtypes.float8_e5m2, 1e6),
    ):
        values = tensor.numpy().astype(np.float64)
        top = float(ml_dtypes.finfo(kind).max)
        scaled = values * (np.float32(top) / np.float32(amax))
        seen = np.clip(scaled, -top, top).astype(np.float32).astype(kind).astype(np.float64) * (amax / top)
        operand = found.operands[name]
        assert operand.error == pytest.approx(np.linalg.norm(seen - values) / np.linalg.norm(values), rel=1e-4)
        assert operand.clipped == np.mean(np.abs(values) > amax)
        assert operand.zeroed == np.mean((seen == 0) & (values != 0))
    assert found.operands["x"].clipped > 0.05
    assert found.operands["dy"].zeroed > 0
    assert not compute.history[:, 0].any(), "the layer's own scales are as they were"


def test_nvfp4_operands_equal_decoded_bytes() -> None:
    from surogate_native_nvfp4 import quantise

    host = load_host()
    offer = host.offer("recipes", "nvfp4")
    recipe = offer.load()(offer.options(), testing.context(recipe_backend="emulated"))  # type: ignore[misc]
    compute = recipe.linear(testing.site(64, 48))
    x, weight, dy = matrices()
    found = measure.layer(recipe, compute, x, weight, dy).operands
    assert int(compute.draws) == 0
    assert list(found) == ["x", "W", "dy", "dy, for dW", "x, for dW"]
    for name, tensor, square in (("x", x, False), ("W", weight, True)):
        blocks = quantise(tensor, square=square, four_over_six="mse")
        packed = blocks.packed().numpy()
        codes = np.stack([packed & 15, packed >> 4], -1).reshape(tensor.shape)
        scales = blocks.scale_bytes().view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float64)
        spread = np.repeat(scales, 16, 1) * float(blocks.decode)
        seen = codes.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64) * spread
        values = tensor.numpy().astype(np.float64)
        assert found[name].error == pytest.approx(np.linalg.norm(seen - values) / np.linalg.norm(values), rel=1e-5)
        assert found[name].zeroed == np.mean((seen == 0) & (values != 0))
        assert found[name].clipped == pytest.approx(np.mean(np.abs(values) > 6 * spread * (1 + 1e-6)))
    assert 0.11 < found["dy"].error < 0.16
    assert found["x"].clipped > 0


def test_products_against_exact_ones() -> None:
    x, weight, dy = matrices()
    plain = measure.layer(object(), torch.nn.functional.linear, x, weight, dy)
    assert plain.operands == {}
    assert all(0 < error < 1e-6 for error in plain.products.values())

    def doubled(x: torch.Tensor, weight: torch.Tensor, bias: None) -> torch.Tensor:
        return torch.nn.functional.linear(x, weight) * 1.25

    assert measure.layer(object(), doubled, x, weight, dy).products == pytest.approx({"y": 0.25, "dx": 0.25, "dW": 0.25}, rel=1e-5)


def test_beyond_a_bound_the_command_fails(keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hybrid, "bounds", {"operand": 0.03, "loss": 1.0})
    done = command(written({**keys, "recipe": "fp8_hybrid", "lora": True}, tmp_path), tmp_path / "out")
    assert done.exit_code == 1
    assert "fp8_hybrid is past its declared bounds: operand 0.0" in done.output
    assert "skip_quant_first_layers" in done.output
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(found["past"]) == 1
    assert all(0.9 < layer["gradient"] <= 1 for layer in found["layers"].values()), "of the adapters"


def test_what_is_no_number_is_past_its_bound() -> None:
    training = figures.Training(losses=[1.0, 1.0], seconds=1.0, memory=1)
    one = figures.Operand(error=math.nan, clipped=0.0, zeroed=0.0)
    report = figures.Report(
        recipe="r",
        emulated=True,
        device="cpu",
        model="m",
        layers={"a": figures.Layer(operands={"x": one}, products={})},
        gradient=1.0,
        with_recipe=training,
        plain=training,
        bounds={"operand": 0.5, "loss": 0.0},
    )
    assert report.past() == ["operand nan above 0.5 (a, x)"]


def test_errors_and_cosines() -> None:
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    assert figures.relative_error(a, b) == pytest.approx(2**0.5 / 5)
    assert figures.cosine(a, b) == pytest.approx(24 / 25)
    zero = torch.zeros(2)
    assert (figures.relative_error(zero, zero), figures.relative_error(a, zero)) == (0, math.inf)
    assert (figures.cosine(zero, zero), figures.cosine(a, zero)) == (1, 0)
