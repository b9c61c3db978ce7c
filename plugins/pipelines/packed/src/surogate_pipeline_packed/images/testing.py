"""For tests with images: a vision-language model's processor, and a way to prepare rows with it."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from PIL import Image

from surogate_core.config.options import CoreOptions, DatasetOptions
from surogate_core.contracts import PipelineContext
from surogate_core.host import load_host
from surogate_core.testing import write_rows
from surogate_pipeline_packed.pipeline import PackedData, build
from surogate_pipeline_packed.plugin import Options

HOST = load_host()
START, END, IMAGE = 259, 260, 261


def png(width: int = 16, height: int = 8, colour: str = "red", kind: str = "PNG", **more: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, kind, **more)
    return file.getvalue()


def asked(content: Any, answer: str = "yes", **columns: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}], **columns}


def image(value: Any) -> dict[str, Any]:
    return {"type": "image", "image": value}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


class Eyes:
    """A directory with a model that sees; ``prepare(rows)`` gives their data, ``said`` the notices."""

    def __init__(self, model: Path, directory: Path):
        self.directory = directory
        self.model = model
        self.said: list[str] = []

    @property
    def processor(self) -> Any:
        from surogate_model_transformers.plugin import Settings
        from surogate_model_transformers.vision import load_processor

        return load_processor(Settings(CoreOptions(model=str(self.model), from_scratch=True, sequence_len=64)))

    def prepare(self, rows: Any, processor: Any = None, **options: Any) -> PackedData:
        own = {name: options.pop(name) for name in list(options) if name in attrs.fields_dict(Options)}
        form = HOST.offer("datasets", kind := options.pop("type", "conversation")).options
        path = rows if isinstance(rows, Path) else write_rows(self.directory / "rows.jsonl", rows)
        data = DatasetOptions(path=str(path), type=kind, format_options=None if form is None else form(**options.pop("form", {})))
        core = CoreOptions(**{"model": str(self.model), "sequence_len": 128, "datasets": [data], **options})
        given = {"validation_split_ratio": 0.0, "max_bad_rows": 1.0, "cache_dir": str(self.directory / "cache"), **own}
        context = PipelineContext(config=core, format=partial(HOST.offer, "datasets"))
        self.said = []
        return build(Options(**given), context).prepare(processor or self.processor, self.said.append)

    def ids(self, rows: Any, **options: Any) -> list[list[int]]:
        """Tokens of each piece."""
        corpus = self.prepare(rows, **options).prepared.train
        return [corpus.tokens[start:stop].tolist() for start, stop, _ in corpus.pieces.tolist()]

    def reasons(self, rows: Any, **options: Any) -> dict[str, int]:
        """Why rows were dropped. A row that is used is added, so that there is something to train on."""
        ledger = self.prepare([*rows, asked("a row of text")], **options).ledger
        return dict(ledger["rows"]["dropped"])
