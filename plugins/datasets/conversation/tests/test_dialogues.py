"""Shapes of messages → what the chat template is given."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import TemplateError
from surogate_dataset_conversation.dialogues import build
from surogate_dataset_conversation.plugin import Options, register_datasets
from surogate_pipeline_packed.chat import Renderer
from surogate_pipeline_packed.plugin import Options as PipelineOptions
from surogate_pipeline_packed.prepare import Work, prepare
from transformers import AutoTokenizer

from surogate_core.config.options import CoreOptions, DatasetOptions
from surogate_core.contracts import FormatContext, Sample
from surogate_core.errors import BadRow


def rendered(row: dict[str, Any], **options: Any) -> tuple[list[dict], list | None, str]:
    seen: list[Any] = []

    def render(messages: list, tools: list | None = None, kind: str = "") -> Sample:
        seen.append((messages, tools, kind))
        return Sample(input_ids=[], weights=[])

    context = FormatContext(config=CoreOptions(model="m"), tokenizer=None, system=None, background=0.0, render=render, weigh=render)
    form = build(Options(**options), context)
    form.encode(row)
    return seen[0]


def call(name: str, arguments: Any, **more: Any) -> dict:
    return {**more, "type": "function", "function": {"name": name, "arguments": arguments}}


OPENAI = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [call("look", {"city": "Ulm"})]},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "Sunny."},
]


def test_openai_messages_pass_unchanged() -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    assert rendered({"messages": OPENAI, "tools": tools}, tools_field="tools") == (OPENAI, tools, "conversation with tools")
    assert rendered({"messages": OPENAI})[1:] == (None, "conversation")
    extra = [{**OPENAI[4], "loss": 0, "reasoning_content": "hm", "name": None}]
    assert rendered({"messages": extra})[0] == [{**OPENAI[4], "loss": 0, "reasoning_content": "hm"}]


def test_sharegpt_messages() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": json.dumps({"name": "look", "arguments": {"city": "Ulm"}})},
            {"from": "observation", "value": "sunny"},
            {"from": "gpt", "value": "Sunny."},
        ],
        "system": "Be kind.",
        "tools": json.dumps([{"name": "look"}]),
    }
    messages, tools, _ = rendered(row, messages_field="conversations", system_field="system", tools_field="tools")
    assert messages == OPENAI
    assert tools == [{"name": "look"}]


def test_own_property_names() -> None:
    messages = [{"who": "human", "says": "a", "role": "boss"}, {"who": "bot", "says": "b"}]
    got = rendered({"messages": messages}, message_property_mappings={"role": "who", "content": "says"})[0]
    assert got == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize("arguments", ['{"city": "Ulm"}', {"city": "Ulm"}])
@pytest.mark.parametrize("content", [None, "", "absent"])
def test_tool_calls(arguments: Any, content: str | None) -> None:
    message = {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"id": "7", "function": {"name": "look", "arguments": arguments}}],
    }
    if content == "absent":
        del message["content"]
    (got,) = rendered({"messages": [message]})[0]
    assert got == {"role": "assistant", "content": "", "tool_calls": [call("look", {"city": "Ulm"}, id="7")]}


def test_content_in_parts_and_messages_as_text() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert rendered({"messages": json.dumps(parts)})[0] == [{"role": "user", "content": "ab"}]


@pytest.mark.parametrize(
    "shape",
    [
        {"reasoning_content": "hm", "content": "x"},
        {"reasoning": "hm", "content": "x"},
        {"thinking": "hm", "content": "x", "reasoning_content": None},
        {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "x"}]},
        {"content": [{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "x"}], "reasoning_content": ""},
    ],
)
def test_thoughts(shape: dict) -> None:
    assert rendered({"messages": [{"role": "assistant", **shape}]})[0] == [
        {"role": "assistant", "content": "x", "reasoning_content": "hm"}
    ]
    inline = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nx"}
    assert rendered({"messages": [inline]})[0] == [inline]


@pytest.mark.parametrize("result", [{"a": "é"}, [1, {"b": None}], [{"a": 1}]])
def test_results_that_are_objects_become_json(result: Any) -> None:
    (got,) = rendered({"messages": [{"role": "tool", "content": result, "tool_call_id": "7"}]})[0]
    assert json.loads(got["content"]) == result
    assert "\\u" not in got["content"]
    assert got["tool_call_id"] == "7"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert rendered({"messages": [{"role": "tool", "content": parts}]})[0] == [{"role": "tool", "content": "ab"}]


def test_the_older_function_call_of_openai() -> None:
    old = {"role": "assistant", "content": None, "function_call": {"name": "look", "arguments": '{"city": "Ulm"}'}}
    got = rendered({"messages": [old, {"role": "function", "name": "look", "content": "sunny"}]})[0]
    assert got == [
        {"role": "assistant", "content": "", "tool_calls": [call("look", {"city": "Ulm"})]},
        {"role": "tool", "name": "look", "content": "sunny"},
    ]


def test_a_template_that_refuses_null_gets_a_text(load_tokenizer: Any) -> None:
    tokenizer = load_tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content is not string %}{{ raise_exception('null') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function | tojson }}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    row = {"messages": [OPENAI[1], {"role": "assistant", "content": None, "tool_calls": [call("look", '{"city": "Ulm"}')]}]}
    with pytest.raises(TemplateError, match="null"):
        tokenizer.apply_chat_template(row["messages"], tokenize=False)
    render = Renderer.of(PipelineOptions(), tokenizer)
    core = CoreOptions(model="m")
    context = FormatContext(config=core, tokenizer=None, system=None, background=0.0, render=render, weigh=render)
    (sample,) = build(Options(), context).encode(row)
    trained = [token for token, weight in zip(sample.input_ids, sample.weights, strict=True) if weight]
    assert tokenizer.decode(trained) == '{"name": "look", "arguments": {"city": "Ulm"}}<|im_end|>'


@pytest.fixture
def load_tokenizer(shared_data: Path) -> Any:
    return AutoTokenizer.from_pretrained(shared_data / "tokenizers/minimind")


def test_system_field_fills_in_only_where_there_is_none() -> None:
    assert rendered({"messages": OPENAI, "s": "Other."}, system_field="s")[0] == OPENAI
    assert rendered({"messages": OPENAI[1:], "s": "Be kind."}, system_field="s")[0] == OPENAI
    assert rendered({"messages": OPENAI[1:], "s": None}, system_field="s")[0] == OPENAI[1:]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "missing field 'messages'"),
        ({"messages": []}, "no messages"),
        ({"messages": "{"}, "field 'messages' is not JSON"),
        ({"messages": {"role": "user"}}, "field 'messages' is not a list"),
        ({"messages": ["a"]}, "a message is not an object"),
        ({"messages": [{"content": "a"}]}, "a message without role"),
        ({"messages": [{"role": "alien", "content": "a"}]}, "unknown role 'alien'"),
        ({"messages": [{"role": "user"}]}, "a message without content"),
        ({"messages": [{"role": "user", "content": 3}]}, "content of a message is not text"),
        ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "content of a message has parts that are not text"),
        ({"messages": [{"role": "assistant", "tool_calls": [call("f", "{")]}]}, "arguments of a tool call is not JSON"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "a tool call without a name"),
        ({"messages": [{"role": "assistant", "tool_calls": ["f"]}]}, "a tool call is not an object"),
        ({"messages": [{"role": "user", "content": "a", "thinking": "b"}]}, "thoughts in a message that is not the assistant's"),
        ({"messages": [{"role": "assistant", "content": "a", "thinking": 1}]}, "reasoning of a message is not text"),
        (
            {"messages": [{"role": "assistant", "content": "a", "thinking": "b", "reasoning": "c"}]},
            "a message with its thoughts in two places",
        ),
        ({"messages": OPENAI, "tools": "look"}, "field 'tools' is not JSON"),
        ({"messages": OPENAI, "tools": [1]}, "a tool is not an object"),
        ({"messages": OPENAI, "system": 1}, "field 'system' is not text"),
    ],
)
def test_rows_that_cannot_be_used(row: dict, reason: str) -> None:
    with pytest.raises(BadRow) as caught:
        rendered(row, tools_field="tools", system_field="system")
    assert caught.value.reason == reason


def test_real_dialogues_with_any_number_of_workers(shared_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers/minimind")
    host = SimpleNamespace(offer=lambda kind, name: register_datasets()[0])
    tables = [
        DatasetOptions(
            path=str(shared_data / f"chat/{name}.jsonl"),
            type="conversation",
            samples=12,
            format_options=Options(tools_field="tools"),
        )
        for name in ("sgd-tools", "tau-airline")
    ]
    made = []
    for workers in (0, 2):
        core = CoreOptions(model="m", datasets=tables, sequence_len=2048)
        own = PipelineOptions(truncation_strategy="split", dataloader_num_workers=workers)
        made.append(prepare(Work(core, own, partial(host.offer, "datasets"), tokenizer, lambda line: None)))
    assert made[0].fingerprint == made[1].fingerprint
    assert made[0].ledger == made[1].ledger
    assert made[0].ledger.balanced()
    assert (made[0].ledger.rows_read, made[0].ledger.unusable) == (24, 0)
