"""The logger: curves as Aim's metrics, one for each name; settings as attributes of the run; events as its log records.

Aim is imported, and its repository opened, when the ``run`` record comes, in the thread that feeds this logger: a new one takes
seconds. Only then is the run's hash known; a checkpoint that is saved earlier waits for it.
"""

from __future__ import annotations

import json
import logging
import shlex
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surogate_core.contracts import LoggerContext
from surogate_core.curves import curves
from surogate_logger_aim.plugin import Options

OPENING = 30.0
"""Seconds that the first checkpoint waits for the hash of a run whose repository is still being made."""
TOGETHER = 2.0
"""Seconds between two times that curves are handed to Aim. Those of several steps together take less time than one by one, when all
that Aim needs has left the caches, and while Aim computes, the training waits for the interpreter."""


def build(options: Options, context: LoggerContext) -> AimRun | None:
    if "aim" not in (context.config.report_to or ()):
        if options.aim_experiment or options.aim_repo or options.aim_name:
            context.notice('aim_experiment, aim_repo and aim_name have no effect: report_to does not name "aim"')
        return None
    return AimRun(options, context)


class AimRun:
    def __init__(self, options: Options, context: LoggerContext):
        given = options.aim_repo or ""
        self.repo = given if "://" in given else str(_local(given))
        self.hash: str | None = context.state.get("run_hash")
        self._options, self._context = options, context
        self._opened = threading.Event()
        self._run: Any = None
        self._text: Any = None
        self._early: list[Mapping[str, Any]] = []
        self._held: list[tuple[int | None, Mapping[str, Any]]] = []
        self._handed = float("-inf")
        look = f"; see it with: aim up --repo {shlex.quote(self.repo)}" if "://" not in self.repo else ""
        context.notice(f"aim: the run goes to {self.repo}{look}")

    def state(self) -> dict[str, Any]:
        self._opened.wait(OPENING)
        return {"run_hash": self.hash} if self.hash else {}

    def log(self, record: Mapping[str, Any]) -> None:
        """Raises what Aim raises when the repository cannot be opened or written."""
        kind = record.get("kind")
        if kind == "run":
            try:
                self._open(record)
            finally:
                self._opened.set()
        if self._run is None:
            self._early.append(record)
            return
        if found := curves(record):
            self._held.append((record.get("step"), found))
            if time.monotonic() - self._handed >= TOGETHER:
                self._hand_over()
            return
        self._hand_over()
        if kind in ("ledger", "end"):
            self._run[kind] = dict(record)
        elif kind != "run":
            self._run.log_info(json.dumps(record))

    def close(self) -> None:
        self._opened.set()
        if self._run is not None:
            self._hand_over()
            self._run.close()
            self._run = None

    def _hand_over(self) -> None:
        held, self._held = self._held, []
        for step, found in held:
            for name, value in found.items():
                self._run.track(self._text(value) if isinstance(value, str) else value, name=name, step=step)
        self._handed = time.monotonic()

    def _open(self, record: Mapping[str, Any]) -> None:
        import aim

        self._text = aim.Text
        settings: dict[str, Any] = {
            "repo": self.repo,
            "experiment": self._options.aim_experiment,
            "system_tracking_interval": None,
            "capture_terminal_logs": False,  # the lines of the terminal come as records
        }
        if self.hash:
            self._run = self._continued(aim, settings)
        if self._run is None:
            self._run = aim.Run(**settings)
        self.hash = self._run.hash
        self._run.name = self._options.aim_name or self._context.run_name
        self._run["hparams"] = dict(record.get("config", {}))
        self._run["run"] = {key: value for key, value in record.items() if key != "config"}
        early, self._early = self._early, []
        for one in early:
            self.log(one)

    def _continued(self, aim: Any, settings: dict[str, Any]) -> Any:
        """The run that the checkpoint belongs to, None if this repository does not have it. A process that was killed leaves the
        run locked; the lock is broken without Aim's warning, for the output directory has one process at a time."""
        from aim.sdk.errors import MissingRunError

        warns = logging.getLogger("aim.sdk.lock_manager")
        before, warns.disabled = warns.disabled, True
        try:
            return aim.Run(run_hash=self.hash, force_resume=True, **settings)
        except MissingRunError:
            self._context.notice(f"aim: {self.repo} has no run {self.hash}; what is left of the run becomes a new one there")
            return None
        finally:
            warns.disabled = before


def _local(given: str) -> Path:
    """The directory that holds ``.aim``, as Aim itself looks for it."""
    if given:
        path = Path(given).expanduser().absolute()
        return path.parent if path.name == ".aim" else path
    here = Path.cwd()
    return next((path for path in (here, *here.parents) if (path / ".aim").is_dir()), here)
