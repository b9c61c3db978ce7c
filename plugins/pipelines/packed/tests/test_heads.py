"""Tokens of texts whose head is known equal those of the tokenizer itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from surogate_pipeline_packed import heads
from surogate_pipeline_packed.quick import _compiled, quick
from surogate_pipeline_packed.templates import apply_template
from transformers import AutoTokenizer


def load(shared_data: Path, name: str, template: str | None = None) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / name)
    apply_template(template, tokenizer)
    return tokenizer


def dialogues(shared_data: Path, count: int) -> list[dict[str, Any]]:
    with (shared_data / "chat/sgd-tools.jsonl").open() as file:
        return [json.loads(next(file)) for _ in range(count)]


@pytest.mark.parametrize("template", [None, "chatml"])
def test_tokens_and_starts_are_the_tokenizers(shared_data: Path, template: str | None) -> None:
    tokenizer = load(shared_data, "tokenizers/minimind", template)
    rows = dialogues(shared_data, 12)
    texts = [tokenizer.apply_chat_template(row["messages"], tools=row["tools"], tokenize=False) for row in rows]
    mark = tokenizer.all_special_tokens[0]
    texts += [mark + "x" * 600, mark + "x" * 600 + mark, f"{mark}{'é ' * 400}{mark} b{mark}", "plain " * 200, "", mark * 3]
    for text in texts + texts:
        ids, starts, _ = heads.encoded(tokenizer, text, False)
        wanted = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert ids.tolist() == wanted["input_ids"]
        assert starts.tolist() == [start for start, _ in wanted["offset_mapping"]]
    known = heads._HEADS[tokenizer].known
    assert len(known) >= 3, "no text was cut"
    assert all(len(head) > heads.SHORTEST and not head.endswith(mark) for head in known)


def test_heads_are_used_and_forgotten(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load(shared_data, "tokenizers/minimind")
    mark = tokenizer.all_special_tokens[0]
    monkeypatch.setattr(heads, "KEPT", 2)
    for word in "abcb":
        heads.encoded(tokenizer, f"{mark}{word * 600}{mark}", False)
    known = heads._HEADS[tokenizer].known
    assert [head[-1] for head in known] == ["c", "b"]
    known[f"{mark}{'b' * 600}"][0][:] = 7
    assert heads.encoded(tokenizer, f"{mark}{'b' * 600}{mark}", False)[0][:5].tolist() == [7] * 5


def test_tokenizers_that_look_beyond_special_tokens_are_not_cut(shared_data: Path) -> None:
    assert heads._cutter(load(shared_data, "models/stories260K")) is None
    minimind = load(shared_data, "tokenizers/minimind")
    assert heads._cutter(minimind) is not None
    minimind.add_special_tokens({"additional_special_tokens": []})
    from tokenizers import AddedToken

    minimind.add_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    assert heads._cutter(minimind) is None


def test_parts_render_as_transformers_renders_them(shared_data: Path) -> None:
    tokenizer = load(shared_data, "tokenizers/minimind")
    for row in dialogues(shared_data, 5):
        messages, tools = row["messages"], row["tools"]
        whole = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        render = quick(tokenizer, messages, tools, whole)
        assert render is not None
        for count in range(1, len(messages) + 1):
            for prompt in (False, True):
                wanted = tokenizer.apply_chat_template(messages[:count], tools=tools, tokenize=False, add_generation_prompt=prompt)
                assert render(messages[:count], prompt) == wanted
        assert quick(tokenizer, messages, tools, whole + " ") is None


@pytest.mark.parametrize("odd", [{"reasoning_content": "hm"}, {"extra": {1, 2}}, {"extra": {3: 4}}, {"extra": b""}])
def test_messages_that_transformers_changes_are_left_to_it(shared_data: Path, odd: dict[str, Any]) -> None:
    tokenizer = load(shared_data, "tokenizers/minimind")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **odd}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert quick(tokenizer, messages, None, whole) is None


@pytest.mark.parametrize(
    "expression",
    [
        "m.__class__",
        "m.content.__class__.__mro__",
        "m.pop('content')",
        "m.update({'a': 1})",
        "messages.append(1)",
        "m.content.format.__globals__",
        "'{0.__class__}'.format(m)",
        "loop._iterable",
        "ns.__init__",
    ],
)
def test_the_sandbox_stays_closed(expression: str) -> None:
    """What transformers' environment refuses or gives, ours refuses or gives: asked twice, as answers are remembered."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    text = "{% set ns = namespace(a=1) %}{% for m in messages %}{{ " + expression + " }}{% endfor %}"
    for _ in range(2):
        answers = []
        for template in (_compile_jinja_template(text), _compiled(text)):
            try:
                answers.append(template.render(messages=[{"content": "c"}, {"content": "d"}]))
            except Exception as error:
                answers.append(type(error).__name__)
        assert answers[0] == answers[1]
        assert answers[0] in ("SecurityError", "")


def test_what_is_allowed_gives_the_same() -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    text = (
        "{% set ns = namespace(a=1, f='{}'.format) %}{% for m in messages %}{{ m.content.strip().split(' ') }}"
        "{{ m.items() | list }}{{ m.missing is defined }}{{ m.missing }}"
        "{{ loop.index0 }}{{ loop.last }}{{ ns.a }}{{ '{} {}'.format(1, m.content) }}"
        "{{ ns.f(m.content) }}{% set ns.a = ns.a + 1 %}{{ m.content.replace('c', 'x', 1) }}{% endfor %}"
    )
    messages = [{"content": " c c "}, {"content": "d", "items": 3}, {"content": "e"}]
    answers = [template.render(messages=messages) for template in (_compile_jinja_template(text), _compiled(text), _compiled(text))]
    assert answers[0] == answers[1] == answers[2]
