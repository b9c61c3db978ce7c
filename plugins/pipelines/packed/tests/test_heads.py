"""Tokens of texts whose head is known equal those of the tokenizer itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from surogate_pipeline_packed import heads
from surogate_pipeline_packed.quick import _compiled, quick
from surogate_pipeline_packed.templates import apply_template
from surogate_pipeline_packed.words import COMPARED, MOST, _ascii, words_of
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


def rebuilt(tokenizer: Any, **steps: dict[str, Any]) -> Any:
    """The tokenizer with other steps (``normalizer``, ``post_processor``)."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    described = json.loads(tokenizer.backend_tokenizer.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps({**described, **steps})))


TEXTS = st.text(
    st.sampled_from("ab \n\t0Ж世🙂é\u0301\u200d\u00a0\u2028\u0344<|im_end|>") | st.characters(exclude_categories=["Cs"]),
    max_size=40,
)


QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def split_by(expression: str, behavior: str = "Isolated") -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": expression}, "behavior": behavior, "invert": False}
    return {
        "type": "Sequence",
        "pretokenizers": [split, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}],
    }


@pytest.fixture(scope="module")
def variants(shared_data: Path) -> dict[str, Any]:
    minimind, gpt2 = load(shared_data, "tokenizers/minimind"), load(shared_data, "tokenizers/gpt2")
    return {
        "minimind": minimind,
        "gpt2": gpt2,
        "NFC, as Qwen's": rebuilt(minimind, normalizer={"type": "NFC"}),
        "Qwen's expression": rebuilt(gpt2, pre_tokenizer=split_by(QWEN)),
        "Llama 3's expression": rebuilt(minimind, pre_tokenizer=split_by(LLAMA)),
        "without letters": rebuilt(minimind, pre_tokenizer=split_by(r"\p{L}", "Removed")),
        "lower case": rebuilt(minimind, normalizer={"type": "Lowercase"}),
        "trimmed": rebuilt(
            gpt2, post_processor={"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        ),
    }


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(TEXTS | st.just("<|im_end|>"), max_size=4).map("".join))
def test_places_of_any_text_are_the_tokenizers(variants: dict[str, Any], text: str) -> None:
    for name, tokenizer in variants.items():
        wanted = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, starts, ends = heads.encoded(tokenizer, text, False)
        assert ids.tolist() == wanted["input_ids"], name
        assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == wanted["offset_mapping"], name


def test_which_tokenizers_are_counted(variants: dict[str, Any], shared_data: Path) -> None:
    counted = {name for name, tokenizer in variants.items() if heads._sizes(tokenizer, heads._bytewise(tokenizer)) is not None}
    assert counted == {*variants} - {"lower case", "trimmed"}
    for tokenizer in (variants["minimind"], variants["NFC, as Qwen's"]):
        heads.encoded(tokenizer, "", False)
        assert heads._counted(tokenizer, heads._HEADS[tokenizer], "plain é 世") is not None
        tokenizer.backend_tokenizer.enable_truncation(2)
        tokenizer.backend_tokenizer.enable_padding(length=9)
        assert heads.encoded(tokenizer, "one two three", False)[2][-1] == 13


def test_words_are_those_of_the_tokenizer(variants: dict[str, Any], shared_data: Path) -> None:
    """All characters of ASCII beside each other, and real text, with the tokenizer never asked for the whole."""
    pairs = [chr(a) + chr(b) + chr(c) for a in range(128) for b in range(128) for c in b" a"]
    texts = ["".join(pairs[at : at + 200]) for at in range(0, len(pairs), 200)]
    texts += (shared_data / "pretrain/wikitext2-valid.txt").read_text()[:100_000].split("\n \n")
    texts += ["it's IT'S we'LL", "12345 67", "a" * 99, "<|im_start|>user\n  <|im_end|>\n", ""]
    for name in ("minimind", "gpt2", "NFC, as Qwen's", "Qwen's expression", "Llama 3's expression"):
        tokenizer = variants[name]
        words = words_of(tokenizer.backend_tokenizer, heads._bytewise(tokenizer) or {})
        assert words is not None, name
        for text in texts:
            assert words._found(text) == tokenizer(text, add_special_tokens=False)["input_ids"], (name, text)
        assert 0 < len(words.known) <= MOST
        assert "a" * 99 not in words.known


def test_expressions_that_python_may_read_otherwise_are_left(variants: dict[str, Any]) -> None:
    for expression in (r"\p{Lu}+|\s+", r"[\p{L}&&[a-z]]+", r"\X", r"(?>a+)b", r"\h+", r"\Aa", "(", r"(?<=a)b", r"(a)b"):
        assert _ascii(expression) is None, expression
    for other in (split_by(QWEN, "MergedWithNext"), split_by(r"\p{L}", "Removed")):
        described = {**(heads._bytewise(variants["gpt2"]) or {}), "pre_tokenizer": other}
        assert words_of(variants["gpt2"].backend_tokenizer, described) is None


def test_one_difference_leaves_all_to_the_tokenizer(variants: dict[str, Any]) -> None:
    tokenizer = variants["gpt2"]
    words = words_of(tokenizer.backend_tokenizer, heads._bytewise(tokenizer) or {})
    assert words is not None
    words.known["one"] = [7]
    wanted = tokenizer("one two", add_special_tokens=False)["input_ids"]
    assert words.ids("two") == tokenizer("two", add_special_tokens=False)["input_ids"]
    assert words.equal
    assert words.ids("one two") == wanted
    assert not words.equal
    words.compared = COMPARED
    assert words.ids("one two") == wanted
    words.equal = True
    assert words.ids("one two") != wanted  # so known words are what is used


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
    assert heads._bytewise(load(shared_data, "models/stories260K")) is None
    minimind = load(shared_data, "tokenizers/minimind")
    assert heads._marks(heads._bytewise(minimind)) is not None
    minimind.add_special_tokens({"additional_special_tokens": []})
    from tokenizers import AddedToken

    minimind.add_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    assert heads._bytewise(minimind) is None


def test_parts_render_as_transformers_renders_them(shared_data: Path) -> None:
    tokenizer = load(shared_data, "tokenizers/minimind")
    for row in dialogues(shared_data, 5):
        messages, tools = row["messages"], row["tools"]
        render = quick(tokenizer, messages, tools)
        assert render is not None
        for count in range(1, len(messages) + 1):
            for prompt in (False, True):
                wanted = tokenizer.apply_chat_template(messages[:count], tools=tools, tokenize=False, add_generation_prompt=prompt)
                assert render(messages[:count], prompt)[0] == wanted


def test_marks_are_where_transformers_finds_them(shared_data: Path) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    tokenizer = load(shared_data, "tokenizers/minimind", "qwen3")
    for row in dialogues(shared_data, 5):
        messages, tools = row["messages"], row["tools"]
        texts, marks = render_jinja_template(
            [messages],
            tools=tools,
            chat_template=tokenizer.chat_template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
        render = quick(tokenizer, messages, tools)
        assert render is not None
        assert render(messages, False) == (texts[0], marks[0])
        assert len(marks[0]) > 1


def test_a_template_that_renders_otherwise_here_is_left_to_transformers(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load(shared_data, "tokenizers/minimind")
    tokenizer.chat_template = "{# told apart #}" + tokenizer.chat_template
    messages = [{"role": "user", "content": "a", "name": None}]
    assert quick(tokenizer, messages, None) is not None
    template = _compiled(tokenizer.chat_template)
    monkeypatch.setattr(template, "compiled", template.compiled.environment.from_string("another"))
    assert quick(tokenizer, messages, None) is None
    monkeypatch.undo()
    assert quick(tokenizer, messages, None) is None  # for good


@pytest.mark.parametrize("odd", [{"reasoning_content": "hm"}, {"extra": {1, 2}}, {"extra": {3: 4}}, {"extra": b""}])
def test_messages_that_transformers_changes_are_left_to_it(shared_data: Path, odd: dict[str, Any]) -> None:
    tokenizer = load(shared_data, "tokenizers/minimind")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **odd}]
    assert quick(tokenizer, messages, None) is None


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
        for template in (_compile_jinja_template(text), _compiled(text).compiled):
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
    ours = _compiled(text).compiled
    answers = [template.render(messages=messages) for template in (_compile_jinja_template(text), ours, ours)]
    assert answers[0] == answers[1] == answers[2]
