"""Models: read their config, load or make their weights, run them on packed batches, write them.

Nothing is imported until it is used: torch costs more than a second.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Settings": "plugin",
    "read_config": "config",
    "load_tokenizer": "config",
    "context_length": "config",
    "load_processor": "vision",
    "skeleton": "load",
    "load_model": "load",
    "recompute_layers": "load",
    "list_sites": "sites",
    "blocks": "sites",
    "SlotLinear": "slots",
    "fill_slots": "slots",
    "weight_of": "slots",
    "grouped": "experts",
    "stacked_weight": "experts",
    "adapter_at": "slots",
    "routers": "routing",
    "slot_layers": "slots",
    "slot_names": "slots",
    "run_hidden": "loss",
    "batch_loss": "loss",
    "logits": "loss",
    "check_head": "loss",
    "set_tokens": "virtual",
    "save_model": "export",
    "Packed": "export",
}
__all__ = list(_HOMES)
__version__ = "0.1.0.dev0+src"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
