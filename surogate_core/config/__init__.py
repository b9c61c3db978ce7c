"""The configuration of a run: read strictly from TOML or YAML, the command line and the environment, with every value's origin."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import attrs
from attrs import field, frozen
from surogate_settings.problem import UnreadableError
from surogate_settings.sources import expand, flatten, overlay, override, read_file

from surogate_core.config.catalogue import CHOSEN_BY, Catalogue, Key, catalogue
from surogate_core.config.checks import findings, frozen_in
from surogate_core.config.options import LAYOUT, CoreOptions, DatasetOptions
from surogate_core.config.recommended import recommend
from surogate_core.config.resolve import Reading, tables
from surogate_core.errors import ConfigError, PluginError, Problem
from surogate_core.offers import Owner

if TYPE_CHECKING:
    from surogate_core.host import Host

T = TypeVar("T")
CHOOSER = {kind: key for key, kind in CHOSEN_BY.items()}
__all__ = ["Config", "CoreOptions", "DatasetOptions", "load"]


@frozen(kw_only=True, eq=False)
class Config:
    """A checked configuration. Frozen; what it holds was accepted by every check that needs no model.

    core     the core's options
    origins  key path → where its value came from: "config.toml:3", "command line", "default",
             "environment HF_X at config.toml:4", "preset pt", "derived: …"
    owners   key path → the Owner whose option it is, or "surogate"
    path     the file, None for a mapping
    notices  remarks that are no problems, one line each
    arguments  words that give the overrides again: ("--learning-rate", "1e-4")
    """

    core: CoreOptions
    origins: Mapping[str, str]
    owners: Mapping[str, Owner | str]
    path: Path | None
    notices: tuple[str, ...]
    arguments: tuple[str, ...]
    options: Mapping[type, Any] = field(repr=False)
    values: Mapping[str, Any] = field(repr=False)

    def of(self, options_class: type[T]) -> T:
        """The options of a plugin's class, of an offer that is installed."""
        if options_class is CoreOptions:
            return cast(T, self.core)
        try:
            return self.options[options_class]
        except KeyError:
            raise PluginError(
                f"no installed offer has the options {options_class.__module__}.{options_class.__qualname__}",
                how="name this class in one of the plugin's offers",
            ) from None

    def resolved(self) -> dict[str, Any]:
        """Every key path in force → its value, as JSON has it; ``load`` reads it back. Values that came from a secret of the
        environment appear as the ``${NAME}`` that was written."""
        return dict(self.values)


def load(
    source: Path | str | Mapping[str, Any],
    host: Host,
    overrides: Sequence[tuple[str, Any]] = (),
    preset: Mapping[str, Any] | None = None,
    *,
    need_data: bool = True,
) -> Config:
    """Read and check a configuration. ``preset`` is weaker than the source, ``overrides`` are stronger.

    ``need_data`` is false for commands that do not train. Raises ConfigError with every problem that was found.
    """
    problems: list[Problem] = []
    path = None if isinstance(source, Mapping) else Path(source)
    try:
        tree, lines, notices = (source, None, ()) if isinstance(source, Mapping) else read_file(Path(source))
    except UnreadableError as error:
        raise ConfigError([error.problem]) from None
    name = path.name if path else "mapping"
    preset_name = f"preset {(preset or {}).get('task', '')}".strip()
    given = flatten(preset or {}, preset_name, None, problems, LAYOUT)
    given = overlay(given, flatten(tree, name, lines, problems, LAYOUT))
    given = override(given, overrides, problems, LAYOUT)
    reading = Reading(catalogue(host), expand(given, problems), name, problems, list(notices))
    words = [(f"--{key.replace('_', '-')}", value if isinstance(value, str) else json.dumps(value)) for key, value in overrides]
    config = _build(reading, path, tuple(word for pair in words for word in pair), need_data)
    if preset and config.core.task != preset.get("task", config.core.task):
        reading.problem(
            "task", f'task = "{config.core.task}" contradicts the command, which is {preset["task"]}', "use `surogate run`"
        )
    for owner, answers in host.ask("check_config", config=config) if not reading.problems else ():
        problems.extend(attrs.evolve(answer, where=answer.where or str(owner)) for answer in answers or ())
    if problems:
        raise ConfigError(problems)
    return config


def _build(reading: Reading, path: Path | None, arguments: tuple[str, ...], need_data: bool) -> Config:
    known, given = reading.catalogue, reading.given
    flat = {key.name: reading.typed(key, key.name) for key in known.keys.values() if key.name not in LAYOUT.lists}
    origins = {key: given[key].origin if key in given else "default" for key in flat}
    owners: dict[str, Owner | str] = {key: known.keys[key].owner for key in flat}
    for key in given:
        if key not in known.keys and key.split(".")[0] not in LAYOUT.lists:
            reading.unknown(key)
    for root in LAYOUT.lists:
        flat[root] = _datasets(reading, root, origins, owners)
    _names(reading, flat)
    _task(reading, flat, origins)
    if flat["apply_recommended_values"]:
        recommend(reading, flat, origins)
    made = {cls: _construct(reading, cls, [k for k in known.keys.values() if k.options is cls], flat) for cls in known.classes}
    core = made.pop(CoreOptions)
    on = [key for key in known.switches.values() if flat[key]]
    for keys, what, how in (*findings(core, need_data=need_data), *frozen_in(on, core.lora)):
        if not any(key in reading.bad or any(bad.startswith(f"{key}.") for bad in reading.bad) for key in keys):
            at = next((key for key in keys if key in given), keys[0])
            reading.problem(at, what, how)
    values = _in_force(reading, flat)
    return Config(
        core=core,
        origins=origins,
        owners=owners,
        path=path,
        arguments=arguments,
        notices=tuple(reading.notices),
        options=made,
        values=values,
    )


def _construct(reading: Reading, cls: type, keys: list[Key], values: Mapping[str, Any], prefix: str = "") -> Any:
    """An object of one class of options. A check of the whole class (``__attrs_post_init__``) that raises is a problem of its
    keys. None where a key already has a problem, except for the core, whose other keys are still checked."""
    if cls is CoreOptions:
        return CoreOptions(**{**{key.name: values[key.name] for key in keys}, "model": values["model"] or ""})
    if any(prefix + key.name in reading.bad for key in keys):
        return None
    try:
        return cls(**{key.name: values[key.name] for key in keys})
    except (ValueError, TypeError) as error:
        first = next((key.name for key in keys if prefix + key.name in reading.given), keys[0].name)
        reading.problem(prefix + first, str(error).splitlines()[0], f"see `surogate explain {first}`")
        return None


def _in_force(reading: Reading, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Key path → value of everything that has an effect; a notice for keys that were given and have none."""
    known, given = reading.catalogue, reading.given
    values = {}

    def put(path: str, value: Any) -> None:
        shown = given[path].shown if path in given else None
        values[path] = value if shown is None else shown

    for name, key in known.keys.items():
        if not key.offers or any(_chosen(known, kind, offer, flat) for kind, offer in key.offers):
            if name not in LAYOUT.lists:
                put(name, flat[name])
        elif name in given and name not in known.switches.values():
            users = " or ".join(
                f"{own} = true" if (own := known.switches.get((kind, offer))) else f'{CHOOSER[kind]} = "{offer}"'
                for kind, offer in key.offers
            )
            reading.notices.append(f"{name} has no effect: it belongs to {users} ({given[name].origin})")
    for root in LAYOUT.lists:
        for index, data in enumerate(flat[root] or ()):
            for key in known.table(data.type).values():
                holder = data if key.options is DatasetOptions else data.format_options
                put(f"{root}.{index}.{key.name}", getattr(holder, key.name, None))
    return values


def _chosen(known: Catalogue, kind: str, name: str, flat: Mapping[str, Any]) -> bool:
    """Whether an offer is in force. Loggers and parallelisms decide for themselves."""
    if switch := known.switches.get((kind, name)):
        return bool(flat[switch])
    if kind not in CHOOSER or kind == "loggers":
        return True
    return flat[CHOOSER[kind]] == name and (kind != "adapters" or flat["lora"])


def _datasets(reading: Reading, root: str, origins: dict[str, str], owners: dict[str, Owner | str]) -> list[DatasetOptions] | None:
    """The tables of one list, each with the options of the format that its ``type`` names."""
    origins[root], owners[root] = "default", "surogate"
    if root in reading.given:
        origins[root], value = reading.given[root].origin, reading.given[root].value
        if value is not None and value != []:
            reading.problem(root, f"{root}: wanted a list of tables, not one value or table", f"write [[{root}]] above its keys")
        elif value == []:
            reading.problem(root, f"{root} is empty", "add a table with path and type")
        return None
    done: list[DatasetOptions] = []
    for index, kind, paths in tables(reading, root):
        prefix = f"{root}.{index}."
        keys = reading.catalogue.table(kind)
        values = {name: reading.typed(key, prefix + name) for name, key in keys.items()}
        if f"{prefix}type" not in reading.bad and isinstance(values["type"], str):
            values["type"] = reading.name(f"{prefix}type", "type", values["type"])
        type_bad = f"{prefix}type" in reading.bad
        for name in paths:
            if name not in keys and not (type_bad and any(name in own for own in reading.catalogue.formats.values())):
                reading.unknown(prefix + name, kind)
        for name, key in keys.items():
            at = prefix + name
            origins[at] = reading.given[at].origin if at in reading.given else "default"
            owners[at] = key.owner
        origins[root] = origins[f"{prefix}path"] if index == 0 else origins[root]
        base = {**values, "path": values["path"] or "", "type": values["type"] or ""}
        extra = next((key.options for key in keys.values() if key.options is not DatasetOptions), None)
        own = _construct(reading, extra, [key for key in keys.values() if key.options is extra], values, prefix) if extra else None
        done.append(DatasetOptions(**{name: base[name] for name in reading.catalogue.base}, format_options=own))
    return done or None


def _names(reading: Reading, flat: dict[str, Any]) -> None:
    """Replace names by the installed offers' own spelling."""
    for key in ("model_backend", "data_pipeline", "checkpoint_store", "training_loop", "recipe", "optimizer", "lr_scheduler_type"):
        if key not in reading.bad:
            flat[key] = reading.name(key, key, flat[key])
    if flat["report_to"] and "report_to" not in reading.bad:
        flat["report_to"] = [reading.name("report_to", "report_to", name) for name in flat["report_to"]]


def _task(reading: Reading, flat: dict[str, Any], origins: dict[str, str]) -> None:
    """Settle ``task``, ``lora`` and ``adapter``: see the documentation of ``task``."""
    asked = next((key for key in ("lora", "adapter") if key in reading.given), None)
    if flat["task"] is None and "task" not in reading.bad:
        types = [data.type for root in LAYOUT.lists for data in flat[root] or ()]
        text = bool(types) and all(kind == "text" for kind in types)
        plain = text and not asked
        flat["task"] = "pt" if plain else "sft"
        why = "all data sets are text and lora is not set" if plain else f"{asked} is set" if text else "not all data sets are text"
        origins["task"] = f"derived: {why if types else 'there are no data sets'}"
    if flat["task"] == "pt" and not asked:
        flat["lora"], origins["lora"] = False, 'derived: task is "pt"'
    if not reading.bad & {"adapter", "lora"} and (flat["lora"] or "adapter" in reading.given):
        flat["adapter"] = reading.name("adapter", "adapter", flat["adapter"])
