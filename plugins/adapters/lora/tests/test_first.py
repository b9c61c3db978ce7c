"""``adapter_path``: a new adapter on top of another one, against PEFT, and what is refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from surogate_adapter_lora.lora import Lora
from surogate_adapter_lora.merge import merge
from surogate_adapter_lora.peft_format import Stored
from surogate_adapter_lora.plugin import Options
from surogate_model_transformers import slot_layers
from surogate_model_transformers.testing import short_run
from transformers import AutoModelForCausalLM

import surogate_core
from surogate_core.config import load
from surogate_core.contracts import Site
from surogate_core.errors import ConfigError, ModelError, PlanError, SurogateError
from surogate_core.host import load_host
from surogate_core.plan import make_plan
from surogate_core.train.setup import build


def made(base: Path, directory: Path, seed: int = 1, **changes: Any) -> Path:
    """An adapter by PEFT with random matrices."""
    torch.manual_seed(seed)
    settings = {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM", **changes}
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, qwen: Path) -> Path:
    return made(qwen, tmp_path_factory.mktemp("first"))


@pytest.fixture
def config(qwen: Path, first: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "text.txt").write_text("The cat sat on the mat and looked at the moon. " * 60)
    return short_run(
        qwen,
        tmp_path / "text.txt",
        tmp_path,
        weight_decay=0.1,
        lora_rank=4,
        lora_dropout=0.0,
        lora_target_modules=["v_proj", "up_proj"],
        adapter_path=str(first),
    )


def losses(directory: Path) -> list[float]:
    records = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["kind"] == "step"]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.double().eval()(input_ids=torch.arange(1, 61).view(2, 30)).logits


def on_base(qwen: Path, adapter: Path) -> torch.Tensor:
    return logits(peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(qwen, dtype=torch.float32), adapter))


def trained(config: dict[str, Any]) -> Path:
    surogate_core.run(config)
    return Path(config["output_dir"])


def merged_by_peft(base: Path, adapter: Path, directory: Path) -> None:
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    theirs.merge_and_unload().save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((base / name).read_bytes())


@pytest.mark.parametrize("mode", ["merge", "stack"])
def test_a_run_starts_from_the_first_adapter_and_saves_the_sum(
    mode: str, config: dict[str, Any], qwen: Path, first: Path, tmp_path: Path
) -> None:
    """Step by step the run on PEFT's own merged model, and PEFT finds its result in our files."""
    merged_by_peft(qwen, first, tmp_path / "merged")
    plain = {key: value for key, value in config.items() if key != "adapter_path"}
    reference = trained({**plain, "model": str(tmp_path / "merged"), "output_dir": str(tmp_path / "reference")})
    output = trained({**config, "adapter_mode": mode})
    torch.testing.assert_close(torch.tensor(losses(output)), torch.tensor(losses(reference)), rtol=0, atol=1e-5)
    ours, wanted = on_base(qwen, output / "last"), on_base(tmp_path / "merged", reference / "last")
    assert (ours - wanted).abs().max() < 1e-4
    assert (ours - on_base(qwen, first)).abs().max() > 1e-2
    merge(None, output / "last", tmp_path / "all")
    assert (logits(AutoModelForCausalLM.from_pretrained(tmp_path / "all")) - ours).abs().max() < 1e-5


@pytest.mark.parametrize("key", ["qlora_bnb", "qlora_fp8", "qlora_fp4"])
def test_it_is_merged_before_the_weights_are_quantised(
    key: str, config: dict[str, Any], qwen: Path, first: Path, tmp_path: Path
) -> None:
    """The quantised weights and the losses are those of a run on PEFT's merged model; of the same model stacked they are not."""
    merged_by_peft(qwen, first, tmp_path / "merged")
    plain = {name: value for name, value in config.items() if name != "adapter_path"} | {"model": str(tmp_path / "merged")}
    host = load_host()
    ours, wanted, stacked = (
        build(make_plan(load({**one, key: True}, host), host)).model for one in (config, plain, {**config, "adapter_mode": "stack"})
    )
    for name, layer in slot_layers(wanted):
        close = {"rtol": 0, "atol": 1e-6}  # PEFT adds in another order: the last bit of a sum may differ
        found = ours.get_submodule(name).storage.unpack(torch.float32)
        torch.testing.assert_close(found, layer.storage.unpack(torch.float32), **close, msg=name)
    name = "model.layers.1.mlp.up_proj"
    assert not ours.get_submodule(name).storage.weight.equal(stacked.get_submodule(name).storage.weight)
    output = trained({**config, key: True})
    reference = trained({**plain, key: True, "output_dir": str(tmp_path / "reference")})
    torch.testing.assert_close(torch.tensor(losses(output)), torch.tensor(losses(reference)), rtol=0, atol=1e-5)
    whole, own = on_base(qwen, output / "last"), on_base(tmp_path / "merged", reference / "last")
    assert (whole - own).abs().max() < 1e-4
    assert (whole - on_base(qwen, first)).abs().max() > 1e-3
    merge(None, output / "last", tmp_path / "all")
    assert (logits(AutoModelForCausalLM.from_pretrained(tmp_path / "all")) - whole).abs().max() < 1e-5


def test_each_expert_of_a_stack_gets_its_own_part_before_it_is_packed() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(3, 2, 6), torch.randn(3, 8, 2)
    lora = Lora(options=Options(adapter_path="x"))
    stored = Stored(rank=2, alpha=6, layers={"experts.up_proj": {"lora_A": a, "lora_B": b}})
    object.__setattr__(lora, "first", stored)  # as if it had been read from files
    packed = []

    class Keeps(torch.nn.Module):
        def pack(self, weight: torch.Tensor) -> None:
            packed.append(weight)

    for number in range(3):
        site = Site(name=f"experts.up_proj.{number}", kind="linear", shape=(8, 6), layer=0)
        lora.over(site, Keeps()).pack(torch.ones(8, 6))  # type: ignore[arg-type]
        torch.testing.assert_close(packed[-1], 1 + 3 * b[number] @ a[number])
    other = Keeps()
    assert lora.over(Site(name="experts.down_proj.0", kind="linear", shape=(8, 6), layer=0), other) is other  # type: ignore[arg-type]


def test_into_weights_that_the_checkpoint_holds_quantised_it_is_not_merged(
    config: dict[str, Any], qwen: Path, first: Path, tmp_path: Path
) -> None:
    held = tmp_path / "held" / qwen.name
    held.mkdir(parents=True)
    for path in qwen.iterdir():
        (held / path.name).write_bytes(path.read_bytes())
    written = json.loads((held / "config.json").read_text())
    form = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (held / "config.json").write_text(json.dumps({**written, "quantization_config": form}))
    refused({**config, "model": str(held)}, PlanError, "cannot be merged into weights that the checkpoint holds quantised (fp8)")
    host = load_host()
    assert make_plan(load({**config, "model": str(held), "adapter_mode": "stack"}, host), host).stored()


def test_the_first_stays_as_it_is_and_beside_the_weights_they_too(config: dict[str, Any], qwen: Path) -> None:
    host = load_host()
    stored = load_file(qwen / "model.safetensors")
    for mode, changes in (("merge", True), ("stack", False)):
        trainee = build(make_plan(load({**config, "adapter_mode": mode}, host), host))
        weight = trainee.model.get_parameter("model.layers.0.mlp.up_proj.weight")
        assert torch.equal(weight, stored["model.layers.0.mlp.up_proj.weight"]) is not changes
        assert {name.rpartition(".")[2] for name in trainee.adapters} == {"v_proj", "up_proj"}
        own = [parameter for module in trainee.adapters.values() for parameter in module.parameters()]
        assert sum(p.numel() for p in trainee.parameters) == sum(p.numel() for p in own)


@pytest.mark.parametrize(("dora", "dtype"), [(False, "fp32"), (True, "bf16")])
def test_it_resumes_bit_for_bit_and_notices_another_first(
    dora: bool, dtype: str, config: dict[str, Any], qwen: Path, tmp_path: Path
) -> None:
    config |= {"lora_use_dora": dora, "lora_dtype": dtype, "lora_target_modules": ["q_proj", "up_proj"]}
    whole = trained({**config, "output_dir": str(tmp_path / "whole")})
    trained({**config, "max_steps": 2})
    parts = trained(config)
    one, two = (load_file(place / "last" / "adapter_model.safetensors") for place in (whole, parts))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert {tensor.dtype for tensor in one.values()} == {torch.bfloat16 if dtype == "bf16" else torch.float32}
    assert on_base(qwen, parts / "last").isfinite().all()
    other = made(qwen, tmp_path / "other", seed=2)
    Path(config["adapter_path"]).rename(tmp_path / "away")
    try:
        other.rename(config["adapter_path"])
        with pytest.raises(ModelError, match="not the one that was under this one"):
            trained({**config, "max_steps": 6})
    finally:
        Path(config["adapter_path"]).rename(other)
        (tmp_path / "away").rename(config["adapter_path"])


def spoil(first: Path, directory: Path, tensors: Any = None, **settings: Any) -> Path:
    directory.mkdir()
    written = json.loads((first / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps({**written, **settings}))
    stored = load_file(first / "adapter_model.safetensors")
    save_file(tensors(stored) if tensors else stored, directory / "adapter_model.safetensors")
    return directory


def refused(config: dict[str, Any], kind: type[SurogateError], said: str) -> None:
    with pytest.raises(kind) as caught:
        surogate_core.run(config)
    assert any(said in problem.what and problem.how and problem.where for problem in caught.value.problems), caught.value.problems
    assert not Path(config["output_dir"]).exists(), "something was written"


def test_other_bases_ranks_and_torn_adapters_are_named(config: dict[str, Any], first: Path, stories: Path, tmp_path: Path) -> None:
    key = "base_model.model.model.layers.1.self_attn.q_proj"

    def without(part: str) -> Any:
        return lambda stored: {name: tensor for name, tensor in stored.items() if not name.startswith(part)}

    def without_up(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in stored.items() if "up_proj" not in name}

    cases = {
        "made for some/other-model": spoil(first, tmp_path / "a", base_model_name_or_path="some/other-model"),
        "has shape (3, 64), r is 5": spoil(first, tmp_path / "b", r=5),
        f"{key}.lora_B.weight missing": spoil(first, tmp_path / "c", without(f"{key}.lora_B")),
        "no tensors for target up_proj": spoil(first, tmp_path / "d", without_up, target_modules=["q_proj", "up_proj"]),
        "is no tensor of LoRA": spoil(first, tmp_path / "e", lambda stored: {**stored, "lm_head.weight": torch.zeros(2, 2)}),
        "no tensors for lm_head": spoil(first, tmp_path / "f", modules_to_save=["lm_head"]),
        "the adapter is DoRA": made(Path(config["model"]), tmp_path / "g", use_dora=True),
    }
    for said, path in cases.items():
        refused({**config, "adapter_path": str(path)}, PlanError, said)
    pickled = spoil(first, tmp_path / "p")
    (pickled / "adapter_model.safetensors").unlink()
    torch.save({}, pickled / "adapter_model.bin")
    refused({**config, "adapter_path": str(pickled)}, PlanError, "pickle file")
    renamed = spoil(first, tmp_path / "h", base_model_name_or_path=str(stories))
    refused({**config, "model": str(stories), "adapter_path": str(renamed)}, PlanError, "the adapter is of another model")
    with pytest.raises(ModelError, match="pickle file"):
        merge(None, pickled, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    refused({**config, "lora_use_dora": True, "lora_target_modules": ["up_proj"]}, PlanError, "every layer of the first adapter")


def test_what_excludes_what_is_told_by_the_configuration_alone(config: dict[str, Any], tmp_path: Path) -> None:
    refused({**config, "adapter_path": str(tmp_path)}, ConfigError, "no adapter_config.json")
    refused({**config, "lora": False}, ConfigError, "needs lora = true")
    refused({**config, "adapter_mode": "stack", "lora_use_dora": True}, ConfigError, "lora_use_dora with adapter_mode")
    alone = {key: value for key, value in config.items() if key != "adapter_path"}
    refused({**alone, "adapter_mode": "stack"}, ConfigError, "needs adapter_path")
