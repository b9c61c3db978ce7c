"""Tools as text: the `hermes` form against Qwen 2.5's own template, the others against what their makers document."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from surogate_pipeline_packed.agents import AGENTS
from surogate_pipeline_packed.chat import Renderer
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.templates import apply_template
from transformers import AutoTokenizer

from surogate_core.errors import BadRow

TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
TALK = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "I look.", "tool_calls": [{"function": {"name": "look", "arguments": {"city": "Ülm"}}}]},
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "Sunny.", "loss": 0.5},
]


@pytest.fixture(scope="module")
def load(shared_data: Path) -> Any:
    def load(template: str | None) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers/minimind")
        apply_template(template, tokenizer)
        return tokenizer

    return load


def test_hermes_is_what_qwen_2_5_renders(load, shared_data: Path) -> None:
    tokenizer = load("qwen2_5")
    with (shared_data / "chat/sgd-tools.jsonl").open("rb") as file:
        for line in islice(file, 0, 240, 12):
            row = json.loads(line)
            wanted = Renderer.of(Options(), tokenizer)(row["messages"], row["tools"])
            own = Renderer.of(Options(agent_template="hermes"), tokenizer)(row["messages"], row["tools"])
            assert list(own.input_ids) == list(wanted.input_ids)
            # Only where nothing is said before a call does that template write the line break itself.
            differing = [i for i, (a, b) in enumerate(zip(own.weights, wanted.weights, strict=True)) if a != b]
            assert not differing


@pytest.mark.parametrize(
    ("form", "call", "result"),
    [
        (
            "hermes",
            '<tool_call>\n{"name": "look", "arguments": {"city": "Ülm"}}\n</tool_call>',
            "<tool_response>\nsunny\n</tool_response>",
        ),
        ("react", 'Action: look\nAction Input: {"city": "Ülm"}', "Observation: sunny"),
        ("llama3", '{"name": "look", "parameters": {"city": "Ülm"}}', '"sunny"'),
    ],
)
def test_forms(form: str, call: str, result: str) -> None:
    system, *rest = AGENTS[form].rewrite(TALK, [TOOL])
    assert system["role"] == "system"
    assert "look" in system["content"]
    assert "Looks." in system["content"]
    assert rest == [TALK[0], {"role": "assistant", "content": f"I look.\n{call}"}, {"role": "user", "content": result}, TALK[3]]
    kind, *_ = AGENTS[form].rewrite([{"role": "system", "content": "Be kind."}, *TALK], [TOOL])
    assert kind["content"] == f"Be kind.\n\n{system['content']}"
    assert AGENTS[form].rewrite(TALK[:1], None) == TALK[:1]


def test_react_has_the_published_prompt() -> None:
    text = AGENTS["react"].rewrite(TALK, [TOOL, TOOL])[0]["content"]
    assert text.startswith(
        "Answer the following questions as best you can. You have access to the following tools:\n\nlook: Looks."
    )
    for line in (
        "Question: the input question you must answer",
        "Action: the action to take, should be one of [look, look]",
        "Begin!",
    ):
        assert f"\n{line}" in text


def test_results_in_a_row() -> None:
    two = [*TALK[:3], {"role": "tool", "content": "dry"}, TALK[3]]
    assert AGENTS["hermes"].rewrite(two, None)[2]["content"] == (
        "<tool_response>\nsunny\n</tool_response>\n<tool_response>\ndry\n</tool_response>"
    )
    assert AGENTS["react"].rewrite(two, None)[2]["content"] == "Observation: sunny\nObservation: dry"
    twice = [TALK[0], {**TALK[1], "tool_calls": TALK[1]["tool_calls"] * 2}]
    assert AGENTS["hermes"].rewrite(twice, None)[1]["content"].count("<tool_call>") == 2
    for form in ("react", "llama3"):
        with pytest.raises(BadRow, match="one tool call in a message"):
            AGENTS[form].rewrite(twice, None)
    with pytest.raises(BadRow, match="loss on a message"):
        AGENTS["hermes"].rewrite([*TALK[:2], {**TALK[2], "loss": 1}], None)


@pytest.mark.parametrize("template", ["gemma", "llama3", "phi4", "zephyr"])
def test_models_without_tools_can_be_trained_on_them(load, template: str) -> None:
    tokenizer = load(template)
    with pytest.raises(BadRow, match=r"does not show|must alternate"):
        Renderer.of(Options(), tokenizer)(TALK, [TOOL])
    with pytest.raises(BadRow, match=r"does not show the tool calls|must alternate"):
        Renderer.of(Options(), tokenizer)([*TALK[:2], TALK[3]])
    with pytest.raises(BadRow, match=r"does not show the tools|must alternate"):  # though the answer has its name by chance
        Renderer.of(Options(), tokenizer)([TALK[0], {"role": "assistant", "content": "look"}], [TOOL])
    sample = Renderer.of(Options(agent_template="hermes"), tokenizer)(TALK, [TOOL])
    trained = tokenizer.decode([token for token, weight in zip(sample.input_ids, sample.weights, strict=True) if weight == 1])
    assert '"arguments": {"city": "Ülm"}' in trained
    assert "sunny" not in trained
    half = tokenizer.decode([token for token, weight in zip(sample.input_ids, sample.weights, strict=True) if weight == 0.5])
    assert half.startswith("Sunny.")
