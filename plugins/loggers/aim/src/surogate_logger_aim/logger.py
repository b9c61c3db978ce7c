"""The logger: curves as Aim's metrics, one for each name; settings as attributes of the run; events as its log records.

Another process has Aim's repository open (``worker.py``). It is started when the ``run`` record comes, in the thread that feeds
this logger: importing Aim and making a repository take seconds. Only then is the run's hash known; a checkpoint that is saved
earlier waits for it.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surogate_core.contracts import LoggerContext
from surogate_core.curves import curves
from surogate_logger_aim.plugin import Options
from surogate_logger_aim.worker import SIZE

OPENING = 30.0
"""Seconds that the first checkpoint waits for the hash of a run whose repository is still being made."""


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
        self._worker: subprocess.Popen[bytes] | None = None
        self._early: list[Mapping[str, Any]] = []
        look = f"; see it with: aim up --repo {shlex.quote(self.repo)}" if "://" not in self.repo else ""
        context.notice(f"aim: the run goes to {self.repo}{look}")

    def state(self) -> dict[str, Any]:
        self._opened.wait(OPENING)
        return {"run_hash": self.hash} if self.hash else {}

    def log(self, record: Mapping[str, Any]) -> None:
        """Raises RuntimeError with what Aim said when the repository cannot be opened or written."""
        kind = record.get("kind")
        if kind == "run":
            try:
                self._open(record)
            finally:
                self._opened.set()
        elif self._worker is None:
            self._early.append(record)
        elif found := curves(record):
            self._send({"curves": found, "step": record.get("step")})
        elif kind in ("ledger", "end"):
            self._send({"attribute": kind, "value": record})
        else:
            self._send({"line": json.dumps(record)})

    def close(self) -> None:
        """Returns when all is written. Raises as :meth:`log`."""
        self._opened.set()
        if self._worker is not None and (wrong := self._finish()):
            raise RuntimeError(wrong)

    def _open(self, record: Mapping[str, Any]) -> None:
        command = [sys.executable, "-P", "-m", "surogate_logger_aim.worker"]
        self._worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pipesize=SIZE)
        opening = {
            "repo": self.repo,
            "experiment": self._options.aim_experiment,
            "name": self._options.aim_name or self._context.run_name,
            "hash": self.hash,
            "run": record,
        }
        self._send({"open": opening})
        assert self._worker.stdout is not None
        answer = json.loads(self._worker.stdout.readline() or "{}")
        if "hash" not in answer:
            raise RuntimeError(self._finish(answer) or "Aim's process has ended")
        if answer["missing"]:
            self._context.notice(f"aim: {self.repo} has no run {self.hash}; what is left of the run becomes a new one there")
        self.hash = answer["hash"]
        early, self._early = self._early, []
        for one in early:
            self.log(one)

    def _send(self, given: Mapping[str, Any]) -> None:
        assert self._worker is not None
        assert self._worker.stdin is not None
        try:
            self._worker.stdin.write(json.dumps(given).encode() + b"\n")
            self._worker.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(self._finish() or "Aim's process has ended") from None

    def _finish(self, answer: Mapping[str, Any] | None = None) -> str | None:
        """Let the process write all that it was sent, and end; what went wrong in it. ``answer``: what it said already."""
        worker, self._worker = self._worker, None
        assert worker is not None
        said, _ = worker.communicate()
        answer = answer or json.loads(said or "{}")
        status = f"Aim's process has ended with exit status {worker.returncode}" if worker.returncode else None
        return answer.get("error", status)


def _local(given: str) -> Path:
    """The directory that holds ``.aim``, as Aim itself looks for it."""
    if given:
        path = Path(given).expanduser().absolute()
        return path.parent if path.name == ".aim" else path
    here = Path.cwd()
    return next((path for path in (here, *here.parents) if (path / ".aim").is_dir()), here)
