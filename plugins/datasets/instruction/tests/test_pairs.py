"""Columns → messages, or a text of the user's own form."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from surogate_dataset_instruction.pairs import build
from surogate_dataset_instruction.plugin import Options, register_datasets
from surogate_pipeline_packed.chat import background, weigh
from transformers import AutoTokenizer

from surogate_core.config.options import CoreOptions
from surogate_core.contracts import FormatContext, Sample
from surogate_core.errors import BadRow, DataError

ROW = {"q": "Add.", "x": "1 and 2", "a": "3", "s": "Count."}
FIELDS = {"instruction_field": "q", "output_field": "a"}
ALPACA = "{system}\n### Instruction:\n{instruction}\n### Input:\n{input}\n### Response:\n{output}\n### End"


def form(tokenizer: Any = None, system: str | None = None, loss_scale: Any = "default", **options: Any) -> tuple[Any, list]:
    seen: list[Any] = []

    def render(messages: list, kind: str = "") -> Sample:
        seen.append(messages)
        return Sample(input_ids=[], weights=[], kind=kind)

    context = FormatContext(
        config=CoreOptions(model="m"),
        tokenizer=tokenizer,
        system=system,
        background=background(loss_scale),
        render=render,
        weigh=partial(weigh, tokenizer),
    )
    return build(Options(**FIELDS, **options), context), seen


def messages(row: dict, **options: Any) -> list[tuple[str, str]]:
    made, seen = form(**options)
    (sample,) = made.encode(row)
    assert sample.kind == "instruction"
    return [(message["role"], message["content"]) for message in seen[0]]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [("user", "Add."), ("assistant", "3")]),
        ({"input_field": "x"}, [("user", "Add.\n\n1 and 2"), ("assistant", "3")]),
        ({"input_field": "none"}, [("user", "Add."), ("assistant", "3")]),
        ({"system": "All."}, [("system", "All."), ("user", "Add."), ("assistant", "3")]),
        (
            {"system_prompt_type": "field", "system_prompt_field": "s"},
            [("system", "Count."), ("user", "Add."), ("assistant", "3")],
        ),
        (
            {"system_prompt_type": "fixed", "system_prompt": "Fix.", "system": "All."},
            [("system", "Fix."), ("user", "Add."), ("assistant", "3")],
        ),
        ({"input_field": "x", "prompt_format": "{input}: {instruction}"}, [("user", "1 and 2: Add."), ("assistant", "3")]),
        (
            {"prompt_format": "{input}: {instruction}", "prompt_format_no_input": "Now {instruction}"},
            [("user", "Now Add."), ("assistant", "3")],
        ),
        ({"system": "All.", "prompt_format": "{system} {instruction} {x}"}, [("user", "All. Add. {x}"), ("assistant", "3")]),
    ],
)
def test_messages(options: dict, wanted: list) -> None:
    assert messages(ROW, **options) == wanted


@pytest.mark.parametrize("name", ["tokenizers/gpt2", "models/stories260K"])
@pytest.mark.parametrize("scale", ["default", "all"])
def test_whole_text_without_a_chat_template(name: str, scale: str, shared_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / name)
    made, _ = form(
        tokenizer, loss_scale=scale, input_field="x", system_prompt_type="field", system_prompt_field="s", prompt_format=ALPACA
    )
    (sample,) = made.encode({**ROW, "q": "Say {output}."})  # places in the data are not filled
    text = "Count.\n### Instruction:\nSay {output}.\n### Input:\n1 and 2\n### Response:\n3\n### End"
    ids = list(sample.input_ids)
    assert ids == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    trained = tokenizer.decode(np.array(ids)[np.array(sample.weights) > 0])
    assert trained.endswith("3\n### End" + tokenizer.eos_token)
    assert ("Instruction" in trained) == (scale == "all")
    assert set(np.array(sample.weights).tolist()) == ({1.0} if scale == "all" else {0.0, 1.0})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"a": "3"}, "missing field 'q'"),
        ({"q": "Add."}, "missing field 'a'"),
        ({"q": 1, "a": "3"}, "field 'q' is not text"),
        ({"q": "Add.", "a": None}, "field 'a' is not text"),
        ({"q": "Add.", "a": ""}, "field 'a' is empty"),
    ],
)
def test_rows_that_cannot_be_used(row: dict, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        form()[0].encode(row)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"system_prompt_type": "field"}, "needs system_prompt_field"),
        ({"system_prompt_type": "fixed"}, "needs system_prompt"),
        ({"prompt_format": "nothing"}, "neither {instruction} nor {output}"),
        ({"prompt_format": "{output}{output}"}, "more than once"),
    ],
)
def test_options_that_do_not_fit(options: dict, what: str) -> None:
    assert register_datasets()[0].load() is build
    with pytest.raises(DataError, match=what):
        form(**options)
