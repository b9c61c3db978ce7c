from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from surogate_fusion_norm.norm import Norms, rms_norm
from surogate_fusion_norm.plugin import register_fusions
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from surogate_core.contracts import Site
from surogate_core.testing import context


def norm(kind: type[nn.Module], width: int = 48, eps: float = 1e-6) -> Any:
    """With random weights."""
    module = kind(width, eps=eps)
    torch.nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(1))
    return module


def all_of(function: Any, *inputs: Tensor) -> list[Tensor]:
    """The result, and the gradients of all inputs under one random slope."""
    inputs = tuple(tensor.detach().clone().requires_grad_() for tensor in inputs)
    out = function(*inputs)
    slope = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, slope)]


def data(dtype: torch.dtype, size: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(5, 7, 48, generator=generator, dtype=torch.float64) * size
    return x.to(dtype), torch.randn(48, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_float64_is_torchs_rms_norm(size: float) -> None:
    for ours, theirs in zip(
        all_of(lambda x, w: rms_norm(x, w, 1e-6), *data(torch.float64, size)),
        all_of(lambda x, w: F.rms_norm(x, (48,), w, 1e-6), *data(torch.float64, size)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_near_to_float64_as_the_module_that_it_replaces(kind: type[nn.Module], dtype: torch.dtype) -> None:
    x, weight = data(dtype)
    exact = all_of(lambda x, w: F.rms_norm(x, (48,), w, 1e-6), x.double(), weight.double())

    def theirs(x: Tensor, w: Tensor) -> Tensor:
        return torch.func.functional_call(norm(kind), {"weight": w}, (x,))

    for mine, other, reference in zip(
        all_of(lambda x, w: rms_norm(x, w, 1e-6), x, weight), all_of(theirs, x, weight), exact, strict=True
    ):
        assert mine.dtype == other.dtype == dtype
        error, allowed = ((one.double() - reference).norm() / reference.norm() for one in (mine, other))
        assert error <= 1.05 * allowed + torch.finfo(torch.float32).eps / 4


def claim(module: nn.Module, kind: Any = "norm") -> str | None:
    shape = tuple(module.weight.shape) if isinstance(getattr(module, "weight", None), Tensor) else ()
    return Norms().claim(Site(name="norm", kind=kind, shape=shape), module.to("meta"))


def test_claims_what_it_computes_and_nothing_else() -> None:
    class Offset(LlamaRMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - 0.01 * x.mean(-1, keepdim=True))

    class Twice(LlamaRMSNorm):
        def __init__(self, width: int, eps: float):
            super().__init__(width, eps)
            self.variance_epsilon, self.scale = eps, 2 * eps

        def forward(self, x: Tensor) -> Tensor:
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.scale)

    assert claim(norm(LlamaRMSNorm)) is None
    assert claim(norm(Qwen3RMSNorm, eps=1e-5)) is None
    assert claim(norm(LlamaRMSNorm), "activation") == "not a norm"
    for other in (GemmaRMSNorm, Offset, Twice):
        assert claim(norm(other)) == "computes something else than a root mean square norm"
    assert claim(nn.LayerNorm(48)) == "not one weight and one epsilon"


def test_a_frozen_weight_gets_no_gradient_and_recomputation_gives_the_same() -> None:
    module = norm(Qwen3RMSNorm)
    forward = Norms().forward(module)
    module.weight.requires_grad_(False)
    x = data(torch.float32)[0].requires_grad_()
    (wanted,) = torch.autograd.grad(forward(x).square().sum(), x)
    (got,) = torch.autograd.grad(torch.utils.checkpoint.checkpoint(forward, x, use_reentrant=False).square().sum(), x)
    assert torch.equal(got, wanted)
    assert module.weight.grad is None


def test_the_offer_builds() -> None:
    (offer,) = register_fusions()
    assert isinstance(offer.load()(None, context()), Norms)
