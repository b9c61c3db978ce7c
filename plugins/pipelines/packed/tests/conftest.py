"""A data set of instructions, a cache, and a way to prepare the one with the other."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.prepare import Prepared, Work, prepare
from transformers import AutoTokenizer

from surogate_core.config.options import CoreOptions, DatasetOptions
from surogate_core.host import load_host

HOST = load_host()
COLUMNS = {"instruction_field": "q", "output_field": "a"}


class Place:
    """A data set of instructions, a cache, and a way to prepare the one with the other."""

    def __init__(self, directory: Path, tokenizer: Path):
        self.directory, self.tokenizer, self.cache = directory, tokenizer, directory / "cache"
        self.file = directory / "rows.jsonl"
        self.lines: list[str] = []

    def fill(self, count: int, bad: int = 0) -> None:
        rows = [json.dumps({"q": f"What is {i}?", "a": "x" * (i % 70 + 1) + str(i)}) for i in range(count)]
        self.file.write_text("\n".join(["{"] * bad + rows) + "\n")

    def prepare(self, tokenizer: Any = None, cached: bool = True, **options: Any) -> Prepared:
        own = {name: options.pop(name) for name in list(options) if name in attrs.fields_dict(Options)}
        core = {name: options.pop(name) for name in list(options) if name in attrs.fields_dict(CoreOptions)}
        table = {name: options.pop(name) for name in list(options) if name in attrs.fields_dict(DatasetOptions)}
        kind = table.pop("type", "instruction")
        form = HOST.offer("datasets", kind).options
        assert form is not None
        given = form(**{**(COLUMNS if kind == "instruction" else {}), **options})
        data = DatasetOptions(**{"path": str(self.file), "type": kind, "format_options": given} | table)
        core = CoreOptions(**{"model": "m", "sequence_len": 256, "datasets": [data]} | core)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(self.tokenizer)
        self.lines = []
        where = self.cache if cached else None
        own_options = Options(**{"validation_split_ratio": 0.0, "max_bad_rows": 0.5} | own)
        return prepare(Work(core, own_options, partial(HOST.offer, "datasets"), tokenizer, self.lines.append, where))

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    def shards(self) -> list[Path]:
        return sorted(self.cache.glob("tokenised/*/rows-*"))

    @staticmethod
    def same(one: Prepared, other: Prepared) -> None:
        assert one.fingerprint == other.fingerprint
        assert one.ledger.record() == other.ledger.record()
        assert one.ledger.lines() == other.ledger.lines()
        assert list(one.train.sources) == list(other.train.sources)
        for name in ("tokens", "weights"):
            for start, stop, _ in one.train.pieces.tolist():
                assert np.array_equal(getattr(one.train, name)[start:stop], getattr(other.train, name)[start:stop])


@pytest.fixture
def place(tmp_path: Path, tiny: Path) -> Place:
    return Place(tmp_path, tiny)


@pytest.fixture(scope="session")
def seeing_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from surogate_model_transformers.testing import tiny_vision_model

    return tiny_vision_model(tmp_path_factory.mktemp("seeing"), weights=False)


@pytest.fixture
def eyes(seeing_model: Path, tmp_path: Path) -> Any:
    from surogate_pipeline_packed.images.testing import Eyes

    return Eyes(seeing_model, tmp_path)
