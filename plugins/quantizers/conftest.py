"""What every storage has to do, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch


def check(storage: Any, weight: torch.Tensor, error: float) -> None:
    """``pack`` gives the shapes planned on the meta device and leaves the weight alone; ``unpack`` is within a relative ``error``,
    equal at each call, and rounded once; there are buffers and no parameters."""
    planned = {name: (tensor.shape, tensor.dtype) for name, tensor in storage.state_dict().items()}
    assert all(tensor.is_meta for tensor in storage.state_dict().values())
    before = weight.clone()
    storage.pack(weight)
    assert torch.equal(weight, before), "pack changed the weight"
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in storage.state_dict().items()} == planned
    assert not list(storage.parameters())
    for dtype in (torch.float32, torch.bfloat16):
        found = storage.unpack(dtype)
        assert (found.dtype, found.shape, found.is_contiguous()) == (dtype, weight.shape, True)
        assert torch.equal(found, storage.unpack(dtype)), "two calls differ"
    assert torch.equal(storage.unpack(torch.bfloat16), storage.unpack(torch.float32).bfloat16()), "bfloat16 rounds more than once"
    distance = (storage.unpack(torch.float32) - weight.float()).norm()
    assert distance <= error * weight.float().norm(), f"relative error {distance / weight.float().norm()}"


@pytest.fixture
def check_storage() -> Callable[..., None]:
    return check
