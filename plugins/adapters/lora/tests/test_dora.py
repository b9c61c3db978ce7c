"""DoRA of one layer against PEFT's, in float64, so that only the formula is compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from surogate_adapter_lora.lora import Lora, LoraLinear, bind
from surogate_adapter_lora.plugin import Options
from surogate_model_transformers import fill_slots
from torch import nn

from surogate_core import testing
from surogate_core.contracts import Site

SITE = Site(name="0", kind="linear", shape=(24, 16), layer=0)


def pair(bias: bool, dropout: float = 0.0, spread: float = 0.3) -> tuple[Any, Any, LoraLinear]:
    """Our layer with its DoRA adapter, PEFT's with the same numbers, and the adapter."""
    torch.manual_seed(0)
    ours, theirs = (nn.Sequential(nn.Linear(16, 24, bias=bias, dtype=torch.float64)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    lora = Lora(options=Options(lora_rank=4, lora_alpha=12, lora_dropout=dropout, lora_use_dora=True))
    module = lora.linear(SITE).double()
    lora.reset(module, torch.Generator().manual_seed(0))
    ours.requires_grad_(False)
    fill_slots(ours, {}, {"0": module})
    lora.attach(ours, {"0": module}, torch.Generator())
    config = peft.LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout, use_dora=True, target_modules=["0"])
    wrapped = peft.get_peft_model(theirs, config).base_model.model[0].double()
    torch.testing.assert_close(module.lora_magnitude.float(), wrapped.lora_magnitude_vector["default"].weight.float())
    with torch.no_grad():
        module.lora_B.normal_(std=spread)
        module.lora_magnitude.mul_(1 + spread * torch.rand(24))
        wrapped.lora_A["default"].weight.copy_(module.lora_A)
        wrapped.lora_B["default"].weight.copy_(module.lora_B)
        wrapped.lora_magnitude_vector["default"].weight.copy_(module.lora_magnitude)
    return ours[0], wrapped, module


def test_it_starts_as_the_base_model() -> None:
    ours, _, _ = pair(bias=True, spread=0.0)
    x = torch.randn(3, 16, dtype=torch.float64)
    assert torch.equal(ours(x), nn.functional.linear(x, ours.weight, ours.bias))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_pefts(bias: bool, dropout: float) -> None:
    ours, wrapped, module = pair(bias, dropout)
    x = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    twin = x.detach().clone().requires_grad_(True)
    weight = torch.randn(2, 5, 24, dtype=torch.float64)
    torch.manual_seed(5)
    one = ours(x)
    torch.manual_seed(5)
    two = wrapped(twin)
    torch.testing.assert_close(one, two)
    (one * weight).sum().backward()
    (two * weight).sum().backward()
    for mine, other in (
        (x, twin),
        (module.lora_A, wrapped.lora_A["default"].weight),
        (module.lora_B, wrapped.lora_B["default"].weight),
        (module.lora_magnitude, wrapped.lora_magnitude_vector["default"].weight),
    ):
        torch.testing.assert_close(mine.grad, other.grad)
    assert ours.weight.grad is None


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_neither_the_update_nor_a_gradient_of_the_weight_is_formed(dropout: float, allocated: Callable[..., set[Any]]) -> None:
    """No tensor of the weight's shape is made in either pass; PEFT's layer makes some, for the norm."""
    ours, wrapped, module = pair(bias=True, dropout=dropout)
    x, weights = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True), {(24, 16), (16, 24)}
    found = allocated(lambda: ours(x))
    assert module.lora_magnitude is not None
    assert module.lora_magnitude.grad is not None
    assert {(2, 5, 24), (4, 16), (24, 4)} <= found
    assert not weights & found
    assert weights & allocated(lambda: wrapped(x))


def test_what_merging_adds_is_pefts() -> None:
    _, wrapped, module = pair(bias=True)
    before = wrapped.base_layer.weight.clone()
    wrapped.merge()
    delta = Lora(options=Options(lora_rank=4, lora_alpha=12, lora_use_dora=True)).delta(module)
    torch.testing.assert_close(delta.double(), (wrapped.base_layer.weight - before).detach(), rtol=1e-4, atol=1e-6)


def test_a_row_of_zeros_gives_numbers() -> None:
    """Its norm is zero, and so is its magnitude: nothing may be divided to not-a-number."""
    layer = nn.Sequential(nn.Linear(16, 24))
    layer[0].weight.data[3] = 0
    lora = Lora(options=Options(lora_rank=4, lora_use_dora=True))
    module = lora.linear(SITE)
    lora.reset(module, torch.Generator().manual_seed(0))
    fill_slots(layer, {}, {"0": module})
    lora.attach(layer, {"0": module}, torch.Generator())
    assert torch.isfinite(layer(torch.randn(2, 16))).all()


def test_the_norm_is_that_of_the_updated_weight() -> None:
    """Against the norm of W + s·BA itself, for an update as large as the weight."""
    ours, _, module = pair(bias=False, spread=2.0)
    direct = torch.linalg.vector_norm(ours.weight + module.scale * module.lora_B @ module.lora_A, dim=1)
    torch.testing.assert_close(module.norm(), direct.detach())
    bind(nn.Sequential(ours), {"0": module})
    torch.testing.assert_close(module.norm(), direct.detach())


def test_what_it_keeps_of_the_weight_is_part_of_the_model_and_of_no_file() -> None:
    ours, _, module = pair(bias=False)
    assert [buffer.shape for buffer in ours.buffers()] == [(24,)]
    assert set(module.state_dict()) == {"lora_A", "lora_B", "lora_magnitude"}


def test_the_conformance_kit_accepts_rslora(tmp_path: Path) -> None:
    testing.check_adapter(Lora(options=Options(lora_rank=4, lora_use_rslora=True)), tmp_path)
