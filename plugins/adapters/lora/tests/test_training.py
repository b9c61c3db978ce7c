"""Training beside PEFT: from one initial adapter, on the same batches, 20 steps through the whole program and 20 through PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from surogate_adapter_lora.merge import merge
from surogate_adapter_lora.plugin import Options
from surogate_model_transformers.testing import short_run
from transformers import AutoModelForCausalLM

import surogate_core
from surogate_core.config import load
from surogate_core.errors import ConfigError
from surogate_core.host import load_host
from surogate_core.plan import make_plan
from surogate_core.train.setup import build

KINDS = {"lora": {}, "rslora": {"lora_use_rslora": True}, "dora": {"lora_use_dora": True}}
STEPS = 20


def configuration(stories: Path, directory: Path, **changes: Any) -> dict[str, Any]:
    text = directory / "text.txt"
    shakespeare = (stories.parents[1] / "pretrain" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    text.write_text(shakespeare[:20_000], encoding="utf-8")
    own = {
        "per_device_train_batch_size": 2,
        "max_steps": STEPS,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "linear",
        "lora_rank": 8,
        "lora_dropout": 0.0,
    }
    return short_run(stories, text, directory, **{**own, **changes})


def initial(config: dict[str, Any], directory: Path) -> Any:
    """Save the adapter that a run of this configuration starts from; returns its training batches."""
    host = load_host()
    plan = make_plan(load(config, host), host)
    trainee = build(plan)
    assert plan.adapter is not None
    plan.adapter.save(trainee.adapters, directory, config["model"])
    data = plan.pipeline.prepare(plan.model_source.tokenizer(), lambda text: None)
    return data.training(config["per_device_train_batch_size"], 1)


def steps(output: Path) -> list[dict[str, Any]]:
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == "step"]


def cross_entropy(model: Any, batch: Any) -> torch.Tensor:
    """Through transformers' own forward and attention, with the mask of the documents of packed rows."""
    ids, place = batch.document_ids, torch.arange(batch.input_ids.shape[1])
    allowed = (ids[:, :, None] == ids[:, None, :]) & (place[:, None] >= place[None, :])
    found = model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=allowed[:, None], use_cache=False
    ).logits
    each = torch.nn.functional.cross_entropy(found.flatten(0, 1), batch.labels.flatten(), reduction="none")
    return (each * batch.weights.flatten()).sum() / batch.weights.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_are_pefts(kind: str, stories: Path, tmp_path: Path) -> None:
    config = configuration(stories, tmp_path, **KINDS[kind])
    batches = initial(config, tmp_path / "start")
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32), tmp_path / "start", is_trainable=True
    )
    assert {name: getattr(theirs.peft_config["default"], f"use_{name}") for name in ("dora", "rslora")} == {
        name: kind == name for name in ("dora", "rslora")
    }
    surogate_core.run(config)
    ours = steps(tmp_path / "output")
    assert len(ours) == STEPS
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], betas=(0.9, 0.999), weight_decay=0.0)
    for number, record in enumerate(ours):
        loss = cross_entropy(theirs, batches.step(number).batches[0])
        assert record["loss"] == pytest.approx(loss.item(), abs=1e-5), f"step {number + 1}"
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = record["lr"]
        optimizer.step()
    assert ours[0]["loss"] - ours[-1]["loss"] > 0.3
    start, final = (load_file(tmp_path / place / "adapter_model.safetensors") for place in ("start", "output/last"))
    wanted = peft.get_peft_model_state_dict(theirs)
    assert final.keys() == wanted.keys()
    for name, tensor in final.items():
        torch.testing.assert_close(tensor, wanted[name].detach(), rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
        assert not torch.equal(tensor, start[name]), f"{name} was not trained"
    # what we wrote is what PEFT loads, and merging changes nothing
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(stories), tmp_path / "output" / "last").eval()
    merge(None, tmp_path / "output" / "last", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.arange(1, 61).view(2, 30)
    with torch.no_grad():
        apart, together = again.double()(input_ids=ids).logits, merged.double()(input_ids=ids).logits
    assert (apart - together).abs().max() < 1e-5


def test_dora_resumes_bit_for_bit(stories: Path, tmp_path: Path) -> None:
    """With dropout, recomputation and bf16 masters."""
    changes = {"lora_use_dora": True, "lora_dropout": 0.1, "lora_dtype": "bf16", "recompute": True, "max_steps": 4}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for directory in (whole, parts):
        directory.mkdir()
    surogate_core.run(configuration(stories, whole, **changes, lr_scheduler_type="constant"))
    for count in (2, 4):
        surogate_core.run({**configuration(stories, parts, **changes, lr_scheduler_type="constant"), "max_steps": count})
    one, two = (load_file(place / "output" / "last" / "adapter_model.safetensors") for place in (whole, parts))
    assert {tensor.dtype for tensor in one.values()} == {torch.bfloat16}
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_options_make_a_different_scale() -> None:
    from surogate_adapter_lora.lora import Lora

    assert Lora(options=Options(lora_rank=16, lora_alpha=32)).scale == 2
    assert Lora(options=Options(lora_rank=16, lora_alpha=32, lora_use_rslora=True)).scale == 8


def test_merge_adapter_writes_the_model_at_the_end(stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configuration(stories, tmp_path, max_steps=2, merge_adapter=True)
    surogate_core.run(config)
    assert f"merged       {tmp_path / 'output' / 'merged'}" in capsys.readouterr().out
    merge(None, tmp_path / "output" / "last", tmp_path / "wanted")
    one, two = (load_file(place / "model.safetensors") for place in (tmp_path / "output" / "merged", tmp_path / "wanted"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    AutoModelForCausalLM.from_pretrained(tmp_path / "output" / "merged")
    with pytest.raises(ConfigError, match="merge_adapter needs lora"):
        surogate_core.run({**config, "lora": False, "output_dir": str(tmp_path / "other")})
    assert not (tmp_path / "other").exists()
