"""Adapters added to their base model's weights, as a plain model, or to each other, as one adapter."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import surogate_model_transformers as models
import torch

from surogate_adapter_lora.combine import concatenate, linear, plain_only
from surogate_adapter_lora.layer import from_stored, merge_into
from surogate_adapter_lora.parts import put_in
from surogate_adapter_lora.peft_format import Stored, read, read_config, write
from surogate_adapter_lora.serve import SHORTEST, adapter_at, adapter_for
from surogate_core.config import CoreOptions
from surogate_core.errors import ModelError, Refused
from surogate_core.train import durable

Dtype = Literal["fp32", "bf16"]


def merge(
    base: str | None,
    adapters: Path | Sequence[Path],
    output: Path,
    dtype: Dtype | None = None,
    *,
    weights: Sequence[float] = (),
    combine: Literal["cat", "linear"] = "cat",
    as_adapter: bool = False,
    shard_size: str | None = None,
    force: bool = False,
) -> None:
    """Write base + Σ weight × adapter to ``output``, or with ``as_adapter`` the sum of the adapters alone; aside first and then
    renamed. Sums are taken in float32 and rounded once. ``weights`` default to 1. See ``combine.py`` for the two ways to combine.

    Raises Refused when ``output`` exists and ``force`` is not set, ModelError when adapters and base do not fit.
    """
    absent(output, force)
    places = [adapter_at(place) for place in ([adapters] if isinstance(adapters, Path) else adapters)]
    if weights and len(weights) != len(places):
        what = f"{len(weights)} weights for {len(places)} adapters"
        raise Refused(what, where="--weight", how="give one --weight for each --adapter, or none")
    source = base or one_base(places)
    parts = list(zip(map(read, places), weights or [1.0] * len(places), strict=True))
    if len(parts) == 1 and parts[0][1] == 1.0:
        total = parts[0][0]
    else:
        plain_only([part for part, _ in parts] * 2, "--adapter")
        total = (concatenate if combine == "cat" else linear)(parts)
    own_tokenizer = next((place for place in places if (place / "tokenizer_config.json").is_file()), None)
    if as_adapter:
        put(output, lambda aside: _write_adapter(aside, total, source, own_tokenizer))
        return
    model, settings, hf_config = on_base(source, total, places)
    write_model(model, settings, hf_config, own_tokenizer, output, dtype, shard_size)


def on_base(source: str, adapter: Stored, places: Sequence[Path]) -> tuple[Any, models.Settings, Any]:
    """The base model in float32 with an adapter merged into it, its settings and its config. ``places``: what the adapter is made
    of. Raises ModelError when they do not fit."""
    settings = models.Settings(CoreOptions(model=source, lora=False, model_dtype="fp32", sequence_len=SHORTEST))
    hf_config = models.read_config(settings)
    sites = models.list_sites(models.skeleton(hf_config, settings))
    for place in places:
        adapter_for(place, sites)
    model = models.load_model(hf_config, settings, device="cpu")
    put_in(model, adapter.parts, "--adapter")
    merge_into(model, from_stored(adapter))
    return model, settings, hf_config


def write_model(
    model: Any,
    settings: Any,
    hf_config: Any,
    tokenizer: Path | None,
    output: Path,
    dtype: Dtype | None,
    shard_size: str | None,
    pack: Callable[[Any], models.Packed] | None = None,
) -> None:
    """A float32 model, in ``dtype`` (default: bf16 if the model was stored so), with the tokenizer of ``tokenizer`` or its own.
    ``pack`` gives the weights that are written quantised."""
    stored = str(getattr(hf_config, "dtype", None)).removeprefix("torch.")
    written = torch.bfloat16 if dtype == "bf16" or (dtype is None and stored == "bfloat16") else torch.float32
    if written != torch.float32:
        model.to(written)
    model.config.dtype = written
    loaded = models.load_processor(settings, tokenizer) or models.load_tokenizer(settings, tokenizer)
    more: dict[str, Any] = {} if shard_size is None else {"shard_size": shard_size}
    if pack is not None:
        more["packed"] = pack(model)
    put(output, lambda aside: models.save_model(model, loaded, aside, **more))


def absent(output: Path, force: bool) -> None:
    if output.exists() and not force:
        raise Refused(f"{output} exists already", where="--output", how="choose another directory, or give --force to replace it")


def put(output: Path, write_to: Callable[[Path], None]) -> None:
    """A directory that is either complete or not there under its name."""
    aside, old = (output.with_name(f".{output.name}.{end}") for end in ("partial", "replaced"))
    for leftover in (aside, old):
        if leftover.is_dir():
            durable.remove_tree(leftover)
    write_to(aside)
    durable.flush_tree(aside)
    if output.exists():
        durable.rename(output, old)
    durable.rename(aside, output)
    durable.flush(output.parent)
    if old.is_dir():
        durable.remove_tree(old)
    elif old.exists():
        durable.unlink(old)


def one_base(places: Sequence[Path]) -> str:
    """The base model that these adapters name."""
    bases = {str(read_config(place).get("base_model_name_or_path") or ""): place for place in places}
    if len({Path(base).name for base in bases}) > 1:
        raise ModelError(
            f"the adapters name different base models: {', '.join(bases)}", where="--adapter", how="give the right one with --base"
        )
    return next(iter(bases))


def _write_adapter(directory: Path, adapter: Stored, base: str, tokenizer: Path | None) -> None:
    write(directory, adapter, base)
    copy_tokenizer(tokenizer, directory)


def copy_tokenizer(source: Path | None, directory: Path) -> None:
    """The files of a tokenizer, as they are."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer.model"):
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
