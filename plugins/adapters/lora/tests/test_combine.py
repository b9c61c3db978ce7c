"""Several adapters: merged with weights as PEFT does it, switched on one loaded model, stacked, exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import surogate_model_transformers as models
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from surogate_adapter_lora.commands import export_command, generate_command, merge_command
from surogate_adapter_lora.merge import merge
from surogate_adapter_lora.serve import open_model
from surogate_model_transformers.testing import held_bytes
from transformers import AutoModelForCausalLM

from surogate_core.errors import ModelError, Refused

SHAPES: dict[str, dict[str, Any]] = {
    "a": {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"]},
    "b": {"r": 3, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "c": {"r": 5, "lora_alpha": 5, "target_modules": ["down_proj", "up_proj"]},
    "dora": {"r": 2, "lora_alpha": 2, "target_modules": ["o_proj"], "use_dora": True},
}
IDS = torch.arange(1, 41).view(2, 20)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, qwen: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    for number, (name, shape) in enumerate(SHAPES.items()):
        torch.manual_seed(number)
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(qwen), peft.LoraConfig(task_type="CAUSAL_LM", **shape))
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.data.normal_(std=0.1)
        model.save_pretrained(root / name)
    return {name: root / name for name in SHAPES}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.double().eval()(input_ids=IDS).logits


def by_peft(qwen: Path, adapters: dict[str, Path], names: str) -> Any:
    first, *others = names
    model = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(qwen, dtype=torch.float32), adapters[first], adapter_name=first
    )
    for name in others:
        model.load_adapter(adapters[name], adapter_name=name)
    return model


@pytest.mark.parametrize(
    ("combine", "names", "weights"),
    [("cat", "ab", (0.7, 0.5)), ("cat", "abc", (1.0, -0.5, 2.0)), ("linear", "ab", (0.7, 0.5)), ("linear", "ab", (0.7, -0.5))],
)
def test_sums_are_pefts_as_a_model_and_as_an_adapter(
    combine: Any, names: str, weights: tuple[float, ...], qwen: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    theirs = by_peft(qwen, adapters, names)
    theirs.add_weighted_adapter(list(names), list(weights), "sum", combination_type=combine)
    theirs.set_adapter("sum")
    wanted = logits(theirs)
    chosen = [adapters[name] for name in names]
    merge(None, chosen, tmp_path / "model", weights=weights, combine=combine)
    assert (logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")) - wanted).abs().max() < 1e-5
    merge(None, chosen, tmp_path / "adapter", weights=weights, combine=combine, as_adapter=True)
    alone = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(qwen, dtype=torch.float32), tmp_path / "adapter")
    assert (logits(alone) - wanted).abs().max() < 1e-5
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == (
        sum(SHAPES[name]["r"] for name in names) if combine == "cat" else 3
    )


def test_one_adapter_with_a_weight_is_that_much_of_it(qwen: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    base = load_file(qwen / "model.safetensors")
    whole, half = tmp_path / "whole", tmp_path / "half"
    merge(None, adapters["a"], whole)
    merge(None, adapters["a"], half, weights=[0.5])
    one, two = load_file(whole / "model.safetensors"), load_file(half / "model.safetensors")
    for name, weight in base.items():
        torch.testing.assert_close(two[name] - weight, (one[name] - weight) / 2, rtol=1e-4, atol=1e-7)
    assert any(not torch.equal(one[name], weight) for name, weight in base.items())


def test_dora_is_merged_as_peft_does(qwen: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    merge(None, adapters["dora"], tmp_path / "model")
    wanted = logits(by_peft(qwen, {"d": adapters["dora"]}, "d").merge_and_unload())
    assert (logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["a", "b", "dora"])
def test_merged_equals_unmerged_in_float32(name: str, qwen: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    merge(None, adapters[name], tmp_path / "model")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    with torch.no_grad():
        one, two, base = (
            model.eval()(input_ids=IDS).logits
            for model in (merged, open_model(str(qwen), [adapters[name]], "fp32").model, open_model(str(qwen), (), "fp32").model)
        )
    assert one.dtype == two.dtype == torch.float32
    assert (one - two).abs().max() < 1e-5
    assert (one - base).abs().max() > 1e-2


def test_what_cannot_be_merged_is_named_and_nothing_is_written(
    qwen: Path, stories: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for arguments, kind, said in (
        ({"adapters": [adapters["a"], adapters["c"]], "combine": "linear"}, ModelError, "one rank, given 3, 5"),
        ({"adapters": [adapters["a"], adapters["dora"]]}, ModelError, "DoRA"),
        ({"adapters": [adapters["dora"]], "weights": [0.5]}, ModelError, "DoRA"),
        ({"adapters": [adapters["a"]], "weights": [0.5, 1]}, Refused, "2 weights for 1 adapters"),
        ({"adapters": [adapters["a"]], "base": str(stories)}, ModelError, "layers that this model does not have"),
    ):
        with pytest.raises(kind, match=said):
            merge(**{"base": None, "output": out, **arguments})  # type: ignore[arg-type]
    other = tmp_path / "other"
    other.mkdir()
    for file in adapters["b"].iterdir():
        (other / file.name).write_bytes(file.read_bytes().replace(str(qwen).encode(), b"some/other"))
    with pytest.raises(ModelError, match="different base models"):
        merge(None, [adapters["a"], other], out)
    assert not out.exists()


# ---------------------------------------------------------------- on one loaded model
def test_switching_gives_each_alone_without_loading_again(
    qwen: Path, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load = models.load_model
    monkeypatch.setattr(models, "load_model", lambda *args, **named: loads.append(1) or load(*args, **named))
    opened = open_model(str(qwen), list(adapters.values()), "fp32")
    opened.model.double()
    weights = {name: (p.data_ptr(), p.sum().item()) for name, p in opened.model.named_parameters()}
    for number in (0, 1, 2, 3, 1, 0):
        with held_bytes() as made:
            opened.use(number)
        assert made.peak == 0, "a switch makes no tensor"
        name = list(adapters)[number]
        alone = by_peft(qwen, {name[0]: adapters[name]}, name[0])
        assert (logits(opened.model) - logits(alone)).abs().max() < 1e-5, name
    opened.use()
    assert torch.equal(logits(opened.model), logits(open_model(str(qwen), (), "fp32").model))
    opened.use(0, 1)
    both = by_peft(qwen, adapters, "ab")
    both.base_model.set_adapter(["a", "b"])
    assert (logits(opened.model) - logits(both)).abs().max() < 1e-5
    assert {name: (p.data_ptr(), p.sum().item()) for name, p in opened.model.named_parameters()} == weights
    assert len(loads) == 2, "the base was read once, and once for the comparison without adapters"
    with pytest.raises(ModelError, match="DoRA"):
        opened.use(0, 3)


def run(command: Any, *arguments: str) -> str:
    result = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_commands_switch_stack_merge_and_export(qwen: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    a, b = str(adapters["a"]), str(adapters["b"])
    words = ("--prompt", "Once upon a time", "--max-new-tokens", "12")
    alone = {path: run(generate_command, str(qwen), "--adapter", path, *words) for path in (a, b)}
    assert alone[a] != alone[b]
    switched = run(generate_command, str(qwen), "--adapter", a, "--adapter", b, *words)
    assert switched == f"[{a}]\n{alone[a]}[{b}]\n{alone[b]}"
    stacked = run(generate_command, str(qwen), "--adapter", a, "--adapter", b, "--stack", *words)
    run(merge_command, "--adapter", a, "--weight", "1", "--adapter", b, "--weight", "1", "--output", str(tmp_path / "sum"))
    assert stacked == run(generate_command, str(tmp_path / "sum"), *words)
    assert "full" in run(export_command, a, "--output", str(tmp_path / "full"), "--format", "full", "--shard-size", "100KB")
    shards = sorted((tmp_path / "full").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert all(shard.stat().st_size < 150_000 for shard in shards)
    wanted = logits(by_peft(qwen, adapters, "a"))
    assert (logits(AutoModelForCausalLM.from_pretrained(tmp_path / "full")) - wanted).abs().max() < 1e-5
    assert "peft" in run(export_command, a, "--output", str(tmp_path / "peft"))
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(qwen, dtype=torch.float32), tmp_path / "peft")
    assert torch.equal(logits(again), wanted)
    assert "full" in run(export_command, str(tmp_path / "full"), "--output", str(tmp_path / "copy"), "--dtype", "bf16")
    assert {t.dtype for t in load_file(tmp_path / "copy" / "model.safetensors").values()} == {torch.bfloat16}
    with pytest.raises(Refused, match="holds a whole model"):
        run(export_command, str(tmp_path / "full"), "--output", str(tmp_path / "no"), "--format", "peft")
    with pytest.raises(Refused, match="exists already"):
        run(export_command, a, "--output", str(tmp_path / "peft"))
