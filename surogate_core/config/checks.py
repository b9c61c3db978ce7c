"""Checks across keys that need neither torch nor the model: what excludes what, and paths that do not exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from surogate_settings.nearest import did_you_mean

from surogate_core.config.options import CoreOptions

Finding = tuple[tuple[str, ...], str, str]
"""The keys that were read (the first is where it is shown), what, how."""

DATA_SUFFIXES = (".jsonl", ".json", ".txt", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst", ".md")


def looks_local(path: str) -> bool:
    """Whether a text can only be a local path, never a repository ``owner/name``."""
    if "://" in path:
        return False
    return path.startswith((".", "/", "~", "\\")) or path.count("/") > 1 or "\\" in path or path.endswith(("/", *DATA_SUFFIXES))


def findings(core: CoreOptions, *, need_data: bool) -> Iterator[Finding]:
    """Everything that is wrong with the core's options together."""
    if need_data and not core.datasets:
        yield ("datasets",), "there are no datasets", "add a [[datasets]] table with path and type"
    warmup = core.warmup_steps or round(core.warmup_ratio * max(core.max_steps, 0))
    if 0 < core.max_steps < warmup + core.cooldown_steps:
        first = "warmup_steps" if core.warmup_steps else "warmup_ratio"
        what = f"warmup ({warmup} steps) and cooldown_steps ({core.cooldown_steps}) are longer than max_steps ({core.max_steps})"
        yield ("cooldown_steps", first, "max_steps"), what, f"lower {first} or cooldown_steps, or raise max_steps"
    if core.master_dtype == "bf16" and core.model_dtype == "fp32":
        what = 'master_dtype = "bf16" with model_dtype = "fp32": masters would be coarser than the weights'
        yield ("master_dtype", "model_dtype"), what, "remove master_dtype, or set it to fp32"
    if core.from_scratch and core.lora:
        how = "set lora = false to train all weights from scratch, or from_scratch = false to adapt the model's own"
        yield ("from_scratch", "lora"), "from_scratch = true with lora = true would adapt random weights", how
    for root, sets in (("datasets", core.datasets), ("validation_datasets", core.validation_datasets)):
        for index, data in enumerate(sets or ()):
            path = f"{root}.{index}.path"
            meant = looks_local(data.path) or (
                "/" not in data.path and "." in data.path and _near_path(data.path).startswith("did")
            )
            if meant and not Path(data.path).expanduser().exists():
                yield (path,), f"{path} = {json.dumps(data.path)}: there is no such file or directory", _near_path(data.path)
            if core.task == "pt" and data.type != "text":
                what = f'{root}.{index}.type = "{data.type}": task = "pt" trains on type = "text" only'
                yield (f"{root}.{index}.type", "task"), what, 'use type = "text", or task = "sft"'
    if looks_local(core.model) and not Path(core.model).expanduser().is_dir():
        yield ("model",), f"model = {json.dumps(core.model)}: there is no such directory", _near_path(core.model)


def frozen_in(keys: Sequence[str], lora: bool) -> Iterator[Finding]:
    """What is wrong with the chosen formats of frozen weights, given by the keys that choose them."""
    if len(keys) > 1:
        what = f"{' and '.join(f'{key} = true' for key in keys)}: the frozen weights are held in one format"
        yield tuple(keys), what, f"keep one of {', '.join(keys)}"
    if keys and not lora:
        what = f"{keys[0]} = true with lora = false: weights that are trained cannot be held in a quantised format"
        yield (keys[0], "lora"), what, f"set lora = true to train an adapter, or {keys[0]} = false"


def _near_path(path: str) -> str:
    """How to mend a missing path: the nearest name in the deepest directory that exists."""
    wanted = Path(path).expanduser()
    parent = wanted.parent
    if parent.is_dir():
        names = [entry.name for entry in parent.iterdir()]
        hint = did_you_mean(wanted.name, names) if names else ""
        if hint.startswith("did you mean") and not re.search(r"[\r\n]", hint):
            return hint + f" (looked in {parent.resolve()})"
    return f"check the path; it is looked up from {Path.cwd()}"
