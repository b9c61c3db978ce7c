"""The command `explain`."""

from __future__ import annotations

from pathlib import Path

import click

from surogate_core.cli import output
from surogate_core.cli.run import PASS_KEYS, overrides


@click.command(context_settings=PASS_KEYS)
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[CONFIG] [KEY] [--KEY VALUE]...")
def explain(words: tuple[str, ...]) -> None:
    """Show each key of CONFIG, or KEY alone: value, where it came from, whose it is, what reads it and what it means.

    Without CONFIG, the keys of this installation with their defaults.
    """
    from surogate_command_explain.rows import rows
    from surogate_core.config import load
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
            whose = f"owner: {row.owner or 'none'}" + (f"\n  consumer: {row.consumer}" if row.consumer else "")
            click.echo(f"{row.key} = {row.value}{origin}\n  {whose}\n  wants: {row.wanted}\n  {row.doc}")
        return
    if loaded:
        lines = ((r.key, r.value, r.origin, r.owner, r.consumer) for r in found)
        output.table(("key", "value", "origin", "owner", "consumer"), lines)
    else:
        output.table(("key", "default", "owner", "meaning"), ((r.key, r.value, r.owner, r.doc) for r in found))
