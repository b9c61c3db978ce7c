"""The command `matrix`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
@click.option("--output", "target", type=click.Path(path_type=Path), metavar="FILE", help="Write to FILE instead of stdout.")
def matrix(target: Path | None) -> None:
    """Plan a run for each adapter, quantizer, recipe and kind of model that is installed; a Markdown page of what trains together,
    and of what is refused, with the reasons."""
    from surogate_command_matrix.matrix import page, plan_all
    from surogate_core.host import load_host

    host = load_host()
    text = page(*plan_all(host), host)
    if target:
        target.write_text(text, encoding="utf-8")
    else:
        click.echo(text, nl=False)
