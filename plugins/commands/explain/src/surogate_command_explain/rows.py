"""What ``surogate explain`` shows of the installed keys, or of those of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen
from surogate_settings.nearest import did_you_mean
from surogate_settings.sources import path_of
from surogate_settings.structure import show

from surogate_core.config import Config
from surogate_core.config.catalogue import CHOSEN_BY, Key, catalogue
from surogate_core.config.known import NOT_BUILT
from surogate_core.config.options import LAYOUT, DatasetOptions
from surogate_core.errors import ConfigError

if TYPE_CHECKING:
    from surogate_core.host import Host

READ_BY = {
    "model_backend": ("model", "from_scratch", "model_dtype"),
    "data_pipeline": ("sequence_len", "eval_seed"),
    "recipe": ("recipe_backend", "kernels"),
    "optimizer": ("master_dtype", "adamw_beta1", "adamw_beta2", "adamw_epsilon"),
    "training_loop": (
        "run_name",
        "output_dir",
        "checkpoint_dir",
        "resume_from_checkpoint",
        "save_steps",
        "save_total_limit",
        "learning_rate",
        "warmup_ratio",
        "warmup_steps",
        "cooldown_steps",
        "final_lr_fraction",
        "max_grad_norm",
        "num_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "eval_steps",
    ),
}
"""Key that chooses an offer → the keys of the core that this offer reads. The core itself reads the others."""
NOBODY = "nothing in this run"


@frozen
class Row:
    """One line of ``surogate explain``. ``consumer``: the distributions that read the key in this run, or ``NOBODY``. Without a
    configuration, ``value`` is the default, and ``origin`` and ``consumer`` are empty."""

    key: str
    value: str
    origin: str
    owner: str
    consumer: str
    wanted: str
    doc: str


def rows(host: Host, config: Config | None = None, key: str | None = None) -> list[Row]:
    """All keys of the configuration (of the installation without one), or those at and below ``key``. Raises ConfigError for a
    key that does not exist."""
    known = catalogue(host)
    found: list[Row] = []
    if config is None:
        tables = [
            (f"datasets.N.{k.name}", k)
            for k in (*known.base.values(), *(k for own in known.formats.values() for k in own.values()))
        ]
        for path, item in [*known.keys.items(), *tables]:
            default = "required" if item.required else show(item.default)
            found.append(Row(path, default, "", str(item.owner), "", item.wanted, item.doc))
    else:
        values = config.resolved()
        for path, item in known.keys.items():
            if path not in LAYOUT.lists:
                value = values.get(path, getattr(config.of(item.options), path))
                found.append(_row(host, config, path, value, item))
        for path in values:
            if path.startswith(tuple(f"{root}." for root in LAYOUT.lists)):
                kind = values[".".join(path.split(".")[:2]) + ".type"]
                part = known.table(kind)[path.split(".", 2)[2]]
                found.append(_row(host, config, path, values[path], part))
    if key is None:
        return found
    wanted_key = path_of(key)
    if chosen := [
        row for row in found if row.key == wanted_key or row.key.startswith(f"{wanted_key}.") or row.key.endswith(f".{wanted_key}")
    ]:
        return chosen
    if wanted_key in NOT_BUILT:
        return [Row(wanted_key, show(NOT_BUILT[wanted_key]), "", "", "", "the default only", "Not available in this version.")]
    raise ConfigError(f"there is no key {wanted_key}", how=did_you_mean(wanted_key, {row.key for row in found} | set(NOT_BUILT)))


def _row(host: Host, config: Config, path: str, value: Any, item: Key) -> Row:
    consumer = ", ".join(_consumers(host, config, path, item)) or NOBODY
    return Row(path, show(value), config.origins[path], str(item.owner), consumer, item.wanted, item.doc)


def _consumers(host: Host, config: Config, path: str, item: Key) -> list[str]:
    """The distributions that read a key: what the key chooses, the offer that reads it for the core, or else its owner."""
    values = config.resolved()
    if path not in values:
        return []
    chooser = next((key for key, read in READ_BY.items() if path in read), item.name)
    if item.options is DatasetOptions and item.name != "type":
        chooser = "data_pipeline"
    if chooser not in CHOSEN_BY:
        return [getattr(item.owner, "distribution", str(item.owner))]
    if chooser == "adapter" and not config.core.lora:
        return []
    chosen = values[path if chooser == item.name else chooser]
    names = chosen if isinstance(chosen, list) else [chosen] if chosen else []
    return [host.offer(CHOSEN_BY[chooser], name).owner.distribution for name in names]
