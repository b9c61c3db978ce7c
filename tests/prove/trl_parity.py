"""Ids and labels of TRL's SFTTrainer and of surogate, sample by sample, on real data.

    python tests/prove/trl_parity.py --data DIRECTORY --results docs/proof/trl_parity.json

TRL masks correctly where the chat template has ``{% generation %}`` marks. It is given the marked template; surogate gets the same
one, or the one without its marks, and then has to find the turns by rendering. Samples that differ are listed with the reason,
which is checked, not presumed. The named templates are compared with the published ones that TRL carries, character by character.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import transformers
import trl
from surogate_dataset_conversation.plugin import Options as Conversation
from surogate_dataset_conversation.plugin import register_datasets as conversation
from surogate_dataset_instruction.plugin import Options as Instruction
from surogate_dataset_instruction.plugin import register_datasets as instruction
from surogate_model_transformers.testing import tiny_model
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.templates import TEMPLATES
from surogate_pipeline_packed.tokenise import Job
from transformers import AutoModelForCausalLM, AutoTokenizer

from surogate_core.config import CoreOptions

PUBLISHED = Path(trl.__file__).with_name("chat_templates")
MARKS = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
FILES = {
    "gsm8k": "instruct/gsm8k-train-2000.jsonl",
    "instruction": "instruct/instruction-data.jsonl",
    "sgd-tools": "chat/sgd-tools.jsonl",
}
FORMATS: dict[str, tuple[Any, Any]] = {
    "gsm8k": (instruction, Instruction(instruction_field="question", output_field="answer")),
    "instruction": (instruction, Instruction(instruction_field="instruction", input_field="input", output_field="output")),
    "sgd-tools": (conversation, Conversation(tools_field="tools")),
}
NAMES = {"chatml": "minimind", "qwen2_5_training": "minimind", "qwen3_training": "minimind", "llama3_training": "gpt2"}
SAME_AS_PUBLISHED = {
    "qwen2_5": "qwen2_5",
    "qwen3": "qwen3",
    "llama3": "llama3",
    "gemma": "gemma3",
    "phi3": "phi3_5",
    "cohere": "cohere",
}
BEHIND = "TRL also trains the line break behind the end-of-turn marker, which its marks or its completion mask cover"
BEFORE = "TRL also trains the line break before the answer, which its marks cover though the generation prompt gives it"


def example(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """A row as TRL takes it."""
    if name == "gsm8k":
        asked, said = row["question"], row["answer"]
    elif name == "instruction":
        asked, said = row["instruction"] + ("\n\n" + row["input"] if row["input"] else ""), row["output"]
    else:
        return {"messages": row["messages"], "tools": json.dumps(row["tools"])}
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


def theirs(model: Path, tokenizer: Any, examples: list[dict[str, Any]], assistant_only: bool) -> list[tuple[list[int], list[int]]]:
    with tempfile.TemporaryDirectory() as output:
        arguments = trl.SFTConfig(
            output_dir=output, assistant_only_loss=assistant_only, max_length=None, use_cpu=True, report_to="none", packing=False
        )
        trainer = trl.SFTTrainer(
            AutoModelForCausalLM.from_pretrained(model),
            arguments,
            train_dataset=datasets.Dataset.from_list(examples, on_mixed_types="use_json"),
            processing_class=tokenizer,
        )
    return [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]


def ours(tokenizer: Any, name: str, rows: list[dict[str, Any]]) -> list[tuple[list[int], list[int]]]:
    register, options = FORMATS[name]
    form = Job(register()[0], options, CoreOptions(model="m"), Options(), tokenizer).build()
    found = []
    for row in rows:
        (sample,) = form.encode(row)
        ids = [int(token) for token in sample.input_ids]
        found.append((ids, [token if weight > 0 else -100 for token, weight in zip(ids, sample.weights, strict=True)]))
    return found


def reason(tokenizer: Any, own: tuple[list[int], list[int]], other: tuple[list[int], list[int]]) -> str:
    """Why two samples differ; "" when they do not."""
    if own == other:
        return ""
    if own[0] != other[0]:
        return "ids differ"
    places = [i for i, (a, b) in enumerate(zip(own[1], other[1], strict=True)) if a != b]
    breaks = all(own[1][i] == -100 and other[1][i] == own[0][i] and tokenizer.decode([own[0][i]]) == "\n" for i in places)
    behind = {i for i in places if own[1][i - 1] == tokenizer.eos_token_id}
    before = {i for i in places if own[1][i + 1 : i + 2] not in ([], [-100])}
    if not breaks or {*places} - behind - before:
        return f"labels differ at {places[:5]}"
    return "; ".join(text for text, found in ((BEHIND, behind), (BEFORE, before)) if found)


def ranges(numbers: list[int]) -> str:
    """[1, 2, 3, 7] → "1-3, 7"."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def compare(place: Path, data: Path, name: str, template: str, count: int | None) -> list[dict[str, Any]]:
    """One data set with one template: surogate with its marks and without them, or TRL's completion mask (``own``)."""
    lines = [line for line in (data / FILES[name]).read_bytes().split(b"\n") if line][:count]
    rows = [json.loads(line) for line in lines]
    examples = [example(name, row) for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizers" / NAMES.get(template, "minimind"))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if template == "own":
        examples = [{"prompt": one["messages"][:1], "completion": one["messages"][1:]} for one in examples]
        variants = {"unmarked": tokenizer.chat_template}
    else:
        marked = TEMPLATES[template] if template in TEMPLATES else (PUBLISHED / f"{template}.jinja").read_text()
        variants = {"marked": marked, "unmarked": MARKS.sub("", marked)}
        tokenizer.chat_template = marked
    other = theirs(place / "model", tokenizer, examples, template != "own")
    found = []
    for marks, text in variants.items():
        tokenizer.chat_template = text
        own = ours(tokenizer, name, rows)
        differing: dict[str, list[int]] = {}
        for number, (mine, trls) in enumerate(zip(own, other, strict=True), 1):
            if why := reason(tokenizer, mine, trls):
                differing.setdefault(why, []).append(number)
        found.append(
            {
                "data": name,
                "template": template,
                "given to surogate": marks,
                "samples": len(rows),
                "tokens": sum(len(ids) for ids, _ in own),
                "trained": sum(label != -100 for _, labels in own for label in labels),
                "equal": len(rows) - sum(map(len, differing.values())),
                "differing": {why: ranges(numbers) for why, numbers in differing.items()},
            }
        )
        print(json.dumps(found[-1]), flush=True)
    return found


def renderings(data: Path) -> dict[str, int]:
    """Conversations that each named template renders as the published one does."""
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizers/gpt2", bos_token="<s>", eos_token="</s>")
    lines = [line for line in (data / FILES["sgd-tools"]).read_bytes().split(b"\n") if line]
    talks = [json.loads(line) for line in lines]
    counts = {}
    for name, published in SAME_AS_PUBLISHED.items():
        text = (PUBLISHED / f"{published}.jinja").read_text()
        equal = 0
        for row in talks:
            messages, tools = row["messages"], row["tools"]
            if "tool" not in text:
                tools, messages = None, plain(messages)
            for upto, prompt in ((len(messages), False), (len(messages) - 1, True)):
                rendered = [
                    tokenizer.apply_chat_template(
                        messages[:upto], tools=tools, tokenize=False, add_generation_prompt=prompt, chat_template=one
                    )
                    for one in (TEMPLATES[name], text)
                ]
                if rendered[0] != rendered[1]:
                    raise SystemExit(f"{name} renders otherwise than the published {published}: {rendered}")
                equal += 1
        counts[f"{name} as {published}"] = equal
    return counts


def plain(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation without tools whose roles alternate."""
    found: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool" or message.get("tool_calls"):
            continue
        if found and found[-1]["role"] == message["role"]:
            found[-1] = {**message, "content": found[-1]["content"] + "\n" + message["content"]}
        else:
            found.append(message)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--count", type=int, help="rows of each file; all without it")
    given = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as directory:
        tiny_model(Path(directory) / "model")
        for template in (*NAMES, "own"):
            for name in FILES:
                if name != "sgd-tools" or template not in ("llama3_training", "own"):  # no tools; several turns in a completion
                    found += compare(Path(directory), given.data, name, template, given.count)
    versions = {"trl": trl.__version__, "transformers": transformers.__version__, "datasets": datasets.__version__}
    result = {
        "summary": {
            "samples": sum(one["samples"] for one in found),
            "equal": sum(one["equal"] for one in found),
            "differing by line breaks that TRL trains": sum(
                one["samples"] - one["equal"] for one in found if all(why.startswith("TRL also") for why in one["differing"])
            ),
        },
        "versions": versions,
        "comparisons": found,
        "renderings equal to published templates": renderings(given.data),
    }
    given.results.parent.mkdir(parents=True, exist_ok=True)
    given.results.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary"]))


if __name__ == "__main__":
    main()
