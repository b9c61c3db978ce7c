"""Which format a data set has, by the names and contents of its columns.

A reading is a format with its options. It fits when all rows that are looked at have its columns with values of the right kind. One
fitting reading is taken; none or several are an error that says what was found.

conversation  ``messages`` or ``conversations``: lists of objects with a role, or such lists as JSON; tools from ``tools``, the
              system prompt from ``system``
instruction   a question column and an answer column (below), more context from ``input`` or ``context``, the system prompt from
              ``system`` or ``system_prompt``
text          ``text`` or ``content``
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from attrs import frozen
from surogate_dataset_conversation.plugin import Options as ConversationOptions
from surogate_dataset_instruction.plugin import Options as InstructionOptions
from surogate_dataset_text.plugin import Options as TextOptions

from surogate_core.contracts import FormatContext, Sample
from surogate_core.errors import DataError

MESSAGES = ("messages", "conversations")
QUESTIONS = ("instruction", "question", "prompt", "query")
ANSWERS = ("output", "answer", "response", "completion", "chosen")
INPUTS = ("input", "context")
SYSTEMS = ("system", "system_prompt")
TEXTS = ("text", "content")
ROLES = ("role", "from")

Row = Mapping[str, Any]


@frozen
class Reading:
    """A format that fits: its name, its options, and the columns that say so."""

    type: str
    options: Any
    why: str


@frozen
class Auto:
    """A format that is settled before any row is encoded: the pipeline calls ``settle`` with the first rows and goes on with the
    format that it names."""

    overlong: Literal["split", "truncate"] = "truncate"

    def settle(self, rows: Sequence[Row]) -> Reading:
        """Raises DataError when no reading fits these rows, or more than one."""
        found = list(readings(rows))
        if len(found) == 1:
            return found[0]
        columns = ", ".join(sorted({name for row in rows for name in row})) or "none"
        if not found:
            raise DataError(
                f'type = "auto" fits none of text, instruction and conversation: columns {columns}',
                "datasets",
                "set type and the names of its fields",
            )
        raise DataError(
            'type = "auto" fits more than one reading: ' + "; ".join(f"{one.type} ({one.why})" for one in found),
            "datasets",
            f'set type = "{found[0].type}" or "{found[-1].type}" and the names of its fields'
            if found[0].type != found[-1].type
            else f'set type = "{found[0].type}" and the names of its fields',
        )

    def encode(self, row: Row) -> Sequence[Sample]:
        """Never reached through a pipeline that settles formats first."""
        raise DataError('the pipeline does not settle type = "auto"', "datasets", "name a type")


def readings(rows: Sequence[Row]) -> Iterator[Reading]:
    """Every reading that fits all of these rows."""
    system = _first(rows, SYSTEMS, _is_text_or_none)
    for name in _fitting(rows, MESSAGES, _is_messages):
        tools = _first(rows, ("tools",), _is_tools)
        talk = ConversationOptions(messages_field=name, tools_field=tools, system_field=system)
        yield Reading("conversation", talk, _why(f'messages in "{name}"', tools=tools, system=system))
    context = _first(rows, INPUTS, _is_text_or_none)
    for question in _fitting(rows, QUESTIONS, _is_text):
        for answer in _fitting(rows, ANSWERS, _is_text):
            options = InstructionOptions(
                instruction_field=question,
                output_field=answer,
                input_field=context,
                system_prompt_type="field" if system else None,
                system_prompt_field=system,
            )
            yield Reading("instruction", options, _why(f'"{question}" and "{answer}"', input=context, system=system))
    for name in _fitting(rows, TEXTS, _is_text):
        yield Reading("text", TextOptions(text_field=name), f'text in "{name}"')


def _why(what: str, **more: str | None) -> str:
    return ", ".join([what, *(f'{key} in "{name}"' for key, name in more.items() if name)])


def _fitting(rows: Sequence[Row], names: Sequence[str], good: Callable[[Any], bool]) -> list[str]:
    return [name for name in names if rows and all(name in row and good(row[name]) for row in rows)]


def _first(rows: Sequence[Row], names: Sequence[str], good: Callable[[Any], bool]) -> str | None:
    """The first of these columns that any row has, where all values are of the right kind."""
    for name in names:
        if any(name in row for row in rows) and all(good(row.get(name)) for row in rows):
            return name
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_tools(value: Any) -> bool:
    return value is None or isinstance(value, (str, list))


def _is_messages(value: Any) -> bool:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return False
    return isinstance(value, list) and all(isinstance(one, Mapping) and any(key in one for key in ROLES) for one in value)


def build(options: None, context: FormatContext) -> Auto:
    return Auto()
