"""The commands that train: ``run``, ``pt``, ``sft``. Any key of the configuration can be given on the command line."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

FLAGS = ("--quiet", "--debug", "--fresh", "--allow-drift", "--help")
PASS_KEYS = {"ignore_unknown_options": True, "allow_interspersed_args": True, "help_option_names": ["-h", "--help"]}


def overrides(words: Sequence[str]) -> list[tuple[str, str]]:
    """``--learning-rate 1e-4``, ``--learning-rate=1e-4`` and ``learning_rate=1e-4`` → (key, text) pairs.

    Raises click.UsageError for a word that is none of them.
    """
    from surogate_settings.nearest import nearest

    pairs = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not key or (word.startswith("-") and not word.startswith("--")):
            raise click.UsageError(f"{word!r} is not understood: write --key value or key=value")
        if not equals:
            if not word.startswith("--"):
                raise click.UsageError(f"{word!r} is not understood: write --key value or key=value")
            if not queue or (queue[0].startswith("--")):
                near = nearest(word, FLAGS)
                hint = f"; did you mean {' or '.join(near)}?" if near else f": write {word} VALUE, for example {word} true"
                raise click.UsageError(f"{word} has no value{hint}")
            value = queue.pop(0)
        pairs.append((key, value))
    return pairs


def config_arguments(command: Callable[..., None]) -> Callable[..., None]:
    """CONFIG, overrides of its keys, and ``--debug``."""
    command = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")(command)
    command = click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[--KEY VALUE | KEY=VALUE]...")(command)
    return click.argument("config", type=click.Path(path_type=Path), metavar="CONFIG")(command)


def train(config: Path, words: Sequence[str], preset: dict[str, Any] | None, quiet: bool, fresh: bool, allow_drift: bool) -> None:
    started = time.monotonic()
    from surogate_core.config import load
    from surogate_core.host import load_host

    host = load_host()
    loaded = load(config, host, overrides(words), preset)
    from surogate_core.train.run import execute

    execute(loaded, host, quiet=quiet, fresh=fresh, allow_drift=allow_drift, started=started)


def training_command(name: str, text: str, preset: dict[str, Any] | None) -> click.Command:
    def command(config: Path, words: tuple[str, ...], quiet: bool, fresh: bool, allow_drift: bool) -> None:
        train(config, words, preset, quiet, fresh, allow_drift)

    command.__doc__ = text
    for option, help_text in (
        ("--allow-drift", "Continue although the configuration or a version has changed."),
        ("--fresh", "Start over; nothing is deleted."),
        ("--quiet", "Print notices, decisions and errors only, on stderr."),
    ):
        command = click.option(option, is_flag=True, help=help_text)(command)
    return click.command(name, context_settings=PASS_KEYS)(config_arguments(command))


KEYS = "\n\nKeys of the configuration can be given as `--learning-rate 1e-4`, `--datasets.0.samples 500` or `max_steps=10`."
run = training_command("run", "Train as CONFIG says: pretraining, fine-tuning or an adapter." + KEYS, None)
pt = training_command("pt", 'Train all weights on text data sets: `run` with `task = "pt"`.' + KEYS, {"task": "pt"})
sft = training_command("sft", 'Fine-tune: `run` with `task = "sft"`.' + KEYS, {"task": "sft"})
