"""The commands ``eval``, ``generate`` and ``merge``. Only click is imported here; the work is in ``serve.py`` and ``merge.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

PATH = click.Path(path_type=Path)
DTYPE = click.Choice(["fp32", "bf16"])
Dtype = Literal["fp32", "bf16"]


@click.command("eval")
@click.argument("config", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--checkpoint", type=PATH, help="Checkpoint directory. Default: the newest of the run, or the model itself.")
def eval_command(config: Path, checkpoint: Path | None) -> None:
    """Loss, perplexity and tokens of the validation data of CONFIG. Changes nothing on disk."""
    from surogate_adapter_lora.serve import evaluate_config

    result, source = evaluate_config(config, checkpoint, lambda text: click.echo(text, err=True))
    click.echo(f"model       {source}")
    click.echo(f"loss        {result.loss:.4f}")
    click.echo(f"perplexity  {result.perplexity:.2f}")
    click.echo(f"tokens      {result.tokens}")


@click.command("generate")
@click.argument("model")
@click.option("--prompt", required=True, multiple=True, help="Text to continue. May be given several times.")
@click.option("--adapter", type=PATH, help="Directory of a LoRA adapter to put on MODEL.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--chat", is_flag=True, help="The prompt is a user's message, rendered by the chat template.")
@click.option("--seed", type=click.IntRange(min=0), default=1234, show_default=True, help="Seed of sampling.")
@click.option("--dtype", type=DTYPE, help="Default: bf16 on a GPU, else fp32.")
def generate_command(
    model: str,
    prompt: tuple[str, ...],
    adapter: Path | None,
    max_new_tokens: int,
    temperature: float,
    chat: bool,
    seed: int,
    dtype: Dtype | None,
) -> None:
    """Continue text with MODEL: a model directory or repository, an adapter, a checkpoint, or the config file of a run."""
    from surogate_adapter_lora.serve import generate, open_model

    opened = open_model(model, adapter, dtype)
    for text in prompt:
        click.echo(generate(opened, text, max_new_tokens=max_new_tokens, temperature=temperature, chat=chat, seed=seed))


@click.command("merge")
@click.option("--base", help="Directory or repository of the base model. Default: the one that the adapter names.")
@click.option("--adapter", type=PATH, required=True, help="Directory of the LoRA adapter, or a checkpoint that holds one.")
@click.option("--output", type=PATH, required=True, help="Directory to write; it must not exist.")
@click.option("--dtype", type=DTYPE, help="Precision of the written weights. Default: bf16 if the base is bfloat16, else fp32.")
@click.option("--force", is_flag=True, help="Replace an existing output directory.")
def merge_command(base: str | None, adapter: Path, output: Path, dtype: Dtype | None, force: bool) -> None:
    """Add a LoRA adapter to its base model and write a plain model."""
    from surogate_adapter_lora.merge import merge

    merge(base, adapter, output, dtype, force=force)
    click.echo(f"wrote {output}")
