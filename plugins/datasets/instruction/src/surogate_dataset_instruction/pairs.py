"""Instruction and answer: a conversation of one turn through the chat template, or a text of the user's own form.

A prompt format with ``{output}`` is the whole sample: the answer, what follows it and EOS are trained, and no chat template is
used. Without ``{output}`` it is the user's message. Without any format the user's message is the instruction, then, after an
empty line, the input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from attrs import evolve, frozen

from surogate_core.contracts import FormatContext, Sample
from surogate_core.errors import BadRow, DataError
from surogate_dataset_instruction.plugin import Options

KIND = "instruction"
PLACES = re.compile(r"\{(system|instruction|input|output)\}")


@frozen
class Pairs:
    options: Options
    context: FormatContext
    overlong: Literal["split", "truncate"] = "truncate"

    def encode(self, row: Mapping[str, Any]) -> Sequence[Sample]:
        values = self._values(row)
        form = self.options.prompt_format
        if not values["input"]:
            form = self.options.prompt_format_no_input or form
        if form is not None and "{output}" in form:
            return [self._text(form, values)]
        if form is None:
            asked = f"{values['instruction']}\n\n{values['input']}" if values["input"] else values["instruction"]
        else:
            asked = _fill(form, values)
        # The system prompt has its own message unless the format has a place for it.
        separate = values["system"] and (form is None or "{system}" not in form)
        messages = [{"role": "system", "content": values["system"]}] if separate else []
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": values["output"]}]
        return [self.context.render(messages, kind=KIND)]

    def _values(self, row: Mapping[str, Any]) -> dict[str, str]:
        options = self.options
        values = {"instruction": _column(row, options.instruction_field), "output": _column(row, options.output_field)}
        if not values["output"]:
            raise BadRow(f"field '{options.output_field}' is empty")
        values["input"] = _column(row, options.input_field, optional=True) if options.input_field else ""
        if options.system_prompt_type == "field":
            values["system"] = _column(row, options.system_prompt_field or "", optional=True)
        elif options.system_prompt_type == "fixed":
            values["system"] = options.system_prompt or ""
        else:
            values["system"] = self.context.system or ""
        return values

    def _text(self, form: str, values: Mapping[str, str]) -> Sample:
        prompt, _, rest = form.partition("{output}")
        start = _fill(prompt, values)
        tokenizer = self.context.tokenizer
        text = start + values["output"] + _fill(rest, values) + tokenizer.eos_token
        background = self.context.background
        before = f"prompt_format before {{output}}: {'trained (all)' if background else 'masked'}"
        spans = [(0, len(start), background, before), (len(start), len(text), 1.0, "{output} and what follows it: trained")]
        encoded = self.context.weigh(text, spans, KIND, "{output}", special=True)
        if list(encoded.input_ids[-2:]) == [tokenizer.eos_token_id] * 2:  # the tokenizer adds EOS itself
            return evolve(encoded, input_ids=encoded.input_ids[:-1], weights=encoded.weights[:-1])
        return encoded


def _column(row: Mapping[str, Any], name: str, optional: bool = False) -> str:
    value = row.get(name)
    if value is None and optional:
        return ""
    if name not in row:
        raise BadRow(f"missing field '{name}'")
    if not isinstance(value, str):
        raise BadRow(f"field '{name}' is not text")
    return value


def _fill(form: str, values: Mapping[str, str]) -> str:
    return PLACES.sub(lambda place: values[place[1]], form)


def build(options: Options, context: FormatContext) -> Pairs:
    wanted = {"field": "system_prompt_field", "fixed": "system_prompt"}.get(options.system_prompt_type or "")
    if wanted and getattr(options, wanted) is None:
        raise DataError(f'system_prompt_type = "{options.system_prompt_type}" needs {wanted}', "datasets", f"set {wanted}")
    forms = [form for form in (options.prompt_format, options.prompt_format_no_input) if form is not None]
    for form in forms:
        place = f"prompt_format = {form!r}"
        if "{output}" not in form and "{instruction}" not in form:
            raise DataError("a prompt format has neither {instruction} nor {output}", place, "add {instruction}")
        if form.count("{output}") > 1:
            raise DataError("a prompt format has {output} more than once", place, "keep one")
    if any("{output}" in form for form in forms) and context.tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no EOS token, with which samples end", context.config.model, "set eos_token")
    return Pairs(options, context)
