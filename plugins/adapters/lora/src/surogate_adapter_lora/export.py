"""What a run has trained, in the layout of the ecosystem alone: PEFT's adapter, full weights, or weights in 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import surogate_model_transformers as models
from attrs import evolve
from torch import Tensor, nn

from surogate_adapter_lora.merge import Dtype, absent, copy_tokenizer, on_base, one_base, put, write_model
from surogate_adapter_lora.peft_format import CONFIG, read, read_config, write
from surogate_adapter_lora.serve import settings_of
from surogate_core.config import load
from surogate_core.contracts import Context
from surogate_core.errors import Refused
from surogate_core.host import load_host

Form = Literal["peft", "full", "bitsandbytes"]
QUANTIZER = "bnb_nf4"
"""The offer that has bitsandbytes' format."""


def export(
    source: str,
    output: Path,
    form: Form | None = None,
    dtype: Dtype | None = None,
    *,
    shard_size: str = "5GB",
    force: bool = False,
) -> str:
    """Write ``source`` (a run, its config, a checkpoint, an adapter or a model) to ``output``; returns the form. Default:
    "peft" for an adapter, "full" for a model. An adapter is merged into its base for the other forms. "bitsandbytes" takes block
    size and double quantisation from a config, else their defaults. Raises Refused, ModelError, and PluginError without the
    quantizer."""
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
        return form
    quantizer = _quantizer(source) if form == "bitsandbytes" else None
    if adapter:
        model, settings, hf_config = on_base(one_base([place]), read(place), [place])
    else:
        settings = evolve(settings, core=evolve(settings.core, model_dtype="fp32"))
        hf_config = models.read_config(settings)
        model = models.load_model(hf_config, settings, device="cpu")
    tokenizer = place if adapter and (place / "tokenizer_config.json").is_file() else None
    pack = None if quantizer is None else lambda model: _packed(model, quantizer)
    write_model(model, settings, hf_config, tokenizer, output, dtype, shard_size, pack)
    return form


def _quantizer(source: str) -> Any:
    host = load_host()
    offer = host.offer("quantizers", QUANTIZER)
    assert offer.options is not None
    options = load(Path(source), host, need_data=False).of(offer.options) if Path(source).is_file() else offer.options()
    return offer.load()(options, Context(config=settings_of(source, "fp32").core))


def _packed(model: Any, quantizer: Any) -> models.Packed:
    """The linear layers of the blocks in the quantizer's format; what else is linear is listed as plain."""
    names = {site.name: site for site in models.list_sites(model) if site.kind == "linear" and site.layer is not None}
    tensors: dict[str, Tensor] = {}
    for name, site in names.items():
        storage, weight = quantizer.storage(site), model.get_submodule(name).weight.detach()
        storage.pack(weight)
        tensors |= {f"{name}.{end}": tensor for end, tensor in storage.exported(weight.dtype).items()}
    plain = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in names]
    return models.Packed(tensors=tensors, settings=quantizer.exported_config(plain, next(model.parameters()).dtype))
