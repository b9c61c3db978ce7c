"""Every real file, with several tokenizers and templates: ids are those of ``apply_chat_template``, the generation prompt is a
prefix, and the trained tokens are those that a regular expression over the rendered text finds."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.templates import TEMPLATES, apply_template

MARKS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
CHATML = r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)"
PARSERS = {  # the answer and the marker that ends it, after the header that the generation prompt gives
    "own": r"<\|im_start\|>assistant\n(?:<think>\n\n</think>\n\n|<think>\n)?(.*?<\|im_end\|>)",
    "llama3": r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n(.*?<\|eot_id\|>)",
    "phi3": r"<\|assistant\|>\n(.*?<\|end\|>)",
    "strict": r"\[bot\](.*?</bot>)",
}
STRICT = (  # refuses null, alternates roles, injects a default system text, ends the whole with a marker
    "{% set first = messages[0] %}{{ '[sys]' + (first.content if first.role == 'system' else 'You are kind.') + '</sys>\\n' }}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.content is none %}{{ raise_exception('null content') }}{% endif %}"
    "{% if m.role == 'assistant' %}{{ '[bot]' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '[call]' + c.function.name + c.function.arguments | tojson }}{% endfor %}{{ '</bot>' }}"
    "{% elif m.role != 'system' %}{{ '[' + m.role + ']' + m.content + '</' + m.role + '>\\n' }}{% endif %}{% endfor %}"
    "{{ '[bot]' if add_generation_prompt else '[end]' }}"
)
OWN_TEMPLATES = {"strict": STRICT}
THINKING = ("own", "qwen3")  # templates that show thoughts
CASES = [
    ("minimind", "own"),
    ("minimind", "chatml"),
    ("minimind", "chatml unmarked"),
    ("minimind", "qwen2_5 unmarked"),
    ("minimind", "qwen3"),
    ("minimind", "qwen3 unmarked"),
    ("gpt2", "chatml"),
    ("gpt2", "qwen3 unmarked"),
    ("stories260K", "qwen"),
    ("gpt2", "llama3"),
    ("gpt2", "llama3 unmarked"),
    ("gpt2", "phi3"),
    ("minimind", "strict"),
]


def template_of(tokenizer: Any, name: str) -> None:
    base = name.split()[0]
    if base in OWN_TEMPLATES:
        tokenizer.chat_template = OWN_TEMPLATES[base]
    elif base != "own":
        apply_template(base, tokenizer)
    if name.endswith("unmarked"):
        assert "generation" in TEMPLATES[base]
        tokenizer.chat_template = MARKS.sub("", tokenizer.chat_template)


def thoughtful(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation with a thought in each assistant message, in the two ways that data have them."""
    found = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            found.append(message)
        elif i % 2:
            found.append({**message, "reasoning_content": f"Step {i} of it."})
        else:
            found.append({**message, "content": f"<think>\nThe {i}.\n</think>\n\n{message['content']}"})
    return found


def check(
    real: SimpleNamespace, tokenizer: Any, sample: Any, messages: list, tools: list | None, name: str, thinking: bool = False
) -> int:
    """Compare a sample with the independent construction. Returns the number of trained tokens."""
    rendered = tokenizer.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=True)
    wanted = rendered["input_ids"]
    assert list(sample.input_ids) == wanted
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False).encode()
    turns = [found.span(1) for found in re.finditer(PARSERS.get(name, CHATML).encode(), text, re.DOTALL)]
    assert len(turns) == sum(message["role"] == "assistant" for message in messages)
    starts = real.starts(tokenizer, wanted, text)
    trained = [float(any(a <= start < b for a, b in turns)) for start in starts]
    assert list(sample.weights) == trained
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    if not thinking or (last == len(messages) - 1 and name == "qwen3"):  # a thought is dropped once the user speaks again
        prompt = tokenizer.apply_chat_template(messages[:last], tools=tools, add_generation_prompt=True, tokenize=False)
        assert text.startswith(prompt.encode())
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        # GPT-2 joins line breaks at the end of a text that it keeps apart before a word.
        assert wanted[: len(ids)] == ids or (name == "llama3" and wanted[: len(ids) - 1] == ids[:-1])
    return int(sum(trained))


def sweep(real: SimpleNamespace, tokenizer_name: str, template: str, count: int | None) -> int:
    base = template.split()[0]
    compared = 0
    for name in real.files:
        tools_known = base not in ("llama3", "phi3")
        if name in ("sgd-tools", "tau-airline") and not tools_known:
            continue
        tokenizer = real.tokenizer(tokenizer_name)
        template_of(tokenizer, template)
        encode = real.encoder(tokenizer, name, Options())
        few = count if name != "tau-airline" else count and 1
        for row in real.rows(name, few):
            messages, tools = real.messages(name, row)
            assert check(real, tokenizer, encode(row), messages, tools, base)
            compared += 1
            if base in THINKING and compared % 2:
                thought = thoughtful(messages)
                if "messages" in row:
                    check(real, tokenizer, encode({**row, "messages": thought}), thought, tools, base, thinking=True)
    return compared


@pytest.mark.parametrize(("tokenizer", "template"), CASES)
def test_a_sample_of_every_file(real: SimpleNamespace, tokenizer: str, template: str) -> None:
    assert sweep(real, tokenizer, template, 6) >= 18


@pytest.mark.prove("all rows take many minutes")
@pytest.mark.parametrize(("tokenizer", "template"), CASES)
def test_every_row_of_every_file(real: SimpleNamespace, tokenizer: str, template: str) -> None:
    assert sweep(real, tokenizer, template, None) >= 4200
