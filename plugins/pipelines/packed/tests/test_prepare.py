"""The data phase, with a format of whitespace-separated numbers: `3 4* 5` is three tokens of which 4 is trained."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
from surogate_pipeline_packed.plugin import Options, check_config
from surogate_pipeline_packed.prepare import Prepared, Work, prepare

from surogate_core.config.options import CoreOptions, DatasetOptions
from surogate_core.contracts import Sample
from surogate_core.errors import BadRow, DataError


class Numbers:
    def __init__(self, overlong: str):
        self.overlong = overlong

    def encode(self, row: dict) -> list[Sample]:
        if "tokens" not in row:
            raise BadRow("missing field 'tokens'")
        samples = []
        for text in row["tokens"].split("|"):
            words = text.split()
            if words:
                ids = [int(word.rstrip("*")) for word in words]
                weights = [float(word.endswith("*")) for word in words]
                samples.append(Sample(input_ids=ids, weights=weights, kind=row.get("kind", "number"), marker="a star"))
        return samples


OWN = {field.name for field in attrs.fields(Options)}
HOST = SimpleNamespace(
    offer=lambda kind, name: SimpleNamespace(load=lambda: lambda options, context: Numbers({"text": "split"}.get(name, "truncate")))
)


@pytest.fixture
def run(tmp_path: Path):
    def run(
        rows: list, kind: str = "numbers", validation: list | None = None, lines: list | None = None, **options: Any
    ) -> Prepared:
        def write(name: str, content: list[Any]) -> list[DatasetOptions]:
            path = tmp_path / name
            path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in content))
            return [DatasetOptions(path=str(path), type=kind)]

        settings: dict[str, Any] = {"sequence_len": 4, "validation_split_ratio": 0.0, "max_bad_rows": 0.5} | options
        if validation is not None:
            settings["validation_datasets"] = write("validation.jsonl", validation)
        core = CoreOptions(model="m", datasets=write("rows.jsonl", rows), **{k: v for k, v in settings.items() if k not in OWN})
        own = Options(**{k: v for k, v in settings.items() if k in OWN})
        said = [] if lines is None else lines
        return prepare(Work(core, own, partial(HOST.offer, "datasets"), SimpleNamespace(), said.append))

    return run


def row(*tokens: str, **more: str) -> dict:
    return {"tokens": "|".join(tokens), **more}


def pieces(prepared: Prepared) -> list[tuple[list[int], list[float], int | None]]:
    """Placed tokens, their weights, and the label of the last position."""
    found = []
    for start, stop, end in prepared.train.pieces.tolist():
        label = int(prepared.train.tokens[stop]) if stop < end else None
        found.append((prepared.train.tokens[start:stop].tolist(), prepared.train.weights[start:stop].tolist(), label))
    return found


LONG = "1* 2* 3 4 5 6* 7*"


@pytest.mark.parametrize(
    ("strategy", "wanted", "tokens"),
    [
        ("delete", [], {"kept": 2, "dropped": {"longer than max_length": 7}}),
        ("left", [([4, 5, 6, 7], [0, 0, 1, 1], None)], {"kept": 2, "truncated": 4, "dropped": {"truncated (left)": 3}}),
        ("right", [([1, 2, 3, 4], [0, 1, 0, 0], None)], {"kept": 2, "truncated": 4, "dropped": {"truncated (right)": 3}}),
        ("split", [([1, 2, 3, 4], [0, 1, 0, 0], 5), ([5, 6, 7], [0, 1, 1], None)], {"kept": 2, "split": 7, "dropped": {}}),
    ],
)
def test_truncation_strategies(run, strategy: str, wanted: list, tokens: dict) -> None:
    prepared = run([row("8 9*"), row(LONG)], truncation_strategy=strategy)
    assert pieces(prepared) == [([8, 9], [0, 1], None), *wanted]
    record = prepared.ledger.record()
    assert record["tokens"] == {"read": 9, "kept": 0, "split": 0, "truncated": 0} | tokens
    fate = {"delete": "dropped", "left": "truncated", "right": "truncated", "split": "split"}[strategy]
    assert record["rows"] == {"read": 2, "kept": 1, "split": 0, "truncated": 0, "dropped": {}} | (
        {"dropped": {"longer than max_length": 1}} if fate == "dropped" else {fate: 1}
    )


def test_max_length_below_the_row(run) -> None:
    prepared = run([row("1 2*"), row("3 4 5*")], max_length=2, truncation_strategy="left")
    assert pieces(prepared) == [([1, 2], [0, 1], None), ([4, 5], [0, 1], None)]


@pytest.mark.parametrize(("longest", "problems"), [(None, 0), (4, 0), (5, 1)])
def test_a_max_length_above_the_row_is_refused(longest: int | None, problems: int) -> None:
    config = SimpleNamespace(
        of=lambda _: Options(max_length=longest), core=CoreOptions(model="m", sequence_len=4), origins={"max_length": "c.toml:3"}
    )
    found = check_config(config)  # type: ignore[arg-type]
    assert len(found) == problems
    for problem in found:
        assert problem.what.startswith("max_length = 5 is longer than sequence_len = 4")
        assert problem.where == "c.toml:3, key max_length"


def test_pieces_and_truncated_samples_without_a_trained_token_are_dropped(run) -> None:
    prepared = run([row("1 2 3 4 5 6* 7"), row("8 9*")], truncation_strategy="split")
    assert pieces(prepared) == [([5, 6, 7], [0, 1, 0], None), ([8, 9], [0, 1], None)]
    assert prepared.ledger.record()["tokens"]["dropped"] == {"no trained token in a piece": 4}
    assert prepared.ledger.balanced()
    assert list(prepared.train.sources) == ["rows.jsonl:1#2", "rows.jsonl:2"]
    prepared = run([row("1 2 3 4 5 6* 7"), row("8 9*")], truncation_strategy="right")
    assert pieces(prepared) == [([8, 9], [0, 1], None)]
    assert prepared.ledger.record()["tokens"]["dropped"] == {"truncated (right)": 3, "no trained token left by truncation": 4}


@pytest.mark.parametrize("length", range(2, 14))
def test_split_documents_train_every_token_once(run, length: int) -> None:
    prepared = run([row(" ".join(f"{i}*" for i in range(length)))], kind="text")
    learnt = []
    for tokens, weights, label in pieces(prepared):
        learnt += [token for token, weight in zip(tokens[1:], weights[1:], strict=True) if weight]
        learnt += [] if label is None else [label]
        assert len(tokens) <= 4
    assert learnt == list(range(1, length))
    assert prepared.train.trained().sum() == length - 1
    assert prepared.ledger.record()["tokens"]["dropped"] == {}


def test_ledger_balances(run) -> None:
    rows = [row("1 2*"), "{", row(""), {"other": 1}, row("5 6"), row(LONG), row("1 2*", LONG), row("3 4*", "5 6"), row("7*")] * 7
    for strategy in ("delete", "left", "right", "split"):
        lines: list[str] = []
        prepared = run(rows, truncation_strategy=strategy, lines=lines)
        ledger = prepared.ledger
        assert ledger.balanced()
        assert ledger.rows_read == len(rows)
        assert ledger.dropped_rows["not JSON"] == ledger.dropped_rows["missing field 'tokens'"] == ledger.dropped_rows["empty"] == 7
        assert ledger.dropped_rows["no trained token"] == 14
        assert ledger.unusable == 14
        assert [str(bad) for bad in ledger.bad[:2]] == ["rows.jsonl:2: not JSON", "rows.jsonl:4: missing field 'tokens'"]
        assert any("63 read = " in line for line in lines)
        placed = prepared.train.lengths.sum()
        kept = sum(ledger.tokens.values())
        assert 0 <= kept - placed <= 14  # a last token that is only a label is not placed


def test_too_many_unusable_rows(run) -> None:
    rows = [row("1 2*"), "{", *[row("3 4*")] * 8]
    assert run(rows, max_bad_rows=0.1).ledger.unusable == 1
    with pytest.raises(DataError, match=r"1 of 10 rows cannot be used, more than max_bad_rows = 0.09: rows.jsonl:2: not JSON"):
        run(rows, max_bad_rows=0.09)


def test_a_kind_without_trained_tokens_is_refused(run) -> None:
    rows = [row("1 2*"), row("3 4", kind="riddle"), row("5 6", kind="riddle")]
    with pytest.raises(DataError, match=r'kind "riddle" has a trained token \(2 samples\): a star was not found'):
        run(rows)
    assert len(run([*rows, row("7 8*", kind="riddle")]).train) == 2


def test_first_tokens_never_count(run) -> None:
    with pytest.raises(DataError, match="has a trained token"):
        run([row("1* 2")])
    assert pieces(run([row("1* 2*")])) == [([1, 2], [0, 1], None)]


def test_nothing_to_train_on(run) -> None:
    with pytest.raises(DataError, match="the data set is empty") as caught:
        run([])
    assert "rows.jsonl" in caught.value.problems[0].where
    with pytest.raises(DataError, match="no sample is left"):
        run([row(LONG)])
    with pytest.raises(DataError, match="no data set is configured"):
        prepare(Work(CoreOptions(model="m"), Options(), partial(HOST.offer, "datasets"), SimpleNamespace(), print))


def test_validation(run) -> None:
    rows = [row(f"{i} {i + 1}*") for i in range(40)]
    prepared = run(rows, validation_split_ratio=0.25)
    assert prepared.validation is not None
    assert (len(prepared.train), len(prepared.validation)) == (30, 10)
    assert not set(prepared.train.sources) & set(prepared.validation.sources)
    assert run(rows, validation_split_ratio=0.25, eval_seed=9).fingerprint == prepared.fingerprint
    assert run(rows, validation_split_ratio=0.25, train_seed=9).fingerprint != prepared.fingerprint
    assert run(rows).validation is None
    own = run(rows, validation=[row("7 8*")], validation_split_ratio=0.25)
    assert own.validation is not None
    assert (len(own.train), len(own.validation)) == (40, 1)
    assert own.ledger.rows_read == 41
    assert np.array_equal(own.validation.tokens, [7, 8])
