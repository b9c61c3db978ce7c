"""Each of these pairs differs in one way alone, and is told apart by it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from surogate_core.plan.alike import alike


@pytest.fixture
def x() -> Tensor:
    return torch.linspace(-2, 2, 12).view(3, 4).requires_grad_()


def refuses(x: Tensor) -> Tensor:
    raise ValueError("takes something else")


def of_the_same_value(x: Tensor) -> Tensor:
    """x, but with twice its gradient."""
    return 2 * x - x.detach()


@pytest.mark.parametrize(
    ("theirs", "ours", "within", "expected"),
    [
        (torch.sin, torch.sin, 0.0, True),
        (torch.sin, lambda x: torch.sin(x) * (1 + 1e-5), 0.0, False),
        (torch.sin, lambda x: torch.sin(x) * (1 + 1e-5), 2e-5, True),
        (torch.sin, lambda x: torch.sin(x) * (1 + 1e-5), 2e-6, False),
        (torch.clone, of_the_same_value, 1e-3, False),
        (torch.clone, lambda x: (x.clone(), x.clone()), 1e-3, False),
        (torch.sum, lambda x: x.sum(0, keepdim=True).sum(1), 1e-3, False),
        (torch.clone, lambda x: x * torch.tensor(float("nan")), 1e-3, False),
        (refuses, torch.clone, 1e-3, False),
    ],
)
def test_alike(x: Tensor, theirs: Callable[..., Tensor], ours: Callable[..., Tensor], within: float, expected: bool) -> None:
    with torch.no_grad():
        assert alike(lambda: theirs(x), lambda: ours(x), (x,), within) is expected


def test_what_ours_raises_is_not_hidden(x: Tensor) -> None:
    with pytest.raises(ValueError, match="takes something else"):
        alike(lambda: x.clone(), lambda: refuses(x), (x,))
