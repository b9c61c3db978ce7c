"""The process that has the Aim repository open: ``python -m surogate_logger_aim.worker``.

Aim computes some milliseconds for each step. In the process that trains, the training would wait for the interpreter meanwhile;
here it does not, and what is left of a run that was killed is still written. One line of JSON is read for each thing to write:

    {"open": {repo, experiment, name, hash, run}}    first; ``run``: the ``run`` record, ``hash``: of a run to continue, or null
    {"curves": {name: number or text}, "step": n}
    {"attribute": name, "value": record}
    {"line": text}

The first is answered with ``{"hash": ..., "missing": ...}``, whether there was no run to continue. An error is answered with
``{"error": text}``, and is the end. When nothing more can be read the run is closed.

What comes within ``PAUSE`` is written together: one by one, with the training's data in the caches, it takes half as long
again.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

PAUSE = 5.0
"""Seconds."""
SIZE = 1 << 20
"""Bytes that wait in the pipe at most (Linux): some 2,000 steps."""


def main() -> None:
    """Until nothing more can be read."""
    for stop in (signal.SIGINT, signal.SIGTERM):  # they are for the process that trains, which then closes its end
        signal.signal(stop, signal.SIG_IGN)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what Aim prints is not an answer
        try:
            _write(answers)
        except Exception as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)


def _write(answers: Any) -> None:
    import aim

    opening = json.loads(sys.stdin.buffer.readline() or "{}").get("open")
    if opening is None:  # the other end was closed before it began
        return
    run, missing = _open(aim, opening)
    print(json.dumps({"hash": run.hash, "missing": missing}), file=answers, flush=True)
    for line in _lines(sys.stdin.buffer):
        given = json.loads(line)
        if "curves" in given:
            for name, value in given["curves"].items():
                run.track(aim.Text(value) if isinstance(value, str) else value, name=name, step=given["step"])
        elif "attribute" in given:
            run[given["attribute"]] = given["value"]
        else:
            run.log_info(given["line"])
    run.close()


def _lines(stream: Any) -> Iterator[bytes]:
    """Until the other end is closed, which ends a pause. What a killed process did not write to its end is left out."""
    closed = select.poll()
    closed.register(stream, 0)
    rest = b""
    while chunk := stream.read1(SIZE):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
        closed.poll(1000 * PAUSE)


def _open(aim: Any, opening: Mapping[str, Any]) -> tuple[Any, bool]:
    settings: dict[str, Any] = {
        "repo": opening["repo"],
        "experiment": opening["experiment"],
        "system_tracking_interval": None,
        "capture_terminal_logs": False,  # the lines of the terminal come as records
    }
    run = _continued(aim, opening["hash"], settings) if opening["hash"] else None
    missing = bool(opening["hash"]) and run is None
    if run is None:
        run = aim.Run(**settings)
    run.name = opening["name"]
    run["hparams"] = dict(opening["run"].get("config", {}))
    run["run"] = {key: value for key, value in opening["run"].items() if key != "config"}
    return run, missing


def _continued(aim: Any, wanted: str, settings: Mapping[str, Any]) -> Any:
    """The run that a checkpoint belongs to, None if this repository does not have it. A process that was killed leaves the run
    locked; the lock is broken without Aim's warning, for the output directory has one process at a time."""
    from aim.sdk.errors import MissingRunError

    logging.getLogger("aim.sdk.lock_manager").disabled = True
    try:
        return aim.Run(run_hash=wanted, force_resume=True, **settings)
    except MissingRunError:
        return None
    finally:
        logging.getLogger("aim.sdk.lock_manager").disabled = False


if __name__ == "__main__":
    main()
