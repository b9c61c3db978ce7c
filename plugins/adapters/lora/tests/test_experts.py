"""LoRA of stacked experts and trained routers, against PEFT's adaptation of parameters and its modules_to_save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import peft
import pytest
import surogate_model_transformers as models
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from surogate_adapter_lora.merge import merge
from surogate_adapter_lora.serve import open_model
from surogate_model_transformers.testing import short_run, tiny_model
from transformers import AutoModelForCausalLM

import surogate_core
from surogate_core.config import load
from surogate_core.errors import ModelError, PlanError
from surogate_core.host import load_host
from surogate_core.plan import make_plan
from surogate_core.train.setup import build

IDS = torch.arange(1, 41).view(2, 20)
STACKED = ("gate_up_proj", "down_proj")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model .*tie_word_embeddings"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]


@pytest.fixture(scope="module", params=["qwen3_moe", "gpt_oss"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    return tiny_model(tmp_path_factory.mktemp("tiny"), request.param, **shape, initializer_range=0.2)


@pytest.fixture
def config(source: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "text.txt").write_text("The cat sat on the mat and looked at the moon. " * 60)
    return short_run(source, tmp_path / "text.txt", tmp_path, lora_rank=3, lora_dropout=0.0, train_router=True, recompute=True)


def moved(config: dict[str, Any], directory: Path, **changes: Any) -> Any:
    """The trainee of a configuration, its adapter and routers away from their start, and saved in ``directory``."""
    host = load_host()
    plan = make_plan(load({**config, **changes}, host), host)
    trainee = build(plan)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainee.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.1)
    assert plan.adapter is not None
    plan.adapter.save(trainee.adapters, directory, config["model"])
    assert plan.figures.trainable == sum(parameter.numel() for parameter in trainee.parameters)
    return trainee


def on_base(source: str | Path, adapter: Path, **settings: Any) -> Any:
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, experts_implementation="eager")
    return peft.PeftModel.from_pretrained(base, adapter, **settings).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


def ours(trainee: Any) -> torch.Tensor:
    """Logits of a trainee."""
    batch = _Batch()
    with torch.no_grad():
        return models.logits(trainee.model.eval(), batch)


class _Batch:
    input_ids = IDS
    document_ids = torch.zeros_like(IDS)
    position_ids = torch.arange(IDS.shape[1]).expand_as(IDS)
    labels = IDS.roll(-1, 1)
    weights = torch.ones(IDS.shape)
    inputs: ClassVar[dict[str, Any]] = {}


def test_peft_loads_it_and_has_its_outputs_and_gradients(config: dict[str, Any], source: Path, tmp_path: Path) -> None:
    trainee = moved(config, tmp_path / "adapter")
    theirs = on_base(source, tmp_path / "adapter", is_trainable=True)
    assert not torch.allclose(logits(theirs), logits(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)), atol=1e-2)
    torch.testing.assert_close(ours(trainee), logits(theirs), rtol=0, atol=1e-5)
    models.batch_loss(trainee.model.train(), _Batch()).backward()
    found = theirs(input_ids=IDS, use_cache=False).logits
    F.cross_entropy(found.flatten(0, 1), _Batch.labels.flatten(), reduction="sum").backward()
    own = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    experts = [name for name in trainee.adapters if name.endswith(STACKED)]
    assert len(experts) == 4
    for name in experts:
        module, (parent, _, role) = trainee.adapters[name], name.rpartition(".")
        place = f"base_model.model.{parent}" + (".base_layer" if role == "gate_up_proj" else "")
        a, b = (own[f"{place}.lora_{letter}.default.weight"] for letter in "AB")
        for one, two in ((module.lora_A.grad, a.view(4, 3, -1)), (module.lora_B.grad, b.view(len(b), 3, 4).permute(2, 0, 1))):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5 * float(two.abs().max()), msg=name)
    for name in models.routers(trainee.model):
        wanted = own[f"base_model.model.{name}.modules_to_save.default.weight"]
        gradient = trainee.model.get_submodule(name).weight.grad
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_peft_writes_the_same_names_and_shapes(config: dict[str, Any], source: Path, tmp_path: Path) -> None:
    moved(config, tmp_path / "ours")
    on_base(source, tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    one, two = (load_file(tmp_path / each / "adapter_model.safetensors") for each in ("ours", "theirs"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["target_parameters"]


@pytest.mark.parametrize("targets", [["experts.gate_up_proj", "experts.down_proj"], ["down_proj"]])
def test_adapters_of_peft_are_read(targets: list[str], config: dict[str, Any], source: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], target_parameters=targets, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), settings)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    wanted = logits(theirs)
    opened = open_model(str(source), [tmp_path / "theirs"], "fp32")
    torch.testing.assert_close(logits(opened.model), wanted, rtol=0, atol=1e-5)
    opened.use()
    assert not torch.allclose(logits(opened.model), wanted, atol=1e-2)
    merge(None, tmp_path / "theirs", tmp_path / "merged", "fp32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["merge", "stack"])
def test_on_top_of_another_adapter(mode: str, config: dict[str, Any], source: Path, tmp_path: Path) -> None:
    """What is saved is both together."""
    first = tmp_path / "first"
    moved(config, first, train_router=False, lora_rank=2)
    trainee = moved(config, tmp_path / "both", adapter_path=str(first), adapter_mode=mode)
    wanted = logits(on_base(source, tmp_path / "both"))
    torch.testing.assert_close(ours(trainee), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_routers_train_and_are_there_again(config: dict[str, Any], source: Path, tmp_path: Path) -> None:
    """Four steps at once, and two and two from a checkpoint: every bit of the adapter and its routers. Without the option
    they stay as they are."""
    surogate_core.run({**config, "save_steps": 2, "output_dir": str(tmp_path / "whole")})
    parts = {**config, "output_dir": str(tmp_path / "parts")}
    surogate_core.run({**parts, "max_steps": 2})
    surogate_core.run(parts)
    whole, again = (load_file(tmp_path / each / "checkpoint-00000004" / "adapter_model.safetensors") for each in ("whole", "parts"))
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    for name in models.routers(base):
        assert not torch.equal(whole[f"base_model.model.{name}.weight"], base.get_submodule(name).weight)
    surogate_core.run({**config, "train_router": False, "output_dir": str(tmp_path / "without")})
    without = load_file(tmp_path / "without" / "checkpoint-00000004" / "adapter_model.safetensors")
    assert without.keys() == {name for name in whole if "lora_" in name}


def test_it_starts_as_the_base_model_and_drops_inputs_only_in_training(config: dict[str, Any], source: Path) -> None:
    host = load_host()
    plan = make_plan(load({**config, "lora_dropout": 0.5}, host), host)
    trainee = build(plan)
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    torch.testing.assert_close(ours(trainee), logits(base), rtol=0, atol=1e-5)
    module = trainee.adapters["model.layers.0.mlp.experts.down_proj"]
    torch.manual_seed(0)
    x, ends = torch.ones(4000, module.lora_A.shape[-1]), torch.tensor([1000, 2000, 3000, 4000], dtype=torch.int32)
    with torch.no_grad():
        module.lora_B.fill_(1.0)
        kept = module.eval()(x, x.new_zeros(4000, module.lora_B.shape[1]), ends)[::1000]
        dropped = module.train()(x, x.new_zeros(4000, module.lora_B.shape[1]), ends)
    assert len(dropped.unique(dim=0)) > 100
    draws = dropped.view(4, 1000, -1)
    assert ((draws.mean(1) - kept).abs() < 5 * draws.std(1) / 1000**0.5).all()  # standard errors


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_use_dora": True}, r"'all' names stacked expert layers \(down_proj, gate_up_proj\): .* no DoRA"),
        ({"lora_target_modules": ["experts"]}, "'experts' matches no layer of this model"),
        ({"train_modules": ["layers.1.mlp.experts"]}, "model.layers.1.mlp.experts would be both trained whole and adapted"),
        (
            {"train_modules": ["layers.1.mlp.experts"], "lora_target_modules": ["q_proj"], "qlora_fp8": True},
            "model.layers.1.mlp.experts held quantised, cannot be trained whole",
        ),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], said: str, config: dict[str, Any]) -> None:
    host = load_host()
    with pytest.raises(PlanError, match=said):
        make_plan(load({**config, **changes}, host), host)


def test_routers_where_there_are_none(config: dict[str, Any], tmp_path: Path) -> None:
    host = load_host()
    with pytest.raises(PlanError, match="train_router = true, and this model has no routers"):
        make_plan(load({**config, "model": str(tiny_model(tmp_path / "dense"))}, host), host)


def test_routers_that_inherit_from_linear_layers_are_none(config: dict[str, Any], tmp_path: Path) -> None:
    """Phi-MoE's, called like a linear layer, would give one tensor where two are wanted."""
    host = load_host()
    phi = tiny_model(tmp_path / "phi", "phimoe", num_local_experts=4, num_experts_per_tok=2)
    for changes in ({"train_router": False}, {}, {"qlora_bnb": True}):
        plan = make_plan(load({**config, **changes, "model": str(phi)}, host), host)
        assert not [site.name for site in plan.sites if "router" in site.name]
    summary = surogate_core.run({**config, "model": str(phi), "output_dir": str(tmp_path / "out"), "max_steps": 2})
    moved = load_file(summary.checkpoint / "adapter_model.safetensors")
    assert any(name.endswith("layers.0.mlp.router.weight") for name in moved)


def test_files_that_do_not_belong_together(config: dict[str, Any], source: Path, tmp_path: Path) -> None:
    moved(config, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "r": 5}))
    with pytest.raises(ModelError, match="do not belong together"):
        open_model(str(source), [tmp_path / "adapter"], "fp32")
