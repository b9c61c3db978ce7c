from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

TOKENIZERS = {"minimind": "tokenizers/minimind", "gpt2": "tokenizers/gpt2", "stories260K": "models/stories260K"}
FILES = {
    "gsm8k": "instruct/gsm8k-train-2000.jsonl",
    "instruction": "instruct/instruction-data.jsonl",
    "preference": "preference/instruction-preference.jsonl",
    "sgd-tools": "chat/sgd-tools.jsonl",
    "tau-airline": "chat/tau-airline.jsonl",
}


def rows(shared_data: Path, name: str, count: int | None = None) -> list[dict[str, Any]]:
    """Rows of a file, spread over it; all without ``count``."""
    lines = [line for line in (shared_data / FILES[name]).read_bytes().split(b"\n") if line]
    step = max(1, len(lines) // count) if count else 1
    return [json.loads(line) for line in lines[::step][:count]]


def as_messages(name: str, row: dict[str, Any]) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """The conversation of a row, written down here without the formats' code."""
    if name == "gsm8k":
        asked, said = row["question"], row["answer"]
    elif name in ("instruction", "preference"):
        asked = row["instruction"] + ("\n\n" + row["input"] if row["input"] else "")
        said = row["chosen" if name == "preference" else "output"]
    else:
        messages = json.loads(json.dumps(row["messages"]))
        for message in messages:
            message["content"] = message["content"] or ""
            for key in [key for key, value in message.items() if value is None]:
                del message[key]
            for call in message.get("tool_calls", []):
                if isinstance(call["function"]["arguments"], str):
                    call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        return messages, row["tools"]
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}], None


def encoder(tokenizer: Any, name: str, own: Any) -> Callable[[dict[str, Any]], Any]:
    """row → sample, through the formats as a run builds them."""
    from surogate_dataset_conversation.plugin import Options as Conversation
    from surogate_dataset_conversation.plugin import register_datasets as conversation
    from surogate_dataset_instruction.plugin import Options as Instruction
    from surogate_dataset_instruction.plugin import register_datasets as instruction
    from surogate_pipeline_packed.tokenise import Job

    from surogate_core.config import CoreOptions

    fields = {
        "gsm8k": {"instruction_field": "question", "output_field": "answer"},
        "instruction": {"instruction_field": "instruction", "input_field": "input", "output_field": "output"},
        "preference": {"instruction_field": "instruction", "input_field": "input", "output_field": "chosen"},
    }
    options: Any = Instruction(**fields[name]) if name in fields else Conversation(tools_field="tools")
    offer = (instruction if name in fields else conversation)()[0]
    form = Job(offer, options, CoreOptions(model="m"), own, tokenizer).build()

    def encode(row: dict[str, Any]) -> Any:
        (sample,) = form.encode(row)
        return sample

    return encode


@pytest.fixture(scope="session")
def real(shared_data: Path, byte_starts: Callable[[Any, list[int], bytes], list[int]]) -> SimpleNamespace:
    """The real data and tokenizers, and the helpers of this file."""
    from transformers import AutoTokenizer

    return SimpleNamespace(
        files=list(FILES),
        rows=lambda name, count=None: rows(shared_data, name, count),
        messages=as_messages,
        tokenizer=lambda name: AutoTokenizer.from_pretrained(shared_data / TOKENIZERS[name]),
        starts=byte_starts,
        encoder=encoder,
        path=lambda name: shared_data / FILES[name],
    )
