"""Checkpoints whose weights are quantised already: which layers, in which form, and the numbers that they stand for.

``quantization_config`` in config.json names the form, or ModelOpt's ``hf_quant_config.json`` beside it:

fp8           "fine-grained" E4M3 with a scale for each tile (DeepSeek-V3, arXiv 2412.19437, section 3.3): w = q · s
modelopt      NVFP4: pairs of E2M1, the even column in the low half of a byte, E4M3 scales of 16 columns, a float32: w = q · s · s₂
mxfp4         E2M1 with a power of two for 32 values (OCP Microscaling 1.0, section 5.4), as in the experts of GPT-OSS
bitsandbytes  4 bits, NF4 or FP4, in bitsandbytes' own layout

A quantizer that has the format holds the tensors as they are (``Storage.adopt``). What no quantizer takes becomes numbers here.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from attrs import define, field
from torch import Tensor

from surogate_core.contracts import Held, Site
from surogate_core.errors import ModelError
from surogate_model_transformers.hook import Reading

BITSANDBYTES = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
NAMES: dict[str, dict[str, list[str]]] = {
    "fp8": {"weight": ["weight", "weight_scale_inv", "activation_scale"]},
    "modelopt": {"weight": ["weight", "weight_scale", "weight_scale_2", "input_scale", "k_scale", "v_scale"]},
    "mxfp4": {f"{role}_proj": [f"{role}_proj_blocks", f"{role}_proj_scales"] for role in ("gate_up", "down")},
    "bitsandbytes": {
        "weight": [
            "weight",
            *(f"weight.{name}" for name in BITSANDBYTES),
            *(f"weight.quant_state.bitsandbytes__{kind}" for kind in ("nf4", "fp4")),
        ]
    },
}
"""Form → parameter of a layer → the ends of the names of the tensors that hold it."""
PLAIN_KEYS = ("modules_to_not_convert", "ignore", "exclude_modules", "llm_int8_skip_modules")
"""What the forms call their list of modules that are not quantised."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


# ---------------------------------------------------------------- what the files say
def read_form(config: Any, directory: Path) -> dict[str, Any] | None:
    """The checkpoint's ``quantization_config``, None where there is none. Raises ModelError for a form that cannot be read."""
    found = getattr(config, "quantization_config", None)
    beside = directory / "hf_quant_config.json"
    if found is None and beside.is_file():
        found = {"quant_method": "modelopt", **json.loads(beside.read_text("utf-8")).get("quantization", {})}
    if found is None:
        return None
    settings = _plain_dict(found)
    if refusal := _refusal(settings):
        raise ModelError(
            f"the checkpoint's weights are quantised already, {refusal}",
            where=str(directory / "config.json"),
            how="give the unquantised checkpoint of this model",
        )
    return settings


def form_of(config: Any) -> dict[str, Any] | None:
    """What :func:`read_form` found, where it was left on a transformers config."""
    found = getattr(config, "quantization_config", None)
    return None if found is None else _plain_dict(found)


def without_form(config: Any) -> Any:
    """A copy of a transformers config that describes the model as one of numbers."""
    twin = copy.deepcopy(config)
    vars(twin).pop("quantization_config", None)
    return twin


def _plain_dict(found: Any) -> dict[str, Any]:
    return dict(found if isinstance(found, Mapping) else found.to_dict())


def _refusal(settings: Mapping[str, Any]) -> str | None:
    method = settings.get("quant_method")
    if method not in NAMES:
        return f"by {method!r}: only {', '.join(NAMES)} can be read"
    if method == "fp8" and len(settings.get("weight_block_size") or ()) != 2:
        return "in fp8 without weight_block_size: only scales of tiles can be read"
    if method == "modelopt" and settings.get("quant_algo") != "NVFP4":
        return f"by ModelOpt with quant_algo {settings.get('quant_algo')!r}: only NVFP4 can be read"
    if method == "bitsandbytes" and not settings.get("load_in_4bit"):
        return "by bitsandbytes in 8 bits: only 4 bits can be read"
    return None


def held_sites(settings: Mapping[str, Any], sites: Sequence[Site]) -> Held:
    """The sites that are held so: linear layers of the blocks (stacked experts for mxfp4 and fp8), less those listed as plain."""
    kinds = {"mxfp4": ("stacked_linear",), "bitsandbytes": ("linear",)}.get(settings["quant_method"], ("linear", "stacked_linear"))
    plain = [pattern for key in PLAIN_KEYS for pattern in settings.get(key) or ()]
    names = {site.name for site in sites if site.kind in kinds and site.layer is not None}
    return Held(settings=settings, sites=frozenset(name for name in names if not is_plain(name, plain)))


def is_plain(name: str, patterns: Sequence[str]) -> bool:
    """Whether a module is left as it is by a list of names, ends of names, patterns of transformers (regular expressions) or of
    ModelOpt (``*`` stands for any text)."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    globs = [pattern for pattern in patterns if "*" in pattern]
    if any(fnmatchcase(one, pattern) for pattern in globs for one in (name, f"{name}.weight")):
        return True
    return not should_convert_module(name, [pattern for pattern in patterns if not pattern.startswith("*")])


# ---------------------------------------------------------------- reading it
@define
class Reader:
    """Reads the weights of a checkpoint in the form ``settings``. ``adopters``: parameter → a function that hands tensors to the
    storage of its layer and says whether it took them."""

    settings: Mapping[str, Any]
    adopters: dict[str, Callable[[Mapping[str, Tensor]], bool]] = field(factory=dict)
    unpacked: set[str] = field(factory=set)
    failures: list[ModelError] = field(factory=list)

    def reading(self) -> Reading:
        """For the loader, which copies all but plain functions."""
        return Reading(NAMES[self.settings["quant_method"]], lambda *given: self.read(*given))

    def read(self, name: str, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor | None:
        """The parameter ``name`` in ``dtype``, or None when a storage has taken it. Raises ModelError."""
        weight = tensors.get("weight")
        if weight is not None and weight.is_floating_point() and weight.element_size() > 1:
            return weight.to(dtype)  # one that is not quantised
        if name in self.adopters and self.adopters[name](tensors):
            return None
        self.unpacked.add(name)
        try:
            return numbers(self.settings, tensors, dtype)
        except KeyError as error:
            what = f"{name} has no {error.args[0]} beside it in the checkpoint, only {', '.join(sorted(tensors))}"
            failure = ModelError(what, where="quantization_config", how="download or copy the checkpoint's files again")
        except ModelError as error:
            failure = error
        self.failures.append(failure)  # transformers' loader would only log it
        raise failure

    def remark(self, dtype: torch.dtype) -> str | None:
        """What the user is told about weights that are not held as they are in the file."""
        if not self.unpacked:
            return None
        precision = str(dtype).removeprefix("torch.")
        return f"{len(self.unpacked)} weights of the checkpoint, in {self.settings['quant_method']}, are dequantised to {precision}"


# ---------------------------------------------------------------- the numbers
def numbers(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The weight that these tensors of one layer stand for, by the ends of their names: (N, K), of mxfp4 (E, K, N) as the family
    holds it; products in float32, rounded once to ``dtype``. Raises KeyError for a tensor that is missing."""
    forms = {"fp8": _fp8, "modelopt": _nvfp4, "mxfp4": _mxfp4, "bitsandbytes": _bitsandbytes}
    return forms[settings["quant_method"]](settings, tensors, dtype)


def _fp8(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    weight, scale = tensors["weight"], tensors["weight_scale_inv"].float()
    for axis, (side, size) in enumerate(zip(settings["weight_block_size"], weight.shape, strict=True)):
        scale = scale.repeat_interleave(side, axis).narrow(axis, 0, size)
    return (weight.float() * scale).to(dtype)


def _pairs(packed: Tensor) -> Tensor:
    """The E2M1 values of bytes, (..., n) → (..., 2n), the low half first."""
    values = torch.tensor([*E2M1, *(-value for value in E2M1)], device=packed.device)
    return values[torch.stack([packed & 15, packed >> 4], -1).int()].flatten(-2)


def _nvfp4(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    scale = tensors["weight_scale"].float()
    values = _pairs(tensors["weight"]).unflatten(-1, (scale.shape[-1], -1)) * scale[..., None]
    return (values * tensors["weight_scale_2"].float()).flatten(-2).to(dtype)


def _mxfp4(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    ends = {name.rpartition("_")[2]: tensor for name, tensor in tensors.items()}
    values = torch.ldexp(_pairs(ends["blocks"]), ends["scales"].int()[..., None] - 127)
    return values.flatten(-2).transpose(-1, -2).contiguous().to(dtype)


def _bitsandbytes(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise ModelError("the weights are in bitsandbytes' form", "quantization_config", "pip install bitsandbytes") from error
    state = functional.QuantState.from_dict(
        {name.removeprefix("weight."): tensor for name, tensor in tensors.items() if name != "weight"}, tensors["weight"].device
    )
    state.dtype = torch.float32
    return functional.dequantize_4bit(tensors["weight"], state).to(dtype)
