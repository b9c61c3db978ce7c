"""Prompt and prefix tuning against PEFT: the same start, 20 steps, packed rows here and one document a row there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import surogate_model_transformers as models
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from surogate_adapter_lora.commands import generate_command
from surogate_adapter_prompt.plugin import Options
from surogate_adapter_prompt.tokens import Virtual
from surogate_model_transformers.testing import short_run, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import surogate_core
from surogate_core import testing
from surogate_core.config import load
from surogate_core.errors import ModelError, PlanError
from surogate_core.host import load_host
from surogate_core.plan import make_plan
from surogate_core.train.setup import build

STEPS, COUNT = 20, 5
KINDS = ("prompt", "prefix")


@pytest.fixture(scope="module")
def stories(shared_data: Path) -> Path:
    return shared_data / "models" / "stories260K"


@pytest.fixture
def config(stories: Path, tmp_path: Path) -> dict[str, Any]:
    lines = (stories.parents[1] / "pretrain" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:9_000].split("\n\n")
    rows = testing.write_rows(tmp_path / "rows.jsonl", [{"text": line} for line in lines if line])
    own = {"sequence_len": 96, "max_steps": STEPS, "lr_scheduler_type": "linear", "num_virtual_tokens": COUNT}
    return short_run(stories, rows, tmp_path, **own)


def prepared(config: dict[str, Any]) -> Any:
    host = load_host()
    plan = make_plan(load(config, host), host)
    return plan, build(plan)


def each_document(model: Any, batch: Any) -> Tensor:
    """PEFT's model on every document of the batch alone, in a row of its own: the weighted mean of the cross-entropy."""
    total, weight = torch.zeros(()), torch.zeros(())
    for row in range(len(batch.input_ids)):
        for number in batch.document_ids[row].unique():
            at = batch.document_ids[row] == number
            if not batch.weights[row][at].any():
                continue
            logits = model(input_ids=batch.input_ids[row][at][None], attention_mask=torch.ones(1, int(at.sum()))).logits[0]
            labels = batch.labels[row][at]
            logits = logits[-len(labels) :]
            each = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            total, weight = total + (each * batch.weights[row][at]).sum(), weight + batch.weights[row][at].sum()
    return total / weight


def by_peft(stories: Path, adapter: Path, trainable: bool = False) -> Any:
    base = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(base, adapter)
    if not trainable:
        return loaded
    settings = peft.PeftConfig.from_pretrained(adapter)  # from_pretrained refuses to go on training virtual tokens
    settings.inference_mode = False
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32), settings)
    peft.set_peft_model_state_dict(model, peft.get_peft_model_state_dict(loaded))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_are_pefts_document_by_document(kind: str, config: dict[str, Any], stories: Path, tmp_path: Path) -> None:
    config["adapter"] = kind
    plan, trainee = prepared(config)
    assert plan.figures.trainable == sum(p.numel() for p in trainee.parameters) == trainee.adapters["virtual_tokens"].weight.numel()
    plan.adapter.save(trainee.adapters, tmp_path / "start", str(stories))
    batches = plan.pipeline.prepare(plan.model_source.tokenizer(), lambda text: None).training(2, 1)
    theirs = by_peft(stories, tmp_path / "start", trainable=True)
    surogate_core.run(config)
    records = map(json.loads, (tmp_path / "output" / "metrics.jsonl").read_text().splitlines())
    ours = [record for record in records if record["kind"] == "step"]
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    assert sum(p.numel() for p in trained) == plan.figures.trainable
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.999), weight_decay=0.0)
    packed = 0
    for number, record in enumerate(ours):
        batch = batches.step(number).batches[0]
        packed += int(batch.document_ids.max())
        loss = each_document(theirs, batch)
        assert record["loss"] == pytest.approx(loss.item(), abs=1e-5), f"step {number + 1}"
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = record["lr"]
        optimizer.step()
    assert packed > STEPS, "rows with several documents are what this is about"
    saved = load_file(tmp_path / "output" / "last" / "adapter_model.safetensors")["prompt_embeddings"]
    wanted = peft.get_peft_model_state_dict(theirs)["prompt_embeddings"]
    torch.testing.assert_close(saved, wanted.detach(), rtol=0, atol=1e-4)
    assert (saved - load_file(tmp_path / "start" / "adapter_model.safetensors")["prompt_embeddings"]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_it_resumes_bit_for_bit_and_peft_generates_from_it(
    kind: str, config: dict[str, Any], stories: Path, tmp_path: Path
) -> None:
    config |= {"adapter": kind, "max_steps": 4, "lr_scheduler_type": "constant", "recompute": True}
    surogate_core.run({**config, "output_dir": str(tmp_path / "whole")})
    surogate_core.run({**config, "max_steps": 2})
    surogate_core.run(config)
    one, two = (load_file(tmp_path / place / "last" / "adapter_model.safetensors") for place in ("whole", "output"))
    assert torch.equal(one["prompt_embeddings"], two["prompt_embeddings"])
    last, words = tmp_path / "output" / "last", ["--prompt", "Once upon", "--max-new-tokens", "6"]
    told = CliRunner().invoke(generate_command, [str(last), *words], catch_exceptions=False).stdout
    model, tokenizer = by_peft(stories, last).eval(), AutoTokenizer.from_pretrained(stories)
    start = ids = tokenizer("Once upon", return_tensors="pt")["input_ids"]
    for _ in range(6):
        ids = torch.cat([ids, model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1:].argmax(-1)], dim=1)
    assert told == tokenizer.decode(ids[0, start.shape[1] :], skip_special_tokens=True) + "\n"


@pytest.mark.parametrize("kind", KINDS)
def test_documents_of_a_row_do_not_see_each_other(kind: str, config: dict[str, Any]) -> None:
    _, trainee = prepared({**config, "adapter": kind})
    ids = torch.arange(1, 21)[None]
    places, documents = torch.arange(20)[None] % 10, torch.arange(20)[None] // 10
    from surogate_model_transformers.attention import hidden_states

    trainee.model.eval()
    with torch.no_grad():
        both = hidden_states(trainee.model, ids, places, documents)
        second = hidden_states(trainee.model, ids[:, 10:], places[:, 10:], documents[:, 10:])
        plain = hidden_states(trainee.model, torch.cat([ids[:, :10] + 5, ids[:, 10:]], 1), places, documents)
    torch.testing.assert_close(both[:, 10:], second, rtol=1e-4, atol=1e-5)
    assert torch.equal(both[:, 10:], plain[:, 10:])


def test_what_cannot_be_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="longer than the context of 512"):
        surogate_core.run({**config, "adapter": "prompt", "sequence_len": 510})
    assert not (tmp_path / "output").exists()
    windows = tiny_model(tmp_path / "mistral", "mistral", sliding_window=16)
    for kind in KINDS:
        with pytest.raises(PlanError, match="sliding windows"):
            prepared({**config, "model": str(windows), "adapter": kind})
    plan, trainee = prepared({**config, "adapter": "prompt"})
    prompt, prefix = (Virtual(kind=kind, options=Options()) for kind in KINDS)  # type: ignore[arg-type]
    prompt.save(trainee.adapters, tmp_path / "a", "m")
    with pytest.raises(ModelError, match="peft_type is 'PROMPT_TUNING'"):
        prefix.load(trainee.adapters, tmp_path / "a")
    save_file({"prompt_embeddings": torch.zeros(3, 64)}, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"shape \(3, 64\), wanted \(5, 64\)"):
        prompt.load(trainee.adapters, tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="no readable adapter"):
        prompt.load(trainee.adapters, tmp_path / "a")
    with pytest.raises(ModelError, match="cannot be merged"):
        prompt.delta(trainee.adapters["virtual_tokens"])
    assert plan.adapter.claim(plan.sites[0])
    assert models.list_sites(trainee.model)


@pytest.mark.parametrize("kind", KINDS)
def test_long_rows_see_the_virtual_tokens_too(kind: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU rows above a length are computed document by document, which knows of no shared tokens."""
    from surogate_model_transformers import attention

    _, trainee = prepared({**config, "adapter": kind})
    given = torch.arange(1, 21)[None], torch.arange(20)[None] % 10, torch.arange(20)[None] // 10
    with torch.no_grad():
        short = attention.hidden_states(trainee.model.eval(), *given)
        monkeypatch.setattr(attention, "LONG_ROW", 4)
        assert torch.equal(attention.hidden_states(trainee.model, *given), short)
