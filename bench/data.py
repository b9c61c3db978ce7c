"""Benchmark of the data phase: tokenise and pack, against TRL's own preparation, and the memory it takes.

    python bench/data.py                          # 10,000 rows, 3 rounds, both sides with all cores
    python bench/data.py --memory 50000 200000    # peak of anonymous memory by number of rows

Rows are made from `chat/sgd-tools.jsonl` and `pretrain/tinystories.jsonl` of SUROGATE_TEST_DATA: dialogues cut behind different
turns and stories cut at different sentences, each with a number of its own, so that no two are equal. Both sides use the same
tokenizer and a template with `{% generation %}` marks, train the assistant's text alone and cut at the same length. surogate's time
runs from the file to packed batches with a first step, its cache empty; TRL's is SFTTrainer's `_prepare_dataset` from a loaded data
set to packed rows, with an empty cache too.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LENGTH = 2048
DATA = Path(os.environ.get("SUROGATE_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


# ---------------------------------------------------------------- rows
def rows(count: int, short: bool) -> Iterator[dict[str, Any]]:
    """``short``: stories of a few sentences alone, for the memory of many rows."""
    dialogues = [json.loads(line) for line in (DATA / "chat/sgd-tools.jsonl").read_bytes().splitlines()]
    stories = [json.loads(line)["text"] for line in (DATA / "pretrain/tinystories.jsonl").read_bytes().split(b"\n") if line]
    for i in range(count):
        half, odd = divmod(i, 2)
        if odd or short:
            number = i if short else half
            sentences = re.split(r"(?<=[.!?]) ", stories[number % len(stories)])
            at = (number // len(stories)) % max(1, len(sentences) - 2)
            told = " ".join(sentences[at : at + 3] if short else sentences[at:])
            yield {"messages": [_say("user", f"Tell me story number {i}."), _say("assistant", told)], "tools": None}
            continue
        dialogue = dialogues[half % len(dialogues)]
        messages = [_plain(message) for message in dialogue["messages"]]
        ends = [k + 1 for k, message in enumerate(messages) if message["role"] == "assistant"]
        messages = messages[: ends[-1 - (half // len(dialogues)) % len(ends)]]
        first = next(k for k, message in enumerate(messages) if message["role"] == "user")
        messages[first] = _say("user", f"{messages[first]['content']} My reference is {i}.")
        yield {"messages": messages, "tools": json.dumps(dialogue["tools"])}


def _say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _plain(message: dict[str, Any]) -> dict[str, str]:
    """Tool calls as text: Arrow would give every call the arguments of all others, as nulls."""
    calls = [json.dumps(call.get("function", call)) for call in message.get("tool_calls") or []]
    return _say(message["role"], "\n".join([message["content"] or "", *calls]).strip())


# ---------------------------------------------------------------- sides, each in a process of its own
def tokenizer() -> Any:
    from surogate_pipeline_packed.templates import apply_template
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(DATA / "tokenizers/minimind")
    apply_template("chatml", made)
    return made


def surogate(path: str, workers: int) -> dict[str, Any]:
    from surogate_pipeline_packed.pipeline import build
    from surogate_pipeline_packed.plugin import Options

    from surogate_core.config.options import CoreOptions, DatasetOptions
    from surogate_core.contracts import PipelineContext
    from surogate_core.host import load_host

    host, used = load_host(), tokenizer()
    form = host.offer("datasets", "conversation")
    assert form.options is not None
    table = DatasetOptions(path=path, type="conversation", format_options=form.options(tools_field="tools"))
    core = CoreOptions(model="bench", sequence_len=LENGTH, datasets=[table])
    own = Options(dataloader_num_workers=workers, truncation_strategy="right", validation_split_ratio=0.0)
    pipeline = build(own, PipelineContext(config=core, format=functools.partial(host.offer, "datasets")))
    import torch  # noqa: F401  a run has it before its data, and so has TRL

    used_before = cpu_seconds()
    started = time.perf_counter()
    data = pipeline.prepare(used, lambda text: None)
    batches = data.training(1, 1)
    batches.step(0)
    seconds = time.perf_counter() - started
    cpu = cpu_seconds() - used_before
    train = data.prepared.train
    return {
        "seconds": seconds,
        "cpu": cpu,
        "rows": batches.rows,
        "fill": batches.fill,
        "tokens": int(train.lengths.sum()),
        "trained": int(train.trained().sum()),
    }


def trl(path: str, workers: int) -> dict[str, Any]:
    from datasets import load_dataset
    from transformers import AutoConfig, AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    used = tokenizer()
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen3", vocab_size=len(used), head_dim=16, **shape))
    seconds, cpu = [], []
    prepare = SFTTrainer._prepare_dataset

    def timed(*args: Any, **kwargs: Any) -> Any:
        used_before = cpu_seconds()
        started = time.perf_counter()
        made = prepare(*args, **kwargs)
        seconds.append(time.perf_counter() - started)
        cpu.append(cpu_seconds() - used_before)
        return made

    SFTTrainer._prepare_dataset = timed
    args = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        max_length=LENGTH,
        packing=True,
        assistant_only_loss=True,
        dataset_num_proc=workers or None,
        report_to="none",
        disable_tqdm=True,
    )
    data = load_dataset("json", data_files=path, split="train")
    trainer = SFTTrainer(model=model, args=args, train_dataset=data, processing_class=used)
    made = trainer.train_dataset.with_format("numpy")
    tokens = sum(len(row["input_ids"]) for row in made)
    trained = sum(int((row["labels"] != -100).sum()) for row in made)
    return {
        "seconds": sum(seconds),
        "cpu": sum(cpu),
        "rows": len(made),
        "fill": tokens / len(made) / LENGTH,
        "tokens": tokens,
        "trained": trained,
    }


def cpu_seconds() -> float:
    """User and system time of this process and all below it, those that have ended included."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(path.parent.name)] = int(fields[1])
        ticks[int(path.parent.name)] = sum(map(int, fields[11:15]))
    total = 0
    for pid in ticks:
        above = pid
        while above not in (0, os.getpid()):
            above = parents.get(above, 0)
        total += ticks[pid] if above else 0
    return total / os.sysconf("SC_CLK_TCK")


class Peak(threading.Thread):
    """The most anonymous memory that this process had, MB. Mapped files are not part of it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0.0

    def run(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            self.most = max(self.most, int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) / 1024)
            time.sleep(0.02)


def side(name: str, path: Path, workers: int) -> dict[str, Any]:
    """Run one side in a new process with empty caches."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"SUROGATE_CACHE": cache, "HF_DATASETS_CACHE": cache, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, __file__, "--side", name, "--file", str(path), "--workers", str(workers)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def write(path: Path, count: int, short: bool) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows(count, short))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--memory", type=int, nargs="*", help="numbers of rows; nothing else is measured")
    parser.add_argument("--side", choices=("surogate", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        peak = Peak()
        peak.start()
        result = (surogate if options.side == "surogate" else trl)(options.file, options.workers)
        print(json.dumps({**result, "peak_mb": peak.most}))
        return
    with tempfile.TemporaryDirectory() as directory:
        if options.memory is not None:
            for count in options.memory:
                path = Path(directory, f"{count}.jsonl")
                write(path, count, short=True)
                print(count, "rows:", json.dumps(side("surogate", path, 0)), flush=True)
            return
        path = Path(directory, "rows.jsonl")
        write(path, options.rows, short=False)
        print(
            f"{options.rows:,} rows, {path.stat().st_size / 1e6:.1f} MB; {options.workers} workers; load {os.getloadavg()[0]:.1f}"
        )
        ratios, shares = [], []
        for number in range(options.rounds):
            order = ("surogate", "trl")[:: 1 if number % 2 == 0 else -1]
            found = {name: side(name, path, options.workers) for name in order}
            ratios.append(found["trl"]["seconds"] / found["surogate"]["seconds"])
            shares.append(found["trl"]["cpu"] / found["surogate"]["cpu"])
            for name in ("surogate", "trl"):
                print(f"  {name:<9}", json.dumps(found[name]))
            print(f"  ratio {ratios[-1]:.2f}, of processor time {shares[-1]:.2f}", flush=True)
        print(f"TRL's time / surogate's: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        print(f"the same of processor time: {statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f})")


if __name__ == "__main__":
    main()
