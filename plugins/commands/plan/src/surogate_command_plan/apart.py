"""Rehearsals in a process of their own: ``python -m surogate_command_plan.apart`` reads a JSON list of configurations and writes,
as the last line, a JSON list of their peaks on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from surogate_command_plan.tally import Memory, Peak


def rehearse_apart(configs: Sequence[Mapping[str, Any]]) -> list[Memory | None]:
    """The peaks of each configuration, None where it cannot be rehearsed. Nothing of this process is touched."""
    command = [sys.executable, "-m", "surogate_command_plan.apart"]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    asked = json.dumps(list(configs))
    done = subprocess.run(command, input=asked, stdout=subprocess.PIPE, text=True, check=True, env=hidden)
    return [
        None if found is None else Memory({phase: Peak(*peak) for phase, peak in found.items()})
        for found in json.loads(done.stdout.splitlines()[-1])
    ]


def main() -> None:
    from surogate_command_plan.rehearse import rehearse
    from surogate_core.config import load
    from surogate_core.host import load_host
    from surogate_core.plan import make_plan

    host = load_host()
    found = [rehearse(make_plan(load(config, host, need_data=False), host, "cpu"), "cpu") for config in json.load(sys.stdin)]
    print(json.dumps([None if memory is None else {p: [k.total, k.parts] for p, k in memory.phases.items()} for memory in found]))


if __name__ == "__main__":
    main()
