"""Tiny random models of several families, made and saved by transformers itself, and batches to run through them."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from surogate_model_transformers.plugin import Options, Settings

from surogate_core.config.options import CoreOptions

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 5}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {}),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "gemma2": (
        "Gemma2",
        {**ALTERNATING, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    ),
    "gemma3": ("Gemma3", {**ALTERNATING, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8}),
    "phi3": ("Phi3", {}),
    "gpt_oss": ("GptOss", {**EXPERTS, **ALTERNATING}),
    "qwen3_moe": ("Qwen3Moe", EXPERTS),
    "mixtral": ("Mixtral", EXPERTS),
    "olmo2": ("Olmo2", {}),
    "granite": ("Granite", {"logits_scaling": 4.0}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
}


def _tiny(family: str, directory: Path, **changes: Any) -> Any:
    import transformers

    name, more = FAMILIES[family]
    config_class = getattr(transformers, f"{name}TextConfig" if name == "Gemma3" else f"{name}Config")
    settings = {**more} if name == "GPT2" else {**SMALL, **more}
    if name == "GPT2":
        settings |= {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2}
    if "rope" in changes:
        config = config_class(**settings)
        kept = {"rope_theta": config.rope_parameters["rope_theta"]}
        settings["rope_parameters"] = {**kept, **changes.pop("rope")}
    torch.manual_seed(7)
    class_name = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    model = getattr(transformers, class_name)(config_class(**{**settings, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases start at 0 or 1, where a wrong one would not be seen
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.eval().save_pretrained(directory)
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Path]]:
    """``tiny(family, **config changes)`` → (transformers' model with eager attention, the directory it is saved in)."""
    made: dict[str, tuple[Any, Path]] = {}

    def make(family: str, **changes: Any) -> tuple[Any, Path]:
        key = f"{family}{changes}"
        if key not in made:
            directory = tmp_path_factory.mktemp(family)
            made[key] = (_tiny(family, directory, **changes), directory)
        return made[key]

    return make


@pytest.fixture
def core() -> Callable[..., Settings]:
    """Settings for a model directory, in float32."""
    names = {field.name for field in attrs.fields(Options)}

    def make(directory: Path | str, **changes: Any) -> Settings:
        own = {key: changes.pop(key) for key in names & changes.keys()}
        given = CoreOptions(**{"model": str(directory), "model_dtype": "fp32", "sequence_len": 64, **changes})
        return Settings(given, Options(**own))

    return make


@pytest.fixture
def load(core: Callable[..., Settings]) -> Callable[..., Any]:
    """The model of a directory through our loader, in evaluation mode."""

    def make(directory: Path | str, prepare: Any = None, notice: Any = None, source: Any = None, **changes: Any) -> Any:
        from surogate_model_transformers import load_model, read_config

        options = core(directory, **changes)
        told = {} if notice is None else {"notice": notice}
        config = read_config(options)
        return load_model(config, options, device="cpu", prepare=prepare, source=source, **told).eval()

    return make


def pack(lengths: list[list[int]], vocab: int = 96, length: int = 24, seed: int = 0) -> Any:
    """A batch of rows with documents of these lengths and a padding document at the end of each, as the data room makes it."""
    random = torch.Generator().manual_seed(seed)
    rows = len(lengths)
    batch = types.SimpleNamespace(
        input_ids=torch.zeros(rows, length, dtype=torch.int64),
        labels=torch.full((rows, length), -100),
        weights=torch.zeros(rows, length),
        position_ids=torch.zeros(rows, length, dtype=torch.int64),
        document_ids=torch.zeros(rows, length, dtype=torch.int32),
        pieces=[],
    )
    for row, pieces in enumerate(lengths):
        start = 0
        for number, size in enumerate([*pieces, length - sum(pieces)]):
            at = slice(start, start + size)
            batch.position_ids[row, at] = torch.arange(size)
            batch.document_ids[row, at] = number
            if number < len(pieces):
                tokens = torch.randint(3, vocab, (size,), generator=random)
                batch.input_ids[row, at] = tokens
                batch.labels[row, start : start + size - 1] = tokens[1:]
                batch.weights[row, start : start + size - 1] = torch.rand(size - 1, generator=random)
                batch.pieces.append((row, at))
            start += size
    return batch


@pytest.fixture
def packed() -> Callable[..., Any]:
    return pack
