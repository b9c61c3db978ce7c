"""The command ``surogate``: finds the command's module when it is used, and turns every error into lines and an exit code.

0 done · 1 the run failed · 2 config, plan or command line refused · 130 interrupted. A traceback appears only with ``--debug``.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from surogate_settings.nearest import did_you_mean

from surogate_core.cli import output
from surogate_core.errors import Problem, SurogateError

if TYPE_CHECKING:
    from surogate_core.offers import Offer

COMMANDS = {
    "run": ("surogate_core.cli.run:run", "Train as the configuration says."),
    "pt": ("surogate_core.cli.run:pt", "Train all weights on text (pretraining)."),
    "sft": ("surogate_core.cli.run:sft", "Fine-tune."),
    "validate": ("surogate_core.cli.inspect:validate", "Check a configuration; nothing is loaded."),
    "plugins": ("surogate_core.cli.inspect:plugins", "List the installed plugins and what they offer."),
}
EPILOG = 'Shell completion: eval "$(_SUROGATE_COMPLETE=bash_source surogate)" (or zsh_source, fish_source).'


class Surogate(click.Group):
    """Commands of the core and of plugins; a module is imported when its command is used."""

    def offered(self) -> dict[str, Offer]:
        from surogate_core.host import load_host

        offers = load_host(strict=False).offers("commands")
        return {name.replace("_", "-"): offer for name, offer in offers.items() if name not in COMMANDS}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(self.offered())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            module, _, name = COMMANDS[cmd_name][0].partition(":")
            return getattr(importlib.import_module(module), name)
        offer = self.offered().get(cmd_name.replace("_", "-"))
        return offer.load() if offer else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        command = self.get_command(ctx, args[0])
        if command is None:
            raise click.UsageError(f'there is no command "{args[0]}": {did_you_mean(args[0], self.list_commands(ctx))}', ctx)
        return args[0], command, args[1:]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, entries in (
            ("Commands", [(name, summary) for name, (_, summary) in COMMANDS.items()]),
            ("Commands of plugins", [(name, offer.summary) for name, offer in sorted(self.offered().items())]),
        ):
            if entries:
                with formatter.section(title):
                    formatter.write_dl(entries)

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        words = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in words
        try:
            result = super().main(words, prog_name or "surogate", **{**extra, "standalone_mode": False})
        except (Exception, KeyboardInterrupt) as error:
            sys.exit(report(error, debug))
        sys.exit(result if type(result) is int else 0)


def report(error: BaseException, debug: bool) -> int:
    """Print an error; returns the exit code."""
    if debug and not isinstance(error, click.ClickException | click.Abort):
        traceback.print_exception(error)
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    if isinstance(error, SurogateError):
        output.problems(error.problems)
        code = error.exit_code
    else:
        text = str(error).strip().splitlines()
        how = "" if debug else "run again with --debug to see where it happened"
        output.problems([Problem(f"{type(error).__name__}: {text[0]}" if text else type(error).__name__, how=how)])
        code = 1
    for remark in getattr(error, "__notes__", ()):
        click.echo(f"  note: {remark}", err=True)
    return code


def version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from surogate_core import __version__

        click.echo(f"surogate {__version__}")
        ctx.exit()


@click.command(
    "surogate", cls=Surogate, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=version, help="Show the version.")
def main() -> None:
    """Train language models from one config file, with every feature a plugin."""
