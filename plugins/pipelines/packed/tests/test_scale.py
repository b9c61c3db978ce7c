"""What each part of a conversation weighs, to the last float in a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from surogate_pipeline_packed.batches import Batches
from surogate_pipeline_packed.chat import Renderer
from surogate_pipeline_packed.corpus import Corpus
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.scale import LossScale
from surogate_pipeline_packed.templates import apply_template
from transformers import AutoTokenizer

EMPTY = "<think>\n\n</think>\n\n"
TALK = [
    {"role": "user", "content": "a1"},
    {"role": "assistant", "content": f"{EMPTY}x2"},
    {"role": "user", "content": "b3"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\ny4 <tool_call>\nz5\n</tool_call>"},
]


@pytest.fixture(scope="module")
def tokenizer(shared_data: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers/minimind")
    apply_template("chatml", tokenizer)
    return tokenizer


def weighed(tokenizer: Any, loss_scale: str, messages: list = TALK) -> list[tuple[str, float]]:
    """The rendered text in stretches of one weight, without those of weight 0."""
    sample = Renderer.of(Options(loss_scale=loss_scale), tokenizer)(messages)
    assert list(sample.input_ids) == tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    found: list[tuple[list[int], float]] = []
    last = 0.0
    for token, weight in zip(sample.input_ids, sample.weights, strict=True):
        if weight and weight == last:
            found[-1][0].append(token)
        elif weight:
            found.append(([token], weight))
        last = weight
    return [(tokenizer.decode(ids), pytest.approx(weight)) for ids, weight in found]


def loss(values: tuple) -> list[dict[str, Any]]:
    return [{**message, **({} if value is None else {"loss": value})} for message, value in zip(TALK, values, strict=True)]


FIRST, SECOND = TALK[1]["content"], TALK[3]["content"]
END = "<|im_end|>"


def test_names_and_combinations(tokenizer: Any) -> None:
    both = [(FIRST + END, 1), (SECOND + END, 1)]
    assert weighed(tokenizer, "default") == both
    assert weighed(tokenizer, "last_round") == both[1:]
    assert weighed(tokenizer, "ignore_empty_think") == [("x2" + END, 1), both[1]]
    assert weighed(tokenizer, "default+ignore_empty_think") == [("x2" + END, 1), both[1]]
    assert weighed(tokenizer, "ignore_empty_think+last_round") == both[1:]
    everything = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert weighed(tokenizer, "all") == [(everything, 1)]
    before, after = everything.split(EMPTY)
    assert weighed(tokenizer, "all+ignore_empty_think") == [(before, 1), (after, 1)]


def test_patterns_of_a_file_weigh_trained_text_only(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({"<tool_call>.*?</tool_call>": 2.5, "z\\d": 0.25, "[ab]\\d": 9, "(?=x)": 3}))
    call = [("<tool_call>\n", 2.5), ("z5", 0.25), ("\n</tool_call>", 2.5), (END, 1)]
    head = ("<think>\nhm\n</think>\n\ny4 ", 1)
    assert weighed(tokenizer, str(path)) == [(FIRST + END, 1), head, *call]
    assert weighed(tokenizer, f"last_round+{path}") == [head, *call]
    assert ("b3", 9) in weighed(tokenizer, f"all+{path}")


def test_loss_of_a_message_overrides_everything(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    path.write_text('{"hm": 7}')
    name = f"last_round+ignore_empty_think+{path}"
    assert weighed(tokenizer, name, loss((None, 0.5, None, True))) == [(FIRST + END, 0.5), (SECOND + END, 1)]
    assert weighed(tokenizer, name, loss((None, None, None, False))) == []
    assert weighed(tokenizer, "all+ignore_empty_think", loss((None, 1, None, None)))[0][0].endswith(
        "assistant\n" + tokenizer.apply_chat_template(TALK, tokenize=False).split("assistant\n", 1)[1]
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("default+all", 'one of "default", "all"'),
        ("last_rond", 'did you mean "last_round"'),
        ("", "wanted"),
        ("default+", "wanted"),
        ("{bad}", "not JSON"),
        ("{list}", "no object"),
        ("{negative}", "no object"),
        ("{pattern}", "no regular expression"),
    ],
)
def test_values_that_make_no_sense(tmp_path: Path, value: str, said: str) -> None:
    contents = {"bad": "{", "list": "[1]", "negative": '{"a": -1}', "pattern": '{"(": 1}'}
    for name, text in contents.items():
        (tmp_path / f"{name}.json").write_text(text)
        value = value.replace(f"{{{name}}}", str(tmp_path / f"{name}.json"))
    with pytest.raises(ValueError, match=said):
        LossScale.of(value)
    with pytest.raises(ValueError, match=said):
        Options(loss_scale=value)


def test_weights_arrive_in_the_batch_as_floats(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    path.write_text('{"z5": 0.3}')
    sample = Renderer.of(Options(loss_scale=str(path)), tokenizer)(loss((None, 0.7, None, None)))
    tokens, weights = np.array(sample.input_ids, dtype=np.int32), np.array(sample.weights, dtype=np.float32)
    weights[0] = 0
    corpus = Corpus(tokens, weights, np.array([[0, len(tokens), len(tokens)]]), ["a"])
    batches = Batches(corpus, sequence_len=len(tokens) + 5, batch_size=1, accumulation=1, seed=0, packing=True, pad_id=0)
    step = batches.step(0)
    values = {float(value) for value in np.unique(step.batches[0].weights.numpy())}
    assert sorted(values) == pytest.approx([0.0, 0.3, 0.7, 1.0])
    assert step.weight == pytest.approx(float(weights.sum()))
    assert np.array_equal(step.batches[0].weights[0, : len(tokens) - 1].numpy(), weights[1:])
