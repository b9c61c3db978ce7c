"""A row is a document: its tokens as the tokenizer makes them (BOS where it adds one), then EOS; every token is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from attrs import frozen

from surogate_core.contracts import FormatContext, Sample
from surogate_core.errors import BadRow, DataError
from surogate_dataset_text.plugin import Options

REASONS = ((0, "text document: trained"),)


@frozen
class Documents:
    field: str
    tokenizer: Any
    overlong: Literal["split", "truncate"] = "split"

    def encode(self, row: Mapping[str, Any]) -> Sequence[Sample]:
        (result,) = self.encode_batch([row])
        if isinstance(result, BadRow):
            raise result
        return result

    def encode_batch(self, rows: Sequence[Mapping[str, Any]]) -> list[Sequence[Sample] | BadRow]:
        """Many rows in one call of the tokenizer, which spreads them over its own threads."""
        texts = [self._text(row) for row in rows]
        good = [text for text in texts if isinstance(text, str) and text]
        encoded = iter(self.tokenizer(good, verbose=False)["input_ids"] if good else [])
        return [text if isinstance(text, BadRow) else [self._sample(next(encoded))] if text else [] for text in texts]

    def _text(self, row: Mapping[str, Any]) -> str | BadRow:
        if self.field not in row:
            return BadRow(f"missing field '{self.field}'")
        text = row[self.field]
        if not isinstance(text, str):
            return BadRow(f"field '{self.field}' is not text")
        return text

    def _sample(self, ids: list[int]) -> Sample:
        if not ids or ids[-1] != self.tokenizer.eos_token_id:
            ids = [*ids, self.tokenizer.eos_token_id]
        return Sample(input_ids=ids, weights=[1.0] * len(ids), kind="document", marker="text", reasons=REASONS)


def build(options: Options, context: FormatContext) -> Documents:
    if context.tokenizer.eos_token_id is None:
        raise DataError(
            "the tokenizer has no EOS token, with which documents end",
            context.config.model,
            "set eos_token in tokenizer_config.json",
        )
    return Documents(options.text_field, context.tokenizer)
