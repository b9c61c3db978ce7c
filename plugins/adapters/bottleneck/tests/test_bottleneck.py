"""Bottleneck adapters against a hand-written module in a transformers model, through training, saving and reading back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import surogate_model_transformers as models
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from surogate_adapter_bottleneck.bottleneck import Bottleneck, BottleneckAdapter
from surogate_adapter_bottleneck.plugin import Options
from surogate_adapter_lora.commands import generate_command
from surogate_model_transformers.testing import short_run, tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import surogate_core
from surogate_core import testing
from surogate_core.config import CoreOptions, load
from surogate_core.contracts import Site
from surogate_core.errors import ModelError, PlanError
from surogate_core.host import load_host
from surogate_core.plan import make_plan
from surogate_core.train.setup import build

IDS = torch.arange(1, 41).view(2, 20)


class ByHand(nn.Module):
    """A layer with Linear, ReLU, Linear behind it and a residual connection."""

    def __init__(self, layer: nn.Module, size: int):
        super().__init__()
        width = layer.weight.shape[0]
        self.layer = layer
        self.body = nn.Sequential(nn.Linear(width, size), nn.ReLU(), nn.Linear(size, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return h + self.body(h)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def config(tiny: Path, tmp_path: Path) -> dict[str, Any]:
    rows = testing.write_rows(tmp_path / "rows.jsonl", [{"text": f"{number} and {number + 3} make it"} for number in range(40)])
    return short_run(tiny, rows, tmp_path, adapter="bottleneck", bottleneck_size=5)


def by_hand(tiny: Path, stored: dict[str, Tensor]) -> Any:
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).requires_grad_(False)
    for name in sorted({key.rpartition(".")[0].rpartition(".")[0] for key in stored}):
        parent, _, role = name.rpartition(".")
        layer = ByHand(model.get_submodule(name), 5)
        for number, part in (("0", "down"), ("2", "up")):
            for kind in ("weight", "bias"):
                layer.body.get_submodule(number).get_parameter(kind).data.copy_(stored[f"{name}.{part}.{kind}"])
        setattr(model.get_submodule(parent), role, layer)
    return model


def test_training_is_that_of_the_hand_written_module(config: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    host = load_host()
    plan = make_plan(load(config, host), host)
    trainee = build(plan)
    assert plan.adapter is not None
    assert {name.rpartition(".")[2] for name in trainee.adapters} == {"o_proj", "down_proj"}
    assert plan.figures.trainable == sum(parameter.numel() for parameter in trainee.parameters) == 4 * (32 * 5 * 2 + 5 + 32)
    plan.adapter.save(trainee.adapters, tmp_path / "start", str(tiny))
    theirs = by_hand(tiny, load_file(tmp_path / "start" / "adapter_model.safetensors"))
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    assert torch.equal(theirs(input_ids=IDS).logits, base(input_ids=IDS).logits), "it does not start as the base model"
    batches = plan.pipeline.prepare(plan.model_source.tokenizer(), lambda text: None).training(2, 1)
    surogate_core.run(config)
    records = map(json.loads, (tmp_path / "output" / "metrics.jsonl").read_text().splitlines())
    losses = [record["loss"] for record in records if record["kind"] == "step"]
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    for number, ours in enumerate(losses):
        batch = batches.step(number).batches[0]
        ids, place = batch.document_ids, torch.arange(batch.input_ids.shape[1])
        allowed = (ids[:, :, None] == ids[:, None, :]) & (place[:, None] >= place[None, :])
        logits = theirs(
            input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=allowed[:, None], use_cache=False
        ).logits
        each = nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none")
        loss = (each * batch.weights.flatten()).sum() / batch.weights.sum()
        assert ours == pytest.approx(loss.item(), abs=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    saved = load_file(tmp_path / "output" / "last" / "adapter_model.safetensors")
    again = by_hand(tiny, saved)
    for one, other in zip(again.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_what_is_saved_is_read_back_and_a_run_resumes_bit_for_bit(config: dict[str, Any], tmp_path: Path) -> None:
    surogate_core.run({**config, "output_dir": str(tmp_path / "whole")})
    surogate_core.run({**config, "max_steps": 2})
    surogate_core.run(config)
    one, two = (load_file(tmp_path / place / "last" / "adapter_model.safetensors") for place in ("whole", "output"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    host = load_host()
    plan = make_plan(load(config, host), host)
    trainee = build(plan)
    assert plan.adapter is not None
    plan.adapter.load(trainee.adapters, tmp_path / "whole" / "last")
    for name, module in trainee.adapters.items():
        for key, parameter in module.named_parameters():
            assert torch.equal(parameter, one[f"{name}.{key}"])


def test_other_targets_sizes_and_files_are_refused(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match='"proj_out" matches no linear layer'):
        surogate_core.run({**config, "bottleneck_target_modules": ["o_proj", "proj_out"]})
    assert not (tmp_path / "output").exists()
    site = Site(name="model.layers.0.self_attn.o_proj", kind="linear", shape=(32, 24), layer=0)
    small, large = (Bottleneck(options=Options(bottleneck_size=size)) for size in (3, 4))
    module = BottleneckAdapter(32, 3)
    small.save({site.name: module}, tmp_path / "a", "m")
    with pytest.raises(ModelError, match=r"down.bias: \(4,\) wanted, \(3,\) found"):
        large.load({site.name: large.linear(site)}, tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": "LORA"}))
    with pytest.raises(ModelError, match="peft_type is 'LORA'"):
        small.load({site.name: module}, tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="no readable adapter"):
        small.load({site.name: module}, tmp_path / "a")
    with pytest.raises(ModelError, match="cannot be merged"):
        small.delta(module)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_identity_at_its_start_in_any_dtype(tiny: Path, dtype: torch.dtype) -> None:
    adapter = Bottleneck(options=Options(bottleneck_target_modules=["mlp.down_proj"]))
    settings = models.Settings(CoreOptions(model=str(tiny), sequence_len=32))
    sites = [s for s in models.list_sites(models.skeleton(models.read_config(settings), settings)) if adapter.claim(s) is None]
    assert [site.name for site in sites] == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    module = adapter.linear(sites[0])
    adapter.reset(module, torch.Generator().manual_seed(0))
    x, y = torch.randn(3, 64, dtype=dtype), torch.randn(3, 32, dtype=dtype)
    assert torch.equal(module(x, y), y)
    module(x, y).sum().backward()
    assert module.up.weight.grad is not None
    assert module.up.weight.grad.dtype == torch.float32
    assert module.up.weight.grad.any()


def test_generate_uses_the_trained_adapter(config: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    surogate_core.run({**config, "max_steps": 8, "learning_rate": 5e-2})
    last = tmp_path / "output" / "last"
    words = ["--prompt", "3 and", "--max-new-tokens", "8"]
    told = CliRunner().invoke(generate_command, [str(last), *words], catch_exceptions=False).stdout
    tokenizer = AutoTokenizer.from_pretrained(last)
    model = by_hand(tiny, load_file(last / "adapter_model.safetensors")).eval()
    start = tokenizer("3 and", return_tensors="pt")["input_ids"]
    ids = start
    for _ in range(8):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    assert told == tokenizer.decode(ids[0, start.shape[1] :], skip_special_tokens=True) + "\n"
    with pytest.raises(ModelError, match="peft_type is 'SUROGATE_BOTTLENECK'"):
        CliRunner().invoke(generate_command, [str(tiny), "--adapter", str(last), *words], catch_exceptions=False)
