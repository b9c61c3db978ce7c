"""What a checkpoint holds, written and read back bit for bit: safetensors and JSON only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from surogate_core.contracts import OptimizerState
from surogate_core.errors import ResumeError, SaveFailed
from surogate_core.plan import Plan
from surogate_core.train.setup import Trainee
from surogate_loop_standard.loop import Progress
from surogate_loop_standard.records import redact


def write_files(directory: Path, plan: Plan, trainee: Trainee, optimizer: OptimizerState, tokenizer: Any) -> None:
    """Model (Hugging Face layout) or adapter (the ecosystem's layout), tokenizer, optimizer, recipe buffers, random state."""
    if plan.adapter is not None:
        plan.adapter.save(trainee.adapters, directory, plan.config.core.model)
        tokenizer.save_pretrained(directory)
    else:
        plan.model_source.save(trainee.model, tokenizer, directory)
    _save(optimizer.state_dict(), directory / "optimizer.safetensors")
    if buffers := _recipe_buffers(trainee):
        _save(buffers, directory / "recipe.safetensors")
    _save(_random_state(), directory / "rng.safetensors")
    (directory / "surogate.json").write_text(json.dumps(redact(plan.config.resolved()), indent=1, sort_keys=True) + "\n")


def read_files(directory: Path, plan: Plan, trainee: Trainee, optimizer: OptimizerState) -> None:
    """Everything but the full model's weights, which are read while the model is loaded (``setup.build(weights=...)``)."""
    if plan.adapter is not None:
        plan.adapter.load(trainee.adapters, directory)
    optimizer.load_state_dict(load_file(directory / "optimizer.safetensors"))
    buffers = _recipe_buffers(trainee)
    if buffers:
        saved = load_file(directory / "recipe.safetensors")
        if saved.keys() != buffers.keys():
            raise ResumeError(
                "the recipe's state in the checkpoint belongs to another recipe or model",
                where=str(directory / "recipe.safetensors"),
                how="use the recipe of that run, or --fresh",
            )
        for name, buffer in buffers.items():
            buffer.copy_(saved[name])
    random = load_file(directory / "rng.safetensors")
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])


def progress_state(progress: Progress) -> dict[str, Any]:
    return attrs.asdict(progress, filter=lambda attribute, value: attribute.metadata.get("state", True))


def progress_from(state: Mapping[str, Any]) -> Progress:
    return Progress(**{field.name: state[field.name] for field in attrs.fields(Progress) if field.metadata.get("state", True)})


def rehearse(directory: Path, optimizer: OptimizerState, trainee: Trainee) -> None:
    """Read a checkpoint's tensors back and compare them with the living ones. Raises SaveFailed at the first that differs."""
    living = {**optimizer.state_dict(), **dict(zip(trainee.names, trainee.parameters, strict=True))}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                saved = file.get_tensor(name)
                if name in living and not _same(saved, living[name]):
                    raise SaveFailed(
                        f"the rehearsal of a save read back another value for {name!r}",
                        where=str(path),
                        how="check the disk or file system of checkpoint_dir",
                    )


def saved_bytes(trainee: Trainee, optimizer: OptimizerState) -> int:
    """About how large a checkpoint is."""
    return sum(tensor.nbytes for tensor in (*trainee.parameters, *optimizer.state_dict().values())) + (4 << 20)


def _same(saved: Tensor, living: Tensor) -> bool:
    living = living.detach().cpu()
    return saved.shape == living.shape and saved.dtype == living.dtype and torch.equal(saved, living)


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)


def _recipe_buffers(trainee: Trainee) -> dict[str, Tensor]:
    return {f"{site}.{name}": value for site, module in trainee.computes.items() for name, value in module.state_dict().items()}


def _random_state() -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
