"""Any record with any options: no traceback, no silent loss, no token of the user's trained that should not be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from surogate_dataset_conversation.plugin import Options as Conversation
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.prepare import Work, prepare
from surogate_pipeline_packed.preview import _piece
from surogate_pipeline_packed.templates import TEMPLATES

from surogate_core.config import CoreOptions, DatasetOptions
from surogate_core.errors import DataError
from surogate_core.host import load_host

HOST = load_host()
MARKS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
UNMARKED = {f"{name} unmarked": MARKS.sub("", text) for name, text in TEMPLATES.items()}
DROPPING = (  # drops earlier thoughts, injects a default system text
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{{ m.content if loop.last or m.role != 'assistant' else m.content.split('</think>')[-1] }}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
REFUSALS = re.compile(  # nothing in it to train on, too much that is damaged, or options that cannot work
    r"no sample of kind|no sample is left|the data set (is empty|has no row that can be read)|[\d,]+ of [\d,]+ rows cannot be used|"
    r"type = \"auto\" fits (none|more than one)"
)
# What users say is spelt with letters that nothing else has, each a token of its own.
users = st.text("ЖЩЮ \n", max_size=6)
words = st.one_of(
    st.text("abQZ xy\n<>é{}%", max_size=8), st.sampled_from(["<|im_end|>", "<think>\nhm\n</think>\n\nx", "<think>\n\n</think>\n\n"])
)
junk = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=2),
    max_leaves=4,
)
arguments = st.dictionaries(st.sampled_from(["a", "b"]), junk, max_size=2)
calls = st.lists(
    st.fixed_dictionaries(
        {
            "function": st.fixed_dictionaries(
                {"name": st.sampled_from(["look", "find"]), "arguments": arguments | arguments.map(json.dumps)}
            )
        }
    ),
    min_size=1,
    max_size=2,
)
user = st.fixed_dictionaries({"role": st.sampled_from(["user", "human", "system", "tool"]), "content": users})
assistant = st.fixed_dictionaries(
    {"role": st.sampled_from(["assistant", "gpt"]), "content": words},
    optional={
        "tool_calls": calls,
        "loss": st.sampled_from([True, False, 0.5, 0, 2]),
        "reasoning_content": st.none() | words,
    },
)
broken = st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "from", "value", "loss", "thinking"]), junk, max_size=4)
turns = st.lists(st.tuples(user, assistant), min_size=1, max_size=3).map(lambda pairs: [one for pair in pairs for one in pair])
messages = turns | turns | turns | st.lists(user | assistant | broken, max_size=4) | junk
row = st.fixed_dictionaries(
    {"messages": messages | messages.map(json.dumps)}, optional={"tools": junk | st.just([{"function": {"name": "look"}}])}
)
options = st.fixed_dictionaries(
    {
        "template": st.sampled_from([None, *sorted(TEMPLATES), *sorted(UNMARKED), "dropping"]),
        "loss_scale": st.sampled_from(["default", "last_round", "all", "ignore_empty_think", "last_round+ignore_empty_think"]),
        "truncation_strategy": st.sampled_from(["delete", "left", "right", "split"]),
        "max_length": st.sampled_from([None, None, 16, 64]),
        "system": st.sampled_from([None, "", "ЖЖ"]),
        "agent_template": st.sampled_from([None, "hermes", "react", "llama3"]),
        "response_prefix": st.sampled_from([None, None, "Sure:", "<think>\n"]),
        "use_chat_template": st.sampled_from([True, True, False]),
    }
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def served(real: SimpleNamespace) -> tuple[Any, str]:
    """The tokenizer and its own chat template."""
    tokenizer = real.tokenizer("minimind")
    return tokenizer, tokenizer.chat_template


@settings(
    max_examples=1200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(rows=st.lists(row, min_size=1, max_size=4), own=options)
def test_any_record_with_any_options(served: tuple[Any, str], place: Path, rows: list[dict[str, Any]], own: dict[str, Any]) -> None:
    tokenizer = served[0]
    tokenizer.chat_template = served[1]
    named = own["template"]
    if named in UNMARKED or named == "dropping":
        tokenizer.chat_template = UNMARKED.get(named, DROPPING)
        own = {**own, "template": None}
    if not own["use_chat_template"]:
        own = {**own, "template": None}
    path = place / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    table = DatasetOptions(path=str(path), type="conversation", format_options=Conversation(tools_field="tools"))
    core = CoreOptions(model="m", datasets=[table], sequence_len=256)
    checked(core, {**own, "max_bad_rows": 1.0}, tokenizer, len(rows))


def checked(core: CoreOptions, own: dict[str, Any], tokenizer: Any, count: int) -> Any:
    """Prepare the data. Every one of ``count`` rows is accounted for, every weight has its reason, nothing of a user is trained."""
    settled = Options(**own, validation_split_ratio=0.0, dataloader_num_workers=0)
    try:
        prepared = prepare(Work(core, settled, lambda name: HOST.offer("datasets", name), tokenizer, lambda line: None))
    except DataError as error:
        said = error.problems[0].what
        return None if REFUSALS.match(said) else pytest.fail(said)
    assert prepared.ledger.balanced()
    assert prepared.ledger.rows_read == count
    assert len(prepared.ledger.bad) == min(10, prepared.ledger.unusable)
    corpus = prepared.train
    tokens, weights = np.asarray(corpus.tokens), np.asarray(corpus.weights)
    assert np.isfinite(weights).all()
    assert (weights >= 0).all()
    for piece in (_piece("training", corpus, at) for at in range(len(corpus))):
        for start, stop, why in piece.reasons():
            assert {weight > 0 for weight in piece.weights[start:stop]} == {": trained" in why}, why
    if own.get("loss_scale") != "all":
        assert not set(tokenizer.decode(tokens[weights > 0])) & set("ЖЩЮ")
    return prepared


text = users | words
pair = st.fixed_dictionaries(
    {"q": users, "a": words}, optional={"i": users, "s": users | st.none(), "text": text, "messages": turns}
)
damaged = st.one_of(
    st.binary(max_size=12).filter(
        lambda line: b"\n" not in line and not line.startswith((b"\xef\xbb\xbf", b"\xff", b"\xfe", b"\x1f\x8b"))
    ),
    pair.map(lambda row: json.dumps(row).encode()[:-3]),
    junk.map(lambda value: json.dumps(value).encode()),
    st.just(b'{"q": "\xff", "a": "b"}'),
    st.just(b'{"q": "x", "q": "y", "a": "b"}'),
    st.just(b'{"q": "\\ud83d", "a": "b"}'),
)
forms = st.sampled_from([None, "Ж {instruction} {input}", "{instruction}Щ{input}: {output}Z", "{system}\n{instruction} = {output}"])
formats = st.one_of(
    st.tuples(
        st.just("instruction"),
        st.fixed_dictionaries(
            {
                "instruction_field": st.just("q"),
                "output_field": st.just("a"),
                "input_field": st.sampled_from([None, "i"]),
                "prompt_format": forms,
                "prompt_format_no_input": forms,
            }
        ),
    ),
    st.tuples(st.just("text"), st.fixed_dictionaries({"text_field": st.sampled_from(["text", "a"])})),
    st.tuples(st.just("auto"), st.just({})),
)


@settings(
    max_examples=500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(
    lines=st.lists(
        st.one_of(*[pair.map(lambda row: json.dumps(row, ensure_ascii=False).encode())] * 3, damaged), min_size=1, max_size=5
    ),
    form=formats,
    own=options,
    allowed=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_any_line_with_any_format(
    served: tuple[Any, str], place: Path, lines: list[bytes], form: tuple[str, dict[str, Any]], own: dict[str, Any], allowed: float
) -> None:
    tokenizer = served[0]
    tokenizer.chat_template = served[1]
    own = {**own, "max_bad_rows": allowed, "template": own["template"] if own["template"] in TEMPLATES else None}
    if not own["use_chat_template"]:
        own = {**own, "template": None}
    path = place / "lines.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    count = sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))
    kind, given = form
    table = HOST.offer("datasets", kind).options
    core = CoreOptions(
        model="m",
        datasets=[DatasetOptions(path=str(path), type=kind, format_options=table(**given) if table else None)],
        sequence_len=256,
    )
    trains_text = kind != "instruction"  # of a text, everything is
    prepared = checked(core, {**own, "loss_scale": "all"} if trains_text else own, tokenizer, count)
    if prepared is not None:
        assert prepared.ledger.unusable <= allowed * count
