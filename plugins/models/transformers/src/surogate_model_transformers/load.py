"""A transformers model with our attention and our linear layers in it.

transformers' own loader reads the weights: it knows renamed and stacked experts, tied heads and buffers. Our modules get in before
the weights through the hook that it has for quantisers; nothing of that stays on the model or in its config.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from surogate_core.errors import ModelError
from surogate_model_transformers.attention import IMPLEMENTATION
from surogate_model_transformers.config import PICKLE_FILES, SAFE_FILES, fetch, first_line, weight_files
from surogate_model_transformers.experts import stacks, take_over
from surogate_model_transformers.held import Reader, form_of, without_form
from surogate_model_transformers.hook import READS, Hook, leave_no_trace
from surogate_model_transformers.plugin import Settings
from surogate_model_transformers.quiet import quiet
from surogate_model_transformers.sites import blocks
from surogate_model_transformers.slots import SLOTS, slot_layers, slot_names
from surogate_model_transformers.vision import has_vision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", *PICKLE_FILES, "pytorch_model-*.bin")


def skeleton(hf_config: Any, settings: Settings) -> Any:
    """The model on the meta device, in ``model_dtype``: shapes and names without memory."""
    try:
        with quiet(), torch.device("meta"):
            return _model_class(hf_config, settings)._from_config(
                without_form(hf_config), dtype=DTYPES[settings.core.model_dtype], attn_implementation=_attention(hf_config)
            )
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise ModelError(
            f"a {hf_config.model_type} model cannot be built from its config: {type(error).__name__}: {first_line(error)}",
            where=f"{settings.core.model}, config.json" + (", rope_scaling" if settings.own.rope_scaling else ""),
        ) from error


def load_model(
    hf_config: Any,
    settings: Settings,
    *,
    device: str | torch.device,
    source: str | Path | None = None,
    prepare: Callable[[Any], object] | None = None,
    stay: Callable[[Any], object] = lambda model: None,
    notice: Callable[[str], None] = lambda text: None,
) -> Any:
    """The model on ``device`` in ``model_dtype``, in training mode, ready for ``run_hidden`` and ``batch_loss``.

    Weights are those in ``source`` (a directory; default ``model``), or random when ``from_scratch`` is set and no
    source is given: then they are transformers' own initial values in float32 after ``torch.manual_seed(train_seed)``.
    ``prepare(model)`` fills slots: before the weights arrive, on the meta device. An adapter that is on the meta device is given
    memory but no values. ``stay(model)`` takes out of it what stays in the memory of the host, where it was read.
    ``notice`` gets a line where the files are not quite what was asked for.

    Raises ModelError where weights are missing, unexpected or of another shape, or files cannot be read.
    """
    if settings.core.from_scratch and source is None:
        model = _random(hf_config, settings, prepare)
    else:
        model = _read(hf_config, settings, source, prepare, notice)
    take_over(model)
    for name, layer in (*slot_layers(model), *((name, stack) for name, _, _, stack in stacks(model))):
        adapter: Any = layer.adapter
        if adapter is not None and any(p.is_meta for p in adapter.parameters()):
            adapter.to_empty(device=device)
        if any(tensor.is_meta for tensor in layer.state_dict().values()):
            raise ModelError("a recipe's compute module is on the meta device and has no values", where=name)
    stay(model)
    model.to(device)
    _fix_rotary(model, settings.core.sequence_len)
    return model.train()


def recompute_layers(model: Any) -> None:
    """From now on keep only the inputs of each decoder layer and compute its activations again in the backward pass. Raises
    ModelError for families that cannot."""
    turn_on = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        turn_on({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(f"recompute: {first_line(error)}", where="recompute", how="set recompute = false") from error


def _model_class(hf_config: Any, settings: Settings) -> Any:
    """The family's class, from its own module: importing the Auto classes costs seconds."""
    if settings.own.trust_remote_code and getattr(hf_config, "auto_map", None):
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        return get_class_from_dynamic_module(hf_config.auto_map["AutoModelForCausalLM"], fetch(settings))
    from transformers.models.auto.configuration_auto import model_type_to_module_name
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    family = hf_config.model_type
    with_images = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES if has_vision(hf_config) else {}
    known = {**with_images, **MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    if family not in known:
        raise ModelError(
            f"{family!r} models do not predict the next token", where=f"{settings.core.model}, config.json", how="use another model"
        )
    module = importlib.import_module(f"transformers.models.{model_type_to_module_name(family)}")
    return getattr(module, known[family])


def _attention(hf_config: Any) -> Any:
    """Our attention in the decoder. A vision tower sees one image at a time, whole: it has torch's."""
    if not has_vision(hf_config):
        return IMPLEMENTATION
    return {"": IMPLEMENTATION, "text_config": IMPLEMENTATION, "vision_config": "sdpa"}


PROJECTIONS = ("o_proj", "down_proj", "out_proj", "c_proj", "dense_4h_to_h", "fc2", "w2")
"""Names that families give to the last linear layer of attention and MLP, and to stacked ones of experts."""


def _zero_projections(model: Any) -> None:
    """``init_projections_to_zero``: weights and biases. Raises ModelError for a family that has none of these names."""
    _, layers = blocks(model)
    found = [
        parameter
        for path, parameter in layers.named_parameters()
        if {part.removesuffix("_bias") for part in path.split(".")} & set(PROJECTIONS)
    ]
    if not found:
        raise ModelError(
            f"no layer of a {model.config.model_type} block is called {', '.join(PROJECTIONS)}",
            where="init_projections_to_zero",
            how="set init_projections_to_zero = false",
        )
    for parameter in found:
        nn.init.zeros_(parameter)


def _random(hf_config: Any, settings: Settings, prepare: Callable[[Any], object] | None) -> Any:
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.core.train_seed)
        model = _model_class(hf_config, settings)._from_config(
            without_form(hf_config), dtype=torch.float32, attn_implementation=_attention(hf_config)
        )
    if settings.own.init_projections_to_zero:
        _zero_projections(model)
    _cast(model, DTYPES[settings.core.model_dtype])
    if prepare is not None:
        prepare(model)
    for _, layer in slot_layers(model):
        if layer.storage is not None:
            layer.pack(layer.storage, layer.weight)
    for _, module, role, stack in stacks(model):
        if stack.storages:
            stack.pack(getattr(module, role))
            module.register_parameter(role, None)
    return model


def _read(
    hf_config: Any,
    settings: Settings,
    source: str | Path | None,
    prepare: Callable[[Any], object] | None,
    notice: Callable[[str], None],
) -> Any:
    directory = fetch(settings, source, WEIGHT_PATTERNS)
    files = weight_files(directory)
    if files[0] in PICKLE_FILES:
        notice(f"{directory / files[0]} is a pickle file: only its tensors are read")
    stored = _stored_dtype(directory, files, hf_config)
    dtype = DTYPES[settings.core.model_dtype]
    first = getattr(torch, settings.own.torch_dtype) if settings.own.torch_dtype else dtype
    if stored == "float16" and source is None:
        notice(f"the checkpoint is float16: its weights are converted to {str(dtype).removeprefix('torch.')}")
    slots: list[tuple[Any, str, nn.Module]] = []
    to_pack: dict[str, tuple[Any, str, tuple[int, ...], Callable[[Tensor], None]]] = {}
    shapes: dict[str, torch.Size] = {}
    reader = Reader(form) if (form := form_of(hf_config)) and source is None else None
    if reader is not None and not READS:
        raise ModelError(
            f"a checkpoint that is quantised already cannot be read with transformers {transformers.__version__}",
            where=str(directory),
            how="pip install 'transformers >= 5.23'",
        )

    def enter(model: Any) -> None:
        shapes.update((name, parameter.shape) for name, parameter in model.named_parameters())
        if prepare is None:
            return
        with torch.device("cpu"):  # what a recipe makes here is real; only the model is on the meta device
            prepare(model)
        for name, layer in slot_layers(model):
            if layer.storage is not None:
                shape = (layer.out_features, layer.in_features)
                to_pack[f"{name}.weight"] = (layer, "weight", shape, functools.partial(layer.pack, layer.storage))
                if reader is not None:
                    reader.adopters[f"{name}.weight"] = functools.partial(layer.adopt, layer.storage)
            for slot in SLOTS:
                part = getattr(layer, slot)
                if isinstance(part, nn.Module):
                    slots.append((layer, slot, part))
                    setattr(layer, slot, None)
        for name, module, role, stack in list(stacks(model)):
            if stack.storages:
                to_pack[name] = (module, role, tuple(getattr(module, role).shape), stack.pack)
            if role == "down_proj":  # the last one of its module
                slots.append((module, "slots", module.slots))
                module.slots = None

    def pack(name: str, weight: Tensor | None) -> bool:
        if name not in to_pack:
            return False
        module, own, shape, take = to_pack[name]
        if weight is not None and weight.shape != shape:
            return False
        if weight is not None:
            take(weight)
            if not isinstance(module, nn.Linear):  # transformers fills what is missing there without a look whether it is None
                module.register_parameter(own, nn.Parameter(weight.new_empty(0)))
        return True

    try:
        with quiet():
            model, report = _model_class(hf_config, settings).from_pretrained(
                directory,
                config=without_form(hf_config),
                dtype=first,
                attn_implementation=_attention(hf_config),
                quantization_config=Hook(enter, pack, None if reader is None else reader.reading()),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                weights_only=True,
                local_files_only=True,
            )
    except Exception as error:  # torch, safetensors and transformers each have their own
        if isinstance(error, ModelError):
            raise
        if reader is not None and reader.failures:
            raise reader.failures[0] from error
        raise ModelError(
            f"the weights cannot be read: {type(error).__name__}: {first_line(error)}",
            where=str(directory),
            how="check that the files are complete; download or copy them again",
        ) from error
    wrong = [name for name, (module, own, *_) in to_pack.items() if (left := getattr(module, own)) is not None and left.numel()]
    # with a quantiser in it, the loader compares no shapes before transformers 5.23
    wrong += [name for name, own in model.named_parameters() if name not in to_pack and own.shape != shapes.get(name, own.shape)]
    _check({**report, "mismatched_keys": [*report.get("mismatched_keys", ()), *wrong]}, directory)
    for module, own, *_ in to_pack.values():
        module.register_parameter(own, None)
    leave_no_trace(model)
    if reader is not None and (remark := reader.remark(dtype)):
        notice(remark)
    if first != dtype:
        _cast(model, dtype)
    for layer, slot, part in slots:
        setattr(layer, slot, part)
    return model


def _stored_dtype(directory: Path, files: tuple[str, ...], hf_config: Any) -> str:
    """Of the first floating-point tensor in the file; the config's word for pickled files."""
    if files[0] in PICKLE_FILES:
        return str(getattr(hf_config, "dtype", None)).removeprefix("torch.")
    name = files[0]
    if name == SAFE_FILES[1]:
        name = next(iter(json.loads((directory / name).read_text("utf-8"))["weight_map"].values()))
    with (directory / name).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    kinds = {entry["dtype"] for key, entry in header.items() if key != "__metadata__"}
    return "float16" if "F16" in kinds else "other"


def _cast(model: Any, dtype: torch.dtype) -> None:
    """Parameters and saved buffers to ``dtype``. Unsaved buffers, such as rotary frequencies, keep their precision; so does what
    fills the slots, such as a recipe's scales."""
    strict = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    filled = slot_names(model)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.is_floating_point() and name not in filled and not any(part in strict for part in name.split(".")):
            tensor.data = tensor.data.to(dtype)
    model.config.dtype = dtype


def _check(report: dict[str, Any], directory: Path) -> None:
    found = []
    for key, what in (
        ("missing_keys", "missing"),
        ("unexpected_keys", "not part of this model"),
        ("mismatched_keys", "of another shape"),
    ):
        names = sorted(item if isinstance(item, str) else item[0] for item in report.get(key) or ())
        if names:
            found.append(f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}")
    if found:
        raise ModelError(
            f"the weights do not fit the model's config.json: {'; '.join(found)}",
            where=str(directory),
            how="give weights and config.json of one model",
        )


def _fix_rotary(model: Any, length: int) -> None:
    """Rotary frequencies that transformers recomputes from the longest position it has met (dynamic, longrope) are set to those
    of a full row and stay so: else they depend on earlier batches, and are read back from the device in every forward."""
    for module in model.modules():
        kinds: Any = getattr(module, "rope_type", None)
        per_layer = dict(kinds) if isinstance(kinds, dict) else {None: kinds}
        for layer_type, kind in per_layer.items():
            if isinstance(kind, str) and ("dynamic" in kind or kind == "longrope"):
                device = next(model.parameters()).device
                last = torch.full((1, 1), length - 1, device=device)
                named = {} if layer_type is None else {"layer_type": layer_type}
                module(torch.zeros(1, device=device), last, **named)
                kinds = "fixed" if layer_type is None else {**kinds, layer_type: "fixed"}
                module.rope_type = kinds
