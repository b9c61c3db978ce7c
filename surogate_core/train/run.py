"""One run from a configuration to its last checkpoint: what ``surogate run`` and ``surogate_core.run`` do."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surogate_core.config import Config, load
from surogate_core.contracts import Summary
from surogate_core.host import Host, load_host


def run(config: str | Path | Mapping[str, Any], **overrides: Any) -> Summary:
    """Train as ``surogate run`` does. See :func:`surogate_core.run`."""
    host = load_host()
    source = config if isinstance(config, Mapping) else Path(config)
    return execute(load(source, host, list(overrides.items())), host)


def execute(
    config: Config, host: Host, *, quiet: bool = False, fresh: bool = False, allow_drift: bool = False, started: float | None = None
) -> Summary:
    """Plan, then hand over to the training loop. ``started`` (``time.monotonic()``) is when the command began."""
    from surogate_core.plan import make_plan

    started = started or time.monotonic()
    plan = make_plan(config, host)
    try:
        return plan.loop.run(plan, host, quiet=quiet, fresh=fresh, allow_drift=allow_drift, started=started)
    except Exception as error:
        host.blame(error)
        raise


def resume_command(config: Config) -> str:
    """The command that continues this run, ready to paste."""
    task = config.origins["task"]
    command = task.removeprefix("preset ") if task.startswith("preset ") else "run"
    pairs = zip(config.arguments[::2], config.arguments[1::2], strict=True)
    words = [word for pair in pairs if pair[0] != "--resume-from-checkpoint" for word in pair]
    return shlex.join(["surogate", command, str(config.path or "config.toml"), *words])
