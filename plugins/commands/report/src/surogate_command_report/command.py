"""``surogate report OUTPUT_DIR [OTHER ...]``: ``report.html`` in the first directory, and ``loss.png`` where a run left none."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("directories", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="OUTPUT_DIR [OTHER ...]")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def report(directories: tuple[Path, ...]) -> None:
    """Write OUTPUT_DIR/report.html: curves, phases, decisions, ledger, time, configuration and versions of a run, other runs laid
    over it. The page is one file, needs no network and loads nothing."""
    from surogate_command_report.page import write_page
    from surogate_command_report.read import read_run

    runs = [read_run(directory) for directory in dict.fromkeys(directories)]
    path = write_page(runs, directories[0] / "report.html")
    for run in runs:
        if not (run.directory / "loss.png").exists() and len(run.columns["step"]) > 1:
            from surogate_logger_console.curve import read_curve
            from surogate_logger_console.picture import write_picture

            write_picture(read_curve(run.directory / "metrics.jsonl", run.columns["step"][-1]), run.directory / "loss.png")
            click.echo(f"picture: {run.directory / 'loss.png'}", err=True)
    click.echo(path)
