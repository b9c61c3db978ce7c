"""What the installed keys are, for editors (JSON Schema, draft 2020-12) and for people (``docs/options.md``)."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from surogate_settings.structure import is_union, members, optional, show

from surogate_core.config.catalogue import CHOSEN_BY, Catalogue, Key, catalogue
from surogate_core.config.known import NOT_BUILT
from surogate_core.config.options import LAYOUT

if TYPE_CHECKING:
    from surogate_core.host import Host

JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


# ---------------------------------------------------------------- JSON Schema
def type_schema(kind: Any) -> dict[str, Any]:
    """JSON Schema of a type."""
    if is_union(kind):
        inner = [type_schema(member) for member in members(kind)] + ([{"type": "null"}] if optional(kind) else [])
        return {"anyOf": inner}
    origin, args = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is Literal:
        return {"enum": list(args)}
    if origin is list:
        return {"type": "array", **({"items": type_schema(args[0])} if args else {})}
    if origin is dict:
        return {"type": "object", **({"additionalProperties": type_schema(args[1])} if args else {})}
    return {"type": JSON_TYPES[origin]} if origin in JSON_TYPES else {}


def key_schema(key: Key, names: Mapping[str, Any]) -> dict[str, Any]:
    """JSON Schema of one key; ``names`` are the installed offers of the kind that the key chooses."""
    schema = type_schema(key.kind)
    bounds = {name: bound for check in key.ranges for name, bound in check.schema().items()}
    if names and key.kind is str:
        schema = {"enum": sorted(names)}
    elif names:
        schema = {"anyOf": [{"type": "array", "items": {"enum": sorted(names)}}, {"type": "null"}]}
    if bounds:
        target = next((part for part in schema["anyOf"] if part.get("type") != "null"), schema) if "anyOf" in schema else schema
        target.update(bounds)
    return {"description": f"{key.doc} ({key.owner})", **schema, **({} if key.required else {"default": key.default})}


def table_schema(known: Catalogue, name: str) -> dict[str, Any]:
    """JSON Schema of one ``[[datasets]]`` table with ``type = name``."""
    keys = known.table(name)
    properties = {key.name: key_schema(key, {}) for key in keys.values()} | {"type": {"const": name}}
    required = [key.name for key in keys.values() if key.required]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def json_schema(host: Host) -> dict[str, Any]:
    """JSON Schema of a configuration file for this installation."""
    known = catalogue(host)
    properties: dict[str, Any] = {}
    for key in known.keys.values():
        if key.name in LAYOUT.lists:
            items = {"oneOf": [table_schema(known, name) for name in sorted(known.formats)]}
            shape = {"anyOf": [{"type": "array", "minItems": 1, "items": items}, {"type": "null"}]}
            properties[key.name] = {"description": key.doc, **shape, "default": None}
        else:
            properties[key.name] = key_schema(key, known.names.get(CHOSEN_BY.get(key.name, ""), {}))
    for path, default in NOT_BUILT.items():
        head, _, rest = path.partition(".")
        only = {"description": "Not available in this version.", "const": default}
        if rest:
            table = properties.setdefault(head, {"type": "object", "properties": {}, "additionalProperties": False})
            table["properties"][rest] = only
        else:
            properties.setdefault(path, only)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "surogate configuration",
        "type": "object",
        "properties": properties,
        "required": [key.name for key in known.keys.values() if key.required],
        "additionalProperties": False,
    }


# ---------------------------------------------------------------- docs/options.md
def markdown(host: Host) -> str:
    """The reference of all installed keys: the text of ``docs/options.md``."""
    known = catalogue(host)
    lines = [
        "# Options",
        "",
        "Every key of a configuration, with its type, default and owner. This page is the output of `surogate schema --markdown`.",
        "",
        *_section("Core", (key for key in known.keys.values() if not key.offers)),
        *_section("Every `[[datasets]]` and `[[validation_datasets]]` table", known.base.values()),
    ]
    for name, own in sorted(known.formats.items()):
        if own:
            lines += _section(f'More keys of a table with `type = "{name}"`', own.values())
    classes = dict.fromkeys(key.options for key in known.keys.values() if key.offers)
    by_class = {cls: [key for key in known.keys.values() if key.options is cls] for cls in classes}
    for keys in sorted(by_class.values(), key=lambda keys: keys[0].offers):
        users = " and ".join(f"{kind[:-1]} `{name}`" for kind, name in keys[0].offers)
        lines += _section(f"Keys of {users}", keys)
    lines += ["## Not available in this version", "", "These keys are accepted at the value shown; any other is refused.", ""]
    lines += ["| key | value |", "|---|---|", *(f"| `{key}` | `{show(value)}` |" for key, value in sorted(NOT_BUILT.items()))]
    return "\n".join(lines) + "\n"


def _section(title: str, keys: Iterable[Key]) -> list[str]:
    lines = [f"## {title}", "", "| key | type | default | owner | meaning |", "|---|---|---|---|---|"]
    for key in keys:
        default = "required" if key.required else f"`{show(key.default)}`"
        owner = key.owner if isinstance(key.owner, str) else key.owner.distribution
        kind = key.wanted if key.name not in LAYOUT.lists else "a list of tables"
        cells = (f"`{key.name}`", kind, default, owner, key.doc)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*lines, ""]
