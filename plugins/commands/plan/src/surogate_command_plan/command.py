"""The command ``plan``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from surogate_core.cli import output
from surogate_core.cli.run import PASS_KEYS, config_arguments, overrides

if TYPE_CHECKING:
    from surogate_command_plan.fit import Method
    from surogate_core.plan import Plan


@click.command(context_settings=PASS_KEYS)
@click.option(
    "--fit",
    metavar="SIZE",
    help="Memory of a GPU, like 24GB: which ways to train fit it. CONFIG may be a model's name or directory.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Plan for this kind of device, which need not be here.")
@config_arguments
def plan(config: Path, words: tuple[str, ...], fit: str | None, device: str | None) -> None:
    """Show what a run of CONFIG would build: sites, owners, parameters, steps, and the memory of a step by buffer.

    No weight is read. Where the peak is larger than the device's memory the plan is refused (exit code 2), with the cheapest
    changes that would fit.
    """
    from surogate_core.host import load_host

    host, given = load_host(), overrides(words)
    is_file = config.suffix.lower() in (".toml", ".yaml", ".yml") or config.is_file()
    if fit is not None:
        _fit(config if is_file else {"model": str(config)}, host, given, fit)
        return
    from surogate_command_plan.fit import too_large
    from surogate_command_plan.rehearse import rehearse
    from surogate_command_plan.show import bytes_of, memory_lines
    from surogate_core.config import load
    from surogate_core.plan import make_plan

    loaded = load(config, host, given)
    made = make_plan(loaded, host, device)
    click.echo(made.render())
    memory = rehearse(made, made.device)
    if memory is None:
        return
    click.echo("\n".join(memory_lines(memory.phases, _layers(made))))
    click.echo(f"the most that a step takes is planned as {bytes_of(memory.total)}")
    if made.device == "cuda":
        click.echo("attention on the GPU is counted as torch's plain one, and 0.6 GB for the CUDA context: an upper bound")
    size = memory_of(made.device)
    if size and memory.total > size:
        raise too_large(loaded, config, host, given, memory, size, made.device)


def memory_of(device: str) -> float:
    """Bytes of the device, 0 where that is not known."""
    import os

    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return 0.0
    if device == "cuda":
        return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # not on this system
        return 0.0


def _layers(plan: Plan) -> int:
    return 1 + max((site.layer for site in plan.sites if site.layer is not None), default=-1)


def _fit(source: Path | dict[str, Any], host: Any, given: list[tuple[str, Any]], fit: str) -> None:
    from surogate_command_plan.fit import compare, planned, size_of, too_large
    from surogate_command_plan.show import bytes_of
    from surogate_core.config import load

    size = size_of(fit)
    config = load(source, host, given, need_data=False)
    core = config.core
    click.echo(
        f"{core.model} on {bytes_of(size)}: {core.per_device_train_batch_size} rows of {core.sequence_len}, {core.optimizer}, "
        f"{core.model_dtype}"
    )
    found = compare(source, host, given, size)
    output.table(("method", "planned", "fits", ""), (_row(method, size, number == 0) for number, method in enumerate(found)))
    if found[0].fits(size):
        click.echo("recommended:\n" + "\n".join(f"  {line}" for line in _lines(found[0])))
    if isinstance(source, Path) and (peak := planned(source, host, given, "cuda")).total > size:
        raise too_large(config, source, host, given, peak, size, "cuda")
    if not found[0].fits(size):
        smallest = min((m for m in found if m.peak), key=lambda m: m.peak.total if m.peak else 0)
        keys = [*given, *smallest.keys.items()]
        assert smallest.peak is not None
        raise too_large(load(source, host, keys, need_data=False), source, host, keys, smallest.peak, size, "cuda")


def _row(method: Method, size: float, first: bool) -> tuple[str, ...]:
    from surogate_command_plan.show import bytes_of

    if method.peak is None:
        return method.name, "", "", method.why
    fits = method.fits(size)
    return method.name, bytes_of(method.peak.total), "yes" if fits else "no", "recommended" if first and fits else ""


def _lines(method: Method) -> list[str]:
    """The lines of a config that set the method: formats where they are on."""
    from surogate_command_plan.fit import lines_of

    return lines_of({key: value for key, value in method.keys.items() if value or key in ("lora", "recompute")})
