"""What ``surogate explain`` shows of the installed keys, or of those of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen
from surogate_settings.nearest import did_you_mean
from surogate_settings.sources import path_of
from surogate_settings.structure import show

from surogate_core.config import Config
from surogate_core.config.catalogue import catalogue
from surogate_core.config.known import NOT_BUILT
from surogate_core.config.options import LAYOUT
from surogate_core.errors import ConfigError

if TYPE_CHECKING:
    from surogate_core.host import Host


@frozen
class Row:
    """One line of ``surogate explain``. Without a configuration, ``value`` is the default and ``origin`` is empty."""

    key: str
    value: str
    origin: str
    owner: str
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
            found.append(Row(path, "required" if item.required else show(item.default), "", str(item.owner), item.wanted, item.doc))
    else:
        values = config.resolved()
        for path, item in known.keys.items():
            if path not in LAYOUT.lists:
                value = values.get(path, getattr(config.of(item.options), path))
                found.append(Row(path, show(value), config.origins[path], str(item.owner), item.wanted, item.doc))
        for path in values:
            if path.startswith(tuple(f"{root}." for root in LAYOUT.lists)):
                kind = values[".".join(path.split(".")[:2]) + ".type"]
                part = known.table(kind)[path.split(".", 2)[2]]
                found.append(Row(path, show(values[path]), config.origins[path], str(part.owner), part.wanted, part.doc))
    if key is None:
        return found
    wanted_key = path_of(key)
    if chosen := [
        row for row in found if row.key == wanted_key or row.key.startswith(f"{wanted_key}.") or row.key.endswith(f".{wanted_key}")
    ]:
        return chosen
    if wanted_key in NOT_BUILT:
        return [Row(wanted_key, show(NOT_BUILT[wanted_key]), "", "", "the default only", "Not available in this version.")]
    raise ConfigError(f"there is no key {wanted_key}", how=did_you_mean(wanted_key, {row.key for row in found} | set(NOT_BUILT)))
