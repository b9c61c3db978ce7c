"""What fills the slots of linear layers: recipes, quantizers, adapters. Shapes: N outputs and K inputs of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from safetensors.torch import load, save
from torch import Tensor, nn

from surogate_core.contracts import Adapter, Held, Quantizer, ReadsCheckpoints, Recipe, Site
from surogate_core.testing import site


def check_recipe(recipe: Recipe, *, bound: float, dtype: torch.dtype = torch.float32, where: Site | None = None) -> None:
    """Output and both gradients of one linear, (24, K) inputs in ``dtype``, against float64: relative Frobenius error at most
    ``bound``."""
    place = where or site()
    assert recipe.claim(place) is None, f"the recipe does not claim {place.name}: {recipe.claim(place)}"
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(24, place.shape[1], generator=generator)
    weight = torch.randn(place.shape, generator=generator) * 0.1
    dy = torch.randn(24, place.shape[0], generator=generator)
    compute = recipe.linear(place)
    xs = x.clone().to(dtype).requires_grad_()
    ws = weight.clone().to(dtype).requires_grad_()
    y = compute(xs, ws, None)
    y.backward(dy.to(y.dtype))
    assert xs.grad is not None, "the input gets no gradient"
    assert ws.grad is not None, "the weight gets no gradient"
    exact = {
        "output": (y, x.double() @ weight.double().t()),
        "input gradient": (xs.grad, dy.double() @ weight.double()),
        "weight gradient": (ws.grad, dy.double().t() @ x.double()),
    }
    for what, (found, wanted) in exact.items():
        error = _distance(found, wanted)
        assert error <= bound, f"{what}: relative error {error:.2e} above the bound {bound:.2e}"


def check_quantizer(
    quantizer: Quantizer,
    *,
    error: float,
    bits: float,
    where: Site | None = None,
    shapes: Sequence[tuple[int, int]] = ((48, 32), (17, 33), (1, 1)),
) -> None:
    """One weight of ``where`` (default 256 × 512) held and given back: :func:`check_storage`, at most ``bits`` bits a weight, the
    buffers survive safetensors. A weight of each of ``shapes`` is held too, or left by ``claim`` with a reason. A checkpoint in
    an unknown format is left alone."""
    place = where or site(256, 512)
    reason = quantizer.claim(place)
    assert reason is None, f"the quantizer does not claim {place.name}: {reason}"
    weight = torch.randn(place.shape, generator=torch.Generator().manual_seed(7)) * 0.02
    storage = _empty(quantizer, place)
    check_storage(storage, weight, error)
    held = 8 * sum(tensor.nbytes for tensor in storage.state_dict().values()) / weight.numel()
    assert held <= bits * 1.001, f"{held:.3f} bits a weight are held, {bits:g} were declared"
    _survives_safetensors(storage, _empty(quantizer, place), place)
    for shape in shapes:
        _holds_or_leaves(quantizer, evolve(place, shape=shape))
    if isinstance(quantizer, ReadsCheckpoints):
        foreign = Held(settings={"quant_method": "a format that nobody has"}, sites=frozenset({place.name}))
        assert quantizer.reading(foreign) is None, "a checkpoint in a format that nobody has is read"


def check_storage(storage: Any, weight: Tensor, error: float) -> None:
    """``storage`` is empty, on the meta device. ``pack`` gives its buffers the shapes and dtypes that were planned, the same bytes
    each time, and leaves ``weight`` (N, K) alone. ``unpack`` gives (N, K) within a relative Frobenius ``error``, equal values at
    each call, rounded to bfloat16 once. There are no parameters."""
    planned = _shapes(storage)
    assert all(tensor.is_meta for tensor in storage.state_dict().values()), "buffers are made outside of the meta device"
    before = weight.clone()
    storage.pack(weight)
    assert torch.equal(weight, before), "pack changed the weight"
    assert _shapes(storage) == planned, f"pack left {_shapes(storage)}, the plan counts {planned}"
    assert not list(storage.parameters()), "a storage has buffers, and no parameters: nothing in it is trained"
    first = {name: tensor.clone() for name, tensor in storage.state_dict().items()}
    storage.pack(weight)
    for name, tensor in storage.state_dict().items():
        assert _same_bytes(first[name], tensor), f"pack gave two answers in {name!r} for one weight"
    for dtype in (torch.float32, torch.bfloat16):
        found = storage.unpack(dtype)
        assert found.dtype == dtype, f"unpack({dtype}) gives {found.dtype}"
        assert found.shape == weight.shape, f"unpack gives {tuple(found.shape)}, the weight is {tuple(weight.shape)}"
        assert found.is_contiguous(), "unpack gives a tensor that is not contiguous"
        assert torch.equal(found, storage.unpack(dtype)), "two calls of unpack differ"
    whole = storage.unpack(torch.float32)
    assert torch.equal(storage.unpack(torch.bfloat16), whole.bfloat16()), "bfloat16 rounds more than once"
    distance = _distance(whole, weight)
    assert distance <= error, f"unpack: relative error {distance:.2e} above the bound {error:.2e}"


def check_adapter(adapter: Adapter, directory: Path, where: Site | None = None, merges: bool = True) -> None:
    """Identity at the start; save and load keep every bit; ``delta`` equals what the adapter adds, to 1e-5, if it ``merges``. For
    adapters that fill slots."""
    place = where or site()
    assert adapter.claim(place) is None, f"the adapter does not claim {place.name}"

    def fresh() -> nn.Module:
        module = adapter.linear(place)
        module.to_empty(device="cpu")
        adapter.reset(module, torch.Generator().manual_seed(1))
        return module.eval()

    module = fresh()
    x, y = torch.randn(5, place.shape[1]), torch.randn(5, place.shape[0])
    assert torch.equal(module(x, y), y), "the adapter is not the identity at its start"
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape).to(parameter.dtype) * 0.1)
    added = module(x, y) - y
    assert not merges or torch.allclose(added, x @ adapter.delta(module).t(), atol=1e-4), "delta is not what the adapter adds"
    adapter.save({place.name: module}, directory, "base")
    again = fresh()
    adapter.load({place.name: again}, directory)
    for (name, one), two in zip(module.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two), f"{name} changed through save and load"


def _empty(quantizer: Quantizer, place: Site) -> Any:
    with torch.device("meta"):
        return quantizer.storage(place)


def _shapes(storage: Any) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in storage.state_dict().items()}


def _survives_safetensors(storage: Any, again: Any, place: Site) -> None:
    """The buffers written, read, and put into an empty storage."""
    state = storage.state_dict()
    try:
        read = load(save(state))
    except (ValueError, RuntimeError, KeyError) as error:
        raise AssertionError(f"safetensors cannot keep the buffers: {error}") from error
    again.load_state_dict(read, assign=True)
    same = torch.equal(again.unpack(torch.float32), storage.unpack(torch.float32))
    assert same, f"{place.name}: the buffers alone do not give the weight back: something is kept beside them"


def _holds_or_leaves(quantizer: Quantizer, place: Site) -> None:
    reason = quantizer.claim(place)
    if reason is not None:
        assert isinstance(reason, str), f"claim answers {reason!r}: wanted None or a short reason"
        assert reason, f"claim leaves a weight of {place.shape} without a reason"
        return
    try:
        for weight in (torch.randn(place.shape, dtype=torch.bfloat16), torch.zeros(place.shape)):
            storage = _empty(quantizer, place)
            storage.pack(weight)
            found = storage.unpack(torch.float32)
            assert found.shape == weight.shape, f"a weight of {place.shape} comes back as {tuple(found.shape)}"
            assert found.isfinite().all(), f"a weight of {place.shape} comes back with values that are not finite"
            assert weight.any() or not found.any(), f"zeros of {place.shape} come back as other values"
    except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
        what = f"a weight of {place.shape} is claimed, and then raises {type(error).__name__}: let claim leave it, with a reason"
        raise AssertionError(what) from error


def _same_bytes(one: Tensor, two: Tensor) -> bool:
    return one.dtype == two.dtype and torch.equal(one.reshape(-1).view(torch.uint8), two.reshape(-1).view(torch.uint8))


def _distance(found: Tensor, wanted: Tensor) -> float:
    """Relative Frobenius error."""
    return float((found.detach().double() - wanted.double()).norm() / wanted.double().norm())
