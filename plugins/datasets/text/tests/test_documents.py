"""Documents through the real data phase."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from surogate_dataset_text.documents import Documents, build
from surogate_dataset_text.plugin import Options, register_datasets
from surogate_pipeline_packed.plugin import Options as PipelineOptions
from surogate_pipeline_packed.prepare import Prepared, Work, prepare
from transformers import AutoTokenizer

from surogate_core.config.options import CoreOptions, DatasetOptions
from surogate_core.contracts import FormatContext
from surogate_core.errors import BadRow, DataError

HOST = SimpleNamespace(offer=lambda kind, name: {("datasets", "text"): register_datasets()[0]}[kind, name])


@pytest.fixture(scope="session", params=["tokenizers/minimind", "tokenizers/gpt2", "models/stories260K"])
def tokenizer(request: pytest.FixtureRequest, shared_data: Path) -> Any:
    return AutoTokenizer.from_pretrained(shared_data / request.param)


def run(tokenizer: Any, path: Path, samples: int | None = None, **options: Any) -> Prepared:
    dataset = DatasetOptions(path=str(path), type="text", samples=samples, format_options=Options())
    core = CoreOptions(model="m", datasets=[dataset], sequence_len=64)
    own = PipelineOptions(**{"validation_split_ratio": 0.0} | options)
    return prepare(Work(core, own, partial(HOST.offer, "datasets"), tokenizer, lambda line: None))


def documents(prepared: Prepared) -> list[list[int]]:
    """The samples, from where each piece's sample ends."""
    ends = sorted(set(prepared.train.pieces[:, 2].tolist()))
    return [prepared.train.tokens[a:b].tolist() for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def test_documents_are_the_tokenizers_ids_and_eos(tokenizer: Any, shared_data: Path) -> None:
    path = shared_data / "pretrain/tinystories.jsonl"
    texts = [json.loads(line)["text"] for line in path.read_bytes().split(b"\n")[:1088]]
    prepared = run(tokenizer, path)
    wanted = [[*tokenizer(text, verbose=False)["input_ids"], tokenizer.eos_token_id] for text in texts]
    assert documents(prepared) == wanted
    assert prepared.train.trained().sum() == sum(len(ids) - 1 for ids in wanted)
    assert prepared.ledger.tokens_read == sum(len(ids) for ids in wanted)
    assert prepared.ledger.balanced()
    assert sum(prepared.ledger.dropped_rows.values()) == 0


def test_a_text_file_is_one_document(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One\n\ntwo \u2028 three. " * 40)
    prepared = run(tokenizer, tmp_path / "a.txt", max_length=10)  # documents are cut at sequence_len alone
    (only,) = documents(prepared)
    assert only.count(tokenizer.eos_token_id) == 1
    assert only[-1] == tokenizer.eos_token_id
    assert set(prepared.train.lengths[:-1].tolist()) == {64}


def test_eos_is_not_doubled(shared_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "models/stories260K")
    (sample,) = build(Options(), context(tokenizer)).encode({"text": "A cat.</s>"})
    assert list(sample.input_ids).count(tokenizer.eos_token_id) == 1
    assert sample.input_ids[0] == tokenizer.bos_token_id


def unused(*_: Any, **__: Any) -> Any:
    raise AssertionError("text is neither rendered nor weighed")


def context(tokenizer: Any) -> FormatContext:
    core = CoreOptions(model="m")
    return FormatContext(config=core, tokenizer=tokenizer, system=None, background=0.0, render=unused, weigh=unused)


def test_rows_that_are_no_documents(shared_data: Path) -> None:
    form = build(Options(text_field="body"), context(AutoTokenizer.from_pretrained(shared_data / "models/stories260K")))
    for row, reason in (({"text": "a"}, "missing field 'body'"), ({"body": 3}, "field 'body' is not text")):
        with pytest.raises(BadRow) as caught:
            form.encode(row)
        assert caught.value.reason == reason
    assert form.encode({"body": ""}) == []
    mixed = form.encode_batch([{"body": "a"}, {"body": None}, {"body": ""}, {"body": "b"}])
    assert isinstance(mixed[1], BadRow)
    assert mixed[2] == []
    assert mixed[3][0].input_ids == form.encode({"body": "b"})[0].input_ids  # type: ignore[index]


def test_a_tokenizer_without_eos(shared_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "models/stories260K")
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no EOS token"):
        build(Options(), context(tokenizer))


def test_workers_make_the_same_corpus(shared_data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "models/stories260K")
    made = [
        run(tokenizer, shared_data / "pretrain/tinystories.jsonl", samples=600, dataloader_num_workers=n) for n in (0, 1, 2, None)
    ]
    assert len({prepared.fingerprint for prepared in made}) == 1
    assert len({tuple(prepared.train.sources) for prepared in made}) == 1
    assert np.array_equal(made[0].train.tokens, made[2].train.tokens)
    assert made[0].ledger == made[1].ledger == made[2].ledger


def test_offer_is_documented_and_light() -> None:
    (offer,) = register_datasets()
    assert offer.load() is build
    assert isinstance(build(Options(), context(SimpleNamespace(eos_token_id=1))), Documents)
