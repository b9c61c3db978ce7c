"""`surogate tokenize`: the data phase of a run, ahead of it. Of the model only the tokenizer is read."""

from __future__ import annotations

import functools
from pathlib import Path

import click

from surogate_core.cli import output
from surogate_core.cli.run import PASS_KEYS, config_arguments, overrides


@click.command(context_settings=PASS_KEYS)
@config_arguments
@click.option("--preview", type=click.IntRange(1), metavar="N", help="Show what is trained in N samples, here and as --html.")
@click.option("--html", type=click.Path(path_type=Path), default="preview.html", show_default=True, help="The page of --preview.")
@click.option("--dump", type=click.Path(path_type=Path), metavar="FILE", help="Write all samples as JSON lines, to be checked.")
@click.option("--quiet", is_flag=True, help="Print problems only.")
def tokenize(config: Path, words: tuple[str, ...], preview: int | None, html: Path, dump: Path | None, quiet: bool) -> None:
    """Tokenise the data of CONFIG into the cache, where a run finds them, and show what became of them.

    Of `model` only the tokenizer is needed.
    """
    from surogate_core.config import load
    from surogate_core.contracts import Context, PipelineContext
    from surogate_core.errors import ConfigError
    from surogate_core.host import load_host
    from surogate_pipeline_packed import preview as look
    from surogate_pipeline_packed.pipeline import build
    from surogate_pipeline_packed.plugin import Options
    from surogate_pipeline_packed.summary import lines

    host = load_host()
    loaded = load(config, host, overrides(words))
    core = loaded.core
    if core.data_pipeline != "packed":
        place = f"{loaded.origins['data_pipeline']}, key data_pipeline"
        raise ConfigError(f'data_pipeline = "{core.data_pipeline}" has no tokenised data to keep', place, 'use "packed"')
    model = host.offer("models", core.model_backend)
    source = model.load()(loaded.of(model.options) if model.options else None, Context(config=core))
    pipeline = build(loaded.of(Options), PipelineContext(config=core, format=functools.partial(host.offer, "datasets")))
    tokenizer = source.tokenizer()
    data = pipeline.prepare(tokenizer, functools.partial(output.note, quiet=quiet), live=not quiet)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    if dump is not None:
        count = look.dump(look.pieces(data), tokenizer, dump)
        output.note(f"{dump}: {count:,} samples", quiet=quiet)
    if preview is not None:
        found = look.some(data, preview)
        for piece in found:
            for line in look.terminal(piece, tokenizer, output.colour()):
                click.echo(line)
        html.write_text(look.page(found, tokenizer), encoding="utf-8")
        output.note(f"the same as a page: {html}", quiet=quiet)
    if not quiet:
        for line in lines(data):
            click.echo(line)
