"""What is read as what, on real files and on columns that fit two readings."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from surogate_dataset_auto.detect import build
from surogate_dataset_conversation.plugin import Options as Conversation
from surogate_dataset_instruction.plugin import Options as Instruction
from surogate_dataset_text.plugin import Options as Text
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.prepare import Prepared, Work, prepare
from transformers import AutoTokenizer

from surogate_core.config import CoreOptions, DatasetOptions
from surogate_core.errors import DataError
from surogate_core.host import load_host

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}]
SHARED = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "x"}]
HOST = load_host()


def settle(*rows: dict[str, Any]) -> Any:
    return build(None, None).settle(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "kind", "options"),
    [
        ({"text": "a"}, "text", Text()),
        ({"content": "a", "id": 3, "url": "u"}, "text", Text(text_field="content")),
        ({"messages": TALK}, "conversation", Conversation()),
        (
            {"conversations": SHARED, "system": "s"},
            "conversation",
            Conversation(messages_field="conversations", system_field="system"),
        ),
        ({"messages": json.dumps(TALK), "tools": "[]"}, "conversation", Conversation(tools_field="tools")),
        ({"question": "q", "answer": "a"}, "instruction", Instruction(instruction_field="question", output_field="answer")),
        (
            {"prompt": "q", "completion": "a", "context": None, "system_prompt": "s"},
            "instruction",
            Instruction(
                instruction_field="prompt",
                output_field="completion",
                input_field="context",
                system_prompt_type="field",
                system_prompt_field="system_prompt",
            ),
        ),
        (
            {"text": ["a"], "question": "q", "response": "a"},
            "instruction",
            Instruction(instruction_field="question", output_field="response"),
        ),
        ({"text": "a", "messages": "no list"}, "text", Text()),
    ],
)
def test_readings(row: dict, kind: str, options: Any) -> None:
    found = settle(row, row)
    assert (found.type, found.options) == (kind, options)
    assert all(f'"{name}"' in found.why for name in row if name in json.dumps(str(options)))


@pytest.mark.parametrize(
    ("row", "kinds"),
    [
        ({"text": "a", "messages": TALK}, ["conversation", "text"]),
        ({"text": "a", "content": "b"}, ["text"]),
        ({"messages": TALK, "conversations": SHARED}, ["conversation"]),
        ({"instruction": "a", "output": "b", "text": "c"}, ["instruction", "text"]),
        ({"prompt": "a", "chosen": "b", "response": "c"}, ["instruction"]),
    ],
)
def test_two_readings_are_refused(row: dict, kinds: list[str]) -> None:
    with pytest.raises(DataError, match="fits more than one reading") as caught:
        settle(row)
    (problem,) = caught.value.problems
    assert all(kind in problem.what and kind in problem.how for kind in kinds)


def test_nothing_fits() -> None:
    for rows in ([{"a": 1, "b": "x"}], [{"text": "a"}, {"text": None}], [{"question": "a"}, {"answer": "b"}]):
        with pytest.raises(DataError, match=f"columns {', '.join(sorted({name for row in rows for name in row}))}"):
            settle(*rows)


def run(path: Path, tokenizer: Any, kind: str, options: Any, said: list[str]) -> Prepared:
    core = CoreOptions(
        model="m", datasets=[DatasetOptions(path=str(path), type=kind, format_options=options, samples=12)], sequence_len=2048
    )
    own = Options(truncation_strategy="split", dataloader_num_workers=0, max_bad_rows=0.5)
    return prepare(Work(core, own, lambda name: HOST.offer("datasets", name), tokenizer, said.append))


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("pretrain/tinystories", "text", Text()),
        ("instruct/gsm8k-train-2000", "instruction", Instruction(instruction_field="question", output_field="answer")),
        (
            "instruct/instruction-data",
            "instruction",
            Instruction(instruction_field="instruction", output_field="output", input_field="input"),
        ),
        ("chat/sgd-tools", "conversation", Conversation(tools_field="tools")),
    ],
)
def test_real_files_give_what_the_named_format_gives(shared_data: Path, name: str, kind: str, options: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers/minimind")
    said: list[str] = []
    path = shared_data / f"{name}.jsonl"
    found = run(path, tokenizer, "auto", None, said)
    named = run(path, tokenizer, kind, options, [])
    assert found.fingerprint == named.fingerprint
    assert found.ledger == named.ledger
    assert f'type = "auto" reads it as {kind}: ' in said[0]


def test_preference_data_are_refused(shared_data: Path) -> None:
    path = shared_data / "preference/instruction-preference.jsonl"
    with pytest.raises(DataError, match="fits more than one reading") as caught:
        run(path, None, "auto", None, [])
    assert str(path) in caught.value.problems[0].where


def test_rows_that_cannot_be_read_do_not_decide(shared_data: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers/minimind")
    path = tmp_path / "rows.jsonl"
    path.write_text("{\n" + "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in islice(range(200), 150)))
    assert run(path, tokenizer, "auto", None, []).ledger.rows_read == 12
    path.write_text("{\n")
    with pytest.raises(DataError, match="no row that can be read"):
        run(path, tokenizer, "auto", None, [])
