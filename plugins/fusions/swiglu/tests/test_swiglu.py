from __future__ import annotations

from typing import Any

import pytest
import torch
from surogate_fusion_swiglu.plugin import register_fusions
from surogate_fusion_swiglu.swiglu import SwiGLU, swiglu
from torch import Tensor, nn
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config, Qwen3Config
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.phi3.modeling_phi3 import Phi3MLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

from surogate_core.contracts import Site
from surogate_core.testing import context

SITE = Site(name="model.layers.0.mlp", kind="mlp", shape=())
SIZES = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 4}


class Clamped(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)).clamp(max=7) * self.up_proj(x))


class Factor(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * (self.up_proj(x) + 1e-3))


def block(kind: Any = Qwen3MLP, **sizes: Any) -> nn.Module:
    config = {Phi3MLP: Phi3Config, Gemma3MLP: Gemma3TextConfig, Qwen3MLP: Qwen3Config}.get(kind, LlamaConfig)
    torch.manual_seed(1)
    return kind(config(**{**SIZES, **sizes}))


def all_of(function: Any, module: nn.Module, x: Tensor) -> list[Tensor]:
    """The result, and the gradients of input and weights under one random slope."""
    x = x.detach().clone().requires_grad_()
    out = function(x)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, (x, *module.parameters()), slope)]


def data(dtype: torch.dtype) -> Tensor:
    return (torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(3)) * 6).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
def test_bit_for_bit_the_module_that_it_replaces(dtype: torch.dtype, bias: bool) -> None:
    module = block(LlamaMLP, mlp_bias=bias).to(dtype)
    ours = all_of(SwiGLU().forward(module), module, data(dtype))
    for mine, other in zip(ours, all_of(module, module, data(dtype)), strict=True):
        assert torch.equal(mine, other)


def test_its_gradients_are_those_of_finite_differences() -> None:
    gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(swiglu, (gate, up))


def test_one_wide_tensor_less_is_kept() -> None:
    module, x = block(), data(torch.float32)
    kept: dict[bool, dict[int, int]] = {}
    for fused, function in ((False, module), (True, SwiGLU().forward(module))):
        found: dict[int, Tensor] = {}  # the tensors stay, so that no address is used again

        def note(tensor: Tensor, found: dict[int, Tensor] = found) -> Tensor:
            if tensor.shape[-1] == SIZES["intermediate_size"] and not isinstance(tensor, nn.Parameter):
                found[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            function(x.clone().requires_grad_())
        kept[fused] = {place: tensor.numel() for place, tensor in found.items()}
    wide = 5 * 7 * SIZES["intermediate_size"]
    assert sum(size == wide for size in kept[False].values()) == 4
    assert sum(size == wide for size in kept[True].values()) == 3


def test_claims_what_it_computes_and_nothing_else() -> None:
    def claim(kind: Any, **sizes: Any) -> str | None:
        return SwiGLU().claim(SITE, block(kind, **sizes).to("meta"))

    assert claim(Qwen3MLP) is None
    assert claim(LlamaMLP, mlp_bias=True) is None
    for other in (Gemma3MLP, Clamped, Factor):
        assert claim(other) == "computes something else than down(silu(gate) * up)"
    assert claim(LlamaMLP, hidden_act="relu") == "computes something else than down(silu(gate) * up)"
    assert claim(Phi3MLP) == "has other layers than gate_proj, up_proj, down_proj"
    assert SwiGLU().claim(Site(name="norm", kind="norm", shape=(4,)), nn.LayerNorm(4)) == "not a feed-forward block"


def test_one_answer_for_one_kind_alone() -> None:
    rule = SwiGLU()
    assert rule.claim(SITE, block(LlamaMLP)) is None
    assert rule.claim(SITE, block(LlamaMLP, hidden_act="gelu")) is not None, "the activation is part of the kind"


def test_asking_leaves_the_module_and_the_random_state_alone() -> None:
    module = block().to("meta")
    layers, state = dict(module.named_children()), torch.get_rng_state()
    assert SwiGLU().claim(SITE, module) is None
    assert dict(module.named_children()) == layers
    assert torch.equal(torch.get_rng_state(), state)


def test_the_offer_builds() -> None:
    (offer,) = register_fusions()
    assert isinstance(offer.load()(None, context()), SwiGLU)
