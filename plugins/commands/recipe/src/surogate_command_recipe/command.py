"""The command `recipe`: `recipe report`."""

from __future__ import annotations

from pathlib import Path

import click

from surogate_core.cli import output
from surogate_core.cli.run import PASS_KEYS, config_arguments, overrides
from surogate_core.errors import RunFailed
from surogate_core.offers import normal_name


@click.group()
def recipe() -> None:
    """Ask a precision recipe how far it is from bf16 before trusting a run to it."""


@recipe.command(context_settings=PASS_KEYS)
@config_arguments
@click.option("--steps", default=10, show_default=True, type=click.IntRange(1), help="Steps of both trainings.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where report.json and report.png go.  [default: recipe-report in output_dir]"
)
def report(config: Path, words: tuple[str, ...], steps: int, out: Path | None) -> None:
    """Train CONFIG for a few steps with its recipe and with plain products in model_dtype, on the same rows from the same weights,
    and compare: losses, time and memory; then, on the next micro-batch, every layer and each rounded operand.

    Ends with 1 where the recipe is further away than the bounds that it declares. Nothing is trained that is kept.
    """
    from surogate_core.config import load
    from surogate_core.host import load_host

    host = load_host()
    loaded = load(config, host, [*overrides(words), ("recompute", "false"), ("compile", "false")])
    from surogate_command_recipe.measure import measure
    from surogate_command_recipe.show import rows, summary, write

    found = measure(loaded, host, steps, output.note)
    target = out or Path(loaded.core.output_dir) / "recipe-report"
    write(found, target)
    output.table(*rows(found))
    for line in summary(found):
        click.echo(line)
    click.echo(f"written: {target / 'report.json'}, {target / 'report.png'}")
    if past := found.past():
        raise RunFailed(
            f"{normal_name(found.recipe)} is past its declared bounds: {'; '.join(past)}",
            where=str(config),
            how='leave layers out with skip_quant_first_layers and skip_quant_last_layers, or set recipe = "bf16"',
        )
