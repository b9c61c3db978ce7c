"""`surogate tokenize`: the data phase of a run, ahead of it. Of the model only the tokenizer is read."""

from __future__ import annotations

import functools
from pathlib import Path

import click

from surogate_core.cli import output
from surogate_core.cli.run import PASS_KEYS, config_arguments, overrides


@click.command(context_settings=PASS_KEYS)
@config_arguments
@click.option("--quiet", is_flag=True, help="Print problems only.")
def tokenize(config: Path, words: tuple[str, ...], quiet: bool) -> None:
    """Tokenise the data of CONFIG into the cache, where a run finds them, and show what became of them.

    Of `model` only the tokenizer is needed.
    """
    from surogate_core.config import load
    from surogate_core.contracts import Context, PipelineContext
    from surogate_core.errors import ConfigError
    from surogate_core.host import load_host
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
    data = pipeline.prepare(source.tokenizer(), functools.partial(output.note, quiet=quiet), live=not quiet)
    if not quiet:
        for line in lines(data):
            click.echo(line)
