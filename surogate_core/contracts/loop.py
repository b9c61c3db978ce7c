"""The training loop: what makes a run of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attrs import frozen

if TYPE_CHECKING:
    from surogate_core.host import Host
    from surogate_core.plan import Plan


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


class Loop(Protocol):
    """Everything from a settled plan to a summary: data, model, steps, records, checkpoints."""

    def run(self, plan: Plan, host: Host, *, quiet: bool, fresh: bool, allow_drift: bool, started: float) -> Summary:
        """Train, continuing from the newest checkpoint unless ``fresh``. ``allow_drift`` continues although the configuration or a
        version differs; ``started`` is when the command began (``time.monotonic()``).

        Raises SurogateError; Interrupted after a signal, with a checkpoint saved."""
