"""Our way into transformers' loader: a registered quantiser that fills slots before weights are read, and takes weights as they
come. Nothing of it stays on the model or in its config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.core_model_loading import ConversionOps
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


@register_quantization_config(_HOOK)
class Hook(QuantizationConfigMixin):
    """Carries two functions into the loader, which copies this object but not them. ``enter(model)`` fills the slots;
    ``pack(name, weight)`` hands a weight to the storage of its layer and says whether it has one, with None it only says."""

    def __init__(self, enter: Callable[[Any], None], pack: Callable[[str, Tensor | None], bool]):
        self.quant_method = _HOOK
        self.enter, self.pack = enter, pack

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": _HOOK}


@register_quantizer(_HOOK)
class _Quantizer(HfQuantizer):
    is_trainable = True

    def is_serializable(self) -> bool:
        return True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        self.quantization_config.enter(model)

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return bool(self.quantization_config.pack(param_name, None))

    def get_quantize_ops(self) -> _Pack:
        return _Pack(self.quantization_config.pack)


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
