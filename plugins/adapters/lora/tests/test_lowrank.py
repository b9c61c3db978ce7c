"""The backward pass that drops its input again, against torch's own and PEFT's layer, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from surogate_adapter_lora import lowrank
from surogate_adapter_lora.layer import LoraLinear
from surogate_model_transformers import fill_slots
from torch import Tensor, nn


def plain(x: Tensor, y: Tensor, a: Tensor, b: Tensor, scale: float, rate: float) -> Tensor:
    return y + F.linear(F.linear(F.dropout(x, rate), a), b) * scale


def tensors(dtype: torch.dtype = torch.float64, base: bool = True) -> list[Tensor]:
    torch.manual_seed(3)
    shapes = [(2, 5, 16), (2, 5, 24), (4, 16), (24, 4)]
    return [torch.randn(shape, dtype=dtype).requires_grad_(base or number > 1) for number, shape in enumerate(shapes)]


@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_values_and_gradients_are_torchs(rate: float, base: bool) -> None:
    """With and without a gradient for the layers before (the first layer of a frozen model has none)."""
    made = []
    for function in (lowrank.add_low_rank, plain):
        given = tensors(base=base)
        torch.manual_seed(9)
        out = function(*given, 0.7, rate)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
        made.append([out, *(tensor.grad for tensor in given)])
    for one, other in zip(*made, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def test_dropout_gradients_are_pefts() -> None:
    x, _, a, b = tensors(torch.float32)
    base = nn.Linear(16, 24)
    config = peft.LoraConfig(r=4, lora_alpha=12, lora_dropout=0.4, target_modules=["0"])
    wrapped: Any = peft.get_peft_model(nn.Sequential(base), config).base_model.model[0]
    wrapped.lora_A["default"].weight.data.copy_(a.detach())
    wrapped.lora_B["default"].weight.data.copy_(b.detach())
    twin = x.detach().clone().requires_grad_(True)
    torch.manual_seed(1)
    lowrank.add_low_rank(x, F.linear(x, base.weight, base.bias), a, b, 3.0, 0.4).square().sum().backward()
    torch.manual_seed(1)
    wrapped(twin).square().sum().backward()
    for one, other in ((x, twin), (a, wrapped.lora_A["default"].weight), (b, wrapped.lora_B["default"].weight)):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_neither_the_update_nor_a_gradient_of_the_weight_is_formed(
    rate: float, dtype: torch.dtype, allocated: Callable[..., set[Any]]
) -> None:
    """No tensor of the weight's shape is made in either pass of an adapted layer. Of a weight that is trained its gradient is seen,
    and so is a product of the factors."""
    x, _, a, b = tensors(dtype)
    model, adapter = nn.Sequential(nn.Linear(16, 24, dtype=dtype)), LoraLinear(16, 24, 4, 3.0, rate, torch.float32)
    adapter.lora_A.data.copy_(a.detach())
    adapter.lora_B.data.copy_(b.detach())
    fill_slots(model.requires_grad_(False), {}, {"0": adapter})
    weights = {(24, 16), (16, 24)}
    found = allocated(lambda: model(x))
    assert x.grad is not None
    assert adapter.lora_A.grad is not None
    assert {(10, 24), (4, 16), (24, 4)} <= found
    assert not weights & found
    assert weights & allocated(lambda: F.linear(x, b @ a))
    model[0].weight.requires_grad_(True)
    assert weights & allocated(lambda: model(x))


def held(function: Any, rate: float) -> int:
    """Bytes kept for the backward pass of three adapters that share an input, the adapters themselves not counted."""
    x = torch.randn(64, 32).requires_grad_(True) * 1.0
    pairs = [(torch.randn(2, 32).requires_grad_(True), torch.randn(48, 2).requires_grad_(True)) for _ in range(3)]
    own = {tensor.untyped_storage().data_ptr() for pair in pairs for tensor in pair}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = [function(x, torch.zeros(64, 48), a, b, 1.0, rate) for a, b in pairs]
    assert len(out) == 3
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_adapters_of_one_input_keep_it_once_and_a_byte_of_mask_each() -> None:
    x, mask, low = 64 * 32 * 4, 64 * 32, 64 * 2 * 4
    assert held(lowrank.add_low_rank, 0.0) == x + 3 * low
    assert held(lowrank.add_low_rank, 0.5) == x + 3 * (mask + low)
    assert held(plain, 0.5) > 2 * held(lowrank.add_low_rank, 0.5)


def test_compiled_code_keeps_the_formula() -> None:
    made = tensors(torch.float32)
    function = torch.compile(lowrank.add_low_rank, backend="eager", fullgraph=True)
    torch.manual_seed(2)
    one = function(*made, 0.5, 0.25)
    torch.manual_seed(2)
    torch.testing.assert_close(one, lowrank.add_low_rank(*made, 0.5, 0.25))
