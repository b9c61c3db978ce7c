"""The inputs of the layers in the memory of the host, on a device for tests: equal losses and gradients, two of them on the
device."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from surogate_model_transformers import load, plugin, residual, sites
from surogate_model_transformers import testing as models_testing
from surogate_offload import StandIn
from torch import nn

import surogate_core
from surogate_core import testing
from surogate_core.config import load as load_config
from surogate_core.errors import PlanError
from surogate_core.hookspecs import hookimpl
from surogate_core.host import load_host
from surogate_core.plan import make_plan

LAYERS = 6
SHAPE = (2, 16)
TEXT = [{"text": f"Number {number} is followed by {number + 1}; twice {number} is {2 * number}."} for number in range(40)]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_testing.tiny_model(tmp_path_factory.mktemp("deep"), num_hidden_layers=LAYERS)


@pytest.fixture(params=["late", "early"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn(request.param)
    monkeypatch.setattr(residual, "open_device", lambda device: made)
    return made


def gradients(deep: Path, recompute: bool, offload: bool, steps: int = 1) -> tuple[float, list[torch.Tensor], nn.Module]:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(deep, dtype=torch.float32).train()
    if offload:
        residual.offload_residuals(sites.blocks(model)[1], torch.device("cpu"))
    if recompute:
        load.recompute_layers(model)
    ids = torch.arange(SHAPE[0] * SHAPE[1]).view(SHAPE)
    for _ in range(steps):
        model.zero_grad()
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return float(loss.detach()), found, model


@pytest.mark.parametrize("recompute", [True, False])
def test_losses_and_gradients_are_those_without(deep: Path, device: StandIn, recompute: bool) -> None:
    wanted = gradients(deep, recompute, False)
    found = gradients(deep, recompute, True, steps=3)
    assert found[0] == wanted[0]
    assert all(torch.equal(one, other) for one, other in zip(found[1], wanted[1], strict=True))
    assert device.copies == {"in": 3 * LAYERS, "out": 3 * LAYERS}


def test_the_device_holds_two_and_the_host_one_a_layer(deep: Path, device: StandIn) -> None:
    _, _, model = gradients(deep, True, True, steps=2)
    size = 4 * SHAPE[0] * SHAPE[1] * model.config.hidden_size
    assert device.peak == 2 * size
    assert device.held == LAYERS * size  # the second step has the same
    gc.collect()
    assert device.now == 0


def test_the_inputs_are_not_kept_beside(deep: Path, device: StandIn) -> None:
    """After the forward pass with recomputation none of the layers' inputs is alive but through the host; without offloading
    all."""
    for offload in (False, True):
        _, _, model = gradients(deep, True, offload)
        seen: list[weakref.ref[Any]] = []
        for layer in sites.blocks(model)[1]:
            layer.register_forward_pre_hook(lambda module, args, to=seen: to.append(weakref.ref(args[0].untyped_storage())))
        ids = torch.arange(SHAPE[0] * SHAPE[1]).view(SHAPE)
        loss = model(ids, labels=ids, use_cache=False).loss
        device.settle()
        gc.collect()
        assert len(seen) == LAYERS
        assert sum(held() is not None for held in seen) == (0 if offload else LAYERS)
        del loss


def test_evaluation_moves_nothing(deep: Path, device: StandIn) -> None:
    _, _, model = gradients(deep, True, True)
    before = dict(device.copies)
    with torch.no_grad():
        model(torch.arange(32).view(SHAPE))
    assert device.copies == before


def test_a_run_has_the_losses_that_it_has_without(
    deep: Path, tmp_path: Path, device: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: dict[str, Any] = {
        "model": str(deep),
        "lora": False,
        "sequence_len": 64,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "save_steps": 3,
        "eval_steps": 3,
        "dataloader_num_workers": 0,
        "datasets": [{"path": str(testing.write_rows(tmp_path / "text.jsonl", TEXT)), "type": "text"}],
    }
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    host = load_host()
    with pytest.raises(PlanError) as caught:
        make_plan(load_config({**config, "offload_residual": True}, host), host)
    assert [problem.what.partition(":")[0] for problem in caught.value.problems] == ["offload_residual = true needs a GPU"]
    monkeypatch.setattr(plugin, "check_plan", hookimpl(lambda plan, device: []))
    plain, away = (
        surogate_core.run({**config, "output_dir": str(tmp_path / str(on)), "offload_residual": on}) for on in (False, True)
    )
    assert away.loss == plain.loss
    assert away.eval_loss == plain.eval_loss
    assert device.copies["out"] == 3 * 2 * LAYERS
