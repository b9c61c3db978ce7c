"""Does a checkpoint belong to this run? What differs is listed field by field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from surogate_core.config import Config
from surogate_core.errors import Problem, ResumeError
from surogate_core.host import Host
from surogate_loop_standard.records import redact

CANNOT_CHANGE_THE_RESULT = {
    "run_name",
    "output_dir",
    "checkpoint_dir",
    "resume_from_checkpoint",
    "save_steps",
    "save_total_limit",
    "eval_steps",
    "eval_seed",
    "validation_datasets",
    "cache_dir",
    "dataloader_num_workers",
    "report_to",
    "trust_remote_code",
    "task",
}
MAY_GROW = {"num_epochs", "max_steps"}


def environment(host: Host, data: str) -> dict[str, Any]:
    """What a checkpoint says about where it was made. Loggers cannot change a result and are left out of ``plugins``' check."""
    return {"plugins": host.lock(), "torch": torch.__version__, "threads": torch.get_num_threads(), "data": data}


def check(saved: Mapping[str, Any], directory: Path, config: Config, host: Host, data: str, allow: bool) -> list[str]:
    """Differences as lines. Raises ResumeError with them unless ``allow``."""
    then = json.loads((directory / "surogate.json").read_text())
    now = redact(config.resolved())
    loggers = host.offers("loggers").values()
    observers = host.offers("observers").values()
    exempt = CANNOT_CHANGE_THE_RESULT | {field.name for offer in loggers if offer.options for field in attrs.fields(offer.options)}
    exempt |= {f.name for offer in observers if offer.options for f in attrs.fields(offer.options) if f.metadata.get("passive")}
    differences = [
        (key, then.get(key), now.get(key))
        for key in sorted(then.keys() | now.keys())
        if key.split(".")[0] not in exempt and then.get(key) != now.get(key) and not _grows(key, then.get(key), now.get(key))
    ]
    logging = {offer.owner.distribution for offer in loggers}
    before, after = saved.get("environment", {}), environment(host, data)
    for name in sorted(before.get("plugins", {}).keys() | after["plugins"].keys()):
        versions = before.get("plugins", {}).get(name), after["plugins"].get(name)
        if name not in logging and versions[0] != versions[1] and _takes_part(name, host, config):
            differences.append((f"plugin {name}", *versions))
    differences += [
        (name, before.get(name), after[name]) for name in ("torch", "threads", "data") if before.get(name) != after[name]
    ]
    lines = [f"{name}: {_short(old)} in the checkpoint, {_short(new)} now" for name, old, new in differences]
    if lines and not allow:
        how = "restore the old values, or continue all the same with --allow-drift, or start over with --fresh"
        raise ResumeError([Problem(line, where=str(directory), how=how) for line in lines])
    return lines


def _grows(key: str, old: Any, new: Any) -> bool:
    return key in MAY_GROW and isinstance(old, int) and isinstance(new, int) and new > old


def _takes_part(distribution: str, host: Host, config: Config) -> bool:
    """Whether a plugin has a say in this run: it owns something chosen, or cannot be told."""
    core = config.core
    chosen = {("recipes", core.recipe), ("optimizers", core.optimizer), ("schedules", core.lr_scheduler_type)}
    chosen |= {("models", core.model_backend), ("pipelines", core.data_pipeline), ("loops", core.training_loop)}
    chosen |= {("fusions", name) for name in host.offers("fusions")}
    chosen |= {("adapters", core.adapter)} if core.lora else set()
    chosen |= {("datasets", data.type) for data in core.datasets or ()}
    owners = {offer.owner.distribution for kind, name in chosen for key, offer in host.offers(kind).items() if key == name}
    passive = {plugin.owner.distribution for plugin in host.plugins if plugin.offers} - owners - {"surogate"}
    return distribution not in passive


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."
