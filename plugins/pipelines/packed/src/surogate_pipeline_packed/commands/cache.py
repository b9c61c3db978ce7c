"""`surogate cache`: what is kept of tokenised data, and how to be rid of it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import click

from surogate_core.cli import output

UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Age(click.ParamType):
    """``30d`` → seconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", str(value))
        if not found:
            self.fail(f"{value!r} is no age: write 90m, 12h, 30d or 2w", param, ctx)
        return float(found[1]) * UNITS[found[2]]


@click.command()
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
@click.option("--cache-dir", type=click.Path(path_type=Path), help="The cache, if it is not the usual one.")
@click.option("--clean", is_flag=True, help="Remove all entries, or those that --older-than names.")
@click.option("--older-than", type=Age(), metavar="AGE", help="Only entries not used for so long: 90m, 12h, 30d, 2w.")
def cache(cache_dir: Path | None, clean: bool, older_than: float | None) -> None:
    """List the tokenised data sets that are kept, the one used last first; or remove them.

    A removed entry is made again by the next run that needs it; a run that reads it goes on.
    """
    from surogate_pipeline_packed.cache import directory, listed, remove

    root = directory(str(cache_dir) if cache_dir else None)
    now = time.time()
    entries = [entry for entry in listed(root) if older_than is None or now - entry.used > older_than]
    if not clean:
        headers = ("key", "size", "used", "rows", "tokens", "type", "path", "tokenizer")
        output.table(
            headers,
            (
                (
                    entry.key[:12],
                    size(entry.size),
                    f"{age(now - entry.used)} ago",
                    f"{entry.rows:,}" if entry.rows is not None else "incomplete",
                    f"{entry.tokens:,}" if entry.tokens is not None else "",
                    *(str(entry.label.get(name, "")) for name in ("type", "path", "tokenizer")),
                )
                for entry in entries
            ),
        )
        click.echo(f"{root}: {len(entries)} data sets, {size(sum(entry.size for entry in entries))}")
        return
    gone = []
    for entry in entries:
        if remove(root, entry):
            gone.append(entry)
        else:
            output.note(f"{entry.key[:12]} {entry.label.get('path', '')}: kept, a process is writing it")
    click.echo(f"{root}: removed {len(gone)} data sets, {size(sum(entry.size for entry in gone))}")


def size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def age(seconds: float) -> str:
    for unit in ("w", "d", "h", "m"):
        if seconds >= UNITS[unit]:
            return f"{seconds / UNITS[unit]:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"
