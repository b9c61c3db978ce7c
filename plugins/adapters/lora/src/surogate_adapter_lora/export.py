"""What a run has trained, in the layout of the ecosystem alone: PEFT's adapter, or full weights."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import surogate_model_transformers as models
from attrs import evolve

from surogate_adapter_lora.merge import Dtype, absent, copy_tokenizer, merge, put, write_model
from surogate_adapter_lora.peft_format import CONFIG, read, read_config, write
from surogate_adapter_lora.serve import settings_of
from surogate_core.errors import Refused


def export(
    source: str,
    output: Path,
    form: Literal["peft", "full"] | None = None,
    dtype: Dtype | None = None,
    *,
    shard_size: str = "5GB",
    force: bool = False,
) -> str:
    """Write ``source`` (a run, its config, a checkpoint, an adapter or a model) to ``output``; returns the form. Default:
    "peft" for an adapter, "full" for a model. Raises Refused and ModelError."""
    absent(output, force)
    settings = settings_of(source, "fp32")
    place = Path(settings.core.model)
    adapter = (place / CONFIG).is_file()
    form = form or ("peft" if adapter else "full")
    if form == "peft" and not adapter:
        raise Refused(f"{place} holds a whole model", where="--format peft", how="use --format full")
    if form == "peft":
        stored, base = read(place), str(read_config(place).get("base_model_name_or_path") or "")

        def written(aside: Path) -> None:
            write(aside, stored, base)
            copy_tokenizer(place, aside)

        put(output, written)
    elif adapter:
        merge(None, place, output, dtype, shard_size=shard_size, force=force)
    else:
        settings = evolve(settings, core=evolve(settings.core, model_dtype="fp32"))
        hf_config = models.read_config(settings)
        model = models.load_model(hf_config, settings, device="cpu")
        write_model(model, settings, hf_config, None, output, dtype, shard_size)
    return form
