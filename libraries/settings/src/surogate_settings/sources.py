"""Where values come from: a TOML or YAML file, a mapping, the command line, the environment.

Everything becomes one flat mapping from key path (``learning_rate``, ``datasets.0.samples``, ``distributed.num_nodes``) to a
:class:`Given` that remembers its origin. Types are checked later, by the key's owner.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from surogate_settings.problem import Problem, UnreadableError

COMMAND_LINE = "command line"
_VARIABLE = re.compile(r"(\$?)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|(API|ACCESS|PRIVATE|AUTH)_?KEY|_KEY$", re.IGNORECASE)
_TOML_KEY = re.compile(
    r"""\s*((?:"[^"\n]*"|'[^'\n]*'|[A-Za-z0-9_-]+)(?:[ \t]*\.[ \t]*(?:"[^"\n]*"|'[^'\n]*'|[A-Za-z0-9_-]+))*)[ \t]*="""
)


@frozen
class Given:
    """One value as it was given. ``text`` says that it still has to be read by the key's type; ``shown`` replaces it in
    everything that is printed or written when it came from a secret of the environment."""

    value: Any
    origin: str
    text: bool = False
    shown: str | None = None


@frozen
class Layout:
    """Which keys hold more keys: ``lists`` of tables (``[[datasets]]``), whose paths have an index, and ``tables``. Every other
    value, be it a list or a table, is one value."""

    lists: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


def normal_name(name: str) -> str:
    """``fp8-hybrid`` and ``fp8_hybrid`` are the same name."""
    return name.replace("-", "_")


def is_secret(name: str) -> bool:
    """Whether an environment variable's name says that its value must not be shown."""
    return bool(_SECRET.search(name))


def path_of(key: str) -> str:
    """``datasets.0.max-length`` → ``datasets.0.max_length``."""
    return ".".join(normal_name(part) for part in key.split("."))


# ---------------------------------------------------------------- files
def read_file(path: Path) -> tuple[Mapping[Any, Any], dict[str, int], tuple[str, ...]]:
    """The mapping in a file, the line of each key path, and notices. Raises UnreadableError."""
    if path.suffix.lower() not in (".toml", ".yaml", ".yml"):
        raise UnreadableError(f"{path} is neither TOML nor YAML", str(path), "name it .toml, .yaml or .yml")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UnreadableError(f"there is no file {path}", f"working directory {Path.cwd()}", "check the path") from None
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read: {error.strerror}", str(path), "check the path and its permissions") from None
    except UnicodeDecodeError as error:
        raise UnreadableError(f"{path} is not UTF-8: {error.reason} at byte {error.start}", str(path), "save it as UTF-8") from None
    return _read_toml(path, text) if path.suffix.lower() == ".toml" else _read_yaml(path, text)


def _read_toml(path: Path, text: str) -> tuple[Mapping[Any, Any], dict[str, int], tuple[str, ...]]:
    import tomli

    try:
        return tomli.loads(text), toml_lines(text), ()
    except tomli.TOMLDecodeError as error:
        found = re.search(r"\s*\(at line (\d+), column (\d+)\)|\s*\(at end of document\)", str(error))
        line = found[1] if found and found[1] else str(text.count("\n") + 1)
        what = f"{path.name} is not TOML: {re.sub(r' *[(]at .*', '', str(error))}"
        raise UnreadableError(what, f"{path.name}:{line}", 'write key = value, with text in "quotes"') from None


def toml_lines(text: str) -> dict[str, int]:
    """Line of each key of a TOML text that is known to be valid. Keys of inline tables have the line of the key they belong to."""
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    prefix, position = "", 0

    def indexed(name: str) -> str:
        first, _, rest = name.partition(".")
        return f"{first}.{counts[first]}" + (f".{rest}" if rest else "") if first in counts else name

    while position < len(text):
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        line = text[position:end].strip()
        if line.startswith("["):
            name = path_of(re.sub(r"[\s\"']", "", line.split("]")[0].lstrip("[")))
            if line.startswith("[["):
                counts[name] = counts.get(name, -1) + 1
            prefix = indexed(name)
            lines.setdefault(prefix, text.count("\n", 0, position) + 1)
        elif found := _TOML_KEY.match(text, position, end):
            key = path_of(re.sub(r"[\s\"']", "", found[1]))
            lines[f"{prefix}.{key}" if prefix else key] = text.count("\n", 0, position) + 1
            end = _value_end(text, found.end())
        position = end + 1
    return lines


def _value_end(text: str, position: int) -> int:
    """Position of the line break that ends the TOML value starting at ``position``."""
    depth = 0
    token = re.compile(r'"""(?:\\.|[^\\])*?"""|\'\'\'.*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*|[\[{]|[\]}]|\n', re.DOTALL)
    for found in token.finditer(text, position):
        depth += (found[0] in "[{") - (found[0] in "]}")
        if found[0] == "\n" and depth == 0:
            return found.start()
    return len(text)


def _read_yaml(path: Path, text: str) -> tuple[Mapping[Any, Any], dict[str, int], tuple[str, ...]]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    notices: tuple[str, ...] = ()
    try:
        tree = YAML(typ="rt", pure=True).load(text)
    except YAMLError as error:
        tabbed = [number for number, line in enumerate(text.splitlines(), 1) if "\t" in line[: len(line) - len(line.lstrip())]]
        if tabbed:
            notices = (f"{path.name}: tabs in the indentation of line {', '.join(map(str, tabbed))} are read as 4 columns",)
            text = re.sub(r"(?m)^[ \t]+", lambda found: found[0].expandtabs(4), text)
        try:
            if not tabbed:
                raise error
            tree = YAML(typ="rt", pure=True).load(text)
        except YAMLError as again:
            marked = isinstance(again, MarkedYAMLError) and again.problem_mark
            what = again.problem if marked and isinstance(again, MarkedYAMLError) else str(again).splitlines()[0]
            line = f":{again.problem_mark.line + 1}" if marked and isinstance(again, MarkedYAMLError) else ""
            raise UnreadableError(
                f"{path.name} is not YAML: {what}", path.name + line, "write key: value, indented by spaces"
            ) from None
    lines: dict[str, int] = {}
    plain = _plain(tree, "", lines)
    if plain is None:
        plain = {}
    if not isinstance(plain, dict):
        raise UnreadableError(f"{path.name} holds no keys", f"{path.name}:1", "write key: value")
    return plain, lines, notices


def _plain(node: Any, prefix: str, lines: dict[str, int]) -> Any:
    """ruamel's objects as plain ones; fills ``lines``."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    if isinstance(node, CommentedMap):
        for key in node:
            lines[f"{prefix}{normal_name(str(key))}"] = node.lc.key(key)[0] + 1 if key in (node.lc.data or {}) else node.lc.line + 1
        return {key: _plain(value, f"{prefix}{normal_name(str(key))}.", lines) for key, value in node.items()}
    if isinstance(node, CommentedSeq):
        for index in range(len(node)):
            lines[f"{prefix}{index}"] = node.lc.item(index)[0] + 1
        return [_plain(value, f"{prefix}{index}.", lines) for index, value in enumerate(node)]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return bool(node) if kind is int and type(node).__name__ == "ScalarBoolean" else kind(node)
    return node


# ---------------------------------------------------------------- one flat mapping
def flatten(
    tree: Mapping[Any, Any], origin: str, lines: Mapping[str, int] | None, problems: list[Problem], layout: Layout
) -> dict[str, Given]:
    """Key path → Given. With ``lines``, ``origin`` is a file name and the line is added to it."""
    flat: dict[str, Given] = {}

    def where(path: str) -> str:
        while lines and path and path not in lines:
            path = path.rpartition(".")[0]
        return f"{origin}:{lines[path]}" if lines and path else origin

    def put(path: str, value: Any) -> None:
        if path in flat:
            problems.append(Problem(f"{path} is given twice", f"{where(path)}, key {path}", "keep one; `-` and `_` are the same"))
        flat[path] = Given(value, where(path))

    def walk(prefix: str, table: Mapping[Any, Any]) -> None:
        for key, value in table.items():
            path = prefix + path_of(str(key))
            if path in layout.lists and isinstance(value, list) and value:
                for index, item in enumerate(value):
                    if isinstance(item, Mapping) and item:
                        walk(f"{path}.{index}.", item)
                    else:
                        put(f"{path}.{index}", item)
            elif path in layout.tables and isinstance(value, Mapping):
                walk(f"{path}.", value)
            else:
                put(path, value)

    walk("", tree)
    return flat


def overlay(base: Mapping[str, Given], top: Mapping[str, Given]) -> dict[str, Given]:
    """``top`` over ``base``, key path by key path; a value for a whole list or table replaces what is below it, and the reverse."""
    roots = {path for path in top if "." not in path}
    kept = {path: given for path, given in base.items() if path.split(".")[0] not in roots}
    parents = {path.split(".")[0] for path in top if "." in path}
    return {**{path: given for path, given in kept.items() if path not in parents}, **top}


def override(
    base: Mapping[str, Given], overrides: Iterable[tuple[str, Any]], problems: list[Problem], layout: Layout
) -> dict[str, Given]:
    """Overrides of the command line over ``base``, in order; the last one wins, and a whole list of tables replaces the list."""
    done = dict(base)
    for key, value in overrides:
        path = path_of(key)
        if path in layout.lists and isinstance(value, str):
            with suppress(ValueError):  # the check of the key's type says what is wanted
                value = json.loads(value)
        if path in layout.lists:
            done = {name: given for name, given in done.items() if not name.startswith(f"{path}.")}
        found = flatten({path: value}, COMMAND_LINE, None, problems, layout)
        done = overlay(done, {name: evolve(given, text=isinstance(given.value, str)) for name, given in found.items()})
    return done


# ---------------------------------------------------------------- environment
def expand(flat: Mapping[str, Given], problems: list[Problem], environment: Mapping[str, str] | None = None) -> dict[str, Given]:
    """``${NAME}`` in texts replaced by the environment's values; ``$${NAME}`` is a plain ``${NAME}``."""
    env = os.environ if environment is None else environment
    done: dict[str, Given] = {}
    for path, given in flat.items():
        names: list[str] = []

        def replace(found: re.Match[str], names: list[str] = names) -> str:
            if found[1]:
                return found[0][1:]
            names.append(found[2])
            return env.get(found[2], "")

        def walk(value: Any, replace: Any = replace) -> Any:
            if isinstance(value, str):
                return _VARIABLE.sub(replace, value)
            if isinstance(value, dict):
                return {key: walk(inner) for key, inner in value.items()}
            return [walk(inner) for inner in value] if isinstance(value, list) else value

        value = walk(given.value)
        for name in sorted(set(names) - set(env)):
            what = f"{path}: the environment has no {name}"
            problems.append(
                Problem(what, f"{given.origin}, key {path}", f"export {name}=…, or write $${{{name}}} for the text itself")
            )
        if names:
            whole = isinstance(given.value, str) and bool(_VARIABLE.fullmatch(given.value))
            secret = show_raw(given.value) if any(map(is_secret, names)) else None
            origin = f"environment {', '.join(dict.fromkeys(names))} at {given.origin}"
            done[path] = Given(value, origin, text=whole or given.text, shown=secret)
        else:
            done[path] = evolve(given, value=value)
    return done


def show_raw(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
