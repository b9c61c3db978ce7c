from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from surogate_model_transformers import export, fill_slots, list_sites, load_tokenizer, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from surogate_core.errors import SaveFailed

FAMILIES = ["llama", "llama_tied", "qwen2", "mistral", "gemma3", "phi3", "gpt_oss", "qwen3_moe", "mixtral", "gpt2"]


class Adapter(torch.nn.Linear):
    def forward(self, x: Any, y: Any) -> Any:  # type: ignore[override]
        return y + super().forward(x)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_it_unchanged(family: str, tiny: Any, load: Any, tmp_path: Path) -> None:
    theirs, directory = tiny(family)

    def fill(model: Any) -> None:
        sites = [site for site in list_sites(model) if site.kind == "linear"]
        adapters = {site.name: Adapter(site.shape[1], site.shape[0]) for site in sites}
        fill_slots(model, {}, adapters)

    model = load(directory, prepare=fill)
    save_model(model, None, tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", output_loading_info=True)
    assert not any(report.values())
    tokens = torch.arange(3, 27)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(tokens).logits, theirs(tokens).logits, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(loaded.state_dict(), theirs.state_dict(), atol=0, rtol=0)
    assert set(load_file(tmp_path / "model.safetensors")) == set(load_file(directory / "model.safetensors"))
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((directory / "config.json").read_text())
    assert (tmp_path / "generation_config.json").is_file()


def test_large_models_are_sharded(tiny: Any, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert export.SHARD_SIZE == "5GB"
    monkeypatch.setattr(export, "SHARD_SIZE", "20KB")
    theirs, directory = tiny("qwen3")
    save_model(load(directory), None, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again = load(tmp_path)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name])


def test_dtype_is_the_one_computed_in(tiny: Any, load: Any, tmp_path: Path) -> None:
    save_model(load(tiny("llama")[1], model_dtype="bf16"), None, tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_tokenizer_with_added_tokens_and_a_padded_vocabulary(shared_data: Path, core: Any, load: Any, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(core(shared_data / "tokenizers" / "minimind"))
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    tokenizer.chat_template = template
    tokenizer.add_tokens(["<|new|>"])
    from transformers import LlamaConfig, LlamaForCausalLM

    size = (len(tokenizer) + 127) // 128 * 128  # more rows than tokens
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=size, tie_word_embeddings=True, **small)).save_pretrained(tmp_path / "base")
    model = load(tmp_path / "base", model_dtype="fp32")
    save_model(model, tokenizer, tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("a <|new|> b")["input_ids"] == tokenizer("a <|new|> b")["input_ids"]
    assert again.chat_template == template
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.get_input_embeddings().weight.shape[0] == size
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.skipif(
    os.geteuid() == 0 and not Path("/proc/self").exists(), reason="every path can be written: run this on Linux, or not as root"
)
def test_a_failed_write_is_said(tiny: Any, load: Any) -> None:
    with pytest.raises(SaveFailed, match="cannot be written"):
        save_model(load(tiny("llama")[1]), None, "/proc/self/nowhere/model")


def test_generation_settings_that_contradict_each_other_do_not_stop_the_save(tiny: Any, load: Any, tmp_path: Path) -> None:
    """Published models have such; transformers reads them and then refuses to write them."""
    (tmp_path / "base").mkdir()
    for file in tiny("llama")[1].iterdir():
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "base" / "generation_config.json").write_text('{"temperature": 0.7, "do_sample": false}')
    save_model(load(tmp_path / "base"), None, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (written["temperature"], written["do_sample"]) == (0.7, False)
