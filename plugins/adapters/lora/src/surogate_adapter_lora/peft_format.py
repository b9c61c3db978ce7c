"""Adapters on disk as PEFT writes them: ``adapter_model.safetensors`` and ``adapter_config.json``.

``target_modules`` lists the full names of the adapted layers, so that PEFT adapts exactly these; ``target_parameters`` those of
stacked experts. PEFT wraps an experts module once for each adapted parameter, the last one outermost: that is in the names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from surogate_model_transformers.experts import ROLES
from torch import Tensor

from surogate_adapter_lora.experts import from_peft, to_peft
from surogate_core.contracts import Site
from surogate_core.errors import ModelError

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_KEYS = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "lora_magnitude": "lora_magnitude_vector"}
"""Our names of a layer's tensors → PEFT's in the file."""
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "trainable_token_indices": ([], {}, None),
    "layer_replication": ([], None),
    "fan_in_fan_out": (False, None),
    "alora_invocation_tokens": ([], None),
    "use_qalora": (False, None),
}
"""Settings of PEFT that change the arithmetic, with the values under which an adapter is LoRA, rsLoRA or DoRA as they are here."""

Weights = Mapping[str, Mapping[str, Tensor]]
"""Layer name → ``lora_A`` (r, K), ``lora_B`` (N, r) and, for DoRA, ``lora_magnitude`` (N,); of stacked experts
(E, r, K) and (E, N, r)."""


@frozen(kw_only=True)
class Stored:
    """An adapter as PEFT's files have it."""

    rank: int
    alpha: float
    rslora: bool = False
    dora: bool = False
    dropout: float = 0.0
    layers: Weights
    parts: Weights = field(factory=dict)
    """Modules trained whole (``modules_to_save``): name → its parameters."""

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


# ---------------------------------------------------------------- write
def write(directory: Path, stored: Stored, base_model: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in flat(stored).items()}  # tied ones apart
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": stored.rank,
        "lora_alpha": stored.alpha,
        "lora_dropout": stored.dropout,
        "target_modules": sorted(stored.layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_dora": stored.dora,
        "use_rslora": stored.rslora,
        "modules_to_save": sorted(stored.parts) or None,
    }
    stacks = sorted(_stacks(stored))
    if stacks:  # PEFT has no dropout for them, not even when nothing is trained
        linears = sorted(stored.layers.keys() - set(stacks))
        config |= {"target_modules": linears, "target_parameters": stacks, "lora_dropout": 0.0}
    (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def flat(stored: Stored) -> dict[str, Tensor]:
    """Under the names that PEFT's files have."""
    places = _places(_stacks(stored))
    layers = {
        f"{_PREFIX}{places.get(layer, layer)}.{_KEYS[own]}": tensor
        for layer, some in stored.layers.items()
        for own, tensor in (to_peft(some) if layer in places else some).items()
    }
    return layers | {f"{_PREFIX}{name}.{own}": tensor for name, some in stored.parts.items() for own, tensor in some.items()}


def _stacks(stored: Stored) -> list[str]:
    """The stacked weights among the adapted layers."""
    return [name for name, parts in stored.layers.items() if "lora_A" in parts and parts["lora_A"].dim() == 3]


def _places(parameters: Sequence[str]) -> dict[str, str]:
    """Stacked parameter ``experts.role`` → the module of PEFT's that adapts it, ``experts`` or ``experts.base_layer``."""
    roles: dict[str, list[str]] = {}
    for parent, _, role in sorted((name.rpartition(".") for name in parameters), key=lambda parts: ROLES.index(parts[2])):
        roles.setdefault(parent, []).append(role)
    return {
        f"{parent}.{role}": parent + ".base_layer" * (len(own) - 1 - at)
        for parent, own in roles.items()
        for at, role in enumerate(own)
    }


# ---------------------------------------------------------------- read
def is_lora(directory: Path) -> bool:
    """Whether ``adapter_config.json`` there says so."""
    try:
        return bool(json.loads((directory / CONFIG).read_text(encoding="utf-8")).get("peft_type") == "LORA")
    except (OSError, ValueError):
        return False


def read_config(directory: Path) -> dict[str, Any]:
    """``adapter_config.json`` of a LoRA adapter. Raises ModelError naming what is missing or not supported."""
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
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not (isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float) and alpha > 0):
        odd.append(f"r = {rank!r}, lora_alpha = {alpha!r}")
    if odd:
        raise ModelError(
            f"the adapter is no plain LoRA: {', '.join(odd)}",
            where=str(path),
            how="merge it into its base model with PEFT and use that",
        )
    return config


def read(directory: Path) -> Stored:
    """The adapter in this directory, its tensors on the CPU and complete. Raises ModelError."""
    config = read_config(directory)
    tensors = _read_weights(directory)
    names = {theirs: own for own, theirs in _KEYS.items()}
    layers: dict[str, dict[str, Tensor]] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    whole = config.get("modules_to_save") or ()
    wrong = []
    modules, parameters = (_listed(config.get(key)) for key in ("target_modules", "target_parameters"))
    stacks = _read_places(tensors, modules, parameters)
    for key, tensor in tensors.items():
        layer, dot, part = key.removeprefix(_PREFIX).rpartition(".lora_")
        module, _, parameter = key.removeprefix(_PREFIX).rpartition(".")
        if _named(module, whole):
            parts.setdefault(module, {})[parameter] = tensor
        elif not dot or f"lora_{part}" not in names:
            wrong.append(f"{key} is no tensor of LoRA")
        else:
            layers.setdefault(stacks.get(layer, layer), {})[names[f"lora_{part}"]] = tensor
    for name in set(stacks.values()):
        if layers[name].keys() == {"lora_A", "lora_B"}:
            layers[name] = from_peft(layers[name], config["r"])
    stored = Stored(
        rank=config["r"],
        alpha=config["lora_alpha"],
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
        dropout=config.get("lora_dropout") or 0.0,
        layers=layers,
        parts=parts,
    )
    wrong += [f"no tensors for {name}" for name in whole if not any(f".{part}".endswith(f".{name}") for part in parts)]
    wrong += _incomplete(stored, [*modules, *parameters])
    if wrong:
        raise ModelError(
            f"the adapter's weights and its {CONFIG} do not belong together: {_some(wrong)}",
            where=str(directory),
            how="copy both files of one adapter again",
        )
    return stored


def _listed(targets: Any) -> list[str]:
    return targets if isinstance(targets, list) else []


def _named(name: str, targets: Sequence[str]) -> bool:
    """Whether one of them is this name or an end of it at a dot, as PEFT matches."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def _read_places(keys: Iterable[str], modules: Sequence[str], parameters: Sequence[str]) -> dict[str, str]:
    """Module of PEFT's → the stacked parameter that it adapts, by ``target_modules`` and ``target_parameters``."""
    parents = {key.removeprefix(_PREFIX).rpartition(".lora_")[0].replace(".base_layer", "") for key in keys if ".lora_" in key}
    adapted = [f"{parent}.{role}" for parent in parents if not _named(parent, modules) for role in ROLES]
    return {place: name for name, place in _places([name for name in adapted if _named(name, parameters)]).items()}


def _read_weights(directory: Path) -> dict[str, Tensor]:
    path = directory / WEIGHTS
    how = "save it again with PEFT's save_pretrained, which writes safetensors"
    if not path.exists() and (directory / PICKLE).exists():
        raise ModelError(f"{PICKLE} is a pickle file, which can run code when it is read", where=str(directory), how=how)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"no readable adapter weights: {error}", where=str(path), how=how) from error


def _incomplete(stored: Stored, targets: Sequence[str]) -> list[str]:
    """What a whole adapter would have, and this one has not."""
    wanted = [name for name in _KEYS if stored.dora or name != "lora_magnitude"]
    wrong = []
    for layer, parts in stored.layers.items():
        wrong += [f"{_PREFIX}{layer}.{_KEYS[name]} missing" for name in wanted if name not in parts]
        wrong += [f"{_PREFIX}{layer}.{_KEYS[name]} without use_dora" for name in parts if name not in wanted]
        for name, axis in (("lora_A", -2), ("lora_B", -1)):
            if name in parts and (parts[name].dim() not in (2, 3) or parts[name].shape[axis] != stored.rank):
                wrong.append(f"{_PREFIX}{layer}.{_KEYS[name]} has shape {tuple(parts[name].shape)}, r is {stored.rank}")
    for target in targets:
        if not any(_named(layer, [target]) for layer in stored.layers):
            wrong.append(f"no tensors for target {target}")
    return wrong


def misfits(stored: Stored, sites: Sequence[Site]) -> list[str]:
    """Why this adapter is none of a model with these sites; empty when it fits."""
    linear = {site.name: site.shape for site in sites if site.kind in ("linear", "stacked_linear")}
    wrong = []
    for layer, parts in stored.layers.items():
        if layer not in linear:
            wrong.append(f"there is no linear layer {layer}")
            continue
        shape = (*parts["lora_B"].shape[:-1], parts["lora_A"].shape[-1])
        if shape != linear[layer]:
            there, here = (" x ".join(map(str, sizes)) for sizes in (shape, linear[layer]))
            wrong.append(f"{layer} is {there} in the adapter and {here} here")
    return [_some(wrong)] if wrong else []


def same_form(found: Stored, wanted: Stored, directory: Path) -> None:
    """Raises ModelError when kind, rank, scale, layers or shapes differ."""
    for key, part in (
        ("lora_rank", "rank"),
        ("lora_alpha", "alpha"),
        ("lora_use_dora", "dora"),
        ("lora_use_rslora", "rslora"),
    ):
        given, here = getattr(found, part), getattr(wanted, part)
        if given != here:
            raise ModelError(
                f"the adapter has {key} {given}, this run {here}",
                where=str(directory),
                how=f"set {key} = {json.dumps(given)}",
            )
    stored, tensors = flat(found), flat(wanted)
    wrong = [f"{key} missing" for key in tensors if key not in stored]
    wrong += [f"{key} not of this run" for key in stored if key not in tensors]
    wrong += [
        f"{key} has shape {tuple(stored[key].shape)}, wanted {tuple(tensor.shape)}"
        for key, tensor in tensors.items()
        if key in stored and stored[key].shape != tensor.shape
    ]
    if wrong:
        raise ModelError(
            f"the adapter does not fit: {_some(wrong)}",
            where=str(directory),
            how="use the base model and lora_target_modules it was made with",
        )


def _some(found: Sequence[str]) -> str:
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"{'; '.join(found[:3])}{more}"
