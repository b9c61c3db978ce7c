"""``truncation_strategy`` on conversations of 7,000 to 15,000 tokens at ``max_length = 2048``: token counts, masks and ledger,
against slices of what ``apply_chat_template`` gives and a regular expression finds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from surogate_dataset_conversation.plugin import Options as Conversation
from surogate_dataset_conversation.plugin import register_datasets
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.prepare import Work, prepare

from surogate_core.config import CoreOptions, DatasetOptions
from surogate_core.errors import DataError

LIMIT = 2048
TURN = rb"<\|im_start\|>assistant\n<think>\n\n</think>\n\n(.*?<\|im_end\|>)"
SHORT = {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}], "tools": []}


@pytest.fixture(scope="module")
def wanted(real: SimpleNamespace) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens and weights of each row, the short one last."""
    tokenizer = real.tokenizer("minimind")
    found = []
    for row in [*real.rows("tau-airline"), SHORT]:
        messages, tools = real.messages("tau-airline", row)
        ids = tokenizer.apply_chat_template(messages, tools=tools or None, return_dict=True)["input_ids"]
        text = tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False).encode()
        turns = [at.span(1) for at in re.finditer(TURN, text, re.DOTALL)]
        starts = real.starts(tokenizer, ids, text)
        weights = [float(any(a <= start < b for a, b in turns)) for start in starts]
        found.append((np.array(ids), np.array(weights)))
    assert sum(len(ids) > 2 * LIMIT for ids, _ in found) == 15
    return found


def run(real: SimpleNamespace, path: Path, strategy: str, rows: list[dict]) -> Any:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = DatasetOptions(path=str(path), type="conversation", format_options=Conversation(tools_field="tools"))
    core = CoreOptions(model="m", datasets=[table], sequence_len=2 * LIMIT)
    own: Any = {"max_length": LIMIT, "truncation_strategy": strategy, "validation_split_ratio": 0.0}
    return prepare(Work(core, Options(**own), lambda name: register_datasets()[0], real.tokenizer("minimind"), lambda line: None))


def pieces(prepared: Any) -> list[tuple[list[int], list[float]]]:
    """Labels and their weights of each piece, as a batch has them."""
    corpus, found = prepared.train, []
    for start, stop, end in corpus.pieces.tolist():
        reach = min(stop + 1, end)
        found.append((list(corpus.tokens[start:reach]), list(corpus.weights[start + 1 : reach])))
    return found


@pytest.mark.parametrize("strategy", ["delete", "left", "right", "split"])
def test_strategy(real: SimpleNamespace, wanted: list, tmp_path: Path, strategy: str) -> None:
    prepared = run(real, tmp_path / "rows.jsonl", strategy, [*real.rows("tau-airline"), SHORT])
    record = prepared.ledger.record()
    assert prepared.ledger.balanced()
    long, (short, _) = wanted[:-1], wanted[-1]
    total = sum(len(ids) for ids, _ in wanted)
    assert record["rows"]["read"] == 16
    assert record["tokens"]["read"] == total
    assert record["tokens"]["kept"] == len(short)
    expected: list[tuple[list[int], list[float]]] = []
    dropped: dict[str, int] = {}
    rows_dropped: dict[str, int] = {}

    def drop(reason: str, tokens: int, rows: int = 0) -> None:
        dropped[reason] = dropped.get(reason, 0) + tokens
        if rows:
            rows_dropped[reason] = rows_dropped.get(reason, 0) + rows

    for ids, weights in long:
        if strategy == "delete":
            drop("longer than max_length", len(ids), 1)
        elif strategy == "split":
            for at in range(0, len(ids), LIMIT):
                part, weight = ids[at : at + LIMIT + 1], weights[at + 1 : at + LIMIT + 1]
                if (weight > 0).any():
                    expected.append((part.tolist(), weight.tolist()))
                elif len(ids) - at > 1:
                    drop("no trained token in a piece", min(LIMIT, len(ids) - at))
        else:
            part = slice(-LIMIT, None) if strategy == "left" else slice(LIMIT)
            drop(f"truncated ({strategy})", len(ids) - LIMIT)
            if (weights[part][1:] > 0).any():
                expected.append((ids[part].tolist(), weights[part][1:].tolist()))
            else:
                drop("no trained token left by truncation", LIMIT, 1)
    expected.append((short.tolist(), wanted[-1][1][1:].tolist()))
    assert pieces(prepared) == expected
    assert record["tokens"]["dropped"] == dropped
    assert record["rows"]["dropped"] == rows_dropped
    fate = {"delete": "kept", "left": "truncated", "right": "truncated", "split": "split"}[strategy]
    if fate != "kept":
        assert record["rows"][fate] == 15 - sum(rows_dropped.values())
        assert record["tokens"][fate] == total - len(short) - sum(dropped.values())
    print(strategy, json.dumps(record["tokens"]), json.dumps(record["rows"]), len(expected), sum(sum(w) for _, w in expected))


def test_delete_that_leaves_nothing_is_refused(real: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sample is left to train on"):
        run(real, tmp_path / "rows.jsonl", "delete", real.rows("tau-airline"))
