"""Masks against an independent construction: byte positions of tokens, and turns found by a regular expression."""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from surogate_pipeline_packed.chat import Renderer, turn_weights
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.templates import TEMPLATES, apply_template, named_template
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from surogate_core.errors import BadRow, DataError

TURN = re.compile(rb"<\|im_start\|>assistant\n(?:<think>\n\n</think>\n\n)?(.*?<\|im_end\|>)", re.DOTALL)
TOKENIZERS = {"minimind": "tokenizers/minimind", "gpt2": "tokenizers/gpt2", "stories260K": "models/stories260K"}
UNMARKED = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


@pytest.fixture(scope="session")
def load(shared_data: Path):
    def load(name: str, template: str | None = None) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(shared_data / TOKENIZERS[name])
        apply_template(template, tokenizer)
        return tokenizer

    return load


def renderer(tokenizer: Any, **options: Any) -> Renderer:
    return Renderer.of(Options(**options), tokenizer)


def conversations(shared_data: Path) -> list[tuple[list[dict], list | None]]:
    rows: list[tuple[list[dict], list | None]] = []
    for line in (shared_data / "instruct/instruction-data.jsonl").read_bytes().split(b"\n")[:1100:20]:
        row = json.loads(line)
        asked = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
        rows.append(([{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}], None))
    for line in (shared_data / "instruct/gsm8k-train-2000.jsonl").read_bytes().split(b"\n")[:2000:50]:
        row = json.loads(line)
        rows.append(([{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}], None))
    for name, count in (("sgd-tools", 20), ("tau-airline", 2)):
        with (shared_data / f"chat/{name}.jsonl").open("rb") as file:
            for line in islice(file, count):
                row = json.loads(line)
                for message in row["messages"]:
                    message["content"] = message["content"] or ""
                    for call in message.get("tool_calls") or []:
                        if isinstance(call["function"]["arguments"], str):
                            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
                rows.append((row["messages"], row["tools"]))
    return rows


@pytest.mark.parametrize(
    ("name", "template"), [("minimind", None), ("minimind", "chatml"), ("gpt2", "chatml"), ("stories260K", "qwen")]
)
def test_masks_on_real_data(load, shared_data: Path, byte_starts, name: str, template: str | None) -> None:
    tokenizer = load(name, template)
    render = renderer(tokenizer)
    for messages, tools in conversations(shared_data):
        sample = render(messages, tools=tools)
        wanted = tokenizer.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=True)["input_ids"]
        assert list(sample.input_ids) == wanted
        text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False).encode()
        turns = [found.span(1) for found in TURN.finditer(text)]
        assert len(turns) == sum(message["role"] == "assistant" for message in messages)
        starts = byte_starts(tokenizer, wanted, text)
        trained = [float(any(a <= start < b for a, b in turns)) for start in starts]
        assert list(sample.weights) == trained


def test_prefixes_find_what_marks_say(load) -> None:
    """The same template with and without its generation marks gives the same weights, for every named template."""
    messages = [
        {"role": "user", "content": "Name two colours."},
        {"role": "assistant", "content": "Red and <b>blue</b>."},
        {"role": "user", "content": "One more?"},
        {"role": "assistant", "content": "Green\nor QZ"},
    ]
    for name, template in TEMPLATES.items():
        tokenizer = load("minimind", name)
        marked = renderer(tokenizer)(messages)
        tokenizer.chat_template = UNMARKED.sub("", template)
        unmarked = renderer(tokenizer)(messages)
        assert list(unmarked.input_ids) == list(marked.input_ids), name
        trained = tokenizer.decode(np.array(marked.input_ids)[np.array(marked.weights) > 0])
        assert trained.count("Green\nor QZ") == 1
        assert "colours" not in trained
        if name == "mistral":  # without a generation prompt the space before the answer counts as prompt in neither
            assert trained.startswith(" Red")
        assert list(unmarked.weights) == list(marked.weights), name


HISTORY = (  # drops what an earlier turn thought, and shows an empty thought in the last one, as Qwen 3 does
    "{%- for m in messages -%}<|im_start|>{{ m.role }}\n"
    "{%- if m.role == 'assistant' and loop.last %}{{ '\n<think>\n\n</think>\n\n' }}{% elif true %}{{ '\n' }}{% endif -%}"
    "{{ m.content }}<|im_end|>\n{% endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
TALK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "x"},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": "y"},
]


def trained_text(tokenizer: Any, sample: Any) -> str:
    return tokenizer.decode(np.array(sample.input_ids)[np.array(sample.weights) > 0])


def test_the_end_of_turn_is_trained_where_the_marks_leave_it_out(load) -> None:
    tokenizer = load("minimind", "chatml")
    wanted = renderer(tokenizer)(TALK)
    end = "{{- '<|im_end|>' -}}{%- endgeneration -%}"
    assert end in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(end, "{%- endgeneration -%}{{- '<|im_end|>' -}}")
    found = renderer(tokenizer)(TALK)
    assert list(found.input_ids) == list(wanted.input_ids)
    assert list(found.weights) == list(wanted.weights)


def test_marks_in_a_macro_are_refused(load) -> None:
    """transformers takes their places from what is written before the macro is called, and would train its header."""
    tokenizer = load("minimind", "chatml")
    tokenizer.chat_template = (
        "{% macro said(m) %}{{ '<|im_start|>' + m.role + '\n' }}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
        "{% endmacro %}{% for m in messages %}{% if m.role == 'assistant' %}{{ said(m) }}{% else %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    with pytest.raises(BadRow, match="generation marks in a macro"):
        renderer(tokenizer)(TALK)


def test_a_marker_behind_the_marks_is_not_trained_when_it_is_the_next_messages(load) -> None:
    tokenizer = load("minimind", "chatml")
    plain = tokenizer.chat_template
    end = "{{- '<|im_end|>' -}}{%- endgeneration -%}{{- '\\n' -}}"
    assert end in plain
    for other in ("{{- '<|im_end|>\\n' -}}{%- endgeneration -%}", "{%- endgeneration -%}"):
        tokenizer.chat_template = plain.replace(end, other)
        sample = renderer(tokenizer)([*TALK, {"role": "user", "content": "c"}])
        text = trained_text(tokenizer, sample)
        assert "<|im_start|>" not in text
        assert text.replace("<|im_end|>\n", "") == "xy"
    # the user's messages start with a marker of their own, not with that of the generation prompt
    roles = "{% if m.role == 'user' %}<|box_start|>{{ m.content }}{% else %}<|im_start|>{% generation %}{{ m.content }}<|im_end|>"
    tokenizer.chat_template = (
        f"{{% for m in messages %}}{roles}{{% endgeneration %}}{{% endif %}}{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    assert trained_text(tokenizer, renderer(tokenizer)(TALK)) == "x<|im_end|>y<|im_end|>"


def test_template_that_changes_history(load) -> None:
    tokenizer = load("minimind")
    tokenizer.chat_template = HISTORY
    assert trained_text(tokenizer, renderer(tokenizer)(TALK)).split("<|im_end|>") == ["x", "<think>\n\n</think>\n\ny", ""]


def test_thoughts_are_trained_where_the_prompt_ends_in_an_empty_one(load) -> None:
    tokenizer = load("minimind")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes"}]
    assert trained_text(tokenizer, renderer(tokenizer)(messages)) == "hm\n</think>\n\nyes<|im_end|>"


EACH, PROMPT = "{% for m in messages %}", "{% endfor %}{% if add_generation_prompt %}"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (EACH + "{{ m.role }}: {{ m.content }}\n{% endfor %}", "no generation prompt"),
        ("{{ messages | length }}" + EACH + "<{{ m.content }}>" + PROMPT + "!{% endif %}", "otherwise"),
        (EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}" + PROMPT + "[bot]{% endif %}", "does not start with"),
        ("{{ raise_exception('roles must alternate') }}", "alternate"),
        (EACH + "{{ m.role }}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", "another number of generation marks"),
    ],
)
def test_turns_that_cannot_be_told_apart_are_refused(load, template: str, reason: str) -> None:
    tokenizer = load("minimind")
    tokenizer.chat_template = template
    with pytest.raises(BadRow, match=reason):
        renderer(tokenizer)(TALK)


@pytest.mark.parametrize("template", ["llama3", "mistral", "gemma"])
def test_tools_that_a_template_does_not_show_are_refused(load, template: str) -> None:
    call = {"type": "function", "function": {"name": "look_up", "arguments": {}}}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(BadRow, match="does not show the tool calls"):
        renderer(load("minimind", template))(messages)
    with pytest.raises(BadRow, match="does not show the tools"):
        renderer(load("minimind", template))(TALK, tools=[{"type": "function", "function": {"name": "look_up"}}])


@pytest.mark.parametrize(
    ("scale", "losses", "wanted"),
    [
        ("default", (None, None), {1: 1, 3: 1}),
        ("last_round", (None, None), {1: 0, 3: 1}),
        ("all", (None, None), {1: 1, 3: 1}),
        ("default", (False, 0.25), {1: 0, 3: 0.25}),
        ("last_round", (True, None), {1: 1, 3: 1}),
        ("all", (0.5, False), {1: 0.5, 3: 0}),
    ],
)
def test_loss_scale_and_loss_of_messages(load, scale: str, losses: tuple, wanted: dict[int, float]) -> None:
    messages = [dict(message) for message in TALK]
    messages[1]["loss"], messages[3]["loss"] = losses
    assert turn_weights(messages, scale) == wanted
    tokenizer = load("minimind", "chatml")
    sample = renderer(tokenizer, loss_scale=scale)(messages)
    assert list(sample.input_ids) == tokenizer.apply_chat_template(TALK, return_dict=True)["input_ids"]
    by_text = dict(zip(tokenizer.convert_ids_to_tokens(sample.input_ids), sample.weights, strict=True))
    assert by_text["x"] == wanted[1]
    assert by_text["y"] == wanted[3]
    assert by_text["b"] == (1 if scale == "all" else 0)


@pytest.mark.parametrize(("role", "loss"), [("user", True), ("assistant", "yes"), ("assistant", -1), ("assistant", float("nan"))])
def test_a_loss_that_makes_no_sense_is_refused(role: str, loss: Any) -> None:
    with pytest.raises(BadRow, match="loss"):
        turn_weights([{"role": role, "content": "a", "loss": loss}], "default")


def test_system_fills_in_where_there_is_none(load) -> None:
    tokenizer = load("minimind", "chatml")
    render = renderer(tokenizer, system="Be brief.")
    own = [{"role": "system", "content": "Mine."}, *TALK]
    assert list(render(TALK).input_ids) == list(renderer(tokenizer)([{"role": "system", "content": "Be brief."}, *TALK]).input_ids)
    assert list(render(own).input_ids) == list(renderer(tokenizer)(own).input_ids)


def test_no_template(load, tmp_path: Path) -> None:
    with pytest.raises(DataError, match='set template = "chatml"'):
        renderer(load("gpt2"))(TALK)
    with pytest.raises(DataError, match="chatml, cohere, gemma, llama3, mistral"):
        named_template("chtml")
    (tmp_path / "own.jinja").write_text("{{ 'x' }}")
    assert named_template(str(tmp_path / "own.jinja")) == "{{ 'x' }}"


def test_the_template_is_saved_with_the_tokenizer(load, tmp_path: Path) -> None:
    tokenizer = load("gpt2", "chatml")
    tokenizer.save_pretrained(tmp_path)
    served = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert served.apply_chat_template(TALK, return_dict=True)["input_ids"] == list(renderer(tokenizer)(TALK).input_ids)
