"""Each option of the data phase that shapes samples changes ids, weights or tensors as it says, from the file to the batch."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from surogate_dataset_conversation.plugin import Options as Conversation
from surogate_dataset_instruction.plugin import Options as Instruction
from surogate_model_transformers import attention
from surogate_pipeline_packed.pipeline import Packed
from surogate_pipeline_packed.plugin import Options

from surogate_core import testing
from surogate_core.config import CoreOptions, DatasetOptions, load
from surogate_core.errors import BadRow, ConfigError, DataError
from surogate_core.host import load_host

TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "look", "arguments": {}}}
TALK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "x"},
    {"role": "user", "content": "b"},
    {"role": "assistant", "content": "y"},
]
HOST = load_host()


@pytest.fixture
def prepared(real: SimpleNamespace, tmp_path: Path) -> Any:
    def prepared(rows: list[dict[str, Any]], kind: str = "conversation", options: Any = None, length: int = 64, **own: Any) -> Any:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        options = options or Conversation(tools_field="tools")
        table = DatasetOptions(path=str(path), type=kind, format_options=options)
        core = CoreOptions(model="m", datasets=[table], sequence_len=length)
        own = {"template": "chatml", "validation_split_ratio": 0.0, **own}
        tokenizer = real.tokenizer("minimind")
        data = Packed(core, Options(**own), lambda name: HOST.offer("datasets", name)).prepare(tokenizer, lambda line: None)
        return SimpleNamespace(data=data, tokenizer=tokenizer, text=tokenizer.decode(np.asarray(data.prepared.train.tokens)))

    return prepared


def trained(found: Any) -> str:
    corpus = found.data.prepared.train
    return found.tokenizer.decode(np.asarray(corpus.tokens)[np.asarray(corpus.weights) > 0])


def test_use_chat_template(prepared) -> None:
    spaced = [{**message, "content": message["content"] + "\n" * (message["role"] == "user")} for message in TALK]
    found = prepared([{"messages": spaced}], use_chat_template=False, template=None)
    end = found.tokenizer.eos_token
    assert found.text == f"a\nx{end}b\ny{end}"
    assert trained(found) == f"x{end}y{end}"
    with pytest.raises(DataError, match="the first token of an answer begins in the text before it"):
        prepared([{"messages": TALK}], use_chat_template=False, template=None)  # "ax" is one token
    assert prepared([{"messages": TALK}]).text != found.text
    thought = [TALK[0], {**TALK[1], "reasoning_content": "hm"}]
    assert prepared([{"messages": thought}], use_chat_template=False, template=None).text == f"a<think>\nhm\n</think>\n\nx{end}"
    one = Instruction(instruction_field="q", output_field="a", system_prompt_type="fixed", system_prompt="Be kind. ")
    row = {"q": "Why? ", "a": "So."}
    plain = prepared([row], "instruction", one, use_chat_template=False, template=None)
    assert plain.text == f"Be kind. Why? So.{end}"
    assert trained(plain) == f" So.{end}"  # one token with its space, as in every text


def test_tools_need_a_template_or_a_form(prepared) -> None:
    row = {"messages": [TALK[0], {"role": "assistant", "tool_calls": [CALL]}], "tools": [TOOL]}
    with pytest.raises(DataError, match="set agent_template"):
        prepared([row], use_chat_template=False, template=None)
    found = prepared([row], use_chat_template=False, template=None, agent_template="react", length=512)
    assert trained(found) == f"Action: look\nAction Input: {{}}{found.tokenizer.eos_token}"


def test_template(prepared) -> None:
    texts = {name: prepared([{"messages": TALK}], template=name, length=256).text for name in ("chatml", "llama3", "phi3", None)}
    assert len(set(texts.values())) == 4


def test_agent_template(prepared) -> None:
    row = {"messages": [TALK[0], {"role": "assistant", "tool_calls": [CALL]}], "tools": [TOOL]}
    texts = {name: prepared([row], agent_template=name, length=512).text for name in (None, "hermes", "react", "llama3")}
    assert texts[None] == texts["hermes"]  # ChatML's own form
    assert len(set(texts.values())) == 3


@pytest.mark.parametrize("template", ["chatml", None])  # marks; the tokenizer's own, with an empty thought in its prompt
def test_response_prefix(prepared, template: str | None) -> None:
    found = prepared([{"messages": TALK}], response_prefix="Sure:", template=template)
    plain = prepared([{"messages": TALK}], template=template)
    assert found.text == plain.text.replace("x<", "Sure:x<").replace("y<", "Sure:y<")
    assert trained(found) == trained(plain) == "x<|im_end|>y<|im_end|>"
    prompt = found.tokenizer.apply_chat_template(TALK[:1], add_generation_prompt=True, tokenize=False)
    assert prompt.endswith("Sure:")
    assert found.text.startswith(prompt)
    again = [TALK[0], {"role": "assistant", "content": "Sure:x"}]
    assert prepared([{"messages": again}], response_prefix="Sure:", template=template).text.count("Sure") == 1


def test_response_prefix_that_a_turn_cannot_start_with_is_refused(prepared) -> None:
    thought = [TALK[0], {**TALK[1], "reasoning_content": "hm"}]
    for template in ("chatml", None):
        with pytest.raises(DataError, match="does not start with response_prefix"):
            prepared([{"messages": thought}], response_prefix="Sure:", template=template)
        with pytest.raises(DataError, match="begins in response_prefix"):
            prepared([{"messages": TALK}], response_prefix="Sure: ", template=template)


def test_system(prepared) -> None:
    assert prepared([{"messages": TALK}], system="Be kind.").text.startswith("<|im_start|>system\nBe kind.<|im_end|>")
    default = prepared([{"messages": TALK}], template="qwen2_5").text
    assert default.startswith("<|im_start|>system\nYou are Qwen")
    assert "Qwen" not in prepared([{"messages": TALK}], template="qwen2_5", system="Be kind.").text


def test_padding_side(prepared) -> None:
    rows = [{"messages": TALK}, {"messages": TALK[:2]}]
    right, left = (
        prepared(rows, padding_side=side, sample_packing=False).data.training(1, 2).step(0) for side in ("right", "left")
    )
    for one, other in zip(right.batches, left.batches, strict=True):
        used = int((one.document_ids[0] == 0).sum())
        assert 0 < used < 64
        for name in ("input_ids", "labels", "weights", "position_ids"):
            a, b = getattr(one, name)[0], getattr(other, name)[0]
            assert torch.equal(a[:used], b[64 - used :])
            assert torch.equal(a[used:], b[: 64 - used])
        assert torch.equal(other.document_ids[0] == 0, torch.arange(64) >= 64 - used)
    assert right.weight == left.weight > 0


@pytest.mark.parametrize("packing", [False, True])
def test_padding_free(prepared, packing: bool) -> None:
    rows = [{"messages": TALK}, {"messages": TALK[:2]}, {"messages": TALK}]
    padded = prepared(rows, sample_packing=packing).data.training(2, 1)
    free = prepared(rows, sample_packing=packing, padding_free=True).data.training(2, 1)
    assert free.steps(1) == padded.steps(1)
    for number in range(free.steps(1)):
        one, other = padded.step(number, 1), free.step(number, 1)
        (batch,) = other.batches
        assert batch.input_ids.shape == (1, other.tokens)
        assert (one.weight, one.tokens, one.trained, one.sources) == (other.weight, other.tokens, other.trained, other.sources)
        same = one.batches[0]
        last = same.document_ids.max(dim=1, keepdim=True).values
        kept = (same.document_ids < last) if (same.input_ids == 0).any() else torch.ones_like(same.input_ids, dtype=torch.bool)
        for name in ("input_ids", "labels", "weights", "position_ids"):
            assert torch.equal(getattr(same, name)[kept], getattr(batch, name)[0])
        starts = torch.nonzero(batch.position_ids[0] == 0)[:, 0]
        assert torch.equal(starts, torch.nonzero(torch.diff(batch.document_ids[0], prepend=torch.tensor([-1])))[:, 0])
    empty = free.step(free.steps(1), 1).batches[0]
    assert empty.input_ids.shape == (1, 1)
    assert not empty.weights.any()


def test_a_model_sees_the_same_documents_wherever_the_padding_is(prepared, tiny: Path) -> None:
    """Hidden states of the trained places are those of rows padded on the right."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny, attn_implementation=attention.IMPLEMENTATION).eval()
    size = model.config.vocab_size
    rows = [{"messages": TALK}, {"messages": TALK[:2]}, {"messages": TALK}]
    states = []
    for own in ({}, {"padding_side": "left"}, {"padding_free": True}):
        (batch,) = prepared(rows, **own, length=48).data.training(2, 1).step(0).batches
        with torch.no_grad():
            hidden = attention.hidden_states(model, batch.input_ids % size, batch.position_ids, batch.document_ids)
        states.append(hidden[batch.weights > 0])
    for other in states[1:]:
        torch.testing.assert_close(other, states[0], rtol=1e-4, atol=1e-5)


def refused(tmp_path: Path, **own: Any) -> str:
    testing.write_rows(tmp_path / "rows.jsonl", [{"text": "a"}])
    source = {"model": "m", "datasets": [{"path": str(tmp_path / "rows.jsonl"), "type": "text"}], **own}
    with pytest.raises(ConfigError) as caught:
        load(source, HOST)
    (problem,) = caught.value.problems
    assert problem.how
    return f"{problem.where}: {problem.what}"


def test_combinations_that_make_no_sense(tmp_path: Path) -> None:
    assert "key template: template" in refused(tmp_path, template="chatml", use_chat_template=False)
    assert "key padding_side: padding_side" in refused(tmp_path, padding_side="left", padding_free=True)
    assert "key response_prefix" in refused(tmp_path, response_prefix="")
    assert "key agent_template" in refused(tmp_path, agent_template="hermis")
    assert "last_round" in refused(tmp_path, loss_scale="default+last_round")


def test_a_row_that_fails_names_the_reason(prepared) -> None:
    assert issubclass(DataError, Exception)
    assert issubclass(BadRow, Exception)
    with pytest.raises(DataError, match="does not show the reasoning"):
        prepared([{"messages": [TALK[0], {**TALK[1], "reasoning_content": "hm"}]}], template="llama3")
