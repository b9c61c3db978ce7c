"""Byte-level BPE (Radford et al. 2019; Sennrich et al. 2016) with ChatML's special tokens, saved so that transformers loads it.

All 256 bytes are in the vocabulary, so every text comes back as it was. Numbers are split into digits, and white space before a
word is part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import define, frozen

from surogate_core.config.options import DatasetOptions
from surogate_core.errors import DataError
from surogate_pipeline_packed.read import open_source
from surogate_pipeline_packed.templates import named_template

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (PAD, START, END)
SMALLEST = 256 + len(SPECIAL)


@frozen
class Trained:
    tokens: int
    documents: int
    characters: int


@define
class Texts:
    """The documents of the files, counted while they are read."""

    files: Sequence[str]
    field: str
    documents: int = 0
    characters: int = 0

    def __iter__(self) -> Iterator[str]:
        for file in self.files:
            source = open_source(DatasetOptions(path=file, type="text"), "FILES", seed=0)
            for row in source.rows():
                place = f"{source.files[row.file]}:{row.number}"
                if row.columns is None:
                    raise DataError(f"a row cannot be read: {row.reason}", place, "mend or remove it")
                text = row.columns.get(self.field)
                if not isinstance(text, str):
                    raise DataError(f"a row has no text in '{self.field}'", place, "name the column with --text-field")
                self.documents += 1
                self.characters += len(text)
                yield text


def train_tokenizer(
    files: Sequence[str], output: Path, vocab_size: int, text_field: str = "text", template: str = "chatml"
) -> Trained:
    """Train on the documents in ``files`` and write ``tokenizer.json``, its configuration and the chat template to ``output``.

    EOS and the end of a turn is ``<|im_end|>``, BOS ``<|im_start|>`` (never added by itself), padding ``<|endoftext|>``. Raises
    DataError for a size below 259, unreadable files, no text, and an output directory that holds a tokenizer.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size < SMALLEST:
        raise DataError(
            f"vocabulary of {vocab_size}: at least {SMALLEST} are needed (256 bytes, {len(SPECIAL)} special tokens)", "--vocab-size"
        )
    if (output / "tokenizer.json").exists():
        raise DataError("the directory holds a tokenizer already", f"--output {output}", "name another directory or remove it")
    chat_template = named_template(template)
    core = Tokenizer(models.BPE())
    words = Regex(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = Texts(files, text_field)
    core.train_from_iterator(texts, trainer)
    if not texts.characters:
        raise DataError("there is no text to train on", ", ".join(files))
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=START, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    made.chat_template = chat_template
    made.save_pretrained(output)
    return Trained(len(made), texts.documents, texts.characters)
