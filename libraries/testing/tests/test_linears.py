"""Recipes, quantizers and adapters that break one promise each, and what the check says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from surogate_testing import check_adapter, check_quantizer, check_recipe
from torch import Tensor, nn

from surogate_core.contracts import Held, Site


class Recipe:
    def __init__(self, fault: str):
        self.fault = fault

    def claim(self, site: Site) -> str | None:
        return "too small" if self.fault == "leaves" else None

    def linear(self, site: Site) -> Any:
        def compute(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            y = (x.detach() if self.fault == "cut off" else x) @ weight.t()
            if self.fault == "slope":
                return y + (y.detach() - y) * 0.5
            return y * 0.5 if self.fault == "halved" else y

        return compute


RECIPES = {
    "": "",
    "leaves": "does not claim model.layers.0.mlp.up_proj: too small",
    "halved": "output: relative error 5",
    "slope": "input gradient: relative error 5",
    "cut off": "the input gets no gradient",
}


@pytest.mark.parametrize("fault", RECIPES)
def test_recipe(fault: str) -> None:
    wanted = RECIPES[fault]
    recipe: Any = Recipe(fault)
    if not fault:
        check_recipe(recipe, bound=1e-6)
        return
    with pytest.raises(AssertionError, match=wanted):
        check_recipe(recipe, bound=1e-3)


class Bytes(nn.Module):
    """Eight bits a value, one float32 scale a row: 8 + 32 / K bits."""

    codes: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, ...], fault: str):
        super().__init__()
        self.fault = fault
        self.register_buffer("codes", torch.empty(shape, dtype=torch.int8))
        self.register_buffer("scale", torch.empty(shape[0], 1))
        if fault == "parameter":
            self.weight = nn.Parameter(torch.empty(0))
        if fault == "real":
            self.register_buffer("top", torch.empty((), device="cpu"))
        if fault == "large":
            self.register_buffer("more", torch.empty(shape))
        self.offset = 0.0

    def pack(self, weight: Tensor) -> None:
        if self.fault == "odd" and weight.shape[1] % 2:
            raise RuntimeError("an odd number of columns")
        values = weight.float()
        scale = values.abs().amax(1, keepdim=True) / (1 if self.fault == "coarse" else 127)
        self.scale = scale.masked_fill(scale == 0, torch.inf) if self.fault == "zeros" else scale.clamp_min(1e-12)
        noise = torch.rand(weight.shape) - 0.5 if self.fault == "random" else 0.0
        self.codes = (values / self.scale + noise).round().clamp(-127, 127).to(torch.int8)
        if self.fault == "changes":
            weight.mul_(2)
        if self.fault == "dtype":
            self.codes = self.codes.short()
        if self.fault == "large":
            self.more = values
        if self.fault == "aside":
            self.offset = float(values.abs().max())
        if self.fault == "strided":
            self.codes = self.codes.t().contiguous().t()

    def unpack(self, dtype: torch.dtype) -> Tensor:
        if self.fault == "twice":
            return (self.codes.to(dtype) * self.scale.to(dtype)).to(dtype)
        found = (self.codes.float() * self.scale + self.offset * 1e-3).to(dtype)
        if self.fault == "float":
            return found.float()
        if self.fault == "drifts":
            self.offset += 1e-3
        if self.fault == "strided":
            return found.contiguous()
        return found.t() if self.fault == "turned" else found


class Quantizer:
    def __init__(self, fault: str):
        self.fault = fault

    def claim(self, site: Site) -> Any:
        odd = site.shape[1] % 2
        return {"leaves": "not mine", "mute": "" if odd else None, "no": False if odd else None}.get(self.fault)

    def storage(self, site: Site) -> Bytes:
        return Bytes(site.shape, self.fault)

    def reading(self, held: Held) -> Any:
        return self if self.fault == "greedy" else None


QUANTIZERS = {
    "": "",
    "leaves": "does not claim model.layers.0.mlp.up_proj: not mine",
    "real": "buffers are made outside of the meta device",
    "changes": "pack changed the weight",
    "dtype": "pack left .*int16.*, the plan counts .*int8",
    "parameter": "a storage has buffers, and no parameters",
    "random": "pack gave two answers in 'codes'",
    "float": "gives torch.float32",
    "turned": "unpack gives .*512, 256.*, the weight is .*256, 512",
    "drifts": "two calls of unpack differ",
    "twice": "bfloat16 rounds more than once",
    "coarse": "unpack: relative error .* above the bound",
    "large": "40.062 bits a weight are held, 8.1 were declared",
    "strided": "safetensors cannot keep the buffers: .*contiguous",
    "aside": "something is kept beside them",
    "odd": r"a weight of \(17, 33\) is claimed, and then raises RuntimeError",
    "zeros": r"a weight of \(48, 32\) comes back with values that are not finite",
    "mute": r"claim leaves a weight of \(17, 33\) without a reason",
    "no": "claim answers False",
    "greedy": "a checkpoint in a format that nobody has is read",
}


@pytest.mark.parametrize("fault", QUANTIZERS)
def test_quantizer(fault: str) -> None:
    quantizer: Any = Quantizer(fault)
    if not fault:
        check_quantizer(quantizer, error=0.02, bits=8.1)
        return
    with pytest.raises(AssertionError, match=QUANTIZERS[fault]):
        check_quantizer(quantizer, error=0.02, bits=8.1)


class Adapter:
    """One matrix that is added."""

    def __init__(self, fault: str):
        self.fault = fault

    def claim(self, site: Site) -> str | None:
        return "not mine" if self.fault == "leaves" else None

    def linear(self, site: Site) -> nn.Module:
        class Added(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.empty(site.shape, device="meta"))

            def forward(self, x: Tensor, y: Tensor) -> Tensor:
                return y + x @ self.weight.t()

        return Added()

    def reset(self, module: nn.Module, generator: torch.Generator) -> None:
        values = torch.full((), 0.1 if self.fault == "starts" else 0.0)
        for parameter in module.parameters():
            parameter.data.copy_(values)

    def save(self, modules: dict[str, nn.Module], directory: Path, base_model: str) -> None:
        tensors = {name: module.get_parameter("weight").detach() for name, module in modules.items()}
        rounded = {name: tensor.half().float() for name, tensor in tensors.items()}
        save_file(rounded if self.fault == "rounds" else tensors, directory / "adapter.safetensors")

    def load(self, modules: dict[str, nn.Module], directory: Path) -> None:
        for name, tensor in load_file(directory / "adapter.safetensors").items():
            modules[name].get_parameter("weight").data.copy_(tensor)

    def delta(self, module: nn.Module) -> Tensor:
        return module.get_parameter("weight").detach() * (2 if self.fault == "merges" else 1)


ADAPTERS = {
    "": "",
    "leaves": "does not claim",
    "starts": "not the identity at its start",
    "rounds": "weight changed through save and load",
    "merges": "delta is not what the adapter adds",
}


@pytest.mark.parametrize("fault", ADAPTERS)
def test_adapter(fault: str, tmp_path: Path) -> None:
    adapter: Any = Adapter(fault)
    if not fault:
        check_adapter(adapter, tmp_path)
        return
    with pytest.raises(AssertionError, match=ADAPTERS[fault]):
        check_adapter(adapter, tmp_path)
