"""Which matrices are found in the models that transformers makes, checked by what its own modules compute with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from surogate_optimizer_normuon.matrices import cuts, is_hidden
from torch import Tensor, nn

HIDDEN, WIDE, EXPERTS = 32, 24, 4
SHAPE = {
    "vocab_size": 64,
    "hidden_size": HIDDEN,
    "intermediate_size": WIDE,
    "moe_intermediate_size": WIDE,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def model(family: str) -> nn.Module:
    known = transformers.AutoConfig.for_model(family).to_dict()
    gpt2 = {"n_embd": HIDDEN, "n_layer": 1, "n_head": 4, "n_inner": WIDE, "n_positions": 16}
    config = transformers.AutoConfig.for_model(
        family, **{key: value for key, value in SHAPE.items() if key in known}, **(gpt2 if family == "gpt2" else {})
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in made.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return made


def found(made: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Name of a parameter → label → matrices (E, rows, columns), views of the parameter."""
    parameters = {name: parameter.detach() for name, parameter in made.named_parameters()}
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    return {name: {cut.label: cut.of(parameters[name]) for cut in cuts(name, shapes)} for name in parameters}


def kept(made: nn.Module) -> set[str]:
    return {name.rpartition("0.")[2].removesuffix(".weight") for name, matrices in found(made).items() if matrices}


ATTENTION = {f"self_attn.{part}_proj" for part in "qkvo"}


@pytest.mark.parametrize(
    ("family", "wanted"),
    [
        ("qwen3", ATTENTION | {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
        ("gemma2", ATTENTION | {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}),
        ("phi3", {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"}),
        ("qwen3_moe", ATTENTION | {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}),
        ("gpt_oss", ATTENTION | {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}),
        ("gpt2", {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        # joined head by head: the parts cannot be told from the shape
        ("gpt_neox", {"attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"}),
    ],
)
def test_hidden_matrices_and_nothing_else(family: str, wanted: set[str]) -> None:
    assert kept(model(family)) == wanted


@pytest.mark.parametrize("family", ["phi3", "gpt2"])
def test_joined_queries_keys_and_values_are_those_of_the_cache(family: str) -> None:
    """At position 0 rotary embeddings do nothing, so the cached key and value are products with the input."""
    made = model(family)
    seen: list[Tensor] = []
    (layer,) = made.model.layers if family == "phi3" else made.transformer.h  # type: ignore[union-attr,misc]
    joined = layer.self_attn.qkv_proj if family == "phi3" else layer.attn.c_attn
    joined.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        cache = made(input_ids=torch.tensor([[5]]), use_cache=True).past_key_values
    name = next(name for name in found(made) if "qkv_proj" in name or "c_attn.weight" in name)
    parts = found(made)[name]
    assert list(parts) == ["q", "k", "v"]
    assert parts["q"].shape == (1, HIDDEN, HIDDEN)
    torch.testing.assert_close(seen[0] @ parts["k"][0].t(), cache.layers[0].keys.transpose(1, 2).flatten(2))
    torch.testing.assert_close(seen[0] @ parts["v"][0].t(), cache.layers[0].values.transpose(1, 2).flatten(2))


def mlp(made: nn.Module) -> Tensor:
    """Output of the block's MLP for a fixed input; its router does not see what is changed in its experts."""
    x = torch.randn(1, 6, HIDDEN, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        output: Any = made.model.layers[0].mlp(x)  # type: ignore[union-attr,index]
    return (output[0] if isinstance(output, tuple) else output).clone()


@pytest.mark.parametrize("family", ["phi3", "qwen3_moe", "mixtral"])
def test_gate_and_up_are_told_apart(family: str) -> None:
    made = model(family)
    name = next(name for name in found(made) if "gate_up_proj" in name)
    parts = found(made)[name]
    assert {label: part.shape[1:] for label, part in parts.items()} == dict.fromkeys(("gate", "up"), (WIDE, HIDDEN))
    assert parts["gate"].shape[0] == (1 if family == "phi3" else EXPERTS)
    before = mlp(made)
    parts["up"].mul_(2)  # the output is linear in it
    torch.testing.assert_close(mlp(made), 2 * before)
    parts["gate"].mul_(2)
    assert (mlp(made) - 4 * before).abs().max() > 0.01 * before.abs().max()
    down = next(part[""] for name, part in found(made).items() if "down_proj" in name)
    assert down.shape[1:] == (HIDDEN, WIDE)


def test_banks_of_gpt_oss_are_turned_and_interleaved() -> None:
    made = model("gpt_oss")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "experts" in name and "bias" in name:
                parameter.zero_()
    parts = found(made)["model.layers.0.mlp.experts.gate_up_proj"]
    assert parts["gate"].shape == parts["up"].shape == (EXPERTS, WIDE, HIDDEN)
    assert found(made)["model.layers.0.mlp.experts.down_proj"][""].shape == (EXPERTS, HIDDEN, WIDE)
    parts["up"].zero_()
    assert mlp(made).abs().max() > 0.01  # GPT-OSS adds 1 to up
    parts["gate"].zero_()
    assert not mlp(made).any()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.embed_tokens.weight", (64, 32)),
        ("lm_head.weight", (64, 32)),
        ("model.layers.0.mlp.gate.weight", (4, 32)),
        ("model.layers.0.mlp.router.weight", (4, 32)),
        ("model.layers.0.mlp.shared_expert_gate.weight", (1, 32)),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", (4, 64)),
        ("model.layers.0.linear_attn.conv1d.weight", (32, 1, 4)),
        ("model.layers.0.short_conv.weight", (32, 4)),
        ("model.layers.0.self_attn.q_norm.weight", (8,)),
        ("model.layers.0.self_attn.q_norm.weight", (4, 8)),  # one a head, as Cohere has it
        ("model.layers.0.embed_positions.weight", (32, 8)),
        ("model.layers.0.self_attn.q_proj.adapter.down", (8, 32)),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", (8, 32)),
        ("block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 8)),
        ("matrix", (32, 8)),
    ],
)
def test_what_is_no_hidden_matrix(name: str, shape: tuple[int, ...]) -> None:
    assert not is_hidden(name, shape)
    assert cuts(name, {name: shape}) == ()


def test_a_joined_weight_without_its_neighbour_is_left() -> None:
    name = "model.layers.0.self_attn.qkv_proj.weight"
    assert cuts(name, {name: (64, 32)}) == ()
