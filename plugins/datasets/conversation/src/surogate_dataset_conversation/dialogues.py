"""Conversations as they occur in data sets → OpenAI messages → the chat template.

ShareGPT's ``from`` and ``value`` and its role names are translated, a function call becomes ``tool_calls`` of the assistant,
arguments that are JSON strings are parsed, ``content`` may be null beside tool calls or a list of parts (those of images are in
pictures.py), and a tool's result may be an object, which is written as JSON. What the assistant thought may be called
``reasoning_content``, ``reasoning``, ``thinking``, or be a part of its content; thoughts between ``<think>`` tags stay in the
content, where templates look for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from attrs import frozen

from surogate_core.contracts import FormatContext, Sample
from surogate_core.errors import BadRow
from surogate_dataset_conversation.pictures import Album, joined
from surogate_dataset_conversation.plugin import Options

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
}
IMAGES_FIELD = "images"
CALLS = ("function_call", "tool_call")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
SHAREGPT = {"role": "from", "content": "value"}


@frozen
class Dialogues:
    options: Options
    context: FormatContext
    overlong: Literal["split", "truncate"] = "truncate"

    def encode(self, row: Mapping[str, Any]) -> Sequence[Sample]:
        options = self.options
        raw = _listed(row, options.messages_field)
        if not raw:
            raise BadRow("no messages")
        if options.images_field != IMAGES_FIELD and options.images_field not in row:
            raise BadRow(f"missing field '{options.images_field}'")
        album = Album.of(row, options.images_field, options.objects_field)
        messages = [self._message(message, album) for message in raw]
        album.finish(messages)
        system = row.get(options.system_field) if options.system_field else None
        if system is not None and not isinstance(system, str):
            raise BadRow(f"field '{options.system_field}' is not text")
        if system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        tools = _tools(row, options.tools_field) if options.tools_field else None
        kind = "conversation with tools" if tools else "conversation"
        return [self.context.render(messages, tools=tools, kind=kind)]

    def _message(self, raw: Any, album: Album) -> dict[str, Any]:
        """One message in OpenAI's shape."""
        if not isinstance(raw, Mapping):
            raise BadRow("a message is not an object")
        names = dict(self.options.message_property_mappings)
        for ours, theirs in SHAREGPT.items():
            if names.get(ours, ours) not in raw and theirs in raw:
                names[ours] = theirs
        given = {name for name in names.values() if name in raw}
        message = {key: value for key, value in raw.items() if key not in given and value is not None}
        message |= {ours: raw[theirs] for ours, theirs in names.items() if theirs in raw}
        said = message.get("role")
        if not isinstance(said, str) or said not in ROLES:
            raise BadRow("a message without role" if said is None else f"unknown role {str(said)[:40]!r}")
        message["role"] = ROLES[said]
        if said in CALLS:
            message |= {"content": "", "tool_calls": _calls_of_text(message.get("content"))}
        elif "function_call" in message and not message.get("tool_calls"):
            message["tool_calls"] = [message["function_call"]]
        message.pop("function_call", None)
        if message.get("tool_calls"):
            message["tool_calls"] = [_call(call) for call in _sequence(message["tool_calls"], "tool_calls")]
        if message["role"] == "tool" and _structured(message.get("content")):
            message["content"] = json.dumps(message["content"], ensure_ascii=False)
        thoughts = [_thought(message.pop(name)) for name in THOUGHTS if name in message]
        if isinstance(message.get("content"), list):
            message["content"], parts = _joined(message["content"], album, message["role"])
            thoughts += parts
        elif isinstance(message.get("content"), str):
            message["content"] = joined(album.text(message["content"], message["role"] != "assistant"))
        thoughts = [thought for thought in thoughts if thought.strip()]
        if len(thoughts) > 1:
            raise BadRow("a message with its thoughts in two places")
        if thoughts:
            if message["role"] != "assistant":
                raise BadRow("thoughts in a message that is not the assistant's")
            message["reasoning_content"] = thoughts[0]
        if message.get("content") is None:
            if not message.get("tool_calls"):
                raise BadRow("a message without content")
            message["content"] = ""
        if not isinstance(message["content"], str | list):
            raise BadRow("content of a message is not text")
        return message


def _listed(row: Mapping[str, Any], name: str) -> Sequence[Any]:
    if name not in row:
        raise BadRow(f"missing field '{name}'")
    return _sequence(row[name], f"field '{name}'")


def _sequence(value: Any, what: str) -> Sequence[Any]:
    """A list, or a list as a JSON string."""
    if isinstance(value, str):
        value = _parsed(value, what)
    if not isinstance(value, list):
        raise BadRow(f"{what} is not a list")
    return value


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadRow(f"{what} is not JSON") from error


def _tools(row: Mapping[str, Any], name: str) -> list[Any] | None:
    value = row.get(name)
    if value is None or value == "":
        return None
    tools = list(_sequence(value, f"field '{name}'"))
    tools = [_parsed(tool, "a tool") if isinstance(tool, str) else tool for tool in tools]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise BadRow("a tool is not an object")
    return tools


def _calls_of_text(content: Any) -> list[Any]:
    """ShareGPT's function call: one call or several as JSON."""
    calls = _parsed(content, "a function call") if isinstance(content, str) else content
    return calls if isinstance(calls, list) else [calls]


def _call(call: Any) -> dict[str, Any]:
    """A tool call with its arguments as an object, which templates write as they need it."""
    if not isinstance(call, Mapping):
        raise BadRow("a tool call is not an object")
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRow("a tool call without a name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _parsed(arguments or "{}", "arguments of a tool call")
    extra = {key: value for key, value in call.items() if key == "id" and value is not None}
    return {**extra, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _structured(content: Any) -> bool:
    """Whether a tool's result is an object or a list of its own, not a list of text parts."""
    if isinstance(content, list):
        return not all(isinstance(part, Mapping) and "type" in part for part in content)
    return isinstance(content, Mapping)


def _thought(value: Any) -> str:
    if not isinstance(value, str):
        raise BadRow("reasoning of a message is not text")
    return value


def _joined(parts: list[Any], album: Album, role: str) -> tuple[str | list[dict[str, Any]], list[str]]:
    """Content as a list of parts: what is said or shown, and what is thought (parts of type ``thinking`` or ``reasoning``)."""
    said: list[dict[str, Any]] = []
    thoughts = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("thinking", "reasoning"):
            thoughts.append(_thought(part.get(kind, part.get("text"))))
        elif isinstance(part, Mapping) and (image := album.part(part)) is not None:
            said.append(image)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            said += album.text(part["text"], role != "assistant")
        else:
            raise BadRow("content of a message has parts that are not text")
    return joined(said), ["".join(thoughts)]


def build(options: Options, context: FormatContext) -> Dialogues:
    return Dialogues(options, context)
