"""Offers: the data set format `instruction`."""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, doc


@frozen(kw_only=True)
class Options:
    """Options of `type = "instruction"`."""

    instruction_field: str = field(metadata=doc("Column with the instruction or question."))
    output_field: str = field(metadata=doc("Column with the answer, which is what is trained."))
    input_field: str | None = field(default=None, metadata=doc("Column with more context for the instruction."))
    system_prompt_type: Literal["field", "fixed"] | None = field(
        default=None, metadata=doc("Where the system prompt comes from: `system_prompt_field` or `system_prompt`. Unset: `system`.")
    )
    system_prompt_field: str | None = field(default=None, metadata=doc("Column with the system prompt."))
    system_prompt: str | None = field(default=None, metadata=doc("System prompt of all rows."))
    prompt_format: str | None = field(
        default=None,
        metadata=doc(
            "Text with `{system}`, `{instruction}`, `{input}`, `{output}`. With `{output}` it is the whole sample, without a chat "
            "template; otherwise it is the user's message."
        ),
    )
    prompt_format_no_input: str | None = field(
        default=None, metadata=doc("The same for rows whose input is missing or empty. Unset: `prompt_format`.")
    )


@hookimpl
def register_datasets() -> list[Offer]:
    return [
        Offer(
            "instruction",
            Options,
            build="surogate_dataset_instruction.pairs:build",
            summary="Columns with instruction, input and answer; only the answer is trained.",
        )
    ]
