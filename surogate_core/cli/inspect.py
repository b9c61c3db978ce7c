"""The commands that look and change nothing: ``validate``, ``plugins``."""

from __future__ import annotations

from pathlib import Path

import click

from surogate_core.cli import output
from surogate_core.cli.run import PASS_KEYS, config_arguments, overrides

debug = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")


@click.command(context_settings=PASS_KEYS)
@config_arguments
def validate(config: Path, words: tuple[str, ...]) -> None:
    """Check CONFIG as `run` would: every key, type, bound and name. The model and the data are not read."""
    from surogate_core.config import load
    from surogate_core.host import load_host

    loaded = load(config, load_host(), overrides(words))
    for text in loaded.notices:
        output.note(f"notice: {text}")
    core = loaded.core
    what = f"{core.recipe}, {core.adapter if core.lora else 'all weights'}, {core.optimizer}"
    click.echo(f'{config}: valid; task = "{core.task}" ({loaded.origins["task"]}): {what}')


@click.command()
@debug
@click.option("--matrix", is_flag=True, help="What goes together instead: adapters, quantizers, recipes and models.")
def plugins(matrix: bool) -> None:
    """List installed plugins: distribution, version, and what each offers. Broken ones with the reason."""
    from surogate_core.host import load_host

    host = load_host(strict=False)
    if matrix:
        return click.get_current_context().invoke(host.offer("commands", "matrix").load())
    lines = []
    for plugin in host.plugins:
        offers = [(kind, offer.name, offer.summary) for kind, offer in plugin.offers] or [("hooks only", "", "")]
        lines += [(plugin.owner.distribution, plugin.owner.version, *offer) for offer in offers]
    output.table(("distribution", "version", "kind", "offer", "summary"), lines)
    for broken in host.broken:
        click.echo(f"broken: {broken.owner} ({broken.name}): {broken.error}")
    for problem in host.collisions:
        click.echo("collision: " + "\n".join(problem.lines()))
