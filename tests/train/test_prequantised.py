"""Checkpoints that are quantised already: read as they are, held so under an adapter where a quantizer has the format, else as
numbers. Each is made by its own library or, in the test, by its published layout; transformers reads what it can beside ours."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from bitsandbytes import functional
from safetensors.torch import load_file, save_file
from surogate_model_transformers import held, slot_layers
from surogate_model_transformers.testing import tiny_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, FineGrainedFP8Config, Mxfp4Config

import surogate_core
from surogate_core.config import load
from surogate_core.errors import ModelError, PlanError
from surogate_core.host import load_host
from surogate_core.plan import Plan, make_plan
from surogate_core.train.setup import build

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "tie_word_embeddings": False}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
PLAIN = "model.layers.0.self_attn.v_proj"
"""A linear layer that each checkpoint lists as not quantised."""
IDS = torch.arange(1, 41).view(2, 20)
Tensors = dict[str, torch.Tensor]


def linears(tensors: Tensors) -> list[str]:
    return [name for name in tensors if name.endswith("_proj.weight") and not name.startswith(PLAIN)]


def rewritten(base: Path, directory: Path, change: Callable[[Tensors], Tensors], settings: dict[str, Any] | None) -> Path:
    """A copy of a checkpoint with other tensors and a ``quantization_config``."""
    directory.mkdir(parents=True)
    for path in base.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    tensors = {name: tensor.contiguous() for name, tensor in change(load_file(base / "model.safetensors")).items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    if settings:
        config = json.loads((base / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return directory


def fp8(tensors: Tensors, side: int = 32) -> Tensors:
    """E4M3 tiles of ``side`` × ``side`` with the scale beside them, by loops over tiles."""
    out = dict(tensors)
    for name in linears(tensors):
        weight = tensors[name].float()
        codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
        scale = torch.empty(-(-weight.shape[0] // side), -(-weight.shape[1] // side))
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                at = slice(i * side, (i + 1) * side), slice(j * side, (j + 1) * side)
                scale[i, j] = weight[at].abs().max() / 448
                codes[at] = (weight[at] / scale[i, j]).to(torch.float8_e4m3fn)
        out[name], out[f"{name}_scale_inv"] = codes, scale
    return out


def e2m1(values: np.ndarray) -> np.ndarray:
    """Codes of values on the grid's scale, by the rounding of ml_dtypes, two in a byte with the first in the low half."""
    codes = values.astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15
    return codes[..., 0::2] | codes[..., 1::2] << 4


def nvfp4(tensors: Tensors) -> Tensors:
    """E2M1 with E4M3 scales of 16 columns and a float32 scale of the matrix; what ModelOpt writes besides is there too."""
    out = dict(tensors)
    for name in linears(tensors):
        weight = tensors[name].float().numpy()
        whole = np.float32(np.abs(weight).max() / (6 * 448))
        blocks = weight.reshape(weight.shape[0], -1, 16)
        scale = (np.abs(blocks).max(-1) / 6 / whole).astype(ml_dtypes.float8_e4m3fn)
        step = np.maximum(scale.astype(np.float32) * whole, 1e-30)
        out[name] = torch.from_numpy(e2m1((blocks / step[..., None]).reshape(weight.shape)))
        out[f"{name}_scale"] = torch.from_numpy(scale.view(np.uint8)).view(torch.float8_e4m3fn)
        out[f"{name}_scale_2"], out[name.replace("weight", "input_scale")] = torch.tensor(whole), torch.tensor(0.5)
        if "k_proj" in name:
            out[name.replace("weight", "k_scale")] = torch.tensor(1.0)
    return out


def nvfp4_numbers(directory: Path) -> Tensors:
    """The weights again, by ml_dtypes."""
    stored = load_file(directory / "model.safetensors")
    found = {name: tensor for name, tensor in stored.items() if "_scale" not in name}
    for name in linears(found):
        packed = stored[name].numpy()
        codes = np.stack([packed & 15, packed >> 4], -1).reshape(packed.shape[0], -1)
        values = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float32).reshape(packed.shape[0], -1, 16)
        scale = stored[f"{name}_scale"].view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        found[name] = torch.from_numpy((values * scale[..., None] * stored[f"{name}_scale_2"].numpy()).reshape(codes.shape))
    return found


def mxfp4(tensors: Tensors) -> Tensors:
    """Experts as GPT-OSS has them: (E, N, K/32, 16) bytes and (E, N, K/32) exponents with a bias of 127."""
    out = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 3:
            out[name] = tensor
            continue
        groups = tensor.transpose(1, 2).numpy()
        groups = groups.reshape(*groups.shape[:2], -1, 32)
        exponent = np.floor(np.log2(np.abs(groups).max(-1))) - 2
        blocks = e2m1(np.ascontiguousarray(groups / np.exp2(exponent)[..., None], dtype=np.float32))
        out[f"{name}_blocks"], out[f"{name}_scales"] = torch.from_numpy(blocks), torch.from_numpy((exponent + 127).astype(np.uint8))
    return out


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}
FP8["modules_to_not_convert"] = ["lm_head", PLAIN]
NVFP4 = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}}
NVFP4["quantization"]["exclude_modules"] = ["lm_head", "*layers.0.self_attn.v_proj"]
LISTED = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": NVFP4["quantization"]["exclude_modules"]}
LISTED["config_groups"] = {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}, "targets": ["Linear"]}}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]}


def bitsandbytes(base: Path, directory: Path, kind: str, double: bool) -> Path:
    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=double, llm_int8_skip_modules=["lm_head", PLAIN]
    )
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=how, dtype=torch.float32)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((base / name).read_bytes())
    return directory


def theirs(directory: Path, **settings: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **settings)


class Form:
    """A checkpoint: how it is made, the logits of another reader of it, the storage that holds its layers, how many layers."""

    def __init__(self, make: Any, read: Callable[[Path], Any], storage: str | None, held: int, shape: Any, family: str = "qwen3"):
        self.make, self.read, self.storage, self.held, self.shape, self.family = make, read, storage, held, shape, family


def read_nvfp4(directory: Path) -> Any:
    model = theirs(directory.with_name("base"))
    model.load_state_dict(nvfp4_numbers(directory))
    return model


def read_bitsandbytes(directory: Path) -> Any:
    return theirs(directory).dequantize().float()


def read_fp8(directory: Path) -> Any:
    return theirs(directory, quantization_config=FineGrainedFP8Config(dequantize=True, modules_to_not_convert=["lm_head", PLAIN]))


def make_modelopt(base: Path, directory: Path) -> Path:
    made = rewritten(base, directory, nvfp4, None)
    (made / "hf_quant_config.json").write_text(json.dumps(NVFP4))
    return made


GPT_OSS = {"num_local_experts": 4, "num_experts_per_tok": 2, "hidden_size": 64, "intermediate_size": 64}
FORMS = {
    "fp8": Form(functools.partial(rewritten, change=fp8, settings=FP8), read_fp8, "Tiles", 13, SHAPE),
    "modelopt": Form(make_modelopt, read_nvfp4, "Nvfp4", 13, SHAPE),
    "modelopt-listed": Form(functools.partial(rewritten, change=nvfp4, settings=LISTED), read_nvfp4, "Nvfp4", 13, SHAPE),
    "bnb": Form(functools.partial(bitsandbytes, kind="nf4", double=True), read_bitsandbytes, "Nf4", 13, SHAPE),
    "bnb-single": Form(functools.partial(bitsandbytes, kind="nf4", double=False), read_bitsandbytes, "Nf4", 13, SHAPE),
    "bnb-fp4": Form(functools.partial(bitsandbytes, kind="fp4", double=True), read_bitsandbytes, None, 0, SHAPE),
    "fp8-moe": Form(
        functools.partial(rewritten, change=fp8, settings=FP8), read_fp8, "Tiles", 7, {**SHAPE, **MIXTURE}, "qwen3_moe"
    ),
    "mxfp4": Form(
        functools.partial(rewritten, change=mxfp4, settings=MXFP4),
        lambda directory: theirs(directory, quantization_config=Mxfp4Config(dequantize=True)),
        None,
        0,
        GPT_OSS,
        "gpt_oss",
    ),
}
every_form = pytest.mark.parametrize("name", FORMS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a checkpoint in a form; the one that it was made from is ``base`` beside it."""

    @functools.cache
    def make(name: str) -> Path:
        place = tmp_path_factory.mktemp(name)
        base = tiny_model(place / "base", FORMS[name].family, **FORMS[name].shape)
        return FORMS[name].make(base, place / "made")

    return make


def config_of(model: Path, **changes: Any) -> dict[str, Any]:
    targets = {"lora": True, "lora_target_modules": ["q_proj"]}
    return {"model": str(model), "model_dtype": "fp32", "sequence_len": 64, "recompute": False, **targets, **changes}


def plan_of(model: Path, **changes: Any) -> Plan:
    host = load_host()
    return make_plan(load(config_of(model, **changes), host, need_data=False), host)


def logits(model: Any) -> torch.Tensor:
    model.eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def test_the_codes_of_bitsandbytes_fp4_are_read_in_its_order() -> None:
    """Not in the order of size; twelfths of the absmax. The library's own table says the same."""
    twelfths = [0, 0.0625, 8, 12, 4, 6, 2, 3]
    values = torch.tensor([*twelfths, *(-value for value in twelfths)]) / 12
    torch.testing.assert_close(functional.get_4bit_type("fp4", device="cpu"), values, rtol=1e-6, atol=0)
    _, state = functional.quantize_4bit(torch.full((4, 16), 3.0), blocksize=64, quant_type="fp4")
    codes = torch.arange(16, dtype=torch.uint8).repeat(4)
    tensors = {"weight": (codes[0::2] << 4 | codes[1::2])[:, None]}
    tensors |= {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    found = held.numbers({"quant_method": "bitsandbytes"}, tensors, torch.float32)
    torch.testing.assert_close(found, (3 * values).repeat(4, 1), rtol=1e-6, atol=0)


@every_form
def test_it_is_held_as_it_is_or_dequantised_with_a_notice_and_computes_what_others_read(
    name: str, made: Callable[[str], Path]
) -> None:
    form, directory = FORMS[name], made(name)
    plan = plan_of(directory)
    said: list[str] = []
    model = build(plan, notice=said.append).model
    torch.testing.assert_close(logits(model), logits(form.read(directory)), rtol=0, atol=1e-5)
    held = {layer: part for layer, part in slot_layers(model) if part.storage is not None}
    assert len(held) == len(plan.stored()) == form.held
    assert {type(part.storage).__name__ for part in held.values()} == ({form.storage} if form.storage else set())
    assert PLAIN not in held
    told = [text for text in said if "are dequantised to float32" in text]
    assert len(told) == (form.held == 0 or name == "fp8-moe")
    stored = load_file(directory / "model.safetensors")
    for layer, part in held.items():
        kept = part.storage.state_dict()["weight"]
        assert kept.view(torch.uint8).equal(stored[f"{layer}.weight"].view(torch.uint8)), "packed anew"
    if form.held and name != "fp8-moe":
        memory = plan.figures.memory["quantised weights"]
        assert memory == sum(tensor.nbytes for part in held.values() for tensor in part.storage.state_dict().values())
        assert "surogate-quantizer" in plan.render()


@pytest.mark.parametrize("name", ["fp8", "bnb", "mxfp4"])
def test_an_adapter_trains_on_it_and_merges_into_the_numbers(name: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    import peft
    from surogate_adapter_lora.merge import merge
    from surogate_adapter_lora.serve import open_model

    text, output, directory = tmp_path / "text.txt", tmp_path / "output", made(name)
    text.write_text("The cat sat on the mat and looked at the moon. " * 40)
    run = {"max_steps": 2, "learning_rate": 1e-2, "validation_split_ratio": 0.0, "dataloader_num_workers": 0, "report_to": []}
    data = {"datasets": [{"path": str(text), "type": "text"}], "output_dir": str(output), "gradient_accumulation_steps": 1}
    surogate_core.run(config_of(directory, **run, **data, merge_adapter=True))
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    first, second = [record["loss"] for record in records if record["kind"] == "step"]
    assert first != second
    loaded = peft.PeftModel.from_pretrained(FORMS[name].read(directory), output / "last")
    keys = {"model": str(directory), "output_dir": str(output), "lora": True, "sequence_len": 64, "model_dtype": "fp32"}
    (tmp_path / "config.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items()))
    opened = open_model(str(tmp_path / "config.toml"))
    torch.testing.assert_close(logits(opened.model), logits(loaded), rtol=0, atol=1e-4)
    kinds = {type(layer.storage).__name__ for _, layer in slot_layers(opened.model) if layer.storage is not None}
    assert kinds == ({FORMS[name].storage} if FORMS[name].storage else set()), "held as in the run"
    written = json.loads((output / "merged" / "config.json").read_text())
    assert "quantization_config" not in written
    torch.testing.assert_close(logits(theirs(output / "merged")), logits(loaded.merge_and_unload()), rtol=0, atol=1e-4)
    merge(None, output / "last", tmp_path / "again", "fp32")
    assert logits(theirs(tmp_path / "again")).equal(logits(theirs(output / "merged")))


def test_ragged_tiles_are_read(tmp_path: Path) -> None:
    """Tiles of 48 cut neither side evenly, which transformers does not read: against a loop over weights."""
    base = tiny_model(tmp_path / "base", **SHAPE)
    odd = rewritten(base, tmp_path / "odd", functools.partial(fp8, side=48), {**FP8, "weight_block_size": [48, 48]})
    model = build(plan_of(odd)).model
    stored = load_file(odd / "model.safetensors")
    for name, layer in slot_layers(model):
        if layer.storage is not None:
            codes, scale = (stored[f"{name}.weight{end}"].float() for end in ("", "_scale_inv"))
            wanted = [[codes[i, j] * scale[i // 48, j // 48] for j in range(codes.shape[1])] for i in range(codes.shape[0])]
            assert torch.equal(layer.storage.unpack(torch.float32), torch.tensor(wanted))


def test_another_format_may_be_chosen(made: Callable[[str], Path]) -> None:
    """The numbers of the checkpoint are packed then, and the plan says in which format."""
    plan = plan_of(made("fp8"), qlora_bnb=True)
    model = build(plan).model
    kinds = {type(layer.storage).__name__ for _, layer in slot_layers(model) if layer.storage is not None}
    assert kinds == {"Nf4"}
    wanted = FORMS["fp8"].read(made("fp8")).get_parameter("model.layers.1.mlp.up_proj.weight")
    name = "model.layers.1.mlp.up_proj"
    (site,) = [site for site in plan.sites if site.name == name]
    again = plan.quantizer.storage(site)  # type: ignore[union-attr]
    again.pack(wanted.detach())
    assert model.get_submodule(name).storage.weight.equal(again.weight)


def test_what_cannot_be_is_refused_before_anything_is_written(made: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"quantised already \(fp8\): they cannot be trained"):
        plan_of(made("fp8"), lora=False)
    base = made("fp8").with_name("base")
    cases: dict[str, dict[str, Any]] = {
        "by 'gptq'": {"quant_method": "gptq", "bits": 4},
        "without weight_block_size": {"quant_method": "fp8"},
        "quant_algo 'FP8'": {"quant_method": "modelopt", "quant_algo": "FP8"},
        "in 8 bits": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    }
    for number, (said, settings) in enumerate(cases.items()):
        with pytest.raises(ModelError, match=said):
            plan_of(rewritten(base, tmp_path / f"{number}", lambda tensors: tensors, settings))


@pytest.mark.parametrize("name", ["fp8", "modelopt"])
def test_a_scale_that_is_missing_is_named(name: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    end = {"fp8": "weight_scale_inv", "modelopt": "weight_scale_2"}[name]
    lost = f"model.layers.1.mlp.up_proj.{end}"
    torn = rewritten(made(name), tmp_path / "torn", lambda all_: {key: t for key, t in all_.items() if key != lost}, None)
    with pytest.raises(ModelError, match=rf"up_proj.weight.* has no {end} beside it"):
        build(plan_of(torn))


@pytest.mark.parametrize("double", [True, False])
def test_our_bitsandbytes_export_is_the_librarys_own_and_loads_in_transformers(
    double: bool, made: Callable[[str], Path], tmp_path: Path
) -> None:
    """Tensor by tensor, and the logits that transformers computes with and without its own arithmetic on 4 bits."""
    from surogate_adapter_lora.export import export

    base, output = made("bnb").with_name("base"), tmp_path / "output"
    path = tmp_path / "config.toml"
    path.write_text(f'model = "{base}"\nlora = true\nqlora_bnb = true\nqlora_bnb_double_quant = {str(double).lower()}\n')
    assert export(str(path), output, "bitsandbytes", "fp32") == "bitsandbytes"
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
    AutoModelForCausalLM.from_pretrained(base, quantization_config=how, dtype=torch.float32).save_pretrained(tmp_path / "theirs")
    ours, wanted = (load_file(place / "model.safetensors") for place in (output, tmp_path / "theirs"))
    assert ours.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if "nested_absmax" not in name and "quant_state" not in name:  # a mean of floats, within a rounding
            assert torch.equal(ours[name], tensor), name
    quantised = theirs(output)
    dequantised = theirs(output).dequantize().float()
    plain = build(plan_of(base, qlora_bnb=True, qlora_bnb_double_quant=double)).model
    torch.testing.assert_close(logits(plain), logits(dequantised), rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(quantised), logits(dequantised), rtol=0, atol=2e-2)  # bnb's CPU kernels round to bfloat16
    assert (logits(theirs(base)) - logits(dequantised)).abs().max() > 2e-2
    again = build(plan_of(output)).model
    assert torch.equal(logits(again), logits(plain))


def test_an_adapter_is_merged_before_it_is_exported_in_bitsandbytes(made: Callable[[str], Path], tmp_path: Path) -> None:
    import peft
    from surogate_adapter_lora.export import export

    base = made("bnb").with_name("base")
    model = peft.get_peft_model(theirs(base), peft.LoraConfig(r=4, target_modules=["up_proj"], task_type="CAUSAL_LM"))
    torch.nn.init.normal_(model.get_parameter("base_model.model.model.layers.0.mlp.up_proj.lora_B.default.weight"), std=0.5)
    model.save_pretrained(tmp_path / "adapter")
    export(str(tmp_path / "adapter"), tmp_path / "output", "bitsandbytes", "fp32")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "merged" / name).write_bytes((base / name).read_bytes())
    export(str(tmp_path / "merged"), tmp_path / "wanted", "bitsandbytes", "fp32")
    torch.testing.assert_close(logits(read_bitsandbytes(tmp_path / "output")), logits(read_bitsandbytes(tmp_path / "wanted")))
    assert (tmp_path / "output" / "tokenizer.json").is_file()
