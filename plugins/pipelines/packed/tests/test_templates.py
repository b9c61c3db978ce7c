"""Named templates against what the published ones render (``published.json``, made with the models' own templates as TRL carries
them), and against the formats that their makers document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from surogate_pipeline_packed.templates import TEMPLATES, apply_template
from transformers import AutoTokenizer

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text())
TALK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "x"},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": "y"},
]
SYSTEM = {"role": "system", "content": "S"}
DOCUMENTED = {
    # transformers, "Chat templates": ChatML
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nx<|im_end|>\n"
    "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\ny<|im_end|>\n",
    # mistral-common, tokenizers V2 and V3: the system prompt before the last user message; Tekken has no spaces
    "mistral": "<s>[INST] a[/INST] x</s>[INST] S\n\nb[/INST] y</s>",
    "mistral_tekken": "<s>[INST]a[/INST]x</s>[INST]S\n\nb[/INST]y</s>",
    # microsoft/phi-4, HuggingFaceH4/zephyr-7b-beta
    "phi4": "<|im_start|>system<|im_sep|>S<|im_end|><|im_start|>user<|im_sep|>a<|im_end|><|im_start|>assistant<|im_sep|>x<|im_end|>"
    "<|im_start|>user<|im_sep|>b<|im_end|><|im_start|>assistant<|im_sep|>y<|im_end|>",
    "zephyr": "<|system|>\nS</s>\n<|user|>\na</s>\n<|assistant|>\nx</s>\n<|user|>\nb</s>\n<|assistant|>\ny</s>\n",
}


@pytest.fixture(scope="module")
def tokenizer(shared_data: Path) -> Any:
    return AutoTokenizer.from_pretrained(shared_data / "tokenizers/gpt2", bos_token="<s>", eos_token="</s>")


def test_every_template_is_checked_and_in_the_table() -> None:
    assert {*PUBLISHED["rendered"], *DOCUMENTED, "qwen"} == set(TEMPLATES)
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in TEMPLATES)
    assert all("{%- generation -%}" in text for text in TEMPLATES.values())


@pytest.mark.parametrize("name", sorted(PUBLISHED["rendered"]))
def test_renders_what_the_published_template_does(tokenizer: Any, name: str) -> None:
    for case, wanted in PUBLISHED["rendered"][name].items():
        messages, tools = PUBLISHED["cases"][case]
        for prompt in (False, True):
            shown = messages[:-1] if prompt else messages
            text = tokenizer.apply_chat_template(
                shown, tools=tools, tokenize=False, add_generation_prompt=prompt, chat_template=TEMPLATES[name]
            )
            assert text == wanted[prompt], case


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_renders_what_is_documented(tokenizer: Any, name: str) -> None:
    text = tokenizer.apply_chat_template([SYSTEM, *TALK], tokenize=False, chat_template=TEMPLATES[name])
    assert text == DOCUMENTED[name]
    prompt = tokenizer.apply_chat_template(
        [SYSTEM, *TALK[:3]], tokenize=False, add_generation_prompt=True, chat_template=TEMPLATES[name]
    )
    answer = " y" if name == "mistral" else "y"
    assert prompt == DOCUMENTED[name][: DOCUMENTED[name].rindex(answer)]


@pytest.mark.parametrize("prefix", ["Sure: ", '{{ "a" }}\n{% x %}\\', "é\n"])
def test_response_prefix_ends_the_generation_prompt_and_changes_nothing_else(tokenizer: Any, tmp_path: Path, prefix: str) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages | length }}\n\n")  # Jinja drops the last line break
    for template in ("chatml", "phi3", str(tmp_path / "own.jinja")):
        apply_template(template, tokenizer)
        plain = [tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=prompt) for prompt in (False, True)]
        for _ in range(2):  # a second time adds nothing
            apply_template(None, tokenizer, prefix)
            got = [tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=prompt) for prompt in (False, True)]
            assert got == [plain[0], plain[1] + prefix]


def test_several_templates_of_one_tokenizer_all_get_the_response_prefix(tokenizer: Any) -> None:
    tokenizer.chat_template = {"default": TEMPLATES["chatml"] + "\n", "tool_use": TEMPLATES["qwen2_5"]}
    apply_template(None, tokenizer, "Sure: ")
    for name in ("default", "tool_use"):
        text = tokenizer.apply_chat_template(TALK[:1], tokenize=False, add_generation_prompt=True, chat_template=name)
        assert text.endswith("<|im_start|>assistant\nSure: ")
