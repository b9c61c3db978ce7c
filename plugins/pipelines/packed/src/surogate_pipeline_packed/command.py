"""`surogate tokenizer`: make tokenizers."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def tokenizer() -> None:
    """Make tokenizers."""


@tokenizer.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path), help="Directory to write; must not hold a tokenizer yet.")
@click.option("--vocab-size", default=4096, show_default=True, help="Number of ids, special tokens included.")
@click.option("--text-field", default="text", show_default=True, help="Column with the text, for files with columns.")
@click.option("--template", default="chatml", show_default=True, help="Chat template: a name or a Jinja file.")
def train(files: tuple[Path, ...], output: Path, vocab_size: int, text_field: str, template: str) -> None:
    """Train a byte-level BPE tokenizer on FILES: text, jsonl, json, csv, parquet, or directories of one of them."""
    from surogate_pipeline_packed.bpe import train_tokenizer

    made = train_tokenizer([str(file) for file in files], output, vocab_size, text_field, template)
    click.echo(f"{output}: {made.tokens} tokens, from {made.documents:,} documents with {made.characters:,} characters")
