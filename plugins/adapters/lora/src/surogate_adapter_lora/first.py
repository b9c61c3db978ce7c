"""The adapter of ``adapter_path``, before anything is loaded: whether it belongs under the one that is to be trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surogate_adapter_lora.lora import Lora
from surogate_adapter_lora.peft_format import misfits, read_config
from surogate_core.contracts import Outline, Site
from surogate_core.errors import ModelError, Problem


def check_first(adapter: Any, model: str, outline: Outline, adapted: Sequence[Site]) -> list[Problem]:
    """``adapter`` is the plan's, ``adapted`` are the sites that it takes."""
    if not isinstance(adapter, Lora) or adapter.options.adapter_path is None:
        return []
    path = adapter.options.adapter_path
    try:
        first, config = adapter.first, read_config(Path(path).expanduser())
    except ModelError as error:
        return list(error.problems)
    assert first is not None
    found: list[tuple[str, str]] = []
    base = str(config.get("base_model_name_or_path") or "")
    if base and Path(base).name != Path(model).name:
        how = "set model to that one; if both are the same model, correct base_model_name_or_path in its adapter_config.json"
        found.append((f"the adapter was made for {base}, model is {model}", how))
    how = "use the base model that it was made with"
    found += [(f"the adapter is of another model: {text}", how) for text in misfits(first, outline.sites)]
    if first.dora:
        how = "merge it with `surogate merge` and give the result as model"
        found.append(("the adapter is DoRA, whose update depends on the weight under it", how))
    if first.parts:
        how = "merge it with `surogate merge` and give the result as model"
        found.append((f"the adapter has modules that were trained whole: {', '.join(sorted(first.parts)[:3])}", how))
    if outline.held and adapter.options.adapter_mode == "merge":
        what = f"it cannot be merged into weights that the checkpoint holds quantised ({outline.held.settings['quant_method']})"
        found.append((what, 'set adapter_mode = "stack", which keeps it beside them, or give the unquantised checkpoint as model'))
    if adapter.options.lora_use_dora and (more := sorted(set(first.layers) - {site.name for site in adapted})):
        what = f"with lora_use_dora every layer of the first adapter must be adapted, {', '.join(more[:3])} would not be"
        found.append((what, "adapt these layers too (lora_target_modules), or set lora_use_dora = false"))
    return [Problem(what, where=f"adapter_path = {path}", how=how) for what, how in found]
