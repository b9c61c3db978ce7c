"""The logger: curves as wandb's history, one row a step; settings as its config; events as lines of its log.

wandb is imported when the ``run`` record comes, in the thread that feeds this logger: neither the import nor a server that does not
answer holds up the training. What ``WANDB_*`` says is respected wherever the configuration says nothing. Without a key the
run is offline, so that nothing prompts.

The steps of ``PAUSE`` are handed over together: one by one, with the training's data in the caches, they take three times as long.
"""

from __future__ import annotations

import json
import netrc
import os
import secrets
import string
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from surogate_core.contracts import LoggerContext
from surogate_core.curves import curves
from surogate_logger_wandb.plugin import Options

PAUSE = 5.0
"""Seconds that a step waits at most when another one follows it. What is not a step does not wait, nor does the step after it:
wandb keeps a row until the next one begins, and the row of a checkpoint's step must not be lost with a killed process."""


def build(options: Options, context: LoggerContext) -> WandbRun | None:
    if "wandb" not in (context.config.report_to or ()):
        if options.wandb_project or options.wandb_name:
            context.notice('wandb_project and wandb_name have no effect: report_to does not name "wandb"')
        return None
    return WandbRun(options, context)


class WandbRun:
    def __init__(self, options: Options, context: LoggerContext):
        self.id = os.environ.get("WANDB_RUN_ID") or context.state.get("run_id") or _new_id()
        self.directory = Path(os.environ.get("WANDB_DIR") or context.output_dir)
        self.mode: Literal["offline"] | None = None if "WANDB_MODE" in os.environ or has_key() else "offline"
        self._options, self._context = options, context
        self._run: Any = None
        self._waiting: list[Mapping[str, Any]] = []
        self._handed = -PAUSE
        self._step = context.resumed
        self._failed = True
        if (self.mode or os.environ.get("WANDB_MODE")) == "offline":
            place = self.directory / "wandb" / f"offline-run-*-{self.id}"
            context.notice(f"wandb: offline, run {self.id}; send it with: wandb sync {place}")

    def state(self) -> dict[str, Any]:
        return {"run_id": self.id}

    def log(self, record: Mapping[str, Any]) -> None:
        """Raises what wandb raises when it cannot start a run."""
        kind = record.get("kind")
        if kind == "run":
            self._start(record)
        else:
            self._waiting.append(record)
        if self._run is not None and (kind != "step" or time.monotonic() - self._handed >= PAUSE):
            self._hand_over()

    def close(self) -> None:
        if self._run is None:
            return
        try:
            self._hand_over()
        finally:
            run, self._run = self._run, None
            run.finish(exit_code=int(self._failed))

    def _hand_over(self) -> None:
        waiting, self._waiting = self._waiting, []
        kind = None
        for record in waiting:
            kind = record.get("kind")
            self._step = record.get("step", self._step)
            if kind == "ledger":
                self._run.config.update({"ledger": dict(record)}, allow_val_change=True)
            elif kind == "end":
                self._failed = "failed" in record
                self._run.summary["end"] = dict(record)
            elif found := curves(record):
                self._run.log(found, step=self._step)
            else:
                self._run.write_logs(json.dumps(record))
        self._handed = time.monotonic() if kind == "step" else -PAUSE

    def _start(self, record: Mapping[str, Any]) -> None:
        import wandb

        named = self._options.wandb_name or (None if "WANDB_NAME" in os.environ else self._context.run_name)
        offline = self.mode == "offline" or os.environ.get("WANDB_MODE") == "offline"
        defaults = {
            "console": "off",  # the lines of the terminal come as records
            "silent": offline or self._context.quiet,  # online it says where the run is to be seen
            "x_transaction_log_flush_interval": 1.0,  # s; what a killed process loses
        }
        unsaid = {name: value for name, value in defaults.items() if f"WANDB_{name.upper()}" not in os.environ}
        self.directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self._options.wandb_project,
            name=named,
            id=self.id,
            resume="allow",
            dir=str(self.directory),
            mode=self.mode,
            config={**record.get("config", {}), "run": {key: value for key, value in record.items() if key != "config"}},
            settings=wandb.Settings(reinit="create_new", **unsaid),
        )


def has_key() -> bool:
    """Whether wandb would find a key without asking: in the environment or in the netrc file, for the server in force."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    places = [Path(path).expanduser() for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc") if path]
    for path in places:
        try:
            return netrc.netrc(path).authenticators(host) is not None
        except FileNotFoundError:
            continue
        except (OSError, netrc.NetrcParseError):
            return False
    return False


def _new_id() -> str:
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))
