"""Printing: rich on a terminal, plain lines when piped, no colours with NO_COLOR. Results to stdout, the rest to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

import click

from surogate_core.errors import Problem


def colour(stream: object = None) -> bool:
    """Whether to style what goes to ``stream`` (stdout)."""
    stream = sys.stdout if stream is None else stream
    return bool(getattr(stream, "isatty", bool)()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def note(text: str, *, quiet: bool = False) -> None:
    """A remark on stderr."""
    if not quiet:
        click.echo(text, err=True)


def problems(found: Sequence[Problem]) -> None:
    """Each problem on its lines what, where, how; a count where there are several."""
    for problem in found:
        what, *rest = problem.lines()
        mark = click.style("error:", fg="red", bold=True) if colour(sys.stderr) else "error:"
        click.echo(f"{mark} {what}", err=True)
        for line in rest:
            click.echo(line, err=True)
    if len(found) > 1:
        click.echo(f"{len(found)} problems", err=True)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on a terminal, aligned columns when piped."""
    body = [tuple(row) for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(*headers, box=None, pad_edge=False, header_style="bold")
        for row in body:
            drawn.add_row(*(Text(cell) for cell in row))
        Console(no_color=not colour(), highlight=False).print(drawn)
        return
    widths = [max(map(len, column)) for column in zip(headers, *body, strict=True)]
    for row in (tuple(headers), *body):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
