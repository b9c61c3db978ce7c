"""The command `schema`."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
@click.option("--output", "target", type=click.Path(path_type=Path), metavar="FILE", help="Write to FILE instead of stdout.")
@click.option("--markdown", is_flag=True, help="The reference of all keys as a page, instead of JSON Schema.")
def schema(target: Path | None, markdown: bool) -> None:
    """Print the JSON Schema (draft 2020-12) of a configuration for this installation, for editors."""
    from surogate_command_schema import schema as describe
    from surogate_core.host import load_host

    host = load_host()
    text = describe.markdown(host) if markdown else json.dumps(describe.json_schema(host), indent=2) + "\n"
    if target:
        target.write_text(text, encoding="utf-8")
    else:
        click.echo(text, nl=False)
