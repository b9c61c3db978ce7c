"""An adapter added to its base model's weights, as a plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import surogate_model_transformers as models
import torch

from surogate_adapter_lora.peft_format import CONFIG, read_config
from surogate_adapter_lora.serve import SHORTEST, adapter_modules, checkpoint_at
from surogate_core.config import CoreOptions
from surogate_core.errors import Refused
from surogate_core.train import durable


def merge(
    base: str | None, adapter: Path, output: Path, dtype: Literal["fp32", "bf16"] | None = None, *, force: bool = False
) -> None:
    """Write base + adapter to ``output``, aside first and then renamed. Sums are taken in float32 and rounded once.

    Raises Refused when ``output`` exists and ``force`` is not set, ModelError when adapter and base do not fit.
    """
    if output.exists() and not force:
        raise Refused(f"{output} exists already", where="--output", how="choose another directory, or give --force to replace it")
    if not (adapter / CONFIG).is_file():
        adapter = checkpoint_at(adapter)
    source = base or str(read_config(adapter).get("base_model_name_or_path") or "")
    settings = models.Settings(CoreOptions(model=source, lora=False, model_dtype="fp32", sequence_len=SHORTEST))
    hf_config = models.read_config(settings)
    stored = str(getattr(hf_config, "dtype", None)).removeprefix("torch.")
    written = torch.bfloat16 if dtype == "bf16" or (dtype is None and stored == "bfloat16") else torch.float32
    lora, modules = adapter_modules(adapter, models.list_sites(models.skeleton(hf_config, settings)))
    for module in modules.values():
        module.to_empty(device="cpu")
    lora.load(modules, adapter)
    model = models.load_model(hf_config, settings, device="cpu")
    with torch.no_grad():
        for name, module in modules.items():
            model.get_submodule(name).weight.add_(lora.delta(module))
    if written != torch.float32:
        model.to(written)
    model.config.dtype = written
    own_tokenizer = adapter if (adapter / "tokenizer_config.json").is_file() else None
    tokenizer = models.load_processor(settings, own_tokenizer) or models.load_tokenizer(settings, own_tokenizer)
    _write(model, tokenizer, output)


def _write(model: Any, tokenizer: Any, output: Path) -> None:
    """A directory that is either complete or not there under its name."""
    aside, old = (output.with_name(f".{output.name}.{end}") for end in ("partial", "replaced"))
    for leftover in (aside, old):
        if leftover.is_dir():
            durable.remove_tree(leftover)
    models.save_model(model, tokenizer, aside)
    durable.flush_tree(aside)
    if output.exists():
        durable.rename(output, old)
    durable.rename(aside, output)
    durable.flush(output.parent)
    if old.is_dir():
        durable.remove_tree(old)
    elif old.exists():
        durable.unlink(old)
