from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from surogate_fusion_rotary.plugin import register_fusions
from surogate_fusion_rotary.rotary import Rotary, rotate
from surogate_model_transformers.testing import tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from surogate_core.contracts import Site
from surogate_core.testing import context

SITE = Site(name="model.layers.0.self_attn", kind="attention", shape=())


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def angles(width: int) -> tuple[Tensor, Tensor]:
    """cos and sin (2, 7, width): each of the width / 2 angles twice, as models have them."""
    half = draw(2, 7, width // 2, seed=5) * 3
    both = torch.cat((half, half), -1)
    return both.cos(), both.sin()


def all_of(function: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, place: int = 1) -> list[Tensor]:
    """Both results, and the gradients of both inputs under random slopes."""
    q, k = (x.detach().clone().requires_grad_() for x in (q, k))
    out = function(q, k, cos.to(q.dtype), sin.to(q.dtype), unsqueeze_dim=place)
    slopes = [draw(*x.shape, seed=6 + at).to(x.dtype) for at, x in enumerate(out)]
    return [*(x.detach() for x in out), *torch.autograd.grad(out, (q, k), slopes)]


@pytest.mark.parametrize("place", [1, 2])
def test_float64_is_a_product_of_complex_numbers(place: int) -> None:
    def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        turn = torch.complex(cos[..., :half], sin[..., :half]).unsqueeze(place)
        y = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat((y.real, y.imag), -1)

    def theirs(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> tuple[Tensor, Tensor]:
        return turned(q, cos, sin), turned(k, cos, sin)

    q, k = (draw(2, heads, 7, 16) if place == 1 else draw(2, 7, heads, 16) for heads in (4, 2))
    for mine, other in zip(
        all_of(rotate, q, k, *angles(16), place=place), all_of(theirs, q, k, *angles(16), place=place), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_near_to_float64_as_the_function_that_it_replaces(dtype: torch.dtype) -> None:
    theirs = modeling_llama.apply_rotary_pos_emb
    q, k = draw(2, 4, 7, 16).to(dtype), draw(2, 2, 7, 16, seed=1).to(dtype)
    cos, sin = (x.to(dtype) for x in angles(16))
    exact = all_of(theirs, q.double(), k.double(), cos.double(), sin.double())
    for mine, other, wanted in zip(all_of(rotate, q, k, cos, sin), all_of(theirs, q, k, cos, sin), exact, strict=True):
        assert mine.dtype == other.dtype == dtype
        error, allowed = ((one.double() - wanted).norm() / wanted.norm() for one in (mine, other))
        assert error <= 1.05 * allowed


@pytest.mark.parametrize(
    ("family", "kind", "refusal"),
    [
        ("llama", "LlamaAttention", None),
        ("mistral", "MistralAttention", None),
        ("qwen2", "Qwen2Attention", None),
        ("qwen3", "Qwen3Attention", None),
        ("qwen3_moe", "Qwen3MoeAttention", None),
        ("gemma3", "Gemma3Attention", None),
        ("phi3", "Phi3Attention", "turns other pairs of values"),
        ("glm4", "Glm4Attention", "turns other pairs of values"),
        ("gpt_oss", "GptOssAttention", "turns other pairs of values"),
        ("bert", "BertAttention", "does not call apply_rotary_pos_emb"),
    ],
)
def test_claims_what_it_computes_and_nothing_else(family: str, kind: str, refusal: str | None) -> None:
    found = getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), kind)
    module = found.__new__(found)
    nn.Module.__init__(module)
    assert Rotary().claim(SITE, module) == refusal


def test_claims_attention_alone() -> None:
    assert Rotary().claim(Site(name="model.norm", kind="norm", shape=(4,)), nn.LayerNorm(4)) == "not attention"


def test_a_model_gives_the_same_and_transformers_is_as_it_was(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_model(tmp_path / "model", "qwen3")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.arange(24).view(2, 12) % 7
    module = importlib.import_module("transformers.models.qwen3.modeling_qwen3")
    before, own = module.apply_rotary_pos_emb, type(model.model.layers[0].self_attn).forward
    wanted = model(ids).logits
    rule = Rotary()
    for layer in model.model.layers:
        layer.self_attn.forward = rule.forward(layer.self_attn)
    calls: list[int] = []
    monkeypatch.setattr(module, "apply_rotary_pos_emb", lambda *given, **named: calls.append(1) or before(*given, **named))
    torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-5, atol=1e-5)
    assert not calls, "the layers still call the function of transformers"
    other = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    assert torch.equal(other(ids).logits, wanted)
    assert len(calls) == len(other.model.layers), "a model without the fusion is changed"
    assert type(other.model.layers[0].self_attn).forward is own


def test_the_offer_builds() -> None:
    (offer,) = register_fusions()
    assert isinstance(offer.load()(None, context()), Rotary)
