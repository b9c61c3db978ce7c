"""The offer itself: locks the directories, listens to signals, and runs a :class:`Session`."""

from __future__ import annotations

import sys
from pathlib import Path

from surogate_core.contracts import Context, Summary
from surogate_core.errors import Interrupted
from surogate_core.host import Host
from surogate_core.plan import Plan
from surogate_core.train.run import resume_command
from surogate_loop_standard.lock import OutputLock
from surogate_loop_standard.session import Session
from surogate_loop_standard.signals import StopRequest


class Standard:
    """See :class:`surogate_core.contracts.Loop`."""

    def run(self, plan: Plan, host: Host, *, quiet: bool, fresh: bool, allow_drift: bool, started: float) -> Summary:
        core = plan.config.core
        output_dir = Path(core.output_dir)
        checkpoint_dir = Path(core.checkpoint_dir or output_dir)
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
                how=f"continue with: {resume_command(plan.config)}",
            )
        return summary


def build(options: None, context: Context) -> Standard:
    return Standard()
