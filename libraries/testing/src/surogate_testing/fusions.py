"""Functions that replace the forward of a module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from attrs import evolve
from torch import Tensor, nn

from surogate_core.contracts import Fusion, Site, SiteKind


def check_fusion(fusion: Fusion, where: Site, module: nn.Module, *inputs: Tensor, tolerance: float = 1e-5) -> None:
    """``module`` is what stands at the site ``where``, with its weights; ``inputs`` are the arguments of its forward.

    The fusion claims it on the meta device, and leaves with a reason what computes something else: a subclass that doubles the
    result, and ``nn.Identity`` at each kind of site. Output and the gradients of inputs and parameters agree with the module's own
    in float64, to a relative Frobenius error of ``tolerance``; also with frozen parameters and with recomputation. The parameters
    stay as they are, under their names."""
    _claims_only_it(fusion, where, module)
    own = copy.deepcopy(module)
    before = {name: parameter.clone() for name, parameter in own.named_parameters()}
    forward = fusion.forward(own)
    exact = copy.deepcopy(module).double()
    wanted = _results(exact, exact, [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs])
    for how, called in (("", forward), ("recomputed, ", _recomputing(forward))):
        found = _results(called, own, inputs)
        assert found.keys() == wanted.keys(), f"{how}gradients reach {sorted(found)}, the module's own {sorted(wanted)}"
        for what, tensor in found.items():
            assert tensor.shape == wanted[what].shape, f"{how}{what}: {tuple(tensor.shape)}, wanted {tuple(wanted[what].shape)}"
            error = float((tensor.double() - wanted[what]).norm() / wanted[what].norm().clamp_min(1e-30))
            assert error <= tolerance, f"{how}{what}: relative error {error:.2e} above the tolerance {tolerance:.2e}"
    plain = module(*inputs)
    assert found["output"].dtype == plain.dtype, f"the output is {found['output'].dtype}, the module's own {plain.dtype}"
    after = dict(own.named_parameters())
    assert after.keys() == before.keys(), f"the parameters were {sorted(before)} and are now {sorted(after)}"
    for name, parameter in after.items():
        assert torch.equal(parameter, before[name]), f"forward changed the parameter {name!r}"
    own.requires_grad_(False)
    frozen = _results(forward, own, inputs)
    names = sorted(name for name in frozen if name.startswith("gradient of parameter"))
    assert not names, f"frozen parameters get a {names[0]}"


def _claims_only_it(fusion: Fusion, where: Site, module: nn.Module) -> None:
    meta = copy.deepcopy(module).to("meta")
    reason = fusion.claim(where, meta)
    assert reason is None, f"the fusion does not claim {where.name}: {reason}"
    assert all(parameter.is_meta for parameter in meta.parameters()), "claim gave the module memory"
    base: Any = type(module)
    meta.__class__ = type(f"Doubled{base.__name__}", (base,), {"forward": lambda self, *given: 2 * base.forward(self, *given)})
    _leaves(fusion, where, meta, "a subclass that computes twice as much")
    for kind in get_args(SiteKind):
        _leaves(fusion, evolve(where, kind=kind, shape=()), nn.Identity(), f"the identity at a site of kind {kind!r}")


def _leaves(fusion: Fusion, where: Site, module: nn.Module, what: str) -> None:
    reason = fusion.claim(where, module)
    assert reason is not None, f"the fusion claims {what}"
    assert isinstance(reason, str), f"claim answers {reason!r} for {what}: wanted None or a short reason"
    assert reason, f"the fusion leaves {what} without a reason"


def _recomputing(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    from torch.utils.checkpoint import checkpoint

    return lambda *given: checkpoint(forward, *given, use_reentrant=False)


def _results(forward: Callable[..., Tensor], module: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """The output, and the gradients under one random slope, by what they are of."""
    given = [tensor.detach().clone().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
    module.zero_grad(set_to_none=True)
    output = forward(*given)
    slope = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    output.backward(slope.to(output.dtype))
    told = {f"gradient of input {number}": tensor.grad for number, tensor in enumerate(given)}
    told |= {f"gradient of parameter {name!r}": parameter.grad for name, parameter in module.named_parameters()}
    return {"output": output.detach(), **{what: tensor for what, tensor in told.items() if tensor is not None}}
