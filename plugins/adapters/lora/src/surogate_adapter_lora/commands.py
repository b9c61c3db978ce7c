"""The commands ``eval``, ``generate``, ``merge`` and ``export``. Only click is imported here; the work is in ``serve.py``,
``merge.py`` and ``export.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

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
@click.option(
    "--adapter",
    type=PATH,
    multiple=True,
    help="Directory of a LoRA adapter to put on MODEL. Several are used one after the other.",
)
@click.option("--stack", is_flag=True, help="All adapters at once, instead of one after the other.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--chat", is_flag=True, help="The prompt is a user's message, rendered by the chat template.")
@click.option("--seed", type=click.IntRange(min=0), default=1234, show_default=True, help="Seed of sampling.")
@click.option("--dtype", type=DTYPE, help="Default: bf16 on a GPU, else fp32.")
def generate_command(
    model: str,
    prompt: tuple[str, ...],
    adapter: tuple[Path, ...],
    stack: bool,
    max_new_tokens: int,
    temperature: float,
    chat: bool,
    seed: int,
    dtype: Dtype | None,
) -> None:
    """Continue text with MODEL: a model directory or repository, an adapter, a checkpoint, or the config file of a run. What a
    run's output gives is also kept in that run's generations.jsonl, for `surogate report`."""
    from surogate_adapter_lora.serve import generate, open_model, run_of

    opened = open_model(model, adapter, dtype)
    numbers = range(len(opened.adapters))
    uses = [tuple(numbers)] if stack or not numbers else [(number,) for number in numbers]
    settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "chat": chat, "seed": seed}
    run = run_of(model)
    for text in prompt:
        for use in uses:
            opened.use(*use)
            if len(uses) > 1:
                click.echo(f"[{opened.adapters[use[0]][0]}]")
            made = generate(opened, text, **settings)
            click.echo(made)
            if run:
                used = [str(opened.adapters[number][0]) for number in use]
                keep(run[0], {"checkpoint": run[1].name, "adapters": used, "prompt": text, "text": made, **settings})


def keep(directory: Path, record: dict[str, Any]) -> None:
    """Append to the generations of a run. A directory that cannot be written is told and no error."""
    path = directory / "generations.jsonl"
    try:
        with path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")
    except OSError as error:
        click.echo(f"not kept in {path}: {error.strerror}", err=True)


@click.command("merge")
@click.option("--base", help="Directory or repository of the base model. Default: the one that the adapter names.")
@click.option(
    "--adapter", type=PATH, required=True, multiple=True, help="Directory of a LoRA adapter, or a checkpoint that holds one."
)
@click.option("--weight", type=float, multiple=True, help="Factor of each --adapter, in their order. Default: 1.")
@click.option(
    "--combine",
    type=click.Choice(["cat", "linear"]),
    default="cat",
    show_default=True,
    help="Several adapters: their exact sum, or PEFT's linear mixture of their matrices.",
)
@click.option("--as-adapter", is_flag=True, help="Write one adapter (with cat: of all ranks together) instead of a model.")
@click.option("--output", type=PATH, required=True, help="Directory to write; it must not exist.")
@click.option("--dtype", type=DTYPE, help="Precision of the written weights. Default: bf16 if the base is bfloat16, else fp32.")
@click.option("--force", is_flag=True, help="Replace an existing output directory.")
def merge_command(
    base: str | None,
    adapter: tuple[Path, ...],
    weight: tuple[float, ...],
    combine: Literal["cat", "linear"],
    as_adapter: bool,
    output: Path,
    dtype: Dtype | None,
    force: bool,
) -> None:
    """Add LoRA adapters to their base model and write a plain model."""
    from surogate_adapter_lora.merge import merge

    merge(base, adapter, output, dtype, weights=weight, combine=combine, as_adapter=as_adapter, force=force)
    click.echo(f"wrote {output}")


@click.command("export")
@click.argument("source")
@click.option("--output", type=PATH, required=True, help="Directory to write; it must not exist.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["peft", "full", "bitsandbytes"]),
    help="Default: peft for an adapter, full weights for a model. bitsandbytes: full weights in NF4.",
)
@click.option("--dtype", type=DTYPE, help="Precision of full weights. Default: bf16 if the base is bfloat16, else fp32.")
@click.option("--shard-size", default="5GB", show_default=True, help="Largest file of full weights.")
@click.option("--force", is_flag=True, help="Replace an existing output directory.")
def export_command(
    source: str,
    output: Path,
    form: Literal["peft", "full", "bitsandbytes"] | None,
    dtype: Dtype | None,
    shard_size: str,
    force: bool,
) -> None:
    """Write what SOURCE has trained for other programs: a run, its config file, a checkpoint, an adapter or a model."""
    from surogate_adapter_lora.export import export

    wrote = export(source, output, form, dtype, shard_size=shard_size, force=force)
    click.echo(f"wrote {output} ({wrote})")
