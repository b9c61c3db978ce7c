"""From what was given to typed values: each key by its owner's type, names by the installed offers, all problems collected."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import attrs
from attrs import define, field
from surogate_settings.nearest import did_you_mean, nearest
from surogate_settings.sources import Given
from surogate_settings.structure import InvalidError, choices, describe, from_text, make_converter, members, show

from surogate_core.config.catalogue import CHOSEN_BY, Catalogue, Key
from surogate_core.config.known import HOMES, NAME_HOMES, NOT_BUILT, NOT_BUILT_NAMES
from surogate_core.config.options import LAYOUT
from surogate_core.errors import Problem
from surogate_core.offers import normal_name

NOT_AVAILABLE = "not available in this version"
DATASET_HOMES = {key: home for key, home in HOMES.items() if home.startswith("surogate-dataset-")}


@define
class Reading:
    """The state of one reading: what was given, and the problems found on the way. ``bad`` holds paths that have one."""

    catalogue: Catalogue
    given: Mapping[str, Given]
    source: str
    problems: list[Problem] = field(factory=list)
    notices: list[str] = field(factory=list)
    bad: set[str] = field(factory=set)
    converter: Any = field(factory=make_converter)

    def where(self, path: str) -> str:
        origin = self.given[path].origin if path in self.given else self.source
        return f"{origin}, key {path}"

    def problem(self, path: str, what: str, how: str) -> None:
        self.bad.add(path)
        self.problems.append(Problem(what, self.where(path), how))

    # -------------------------------------------------------- values
    def typed(self, key: Key, path: str) -> Any:
        """The value of one key: given or default, strictly of the key's type and within its bounds."""
        if path not in self.given:
            if key.required:
                self.problem(path, f"{path} is missing: wanted {describe(key.kind)}", f"add {key.name}: {key.doc}")
            return key.default
        given = self.given[path]
        value = from_text(given.value, key.kind) if given.text else given.value
        try:
            value = self.converter.structure(value, key.kind)
            for check in key.validators:
                with suppress(AttributeError):  # one that looks at other keys is asked when the whole class is made
                    check(None, attrs.fields_dict(key.options)[key.name], value)
        except InvalidError as error:
            shown = given.shown or show(error.value)
            self.problem(path, f"{path}{error.path} = {shown}: wanted {error.wanted}", self.mend(key, error))
        except (ValueError, TypeError) as error:
            said = " and ".join(map(str, key.ranges))
            wanted = f"wanted {describe(key.kind)} {said}" if said else str(error).splitlines()[0]
            self.problem(path, f"{path} = {given.shown or show(value)}: {wanted}", self.mend(key, None))
        except Exception as error:  # cattrs' group of errors of a nested class
            self.problem(path, f"{path}: {describe_group(error)}", self.mend(key, None))
        else:
            return value
        return key.default

    def mend(self, key: Key, error: InvalidError | None) -> str:
        if error and isinstance(error.value, str) and (options := [v for v in choices(key.kind) if isinstance(v, str)]):
            return did_you_mean(error.value, options)
        if error and isinstance(error.value, str) and from_text(error.value, key.kind) != error.value and bool not in (key.kind,):
            return f"write {key.name} = {show(from_text(error.value, key.kind))}, without quotes" if not error.path else ""
        if error and error.value in ("true", "false") and bool in members(key.kind):
            return f"write {key.name} = {error.value}, without quotes"
        bounds = " and ".join(map(str, key.ranges))
        default = "" if key.default is None or key.required else f", for example {show(key.default)} (the default)"
        return f"set {key.name} to {describe(key.kind)}{f' {bounds}' if bounds else ''}{default}"

    # -------------------------------------------------------- keys
    def unknown(self, path: str, format_name: str | None = None) -> None:
        """A key that is not installed: not built, at home in a distribution, in the wrong place, or mistyped."""
        root, _, rest = path.partition(".")
        table = root in LAYOUT.lists and rest.partition(".")[2] != ""
        name = rest.partition(".")[2] if table else path
        if not table and path in NOT_BUILT:
            given, default = self.given[path], NOT_BUILT[path]
            value = from_text(given.value, type(default) if default is not None else int | None) if given.text else given.value
            if not same(value, default):
                what = f"{path} = {given.shown or show(value)} is {NOT_AVAILABLE}"
                self.problem(path, what, f"remove {path}, or leave it at {show(default)}")
            return
        keys = self.catalogue.table(format_name) if table else self.catalogue.keys
        elsewhere = self.catalogue.keys if table else {**self.catalogue.base, **merged(self.catalogue.formats)}
        home = HOMES.get(name)
        if name in elsewhere and not (table and name in DATASET_HOMES):
            key = elsewhere[name]
            right = "above the first table" if table else "in its [[datasets]] table"
            return self.problem(path, f"{name} does not belong here ({key.owner} has it {right})", f"write {name} {right}")
        if table and (homes := [kind for kind, own in self.catalogue.formats.items() if name in own]):
            what = f'{name} is no key of type = "{format_name}"'
            return self.problem(path, what, f"remove it, or use type = {' or '.join(map(show, homes))}")
        if home:
            return self.problem(path, f"{name} needs {home}, which is not installed", f"pip install {home}")
        pool = [*keys, *(DATASET_HOMES if table else (*LAYOUT.tables, *NOT_BUILT, *(k for k in HOMES if k not in DATASET_HOMES)))]
        found = nearest(name, set(pool)) or nearest(name, {*elsewhere, *HOMES})
        hint = " or ".join(f"{word} ({self.owner(word, format_name)})" for word in found)
        how = f"did you mean {hint}?" if hint else "`surogate explain` lists the keys; remove it"
        self.problem(
            path, f"there is no key {name}" + (f' in a table of type = "{format_name}"' if table and format_name else ""), how
        )

    def owner(self, name: str, format_name: str | None) -> str:
        key = (
            self.catalogue.keys.get(name) or self.catalogue.table(format_name).get(name) or merged(self.catalogue.formats).get(name)
        )
        if key:
            return str(key.owner)
        if name in LAYOUT.tables:
            return "a table"
        return NOT_AVAILABLE if name in NOT_BUILT else f"pip install {HOMES[name]}"

    # -------------------------------------------------------- names of offers
    def name(self, path: str, chooser: str, name: str) -> str:
        """An installed offer's name, or a problem that says how to get it."""
        installed = self.catalogue.names[CHOSEN_BY[chooser]]
        wanted = normal_name(name)
        if wanted in installed:
            return wanted
        given = f"{path} = {show(name)}"
        if path not in self.given:
            given += " (the default)"
        if wanted in NOT_BUILT_NAMES.get(chooser, ()):
            self.problem(
                path,
                f"{given} is {NOT_AVAILABLE}",
                f"choose {' or '.join(map(show, sorted(installed))) or 'a plugin that offers it'}",
            )
        elif home := NAME_HOMES.get((chooser, wanted)):
            self.problem(path, f"{given} needs {home}, which is not installed", f"pip install {home}")
        else:
            homes = {other for kind, other in NAME_HOMES if kind == chooser}
            how = did_you_mean(wanted, {*installed, *homes} if nearest(wanted, homes) else set(installed))
            self.problem(path, f"{given} is not installed: no plugin offers it", how or "install a plugin that offers it")
        return wanted


def same(value: Any, default: Any) -> bool:
    """Whether a value is the default of a key that is not built: 1 is neither true nor "1", but 0 is 0.0."""
    numbers = isinstance(value, int | float) and isinstance(default, int | float) and bool not in (type(value), type(default))
    return value == default and (numbers or type(value) is type(default))


def merged(formats: Mapping[str, Mapping[str, Key]]) -> dict[str, Key]:
    return {name: key for own in formats.values() for name, key in own.items()}


def describe_group(error: BaseException) -> str:
    """The first cause inside cattrs' group of errors, with its path."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def tables(reading: Reading, root: str) -> list[tuple[int, str | None, dict[str, str]]]:
    """The tables of ``datasets``: (index, type, key → path)."""
    found: dict[int, dict[str, str]] = {}
    for path in reading.given:
        parts = path.split(".", 2)
        if parts[0] != root or len(parts) == 1:
            continue
        if not parts[1].isdigit() or len(parts) == 2:
            value = reading.given[path].value
            reading.problem(
                path, f"{path} = {show(value)}: wanted a table with path and type", f"write one [[{root}]] table for each data set"
            )
            continue
        found.setdefault(int(parts[1]), {})[parts[2]] = path
    for index in sorted(found):
        if index >= len(found):
            path = next(iter(found[index].values()))
            reading.problem(path, f"{root} has no table {index}: it has {len(found) - 1}", "tables are counted from 0")
    result = []
    for index, paths in sorted(found.items()):
        kind = reading.given[paths["type"]].value if "type" in paths else None
        result.append((index, normal_name(kind) if isinstance(kind, str) else None, paths))
    return result
