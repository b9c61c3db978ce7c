"""Weights of data sets, by counts of what is placed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from surogate_pipeline_packed.batches import Batches
from surogate_pipeline_packed.plugin import Options, check_config
from surogate_pipeline_packed.prepare import Prepared, Work, prepare

from surogate_core.config.options import CoreOptions, DatasetOptions
from surogate_core.contracts import Sample
from surogate_core.errors import DataError

ROWS = {"a": 40, "b": 20}


class Letters:
    """A row is two tokens, the second trained: its number, so that placed tokens name their rows."""

    overlong = "truncate"

    def encode(self, row: dict[str, int]) -> list[Sample]:
        return [Sample(input_ids=[row["set"], row["id"]], weights=[0.0, 1.0], kind="row", marker="a number")]


class Offered:
    """What the host has for a format."""

    name, build = "letters", "test_weights:Letters"
    owner = SimpleNamespace(distribution="tests", version="0")

    def load(self) -> Any:
        return lambda options, context: Letters()


@pytest.fixture
def run(tmp_path: Path):
    def run(*weights: float, lines: list[str] | None = None, ratio: float = 0.0, **core: Any) -> Prepared:
        tables = []
        for index, (weight, (name, count)) in enumerate(zip(weights, ROWS.items(), strict=False)):
            path = tmp_path / f"{name}.jsonl"
            path.write_text("".join(json.dumps({"set": 1000 + index, "id": index * 100 + i}) + "\n" for i in range(count)))
            tables.append(DatasetOptions(path=str(path), type="letters", weight=weight))
        options = CoreOptions(model="m", datasets=tables, sequence_len=8, **core)
        said = [] if lines is None else lines
        offered: Any = Offered()
        return prepare(Work(options, Options(validation_split_ratio=ratio), lambda name: offered, SimpleNamespace(), said.append))

    return run


def placed(prepared: Prepared) -> Counter[int]:
    """How often each row is placed."""
    return Counter(int(prepared.train.tokens[stop - 1]) for _, stop, _ in prepared.train.pieces.tolist())


def times(prepared: Prepared, index: int) -> Counter[int]:
    """How many rows of a data set are placed how often; those that are not placed at all are left out."""
    return Counter(count for row, count in placed(prepared).items() if row // 100 == index)


@pytest.mark.parametrize(
    ("weights", "first", "second"),
    [
        ((1.0, 1.0), {1: 40}, {1: 20}),
        ((2.0, 1.0), {2: 40}, {1: 20}),
        ((1.0, 0.5), {1: 40}, {1: 10}),
        ((2.25, 0.05), {3: 10, 2: 30}, {1: 1}),
        ((1.0, 0.01), {1: 40}, {}),
    ],
)
def test_pieces_are_placed_as_often_as_the_weight_says(run, weights: tuple, first: dict, second: dict) -> None:
    prepared = run(*weights)
    assert times(prepared, 0) == first
    assert times(prepared, 1) == second


def test_an_epoch_trains_on_what_is_placed(run) -> None:
    prepared = run(2.25, 0.5)
    batches = Batches(prepared.train, sequence_len=8, batch_size=2, accumulation=1, seed=1, packing=True, pad_id=0)
    seen: Counter[int] = Counter()
    for index in range(batches.steps(1)):
        for batch in batches.step(index, 1).batches:
            seen.update(int(label) for label in batch.labels.flatten().tolist() if label >= 0)
    assert {label: count for label, count in seen.items() if label < 1000} == placed(prepared)


def test_what_is_drawn_depends_on_the_seed_alone(run) -> None:
    one = run(1.0, 0.5, train_seed=1)
    assert placed(one) == placed(run(1.0, 0.5, train_seed=1))
    assert one.fingerprint == run(1.0, 0.5, train_seed=1).fingerprint
    assert len({frozenset(placed(run(1.0, 0.5, train_seed=seed))) for seed in range(6)}) > 4


def test_the_ledger_tells(run) -> None:
    lines: list[str] = []
    prepared = run(2.25, 0.5, lines=lines)
    record = prepared.ledger.record()
    assert record["weighted"] == {
        "datasets[0]": {"weight": 2.25, "pieces": 40, "placed": 90, "tokens": 180},
        "datasets[1]": {"weight": 0.5, "pieces": 20, "placed": 10, "tokens": 20},
    }
    assert record["rows"]["read"] == record["rows"]["kept"] == 60
    assert prepared.ledger.balanced()
    assert "datasets[0]: weight 2.25: 40 pieces, 90 an epoch" in lines
    assert "weighted" not in run(1.0, 1.0).ledger.record()


def test_no_copy_of_what_validates_is_trained_on(run) -> None:
    prepared = run(3.0, 1.0, ratio=0.25)
    assert prepared.validation is not None
    held = {int(prepared.validation.tokens[stop - 1]) for _, stop, _ in prepared.validation.pieces.tolist()}
    assert len(held) == len(prepared.validation) == 15
    assert not held & set(placed(prepared))
    assert times(prepared, 0) == {3: len([row for row in placed(prepared) if row < 100])}


def test_weights_that_leave_nothing(run) -> None:
    with pytest.raises(DataError, match="the weights leave no piece to train on") as caught:
        run(0.001, 0.001)
    assert caught.value.problems[0].how == "raise weight, or give more data"


def test_weights_of_validation_data_are_refused() -> None:
    tables = [DatasetOptions(path="p", type="text"), DatasetOptions(path="p", type="text", weight=2.0)]
    core = CoreOptions(model="m", validation_datasets=tables)
    origins = {"max_length": "default", "validation_datasets.1.weight": "c.toml:9"}
    (problem,) = check_config(SimpleNamespace(of=lambda _: Options(), core=core, origins=origins))  # type: ignore[arg-type]
    assert problem.what == "weight = 2: validation data are read once each, whatever they weigh"
    assert problem.where == "c.toml:9, key validation_datasets.1.weight"
    assert problem.how == "remove weight"
