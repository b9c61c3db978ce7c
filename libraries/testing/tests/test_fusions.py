"""Fusions that break one promise each, and what the check says of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from surogate_testing import check_fusion
from torch import Tensor, nn

from surogate_core import testing
from surogate_core.contracts import Site


class Gate(nn.Module):
    """x · sigmoid(weight · x)"""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1.0, 1.0, width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.weight * x)


class Fusion:
    def __init__(self, fault: str):
        self.fault = fault

    def claim(self, site: Site, module: nn.Module) -> Any:
        if self.fault == "memory":
            module.to_empty(device="cpu")
        if self.fault == "by kind":
            return None if site.kind == "activation" else "not an activation"
        if self.fault == "by class":
            return None if isinstance(module, Gate) else "not a gate"
        if type(module) is Gate and self.fault != "nothing":
            return None
        return {"mute": "", "no": False}.get(self.fault, "not a gate")

    def forward(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            weight = module.get_parameter("weight")
            y = x * torch.sigmoid((weight.detach() if self.fault == "deaf" else weight) * x)
            if self.fault == "near":
                return y * 1.001
            if self.fault == "slope":
                return y + (y.detach() - y) * 0.1
            return y.double() if self.fault == "dtype" else y

        if self.fault == "rename":
            module.gate = nn.Parameter(torch.zeros(1))
        if self.fault == "changes":
            module.get_parameter("weight").data[0] += 1e-7
        return call


FUSIONS = {
    "nothing": "does not claim model.act: not a gate",
    "memory": "claim gave the module memory",
    "by class": "claims a subclass that computes twice as much",
    "by kind": "claims a subclass that computes twice as much",
    "mute": "without a reason",
    "no": "claim answers False",
    "near": "output: relative error 1.00e-03",
    "slope": "gradient of input 0: relative error 1.00e-01",
    "deaf": "gradients reach",
    "dtype": "the output is torch.float64, the module's own torch.float32",
    "rename": "the parameters were",
    "changes": "forward changed the parameter 'weight'",
}
SITE = attrs.evolve(testing.site(), name="model.act", kind="activation", shape=(16,))


def check(fault: str) -> None:
    fusion: Any = Fusion(fault)
    check_fusion(fusion, SITE, Gate(), torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1)))


def test_a_good_one() -> None:
    check("")


@pytest.mark.parametrize("fault", FUSIONS)
def test_fusion(fault: str) -> None:
    with pytest.raises(AssertionError, match=FUSIONS[fault]):
        check(fault)


def test_the_identity_is_no_gate() -> None:
    class Lazy(Fusion):
        def claim(self, site: Site, module: nn.Module) -> Any:
            return None if type(module) in (Gate, nn.Identity) else "not a gate"

    lazy: Any = Lazy("")
    with pytest.raises(AssertionError, match="claims the identity at a site of kind 'linear'"):
        check_fusion(lazy, SITE, Gate(), torch.randn(3, 16))


def test_gradients_of_frozen_parameters_are_not_wanted() -> None:
    class Stubborn(Fusion):
        def forward(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
            weight = module.get_parameter("weight")

            def call(x: Tensor) -> Tensor:
                weight.requires_grad_(True)
                return x * torch.sigmoid(weight * x)

            return call

    stubborn: Any = Stubborn("")
    with pytest.raises(AssertionError, match="frozen parameters get a gradient of parameter 'weight'"):
        check_fusion(stubborn, SITE, Gate(), torch.randn(3, 16))
