"""``train_modules``: parts trained whole beside LoRA, against PEFT's ``modules_to_save``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from surogate_adapter_lora.export import export
from surogate_adapter_lora.merge import merge
from surogate_adapter_lora.parts import chosen, matches
from surogate_adapter_lora.serve import open_model
from surogate_model_transformers.testing import short_run, tiny_model
from transformers import AutoModelForCausalLM

import surogate_core
from surogate_core.config import load
from surogate_core.errors import ConfigError, ModelError, PlanError
from surogate_core.host import load_host
from surogate_core.plan import make_plan
from surogate_core.train.setup import build

IDS = torch.arange(1, 41).view(2, 20)
pytestmark = pytest.mark.filterwarnings("ignore:Model .*tie_word_embeddings")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"), tie_word_embeddings=request.param)


@pytest.fixture
def config(source: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "text.txt").write_text("The cat sat on the mat and looked at the moon. " * 60)
    return short_run(
        source,
        tmp_path / "text.txt",
        tmp_path,
        lora_rank=4,
        lora_dropout=0.0,
        lora_target_modules=["q_proj"],
        train_modules=["lm_head", "*norm", "layers.1.mlp.up_proj"],
    )


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.double().eval()(input_ids=IDS).logits


def on_base(source: Path, adapter: Path) -> Any:
    return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), adapter)


@pytest.mark.parametrize("quantised", [False, True])
def test_chosen_parts_train_and_nothing_else_and_peft_loads_them(
    quantised: bool, config: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    """Those that the plan counts, beside a quantised base too: of that base, what no quantizer holds."""
    if quantised:
        config |= {"qlora_bnb": True, "train_modules": ["lm_head", "*norm"]}
    host = load_host()
    plan = make_plan(load(config, host), host)
    trainee = build(plan)
    base = dict(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).named_parameters())
    tied = "lm_head.weight" not in base
    wanted = {name for name in base if "norm" in name or ("layers.1.mlp.up_proj" in name and not quantised)}
    wanted |= {"model.embed_tokens.weight"} if tied else {"lm_head.weight"}
    assert {name for name in trainee.names if ".adapter." not in name} == wanted
    assert plan.figures.trainable == sum(parameter.numel() for parameter in trainee.parameters)
    assert bool(plan.stored()) is quantised
    adapters = sum(
        parameter.numel() for name, parameter in zip(trainee.names, trainee.parameters, strict=True) if "adapter" in name
    )
    assert plan.figures.memory["adapter"] == 4 * adapters
    surogate_core.run(config)
    last = tmp_path / "output" / "last"
    theirs = on_base(source, last)
    assert set(theirs.peft_config["default"].modules_to_save) == {name.rpartition(".")[0] for name in wanted} | (
        {"lm_head"} if tied else set()
    )
    merge(None, last, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    for name, parameter in merged.named_parameters():
        assert torch.equal(parameter, base[name]) is not (name in wanted or "q_proj" in name), name
    ours = logits(merged)
    assert (ours - logits(theirs)).abs().max() < 1e-5
    assert (ours - logits(open_model(str(last), (), "fp32").model)).abs().max() < 1e-5
    assert (ours - logits(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32))).abs().max() > 1e-2


@pytest.mark.parametrize("source", [False], indirect=True, ids=["untied"])
def test_the_steps_are_pefts(config: dict[str, Any], source: Path, tmp_path: Path) -> None:
    """Head and norms beside LoRA, four steps. PEFT trains a copy of a tied head, so this is about models without one."""
    host = load_host()
    plan = make_plan(load(config, host), host)
    trainee = build(plan)
    assert plan.adapter is not None
    plan.adapter.save(trainee.adapters, tmp_path / "start", str(source))
    batches = plan.pipeline.prepare(plan.model_source.tokenizer(), lambda text: None).training(2, 1)
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), tmp_path / "start", is_trainable=True
    )
    surogate_core.run(config)
    records = map(json.loads, (tmp_path / "output" / "metrics.jsonl").read_text().splitlines())
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    for number, record in enumerate(record for record in records if record["kind"] == "step"):
        batch = batches.step(number).batches[0]
        ids, place = batch.document_ids, torch.arange(64)
        allowed = (ids[:, :, None] == ids[:, None, :]) & (place[:, None] >= place[None, :])
        found = theirs(
            input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=allowed[:, None], use_cache=False
        ).logits
        each = torch.nn.functional.cross_entropy(found.flatten(0, 1), batch.labels.flatten(), reduction="none")
        loss = (each * batch.weights.flatten()).sum() / batch.weights.sum()
        assert record["loss"] == pytest.approx(loss.item(), abs=1e-5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    saved = load_file(tmp_path / "output" / "last" / "adapter_model.safetensors")
    wanted = peft.get_peft_model_state_dict(theirs)
    assert saved.keys() == wanted.keys()
    for name, tensor in saved.items():
        torch.testing.assert_close(tensor, wanted[name].detach(), rtol=0, atol=1e-4)


def test_it_resumes_bit_for_bit(config: dict[str, Any], tmp_path: Path) -> None:
    surogate_core.run({**config, "output_dir": str(tmp_path / "whole")})
    surogate_core.run({**config, "max_steps": 2})
    surogate_core.run(config)
    one, two = (load_file(tmp_path / place / "last" / "adapter_model.safetensors") for place in ("whole", "output"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_what_names_nothing_or_too_much_is_refused(config: dict[str, Any], source: Path, tmp_path: Path) -> None:
    for changes, kind, said in (
        ({"train_modules": ["haed"]}, PlanError, "'haed' matches no part"),
        ({"lora_target_modules": ["all"]}, PlanError, "both trained whole and adapted"),
        ({"lora": False}, ConfigError, "train_modules needs lora"),
    ):
        with pytest.raises(kind, match=said):
            surogate_core.run({**config, **changes})
        assert not (tmp_path / "output").exists()
    surogate_core.run({**config, "max_steps": 1})
    last = tmp_path / "output" / "last"
    with pytest.raises(ModelError, match="modules_to_save"):
        merge(None, [last, last], tmp_path / "merged")
    with pytest.raises(ModelError, match="modules_to_save"):
        open_model(str(source), [last, last], "fp32")
    with pytest.raises(PlanError, match="trained whole"):
        surogate_core.run({**config, "adapter_path": str(last), "output_dir": str(tmp_path / "second"), "train_modules": []})


@pytest.mark.parametrize("source", [False], indirect=True, ids=["untied"])
def test_what_is_held_quantised_is_refused_by_name(config: dict[str, Any], source: Path, tmp_path: Path) -> None:
    """Packed here or in the checkpoint: there is no weight that could be trained."""
    export(str(source), tmp_path / "nf4", "bitsandbytes")
    host, name = load_host(), "model.layers.1.mlp.up_proj"
    for changes in ({"qlora_bnb": True}, {"qlora_fp8": True}, {"model": str(tmp_path / "nf4")}):
        with pytest.raises(PlanError) as caught:
            make_plan(load({**config, **changes}, host), host)
        (problem,) = caught.value.problems
        assert (problem.what, problem.where) == (f"{name} held quantised, cannot be trained whole", "train_modules")
        assert "lora_target_modules" in problem.how
    with pytest.raises(PlanError, match=r"gate_proj, model\.layers\.0\.mlp\.up_proj and 5 more held quantised"):
        make_plan(load({**config, "qlora_fp4": True, "train_modules": ["mlp", "o_proj"]}, host), host)


def test_patterns_name_whole_parts_ends_and_wildcards(source: Path) -> None:
    assert matches("model.layers.3.mlp.up_proj", "up_proj")
    assert matches("model.layers.3.mlp.up_proj", "layers.3")
    assert matches("model.layers.3.mlp.up_proj", "mlp.*")
    assert matches("model.norm", "*norm")
    assert not matches("model.layers.3.mlp.up_proj", "proj")
    assert not matches("model.layers.31.mlp", "layers.3")
    model = AutoModelForCausalLM.from_pretrained(source)
    both = {"model.embed_tokens", "lm_head"} if model.config.tie_word_embeddings else {"lm_head"}
    assert set(chosen(model, ["lm_head"])) == both
