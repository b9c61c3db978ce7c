"""Our LoRA against PEFT's: the same numbers forward and backward, and the same files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import surogate_model_transformers as models
import torch
from safetensors.torch import load_file
from surogate_adapter_lora.lora import Lora, LoraLinear, build
from surogate_adapter_lora.merge import merge
from surogate_adapter_lora.plugin import Options
from torch import nn
from transformers import AutoModelForCausalLM

from surogate_core.config import CoreOptions
from surogate_core.contracts import Context, Site
from surogate_core.errors import ModelError, Refused

OPTIONS = Options(lora_rank=4, lora_alpha=12, lora_dropout=0.0)
SITE = Site(name="model.layers.0.mlp.up_proj", kind="linear", shape=(24, 16), layer=0)


def made(options: Options = OPTIONS, seed: int = 0) -> tuple[Lora, LoraLinear]:
    lora = build(options, Context(config=CoreOptions(model="m")))
    module = lora.linear(SITE)
    lora.reset(module, torch.Generator().manual_seed(seed))
    return lora, module


def peft_layer(ours: LoraLinear, base: nn.Linear, dropout: float = 0.0) -> Any:
    config = peft.LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout, target_modules=["0"])
    wrapped = peft.get_peft_model(nn.Sequential(base), config).base_model.model[0]
    wrapped.lora_A["default"].weight.data.copy_(ours.lora_A)
    wrapped.lora_B["default"].weight.data.copy_(ours.lora_B)
    return wrapped


def test_it_starts_as_the_base_model_with_pefts_spread() -> None:
    lora, module = made(Options(lora_rank=64))
    x, y = torch.randn(2, 3, 16), torch.randn(2, 3, 24)
    assert torch.equal(module(x, y), y)
    bound = 1 / 16**0.5
    assert module.lora_A.abs().max() <= bound
    assert module.lora_A.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert not module.lora_B.any()
    assert torch.equal(module.lora_A, made(Options(lora_rank=64))[1].lora_A)
    assert not torch.equal(module.lora_A, made(Options(lora_rank=64), seed=1)[1].lora_A)
    assert lora.scale == 32 / 64


def test_values_and_gradients_are_pefts() -> None:
    """In float64, so that only the formula is compared."""
    torch.manual_seed(0)
    _, module = made()
    module.double().lora_B.data.normal_()
    base = nn.Linear(16, 24, dtype=torch.float64)
    reference = peft_layer(module, base).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    twin = x.detach().clone().requires_grad_(True)
    weight = torch.randn(2, 5, 24, dtype=torch.float64)
    ours = module(x, torch.nn.functional.linear(x, base.weight, base.bias))
    theirs = reference(twin)
    torch.testing.assert_close(ours, theirs)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    for one, other in (
        (x, twin),
        (module.lora_A, reference.lora_A["default"].weight),
        (module.lora_B, reference.lora_B["default"].weight),
    ):
        torch.testing.assert_close(one.grad, other.grad)


def test_dropout_acts_on_the_input_in_training_alone() -> None:
    _, module = made(Options(lora_rank=4, lora_alpha=12, lora_dropout=0.5))
    module.lora_B.data.normal_()
    reference = peft_layer(module, nn.Linear(16, 24), dropout=0.5)
    x = torch.randn(3, 16)
    y = reference.base_layer(x)
    torch.manual_seed(7)
    ours = module(x, y)
    torch.manual_seed(7)
    torch.testing.assert_close(ours, reference(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.eval()(x, y), reference.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_masters_keep_their_dtype_beside_other_activations(name: str) -> None:
    wanted = torch.float32 if name == "fp32" else torch.bfloat16
    lora, module = made(Options(lora_dtype=name))  # type: ignore[arg-type]
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(3, 16, dtype=dtype)
        y = module(x, torch.zeros(3, 24, dtype=dtype))
        assert y.dtype == dtype
        y.sum().backward()
    assert {p.dtype for p in module.parameters()} == {wanted}
    assert module.lora_B.grad is not None
    assert module.lora_B.grad.dtype == wanted
    assert lora.delta(module).dtype == torch.float32


def adapted(source: Path, options: Options, directory: Path) -> tuple[Any, Lora, dict[str, nn.Module]]:
    """Our model with a random adapter, saved to ``directory``."""
    settings = models.Settings(CoreOptions(model=str(source), model_dtype="fp32", sequence_len=64))
    config = models.read_config(settings)
    lora = Lora(options=options)
    sites = [site for site in models.list_sites(models.skeleton(config, settings)) if lora.claim(site) is None]
    modules: dict[str, nn.Module] = {site.name: lora.linear(site) for site in sites}
    generator = torch.Generator().manual_seed(5)
    for module in modules.values():
        lora.reset(module, generator)
        module.get_parameter("lora_B").data.normal_(std=0.05, generator=generator)
    model = models.load_model(config, settings, device="cpu", prepare=lambda made: models.fill_slots(made, {}, modules))
    lora.save(modules, directory, str(source))
    return model.eval(), lora, modules


def our_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    model.set_attn_implementation("sdpa")
    return logits(model, ids)


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """In float64: in float32 two orders of the same sums already differ by 1e-5 where logits reach 16."""
    with torch.no_grad():
        return model.double().eval()(input_ids=ids).logits


@pytest.mark.parametrize("targets", [["all"], ["q_proj", "layers.1.mlp.down_proj"]])
@pytest.mark.parametrize("family", ["qwen", "stories"])
def test_peft_loads_our_files_and_gives_our_logits(
    family: str, targets: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = request.getfixturevalue(family)
    model, lora, modules = adapted(source, Options(lora_rank=4, lora_target_modules=targets), tmp_path)
    ids = torch.arange(1, 61).view(2, 30)
    ours = our_logits(model, ids)
    base = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    plain = logits(base, ids)
    base.float()
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    assert {name for name, module in theirs.base_model.model.named_modules() if hasattr(module, "lora_A")} == set(modules)
    assert (ours - logits(theirs, ids)).abs().max() < 1e-5
    assert (ours - plain).abs().max() > 1e-2
    merged = theirs.merge_and_unload()
    for name, module in modules.items():
        base_weight = model.get_submodule(name).weight
        torch.testing.assert_close(
            merged.get_submodule(name).weight - base_weight, lora.delta(module).double(), rtol=1e-5, atol=1e-6
        )


def test_what_is_saved_is_read_back_bit_for_bit(qwen: Path, tmp_path: Path) -> None:
    _, lora, modules = adapted(qwen, OPTIONS, tmp_path)
    kept = {name: [p.detach().clone() for p in module.parameters()] for name, module in modules.items()}
    for module in modules.values():
        lora.reset(module, torch.Generator().manual_seed(99))
    lora.load(modules, tmp_path)
    for name, module in modules.items():
        assert all(torch.equal(one, other) for one, other in zip(kept[name], module.parameters(), strict=True))


def test_an_adapter_made_by_peft_is_read(qwen: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(qwen), config).eval()
    for name, param in theirs.named_parameters():
        if "lora_B" in name:
            param.data.normal_(std=0.2)
    theirs.save_pretrained(tmp_path / "peft")
    options = Options(lora_rank=4, lora_alpha=12, lora_target_modules=["q_proj", "up_proj"])
    model, lora, modules = adapted(qwen, options, tmp_path / "ours")
    lora.load(modules, tmp_path / "peft")
    ids = torch.arange(1, 31)[None]
    assert (our_logits(model, ids) - logits(theirs, ids)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("use_dora", True, "lora_magnitude_vector missing"),
        ("use_rslora", True, "lora_use_rslora True"),
        ("bias", "all", "bias = 'all'"),
        ("rank_pattern", {"q_proj": 8}, "rank_pattern"),
        ("alpha_pattern", {"q_proj": 8}, "alpha_pattern"),
        ("modules_to_save", ["lm_head"], "no tensors for lm_head"),
        ("peft_type", "IA3", "peft_type is 'IA3'"),
        ("r", 8, "r is 8"),
        ("lora_alpha", 8, "lora_alpha 8"),
    ],
)
def test_what_is_no_plain_lora_of_this_run_is_refused_by_name(qwen: Path, tmp_path: Path, key: str, value: Any, said: str) -> None:
    _, lora, modules = adapted(qwen, OPTIONS, tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ModelError) as caught:
        lora.load(modules, tmp_path)
    (problem,) = caught.value.problems
    assert said in problem.what
    assert str(tmp_path) in problem.where
    assert problem.how


def test_missing_and_foreign_layers_are_named(qwen: Path, tmp_path: Path) -> None:
    _, lora, modules = adapted(qwen, OPTIONS, tmp_path)
    first = next(iter(modules))
    fewer = {name: module for name, module in modules.items() if name != first}
    with pytest.raises(ModelError, match=f"{first}.lora_A.weight not of this run"):
        lora.load(fewer, tmp_path)
    with pytest.raises(ModelError, match=r"layers\.9\.q_proj\.lora_A\.weight missing"):
        lora.load({**modules, "model.layers.9.q_proj": lora.linear(SITE)}, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="no readable adapter weights"):
        lora.load(modules, tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="no readable adapter"):
        lora.load(modules, tmp_path)


@pytest.mark.parametrize("family", ["qwen", "stories"])
def test_merged_equals_adapter_on_base(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source = request.getfixturevalue(family)
    model, _, _ = adapted(source, OPTIONS, tmp_path / "adapter")
    merge(None, tmp_path / "adapter", tmp_path / "merged")
    ids = torch.arange(1, 61).view(2, 30)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert (logits(merged, ids) - our_logits(model, ids)).abs().max() < 1e-5
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == load_file(source / "model.safetensors").keys()
    with pytest.raises(Refused, match="exists already"):
        merge(None, tmp_path / "adapter", tmp_path / "merged")
    (tmp_path / "merged" / "old").touch()
    merge(str(source), tmp_path / "adapter", tmp_path / "merged", "bf16", force=True)
    assert {tensor.dtype for tensor in load_file(tmp_path / "merged" / "model.safetensors").values()} == {torch.bfloat16}
    assert not (tmp_path / "merged" / "old").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]
