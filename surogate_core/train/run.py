"""One run from a configuration to its last checkpoint: what ``surogate run`` and ``surogate_core.run`` do."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from surogate_core.config import Config, load
from surogate_core.errors import Interrupted
from surogate_core.host import Host, load_host


@frozen(kw_only=True)
class Summary:
    """How a run ended. Losses are means per token in nats; ``tokens`` counts the whole run. Of this process alone: ``seconds``, the
    time split; ``first_step``, the seconds from the command to the end of its first step; ``tokens_per_s``."""

    steps: int
    total_steps: int
    loss: float | None
    eval_loss: float | None
    best_loss: float | None
    best_step: int | None
    tokens: int
    tokens_per_s: float
    output_dir: Path
    checkpoint: Path | None
    seconds: Mapping[str, float]
    first_step: float | None
    stopped: str | None = None


def run(config: str | Path | Mapping[str, Any], **overrides: Any) -> Summary:
    """Train as ``surogate run`` does. See :func:`surogate_core.run`."""
    host = load_host()
    source = config if isinstance(config, Mapping) else Path(config)
    return execute(load(source, host, list(overrides.items())), host)


def execute(
    config: Config, host: Host, *, quiet: bool = False, fresh: bool = False, allow_drift: bool = False, started: float | None = None
) -> Summary:
    """Plan, prepare the data, load, train, save. ``started`` (``time.monotonic()``) is when the command began."""
    from surogate_core.plan import make_plan
    from surogate_core.train.lock import OutputLock
    from surogate_core.train.session import Session
    from surogate_core.train.signals import StopRequest

    started = started or time.monotonic()
    output_dir = Path(config.core.output_dir)
    checkpoint_dir = Path(config.core.checkpoint_dir or output_dir)
    plan = make_plan(config, host)
    say = (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr, flush=True))
    with OutputLock(output_dir, checkpoint_dir), StopRequest(say, output_dir) as stop:
        session = Session(plan, host, output_dir, checkpoint_dir, stop, quiet=quiet, started=started)
        try:
            summary = session.run(fresh=fresh, allow_drift=allow_drift)
        finally:
            session.close()
    if stop.requested:
        raise Interrupted(
            f"stopped by {stop.requested} after step {summary.steps} of {summary.total_steps}; "
            + (f"saved as {summary.checkpoint}" if summary.checkpoint else "nothing was saved yet"),
            where=str(output_dir),
            how=f"continue with: {resume_command(config)}",
        )
    return summary


def resume_command(config: Config) -> str:
    """The command that continues this run, ready to paste."""
    task = config.origins["task"]
    command = task.removeprefix("preset ") if task.startswith("preset ") else "run"
    pairs = zip(config.arguments[::2], config.arguments[1::2], strict=True)
    words = [word for pair in pairs if pair[0] != "--resume-from-checkpoint" for word in pair]
    return shlex.join(["surogate", command, str(config.path or "config.toml"), *words])
