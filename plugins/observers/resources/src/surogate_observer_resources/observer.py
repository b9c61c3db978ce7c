"""The observer: adds ``memory``, ``gpu`` and ``ms`` to the records of steps."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from surogate_core.contracts import ObserverContext, RunInfo
from surogate_observer_resources.nvml import Gauge, gauge
from surogate_observer_resources.plugin import Options


def build(options: Options, context: ObserverContext) -> Resources | TimedResources:
    found, why = gauge(context.device) if options.log_gpu_util else (None, "")
    asked = context.plan.config.origins.get("log_gpu_util", "default") != "default"
    if why and (asked or context.device == "cuda"):
        context.log({"kind": "notice", "text": f"log_gpu_util = {options.log_gpu_util} logs nothing: {why}"})
    kind = TimedResources if options.debug_time_breakdown else Resources
    return kind(found, options.log_gpu_util, context.device, context.log)


def peak(device: str) -> int:
    """Bytes: the most that torch has allocated on the GPU; on the CPU, the most that this process has had resident."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Resources:
    def __init__(self, found: Gauge | None, every: int, device: str, log: Callable[[dict[str, Any]], None]):
        self._gauge, self._every, self._device, self._log = found, every, device, log

    def step_finished(self, run: RunInfo, record: dict[str, Any]) -> None:
        record["memory"] = peak(self._device)
        if self._gauge and record["step"] % self._every == 0:
            record["gpu"] = self._gauge.read()


class TimedResources(Resources):
    """With ``debug_time_breakdown``. A record has the parts that ended since the record before: "record", "eval" and "save" are
    those that followed the step before; on a GPU, whose figures are read a step late, so are all the others."""

    def __init__(self, found: Gauge | None, every: int, device: str, log: Callable[[dict[str, Any]], None]):
        super().__init__(found, every, device, log)
        self._now: defaultdict[str, float] = defaultdict(float)
        self._all: defaultdict[str, float] = defaultdict(float)
        self._steps = 0
        self._last = time.perf_counter()

    def run_started(self, run: RunInfo) -> None:
        self._last = time.perf_counter()

    def part_finished(self, run: RunInfo, name: str) -> None:
        if self._device == "cuda":
            import torch

            torch.cuda.synchronize()
        now = time.perf_counter()
        self._now[name] += now - self._last
        self._all[name] += now - self._last
        self._last = now

    def step_finished(self, run: RunInfo, record: dict[str, Any]) -> None:
        super().step_finished(run, record)
        record["ms"] = {name: round(1000 * seconds, 4) for name, seconds in self._now.items()}
        self._now.clear()
        self._steps += 1

    def run_finished(self, run: RunInfo, summary: dict[str, Any]) -> None:
        whole = sum(self._all.values())
        parts = [f"{name} {1000 * taken / self._steps:.2f} ms ({taken / whole:.1%})" for name, taken in sorted(self._all.items())]
        text = f"time of a step: {', '.join(parts)}; together {1000 * whole / self._steps:.2f} ms"
        self._log({"kind": "notice", "step": run.total_steps, "text": text})
