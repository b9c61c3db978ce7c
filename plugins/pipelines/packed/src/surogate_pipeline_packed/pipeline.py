"""The pipeline `packed`: the data phase as the core knows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen

from surogate_core.config import CoreOptions
from surogate_core.contracts import PipelineContext
from surogate_core.offers import Offer
from surogate_pipeline_packed.batches import Batches
from surogate_pipeline_packed.cache import directory
from surogate_pipeline_packed.corpus import Corpus, spread
from surogate_pipeline_packed.images.sight import sight_of
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.prepare import Prepared, Work, prepare


@frozen
class PackedData:
    """A :class:`~surogate_core.contracts.Data`: packed batches of what was prepared. ``pieces``: how many there are to train on, by
    their lengths."""

    prepared: Prepared
    core: CoreOptions
    own: Options
    pad_id: int
    pieces: Mapping[str, int]

    @property
    def ledger(self) -> Mapping[str, Any]:
        return {**self.prepared.ledger.record(), "pieces": dict(self.pieces)}

    @property
    def fingerprint(self) -> str:
        return self.prepared.fingerprint

    def training(self, batch_size: int, accumulation: int) -> Batches:
        return self._batches(self.prepared.train, self.core.train_seed, batch_size, accumulation)

    def validation(self, batch_size: int) -> Batches | None:
        held = self.prepared.validation
        return None if held is None else self._batches(held, self.core.eval_seed, batch_size, 1)

    def _batches(self, corpus: Corpus, seed: int, batch_size: int, accumulation: int) -> Batches:
        return Batches(
            corpus,
            sequence_len=self.core.sequence_len,
            batch_size=batch_size,
            accumulation=accumulation,
            seed=seed,
            packing=self.own.sample_packing,
            pad_id=self.pad_id,
            left=self.own.padding_side == "left",
            free=self.own.padding_free,
        )


@frozen
class Packed:
    """A :class:`~surogate_core.contracts.Pipeline`."""

    core: CoreOptions
    own: Options
    format: Callable[[str], Offer]

    def prepare(self, tokenizer: Any, report: Callable[[str], None], live: bool = False) -> PackedData:
        cache = directory(self.own.cache_dir)
        processor, tokenizer = tokenizer, getattr(tokenizer, "tokenizer", tokenizer)
        sight = sight_of(processor, self.own)
        prepared = prepare(Work(self.core, self.own, self.format, tokenizer, report, cache, live, sight))
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
        pieces = {f"of {low:,} to {high:,} tokens": count for low, high, count in spread(prepared.train.lengths)}
        return PackedData(prepared, self.core, self.own, pad, pieces)


def build(options: Options, context: PipelineContext) -> Packed:
    return Packed(context.config, options, context.format)
