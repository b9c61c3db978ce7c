"""From given values to typed ones, without coercion: 3.7 is no whole number, "false" is not false, true is not 1.

cattrs does the walking (lists, tables, nested classes); the hooks here decide what a leaf accepts. Text from the command line or
from the environment has no type of its own, so it is read by the type of its key (:func:`from_text`).
"""

from __future__ import annotations

import datetime
import json
import math
import types
import typing
from typing import Any, Literal, Union

from cattrs import Converter

NoneType = type(None)
SIMPLE = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Any: "anything", NoneType: "null"}


class InvalidError(ValueError):
    """A value that its key does not accept. ``wanted`` is a noun phrase, ``path`` the way into the value."""

    def __init__(self, value: Any, wanted: str, path: str = ""):
        self.value, self.wanted, self.path = value, wanted, path
        super().__init__(f"{show(value)}: wanted {wanted}")


def is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, types.UnionType)


def members(kind: Any) -> tuple[Any, ...]:
    """The types that ``kind`` stands for, null left out: ``int | None`` → ``(int,)``."""
    return tuple(arg for arg in typing.get_args(kind) if arg is not NoneType) if is_union(kind) else (kind,)


def optional(kind: Any) -> bool:
    return kind is Any or (is_union(kind) and NoneType in typing.get_args(kind))


def choices(kind: Any) -> tuple[Any, ...]:
    """Values of a ``Literal``, also inside of ``| None``; empty for other types."""
    return tuple(v for kind in members(kind) if typing.get_origin(kind) is Literal for v in typing.get_args(kind))


def show(value: Any) -> str:
    """A value as a configuration file writes it."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:
        return str(value) if isinstance(value, datetime.date | datetime.time) else repr(value)


def describe(kind: Any) -> str:
    """A type in words: ``a whole number``, ``one of "a", "b"``."""
    if (words := SIMPLE.get(kind) if not is_union(kind) else None) is not None:
        return words
    if is_union(kind):
        return " or ".join(describe(member) for member in members(kind))
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return ("one of " if len(args) > 1 else "") + ", ".join(show(arg) for arg in args)
    if (origin or kind) is list:
        return f"a list of {plural(args[0])}" if args else "a list"
    return "a table"


def plural(kind: Any) -> str:
    return {int: "whole numbers", float: "numbers", bool: "true or false", str: "texts"}.get(kind, f"values, each {describe(kind)}")


def _leaf(kind: Any) -> Any:
    def structure(value: Any, _: Any) -> Any:
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise InvalidError(value, describe(kind))
        if kind is float and not math.isfinite(value):
            raise InvalidError(value, "a finite number")
        return value

    return structure


def _literal(value: Any, kind: Any) -> Any:
    for choice in typing.get_args(kind):
        same = isinstance(value, str) and isinstance(choice, str) and value.replace("-", "_") == choice.replace("-", "_")
        if same or (type(value) is type(choice) and value == choice):
            return choice
    raise InvalidError(value, describe(kind))


def make_converter() -> Converter:
    """A cattrs converter that refuses instead of coercing, and refuses keys that a nested class does not have."""
    converter = Converter(forbid_extra_keys=True)

    def union(value: Any, kind: Any) -> Any:
        if value is None and optional(kind):
            return None
        for member in members(kind):
            try:
                return converter.structure(value, member)
            except InvalidError:
                if len(members(kind)) == 1:
                    raise
        raise InvalidError(value, describe(kind))

    def container(value: Any, kind: Any) -> Any:
        built_in = typing.get_origin(kind) or kind
        if not isinstance(value, built_in):
            raise InvalidError(value, describe(kind))
        inner = (typing.get_args(kind) or (Any,))[-1]
        done = {}
        for name, item in value.items() if built_in is dict else enumerate(value):
            try:
                done[name] = converter.structure(item, inner)
            except InvalidError as error:
                raise InvalidError(error.value, error.wanted, f".{name}{error.path}") from None
        return done if built_in is dict else list(done.values())

    for kind in (int, float, bool, str):
        converter.register_structure_hook(kind, _leaf(kind))
    converter.register_structure_hook_func(lambda kind: kind is Any, lambda value, _: value)
    converter.register_structure_hook_func(lambda kind: typing.get_origin(kind) is Literal, _literal)
    converter.register_structure_hook_func(is_union, union)
    converter.register_structure_hook_func(
        lambda kind: any((typing.get_origin(kind) or kind) is wanted for wanted in (list, dict)), container
    )
    return converter


def from_text(text: str, kind: Any) -> Any:
    """Read text by a type; text that does not fit is returned as it is, and then refused by the strict check."""
    if str in members(kind):
        return text
    if optional(kind) and text.lower() in ("null", "none"):
        return None
    for member in members(kind):
        origin = typing.get_origin(member) or member
        try:
            if member is bool and text.lower() in ("true", "false"):
                return text.lower() == "true"
            if member in (int, float):
                return member(text)
            if origin is Literal:
                return next((choice for choice in typing.get_args(member) if str(choice) == text), text)
            if origin is list:
                if text.lstrip().startswith("["):
                    return json.loads(text)
                inner = (typing.get_args(member) or (str,))[0]
                return [from_text(part.strip(), inner) for part in text.split(",") if part.strip()]
            if origin is dict:
                return json.loads(text)
        except ValueError:
            continue
    return text
