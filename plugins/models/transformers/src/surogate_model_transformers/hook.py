"""Our way into transformers' loader: a registered quantiser that fills slots before weights are read, and takes weights as they
come. Nothing of it stays on the model or in its config.

Of a checkpoint that is quantised already the loader collects the tensors of each layer, and hands them over as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen
from torch import Tensor
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

_HOOK = "surogate"


def leave_no_trace(model: Any) -> None:
    """Take the hook off a model that was loaded with it."""
    model.hf_quantizer.remove_quantization_config(model)
    for module in model.modules():
        if hasattr(module, "config"):
            vars(module.config).pop("_is_quantized", None)
    vars(model).pop("is_quantized", None)
    if any(isinstance(op, _Read) for one in vars(model).get("_weight_conversions") or () for op in getattr(one, "operations", ())):
        del model._weight_conversions  # it is saved as numbers, under the names of its family


READS = hasattr(HfQuantizer, "serialized_names")
"""Whether this version of transformers has what reading quantised checkpoints needs: 5.23 has, 5.17 does not."""


@frozen
class Reading:
    """How a checkpoint that is quantised already is read. ``names``: parameter → the ends of the names of the tensors that hold it.
    ``read(name, tensors, dtype)`` gives the parameter that these tensors stand for, by these ends, or None when the storage of its
    layer has taken them."""

    names: Mapping[str, list[str]]
    read: Callable[[str, Mapping[str, Tensor], Any], Tensor | None]


@register_quantization_config(_HOOK)
class Hook(QuantizationConfigMixin):
    """Carries functions into the loader, which copies this object but not them. ``enter(model)`` fills the slots;
    ``pack(name, weight)`` hands a weight to the storage of its layer and says whether it has one, with None it only says."""

    def __init__(self, enter: Callable[[Any], None], pack: Callable[[str, Tensor | None], bool], reading: Reading | None = None):
        self.quant_method = _HOOK
        self.enter, self.pack, self.reading = enter, pack, reading

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": _HOOK}


@register_quantizer(_HOOK)
class _Quantizer(HfQuantizer):
    is_trainable = True

    def __init__(self, quantization_config: Hook, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        self.reading = quantization_config.reading
        self.pre_quantized = self.reading is not None
        self.serialized_names = dict(self.reading.names) if self.reading else {}

    def is_serializable(self) -> bool:
        return True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        self.quantization_config.enter(model)

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return bool(self.quantization_config.pack(param_name, None))

    def get_quantize_ops(self) -> _Pack:
        return _Pack(self.quantization_config.pack)

    def get_load_operations(self) -> dict[str, Any]:
        return {"dequantize": _Read} if self.reading else {}

    def get_weight_conversions(self) -> list[Any]:
        return [WeightConverter(list(names), own, [_Read(self)]) for own, names in self.serialized_names.items()]

    def update_weight_conversions(self, weight_conversions: list[Any], *model: Any) -> list[Any]:
        """What is packed is packed last: a stack of experts is read expert by expert. transformers 5.17 gives no model."""
        updated = super().update_weight_conversions(weight_conversions, *model)
        for converter in updated if self.reading else ():
            if isinstance(converter, WeightConverter):
                converter.operations = [*converter.operations, _PackWhole(self.quantization_config.pack)]
        return updated


class _Read(ConversionOps):
    """The loader's first operation on the tensors of a layer, or of the experts of a stack, in a checkpoint that is quantised."""

    def __init__(self, hf_quantizer: _Quantizer):
        self.hf_quantizer = hf_quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        *args: Any,
        full_layer_name: str = "",
        model: Any = None,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        reading = self.hf_quantizer.reading
        assert reading is not None
        ends = {name: own for own, names in reading.names.items() for name in names}
        layers: dict[str, dict[str, list[Tensor]]] = {}
        for key, value in input_dict.items():
            end = max((name for name in ends if key.endswith(name)), key=len)
            layers.setdefault(key.removesuffix(end) + ends[end], {})[end] = value if isinstance(value, list) else [value]
        dtype = model.get_parameter_or_buffer(full_layer_name).dtype
        found = {}
        for target, tensors in layers.items():
            parts = [
                {end: own[at] for end, own in tensors.items() if at < len(own)} for at in range(max(map(len, tensors.values())))
            ]
            values = [reading.read(full_layer_name, part, dtype) for part in parts]
            if values != [None]:
                found[target] = values
            elif missing_keys is not None:
                missing_keys.discard(full_layer_name)
        return found


class _Pack(ConversionOps):
    """The loader's last operation on a weight that is quantised: one is read, packed and let go before the next."""

    def __init__(self, pack: Callable[[str, Tensor | None], bool]):
        self.pack = pack

    def convert(
        self, input_dict: dict[str, Any], *args: Any, missing_keys: set[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        left = {}
        for name, value in input_dict.items():
            if not self.pack(name, value[0] if isinstance(value, list) else value):
                left[name] = value
            elif missing_keys is not None:
                missing_keys.discard(name)
        return left


class _PackWhole(_Pack):
    """The same on what the operations on a layer's tensors have given, which is not named in full yet."""

    def convert(self, input_dict: dict[str, Any], *args: Any, full_layer_name: str = "", **kwargs: Any) -> dict[str, Any]:
        if len(input_dict) != 1:
            return input_dict
        ((name, value),) = input_dict.items()
        left = super().convert({full_layer_name: value}, **kwargs)
        return {name: value} if left else {}
