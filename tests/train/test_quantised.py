"""LoRA on a quantised base, from the config to the adapter on disk. Full: ``tests/prove/qlora.py``."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from surogate_model_transformers import slot_layers
from surogate_model_transformers.testing import held_bytes, tiny_model

import surogate_core
from surogate_core.config import load
from surogate_core.errors import ConfigError
from surogate_core.host import load_host
from surogate_core.plan import Plan, make_plan
from surogate_core.train.setup import build

FORMATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nf4": {"qlora_bnb": True},
    "fp8": {"qlora_fp8": True},
    "nvfp4": {"qlora_fp4": True},
}
OPTIONS = [
    ("nf4", {"qlora_bnb_block_size": 512}),
    ("nf4", {"qlora_bnb_double_quant": False}),
    ("fp8", {"qlora_block_size": 64}),
    ("nvfp4", {"qlora_four_over_six": False}),
]
QUANTISED = [name for name in FORMATS if name != "plain"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> dict[str, Any]:
    text = tmp_path_factory.mktemp("data") / "text.txt"
    text.write_text((shared_data / "pretrain" / "tinyshakespeare.txt").read_text()[:40_000])
    return {
        "model": str(shared_data / "models" / "stories260K"),
        "model_dtype": "fp32",
        "lora": True,
        "lora_rank": 8,
        "lora_dropout": 0.05,
        "sequence_len": 64,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 50,
        "save_steps": 1000,
        "eval_steps": 1000,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "optimizer": "adamw",
        "recompute": False,
        "dataloader_num_workers": 0,
        "validation_split_ratio": 0.02,
        "datasets": [{"path": str(text), "type": "text"}],
    }


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 whose layers outweigh its embedding, as they do in real models: 3.3 million parameters."""
    shape = {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 4, "head_dim": 64}
    return tiny_model(tmp_path_factory.mktemp("wide"), **shape)


def plan_of(config: dict[str, Any]) -> Plan:
    host = load_host()
    return make_plan(load(config, host), host)


def losses(directory: Path) -> list[float]:
    records = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if record["kind"] == "step"]


@pytest.fixture(scope="module")
def trained(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The output directory of a run on a base in this format."""
    done: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in done:
            out = tmp_path_factory.mktemp(name)
            surogate_core.run({**base, **FORMATS[name], "output_dir": str(out)})
            done[name] = out
        return done[name]

    return run


def test_each_format_trains_like_the_plain_base_and_like_no_other(trained: Callable[[str], Path]) -> None:
    found = {name: losses(trained(name)) for name in FORMATS}
    last = {name: sum(values[-10:]) / 10 for name, values in found.items()}
    assert last["plain"] < 0.85 * found["plain"][0]
    for name in QUANTISED:
        assert last[name] == pytest.approx(last["plain"], rel=0.02)
    assert len({values[0] for values in found.values()}) == len(FORMATS), "two formats compute the same"


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=lambda value: str(value))
def test_every_option_changes_what_is_held(name: str, option: dict[str, Any], base: dict[str, Any]) -> None:
    def held(**changes: Any) -> list[torch.Tensor]:
        trainee = build(plan_of({**base, **FORMATS[name], **changes}))
        return [layer.storage.unpack(torch.float32) for _, layer in slot_layers(trainee.model) if layer.storage]

    one, other = held(), held(**option)
    assert len(one) == len(other) == 35
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", QUANTISED)
def test_memory_is_as_planned_and_loading_needs_little_more(name: str, base: dict[str, Any], wide: Path) -> None:
    """Bytes of living tensors, counted while the model is read; the file is float32, so that no weight is a view of it."""
    plan = plan_of({**base, **FORMATS[name], "model": str(wide), "model_dtype": "bf16"})
    memory = plan.figures.memory
    with held_bytes(mapped=(wide / "model.safetensors").stat().st_size) as held:
        trainee = build(plan)
    storages = [layer.storage for _, layer in slot_layers(trainee.model) if layer.storage is not None]
    assert len(storages) == len(plan.stored()) == 28
    assert sum(tensor.nbytes for storage in storages for tensor in storage.state_dict().values()) == memory["quantised weights"]
    values = sum(site.shape[0] * site.shape[1] for site in plan.stored())
    bits = {"nf4": 4 + 8 / 64 + 32 / (64 * 256), "fp8": 8 + 32 / 128**2, "nvfp4": 4.5}[name]
    assert memory["quantised weights"] <= 1.05 * bits / 8 * values
    assert memory["weights"] == 2 * (plan.figures.parameters - values)
    planned = memory["weights"] + memory["quantised weights"] + memory["adapter"]
    assert held.now == pytest.approx(planned, rel=0.01)
    assert held.peak <= 1.3 * held.now + 16 * 256 * 640, "a weight is held unpacked beside others"
    assert "quantised weights" in plan.render()
    assert f"surogate-quantizer-{ {'nf4': 'bnb-nf4', 'fp8': 'fp8-block', 'nvfp4': 'nvfp4'}[name] }" in plan.render()


@pytest.mark.parametrize("name", QUANTISED)
def test_no_unpacked_weight_outlives_its_layer(
    name: str, base: dict[str, Any], wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by weak references to all that is unpacked. A recipe that would keep its copy of a weight, in its module or for the
    backward pass, keeps no byte more than plain products do."""
    kept = {}
    for recipe in ("bf16", "nvfp4", "fp8_hybrid"):
        changes = {"model": str(wide), "model_dtype": "bf16", "recipe": recipe, "recipe_backend": "emulated"}
        plan = plan_of({**base, **FORMATS[name], **changes})
        trainee = build(plan)
        seen: list[Any] = []
        most = [0]

        def unpack(self: Any, dtype: torch.dtype, original: Any, seen: Any = seen, most: Any = most) -> torch.Tensor:
            weight = original(self, dtype)
            seen.append(weakref.ref(weight.untyped_storage()))
            most[0] = max(most[0], sum(one() is not None for one in seen))
            return weight

        kind = type(next(layer.storage for _, layer in slot_layers(trainee.model)))
        monkeypatch.setattr(kind, "unpack", functools.partialmethod(unpack, original=kind.unpack))
        batch = plan.pipeline.prepare(plan.model_source.tokenizer(), lambda text: None).training(1, 1).step(0).batches[0]
        with held_bytes() as held:
            loss = plan.model_source.loss(trainee.model, batch)
            kept[recipe] = held.now
        assert len(seen) == 28
        assert not [one for one in seen if one() is not None]
        loss.backward()
        assert len(seen) > 28, "the backward pass did not unpack"
        assert most[0] == 1
        monkeypatch.undo()
    assert kept["nvfp4"] == pytest.approx(kept["bf16"], rel=0.01)
    assert kept["fp8_hybrid"] == pytest.approx(kept["bf16"], rel=0.01)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("recipe", ["nvfp4", "nvfp4_quartet", "fp8_hybrid"])
def test_a_recipe_computes_with_the_unpacked_weights(recipe: str, recompute: bool, base: dict[str, Any]) -> None:
    """Loss and adapter gradients of one batch, on a quantised base and on a plain one that holds the values unpacked from it."""
    changes = {"recipe": recipe, "recipe_backend": "emulated", "recompute": recompute, "lora_dropout": 0.0}
    plan, plain = plan_of({**base, **FORMATS["nf4"], **changes}), plan_of({**base, **changes})
    one, other = build(plan), build(plain)
    with torch.no_grad():
        for name, layer in slot_layers(one.model):
            assert layer.storage is not None
            other.model.get_submodule(name).weight.copy_(layer.storage.unpack(torch.float32))
    batch = plan.pipeline.prepare(plan.model_source.tokenizer(), lambda text: None).training(2, 1).step(0).batches[0]
    found = [plan.model_source.loss(trainee.model, batch) for trainee in (one, other)]
    torch.testing.assert_close(found[0], found[1])
    for loss in found:
        loss.backward()
    for name, a, b in zip(one.names, one.parameters, other.parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_a_continued_run_ends_with_the_same_bits(base: dict[str, Any], tmp_path: Path) -> None:
    config = {**base, **FORMATS["nf4"], "max_steps": 6, "save_steps": 3, "lr_scheduler_type": "constant"}
    surogate_core.run({**config, "output_dir": str(tmp_path / "whole")})
    surogate_core.run({**config, "output_dir": str(tmp_path / "parts"), "max_steps": 3})
    surogate_core.run({**config, "output_dir": str(tmp_path / "parts")})
    for name in ("adapter_model.safetensors", "optimizer.safetensors"):
        one, other = (tmp_path / part / "checkpoint-00000006" / name for part in ("whole", "parts"))
        assert one.read_bytes() == other.read_bytes(), name


def test_the_adapter_is_evaluated_and_used_on_the_quantised_base_and_merged_into_the_plain_one(
    trained: Callable[[str], Path], base: dict[str, Any], tmp_path: Path
) -> None:
    import peft
    from surogate_adapter_lora.merge import merge
    from surogate_adapter_lora.serve import evaluate_config, open_model
    from transformers import AutoModelForCausalLM

    out = trained("nf4")
    lines = [f"{key} = {json.dumps(value)}" for key, value in {**base, **FORMATS["nf4"]}.items() if key != "datasets"]
    data = base["datasets"][0]
    path = tmp_path / "config.toml"
    path.write_text("\n".join([*lines, f'output_dir = "{out}"', "[[datasets]]", f'path = "{data["path"]}"', 'type = "text"']))
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [record["loss"] for record in records if record["kind"] == "eval"][-1]
    assert evaluate_config(path, None, lambda text: None)[0].loss == pytest.approx(last, rel=1e-6)

    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        quantised = open_model(str(path), (), "fp32").model(input_ids=ids).logits
        plain = open_model(str(out / "last"), (), "fp32").model.double()(input_ids=ids).logits
        loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base["model"]), out / "last").eval()
        merge(None, out / "last", tmp_path / "merged", "fp32")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").double()(input_ids=ids).logits
        assert (loaded.double()(input_ids=ids).logits - plain).abs().max() < 1e-5
        assert (merged - plain).abs().max() < 1e-5
    assert (quantised - plain).abs().max() > 0.05


@pytest.mark.parametrize("name", QUANTISED)
def test_dora_is_pefts_on_the_dequantised_base(name: str, base: dict[str, Any], tmp_path: Path) -> None:
    """Loss of one batch and all gradients; magnitudes start as norms of the rows of the quantised weights."""
    import peft
    from transformers import AutoModelForCausalLM

    plan = plan_of({**base, **FORMATS[name], "lora_use_dora": True, "lora_dropout": 0.0})
    trainee = build(plan)
    theirs = AutoModelForCausalLM.from_pretrained(base["model"], dtype=torch.float32)
    with torch.no_grad():
        for layer, slots in slot_layers(trainee.model):
            assert slots.storage is not None
            theirs.get_submodule(layer).weight.copy_(slots.storage.unpack(torch.float32))
            rows = torch.linalg.vector_norm(theirs.get_submodule(layer).weight, dim=1)
            torch.testing.assert_close(trainee.adapters[layer].lora_magnitude.data, rows)
        torch.manual_seed(0)
        for parameter in trainee.parameters:
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    assert plan.adapter is not None
    plan.adapter.save(trainee.adapters, tmp_path, base["model"])
    wrapped = peft.PeftModel.from_pretrained(theirs, tmp_path, is_trainable=True)
    batch = plan.pipeline.prepare(plan.model_source.tokenizer(), lambda text: None).training(1, 1).step(0).batches[0]
    ours = plan.model_source.loss(trainee.model, batch)
    assert not batch.document_ids.any(), "one document, so that no mask is needed"
    logits = wrapped(input_ids=batch.input_ids).logits.flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, batch.labels.flatten(), reduction="none", ignore_index=-100)
    wanted = (losses * batch.weights.flatten()).sum()
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-4)
    for loss in (ours, wanted):
        loss.backward()
    grads = {key: parameter.grad for key, parameter in wrapped.named_parameters() if parameter.requires_grad}
    keys = {"lora_A": "lora_A.default.weight", "lora_B": "lora_B.default.weight"}
    keys["lora_magnitude"] = "lora_magnitude_vector.default.weight"
    for layer, module in trainee.adapters.items():
        for key, parameter in module.named_parameters():
            other = grads[f"base_model.model.{layer}.{keys[key]}"]
            assert (parameter.grad - other).norm() <= 1e-4 * other.norm(), (layer, key)
    assert len(grads) == len(trainee.parameters)


def test_merge_adapter_merges_into_the_unquantised_base(base: dict[str, Any], tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    surogate_core.run({**base, **FORMATS["nf4"], "max_steps": 2, "merge_adapter": True, "output_dir": str(out)})
    plain = AutoModelForCausalLM.from_pretrained(base["model"], dtype=torch.float32)
    wanted = peft.PeftModel.from_pretrained(plain, out / "last").merge_and_unload().state_dict()
    merged = AutoModelForCausalLM.from_pretrained(out / "merged", dtype=torch.float32).state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"qlora_bnb": True, "lora": False}, "qlora_bnb = true with lora = false"),
        ({"qlora_fp8": True, "task": "pt", "lora": None}, "qlora_fp8 = true with lora = false"),
        (
            {"qlora_bnb": True, "qlora_fp8": True},
            "qlora_bnb = true and qlora_fp8 = true: the frozen weights",
        ),
        (
            {"qlora_fp4": True, "qlora_fp8": True},
            "qlora_fp8 = true and qlora_fp4 = true: the frozen weights",
        ),
        ({"qlora_bnb": True, "qlora_bnb_block_size": 96}, "qlora_bnb_block_size = 96"),
        ({"qlora_fp8": True, "qlora_block_size": 512}, "qlora_block_size = 512"),
        ({"qlora_bnb": 1}, "qlora_bnb = 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], what: str, base: dict[str, Any]) -> None:
    config = {key: value for key, value in {**base, **changes}.items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        load(config, load_host())
    (problem,) = caught.value.problems
    assert problem.what.startswith(what)
    assert problem.how


def test_the_refusal_comes_before_torch_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('model = "m/m"\nqlora_bnb = true\nqlora_fp8 = true\nlora = false\n[[datasets]]\npath = "a/b"\ntype = "text"\n')
    code = f"""
import sys
from pathlib import Path
from surogate_core.config import load
from surogate_core.errors import ConfigError
from surogate_core.host import load_host
try:
    load(Path({str(path)!r}), load_host())
except ConfigError as error:
    print(len(error.problems), 'torch' in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


def test_an_option_of_a_format_that_is_not_chosen_is_told(base: dict[str, Any]) -> None:
    config = load({**base, "qlora_fp8": True, "qlora_bnb_block_size": 128, "qlora_bnb": False}, load_host())
    (notice,) = config.notices
    assert notice.startswith("qlora_bnb_block_size has no effect: it belongs to qlora_bnb = true")
    assert "qlora_block_size" in config.resolved()
    assert "qlora_bnb_block_size" not in config.resolved()
