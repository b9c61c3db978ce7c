"""Every key that this installation knows: the core's and those of the installed offers, with owner, type and documentation."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen
from surogate_settings.structure import describe

from surogate_core.config.options import CoreOptions, DatasetOptions
from surogate_core.offers import Owner, Range

if TYPE_CHECKING:
    from surogate_core.host import Host

CHOSEN_BY = {
    "model_backend": "models",
    "data_pipeline": "pipelines",
    "checkpoint_store": "checkpoints",
    "training_loop": "loops",
    "recipe": "recipes",
    "optimizer": "optimizers",
    "lr_scheduler_type": "schedules",
    "adapter": "adapters",
    "type": "datasets",
    "report_to": "loggers",
}
"""Key → kind of offer that it chooses."""

KINDS = (*CHOSEN_BY.values(), "quantizers", "fusions", "observers", "parallelisms")


@frozen(eq=False)
class Key:
    """One key: its owner, its class of options, the (kind, name) of the offers that it configures (none: the core's)."""

    name: str
    kind: Any
    default: Any
    required: bool
    doc: str
    validators: tuple[Any, ...]
    owner: Owner | str
    options: type
    offers: tuple[tuple[str, str], ...] = ()

    @property
    def ranges(self) -> tuple[Range, ...]:
        return tuple(check for check in self.validators if isinstance(check, Range))

    @property
    def wanted(self) -> str:
        """Type and bounds in words: ``a number >= 0 and <= 1``."""
        return " ".join([describe(self.kind), " and ".join(map(str, self.ranges))]).strip()


def keys_of(options: type, owner: Owner | str, offers: tuple[tuple[str, str], ...] = ()) -> Iterator[Key]:
    """The keys of one class of options."""
    hints = typing.get_type_hints(options)
    for field in attrs.fields(options):
        if not field.metadata.get("key", True):
            continue
        default = field.default
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = default.factory()
        checks = getattr(field.validator, "_validators", (field.validator,) if field.validator else ())
        required = default is attrs.NOTHING
        yield Key(
            field.name,
            hints[field.name],
            None if required else default,
            required,
            field.metadata.get("doc", ""),
            tuple(checks),
            owner,
            options,
            offers,
        )


@frozen(eq=False)
class Catalogue:
    """``keys``: top-level keys. ``base``: keys of every data set table. ``formats``: more keys of that table, by ``type``.
    ``switches``: (kind, name) of an offer that has a key of its own → that key."""

    keys: Mapping[str, Key]
    base: Mapping[str, Key]
    formats: Mapping[str, Mapping[str, Key]]
    names: Mapping[str, Mapping[str, Owner]]
    switches: Mapping[tuple[str, str], str]

    @property
    def classes(self) -> list[type]:
        """Classes of options of the top-level keys, the core's first."""
        return list(dict.fromkeys(key.options for key in self.keys.values()))

    def table(self, format_name: str | None) -> dict[str, Key]:
        return {**self.base, **self.formats.get(format_name or "", {})}


def catalogue(host: Host) -> Catalogue:
    keys = {key.name: key for key in keys_of(CoreOptions, "surogate")}
    formats: dict[str, Mapping[str, Key]] = {}
    users: dict[type, list[tuple[str, str, Owner]]] = {}
    for kind in KINDS:
        for name, offer in host.offers(kind).items():
            if kind == "datasets":
                own = keys_of(offer.options, offer.owner, ((kind, name),)) if offer.options else ()
                formats[name] = {key.name: key for key in own}
            elif offer.options is not None:
                users.setdefault(offer.options, []).append((kind, name, offer.owner))
    for options, offers in users.items():
        for key in keys_of(options, offers[0][2], tuple((kind, name) for kind, name, _ in offers)):
            keys.setdefault(key.name, key)
    names = {kind: {name: offer.owner for name, offer in host.offers(kind).items()} for kind in KINDS}
    switches = {(kind, name): offer.key for kind in KINDS for name, offer in host.offers(kind).items() if offer.key}
    return Catalogue(keys, {key.name: key for key in keys_of(DatasetOptions, "surogate")}, formats, names, switches)
