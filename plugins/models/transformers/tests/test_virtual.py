"""What virtual tokens refuse; that they equal PEFT's is shown by the plugin that trains them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from surogate_model_transformers import virtual
from torch import Tensor, nn

from surogate_core.errors import ModelError


def pair(heads: int, size: int) -> tuple[Tensor, Tensor]:
    return torch.randn(heads, 3, size), torch.randn(heads, 3, size)


def test_a_prefix_comes_first_and_everything_sees_it() -> None:
    key, value = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 8)
    first = pair(4, 8)
    keys, values, allowed = virtual.prepend(first, key, value, torch.zeros(2, 1, 5, 5, dtype=torch.bool))
    assert keys.shape == values.shape == (2, 4, 8, 8)
    assert torch.equal(keys[1, :, :3], first[0])
    assert torch.equal(values[0, :, 3:], value[0])
    assert allowed[..., :3].all()
    assert not allowed[..., 3:].any()


def test_keys_of_another_shape_are_named() -> None:
    with pytest.raises(ModelError, match="the keys of the prefix are 2 heads of 8, those of this family 4 heads of 8"):
        virtual.prepend(pair(2, 8), torch.randn(1, 4, 5, 8), torch.randn(1, 4, 5, 8), torch.ones(1, 1, 5, 5, dtype=torch.bool))


def test_a_head_that_is_no_linear_layer_is_refused(tiny: Any, load: Any) -> None:
    from types import SimpleNamespace

    from surogate_model_transformers import batch_loss

    model = load(tiny("llama")[1])
    model.add_module("virtual_tokens", nn.Module())
    model._surogate_head = False
    with pytest.raises(ModelError, match="head is a plain linear layer"):
        batch_loss(model, SimpleNamespace())
