"""A model in the layout that the ecosystem reads: config.json, safetensors under the checkpoint's own names, tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen
from torch import Tensor

from surogate_core.errors import SaveFailed
from surogate_model_transformers.quiet import quiet
from surogate_model_transformers.slots import slot_names

SHARD_SIZE = "5GB"


@frozen(kw_only=True)
class Packed:
    """Weights to be written in a quantised form: what takes their place, under the names of the files, and the
    ``quantization_config`` that tells readers of it."""

    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any]


def save_model(
    model: Any, tokenizer: Any, directory: str | Path, *, shard_size: str | None = None, packed: Packed | None = None
) -> None:
    """Write the model without what fills its slots, in the dtype it computes in, and the tokenizer (None to leave it out) with
    its chat template. Weights above ``shard_size`` (5 GB) are sharded. Raises SaveFailed when the files cannot be written."""
    directory = Path(directory)
    left_out = slot_names(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}
    if packed is not None:
        state |= packed.tensors
        model.config.quantization_config = dict(packed.settings)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with quiet():
            model.save_pretrained(directory, state_dict=state, max_shard_size=shard_size or SHARD_SIZE)
            if tokenizer is not None:
                tokenizer.save_pretrained(directory)
    except OSError as error:
        raise SaveFailed(
            f"the model cannot be written: {error}", where=str(directory), how="free space or choose another directory"
        ) from error
