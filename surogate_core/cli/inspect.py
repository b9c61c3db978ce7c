"""The commands that look and change nothing: ``validate``, ``plan``, ``explain``, ``plugins``."""

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


@click.command(context_settings=PASS_KEYS)
@config_arguments
def plan(config: Path, words: tuple[str, ...]) -> None:
    """Show what a run of CONFIG would build: sites, owners, parameters, memory, steps. No weight is read."""
    from surogate_core.config import load
    from surogate_core.host import load_host

    host = load_host()
    loaded = load(config, host, overrides(words))
    from surogate_core.plan import make_plan

    click.echo(make_plan(loaded, host).render())


@click.command(context_settings=PASS_KEYS)
@debug
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[CONFIG] [KEY] [--KEY VALUE]...")
def explain(words: tuple[str, ...]) -> None:
    """Show each key of CONFIG, or KEY alone: value, where it came from, whose it is and what it means.

    Without CONFIG, the keys of this installation with their defaults.
    """
    from surogate_core.config import load
    from surogate_core.config.explain import rows
    from surogate_core.host import load_host

    left = list(words)
    is_file = bool(left) and (left[0].lower().endswith((".toml", ".yaml", ".yml")) or Path(left[0]).is_file())
    path = Path(left.pop(0)) if is_file else None
    key = left.pop(0) if left and not left[0].startswith("-") and "=" not in left[0] else None
    if left and path is None:
        raise click.UsageError(f"{left[0]!r} needs a CONFIG before it")
    host = load_host()
    loaded = load(path, host, overrides(left), need_data=False) if path else None
    found = rows(host, loaded, key)
    if key:
        for row in found:
            origin = f" ({row.origin})" if row.origin else ""
            click.echo(f"{row.key} = {row.value}{origin}\n  owner: {row.owner or 'none'}\n  wants: {row.wanted}\n  {row.doc}")
        return
    headers = ("key", "value", "origin", "owner") if loaded else ("key", "default", "owner", "meaning")
    output.table(headers, ((r.key, r.value, r.origin, r.owner) if loaded else (r.key, r.value, r.owner, r.doc) for r in found))


@click.command()
@debug
def plugins() -> None:
    """List installed plugins: distribution, version, and what each offers. Broken ones with the reason."""
    from surogate_core.host import load_host

    host = load_host(strict=False)
    lines = []
    for plugin in host.plugins:
        offers = [(kind, offer.name, offer.summary) for kind, offer in plugin.offers] or [("hooks only", "", "")]
        lines += [(plugin.owner.distribution, plugin.owner.version, *offer) for offer in offers]
    output.table(("distribution", "version", "kind", "offer", "summary"), lines)
    for broken in host.broken:
        click.echo(f"broken: {broken.owner} ({broken.name}): {broken.error}")
    for problem in host.collisions:
        click.echo("collision: " + "\n".join(problem.lines()))
