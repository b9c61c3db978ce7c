"""Adapters on disk as PEFT writes them: ``adapter_model.safetensors`` and ``adapter_config.json``.

``target_modules`` lists the full names of the adapted layers, so that PEFT adapts exactly these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from surogate_adapter_lora.plugin import Options
from surogate_core.errors import ModelError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "trainable_token_indices": ([], {}, None),
    "layer_replication": ([], None),
    "target_parameters": ([], None),
    "fan_in_fan_out": (False, None),
    "alora_invocation_tokens": ([], None),
    "use_qalora": (False, None),
}
"""Settings of PEFT that change the arithmetic, with the values under which an adapter is plain LoRA."""


Weights = Mapping[str, Mapping[str, Tensor]]
"""Layer name → ``lora_A`` (r, K), ``lora_B`` (N, r) and, for DoRA, ``lora_magnitude`` (N,)."""

_KEYS = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "lora_magnitude": "lora_magnitude_vector"}
"""Our names of a layer's tensors → PEFT's in the file."""


def flat(weights: Weights) -> dict[str, Tensor]:
    """Under the names that PEFT's files have."""
    return {f"{_PREFIX}{layer}.{_KEYS[own]}": tensor for layer, parts in weights.items() for own, tensor in parts.items()}


def write(directory: Path, options: Options, weights: Weights, base_model: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in flat(weights).items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": options.lora_rank,
        "lora_alpha": options.lora_alpha,
        "lora_dropout": options.lora_dropout,
        "target_modules": sorted(weights),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": options.lora_use_dora,
        "use_rslora": options.lora_use_rslora,
        "modules_to_save": None,
    }
    (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_config(directory: Path) -> dict[str, Any]:
    """``adapter_config.json`` of a plain LoRA adapter. Raises ModelError naming what is missing or not supported."""
    path = directory / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no readable adapter: {error}", where=str(path), how="give a directory that PEFT or surogate wrote"
        ) from error
    if config.get("peft_type") != "LORA":
        raise ModelError(f"peft_type is {config.get('peft_type')!r}, wanted 'LORA'", where=str(path), how="give a LoRA adapter")
    odd = [f"{key} = {config[key]!r}" for key, plain in _PLAIN.items() if key in config and config[key] not in plain]
    if odd:
        raise ModelError(
            f"the adapter is no plain LoRA: {', '.join(odd)}",
            where=str(path),
            how="merge it into its base model with PEFT and use that",
        )
    return config


def options_of(config: Mapping[str, Any], weights: Mapping[str, Tensor], options: Options | None = None) -> Options:
    """The options under which this adapter was made (dropout only matters for training on)."""
    names = sorted({key.removeprefix(_PREFIX).rpartition(".lora_")[0] for key in weights})
    bf16 = all(tensor.dtype == torch.bfloat16 for tensor in weights.values())
    return evolve(
        options or Options(),
        lora_rank=config["r"],
        lora_alpha=config["lora_alpha"],
        lora_dropout=config.get("lora_dropout", 0.0),
        lora_use_dora=bool(config.get("use_dora")),
        lora_use_rslora=bool(config.get("use_rslora")),
        lora_dtype="bf16" if bf16 else "fp32",
        lora_target_modules=names or ["all"],
    )


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of ``adapter_model.safetensors``, on the CPU."""
    path = directory / WEIGHTS
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        how = "save it again with PEFT's save_pretrained, which writes safetensors"
        raise ModelError(f"no readable adapter weights: {error}", where=str(path), how=how) from error


def read_into(directory: Path, options: Options, weights: Weights) -> None:
    """Fill the tensors of each layer. Raises ModelError when rank, scale, layers or shapes differ."""
    config = read_config(directory)
    where = str(directory)
    for key, given, wanted in (
        ("lora_rank", config.get("r"), options.lora_rank),
        ("lora_alpha", config.get("lora_alpha"), options.lora_alpha),
        ("lora_use_dora", bool(config.get("use_dora")), options.lora_use_dora),
        ("lora_use_rslora", bool(config.get("use_rslora")), options.lora_use_rslora),
    ):
        if given != wanted:
            raise ModelError(
                f"the adapter has {key} {given}, this run {wanted}", where=where, how=f"set {key} = {json.dumps(given)}"
            )
    stored = read_weights(directory)
    wanted_tensors = flat(weights)
    wrong = [f"{key} missing" for key in wanted_tensors if key not in stored]
    wrong += [f"{key} not of this run" for key in stored if key not in wanted_tensors]
    wrong += [
        f"{key} has shape {tuple(stored[key].shape)}, wanted {tuple(tensor.shape)}"
        for key, tensor in wanted_tensors.items()
        if key in stored and stored[key].shape != tensor.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ModelError(
            f"the adapter does not fit: {'; '.join(wrong[:3])}{more}",
            where=where,
            how="use the base model and lora_target_modules it was made with",
        )
    with torch.no_grad():
        for key, tensor in wanted_tensors.items():
            tensor.copy_(stored[key])
