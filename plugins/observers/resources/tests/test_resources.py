"""What is added to the records. NVML is simulated here: no GPU, no driver."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from surogate_observer_resources import nvml, observer
from surogate_observer_resources.plugin import Options

import surogate_core
from surogate_core import testing


@pytest.fixture
def config(tmp_path: Path, tiny: Path) -> dict[str, Any]:
    rows = testing.write_rows(tmp_path / "text.jsonl", [{"text": f"Number {n} and {n + 1}."} for n in range(40)])
    settings = {"model_dtype": "fp32", "sequence_len": 64, "max_steps": 4, "recompute": False, "dataloader_num_workers": 0}
    steps = {"save_steps": 2, "eval_steps": 2, "gradient_accumulation_steps": 2}
    return {
        "model": str(tiny),
        "output_dir": str(tmp_path / "out"),
        "datasets": [{"path": str(rows), "type": "text"}],
        **settings,
        **steps,
    }


def kept(directory: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in map(json.loads, (directory / "metrics.jsonl").read_text().splitlines()) if record["kind"] == kind]


def test_time_breakdown_adds_up_and_memory_is_this_process(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.perf_counter()
    summary = surogate_core.run({**config, "debug_time_breakdown": True})
    whole = 1000 * (time.perf_counter() - begun)
    steps = kept(summary.output_dir, "step")
    assert all(set(step["ms"]) >= {"data", "forward", "backward", "optimizer"} for step in steps)
    assert {"record", "eval", "save"} <= set(steps[2]["ms"])
    assert {"eval", "save"}.isdisjoint(steps[1]["ms"])
    for step in steps:
        inside = sum(step["ms"][name] for name in ("data", "forward", "backward", "optimizer"))
        assert inside == pytest.approx(1000 * step["seconds"], rel=0.2, abs=5)
    assert sum(sum(step["ms"].values()) for step in steps) < whole
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024
    assert steps[-1]["memory"] == pytest.approx(peak, rel=0.1)
    told = [notice["text"] for notice in kept(summary.output_dir, "notice") if notice["text"].startswith("time of a step")]
    assert "backward" in told[0]
    out = capsys.readouterr().out
    assert "surogate-observer-resources" in out.split("plugins ")[1].splitlines()[0]
    assert "ms a step" in out


def test_without_it_there_is_no_clock(config: dict[str, Any]) -> None:
    summary = surogate_core.run(config)
    assert not [step for step in kept(summary.output_dir, "step") if "ms" in step or "gpu" in step]
    assert not [notice for notice in kept(summary.output_dir, "notice") if "log_gpu_util" in notice["text"]]
    assert not hasattr(observer.Resources, "part_finished")


def test_gpu_figures_that_were_asked_for_and_cannot_be_had_are_named(config: dict[str, Any]) -> None:
    summary = surogate_core.run({**config, "log_gpu_util": 2})
    told = [notice["text"] for notice in kept(summary.output_dir, "notice") if "log_gpu_util" in notice["text"]]
    assert told == ["log_gpu_util = 2 logs nothing: this run computes on the CPU"]


class Missing(Exception):
    pass


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    def unsupported(handle: str) -> float:
        raise Missing

    fake = SimpleNamespace(
        NVMLError=Missing,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: f"handle of {uuid}",
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=97, memory=41),
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=12 * 2**30),
        nvmlDeviceGetPowerUsage=lambda handle: 512_345,
        nvmlDeviceGetTemperature=lambda handle, sensor: unsupported(handle),
    )
    monkeypatch.setitem(__import__("sys").modules, "pynvml", fake)
    return fake


def test_readings_of_a_simulated_nvml(simulated: SimpleNamespace) -> None:
    assert nvml.Gauge("handle").read() == {"util": 97.0, "memory_util": 41.0, "memory": 12.0 * 2**30, "watts": 512.345}


def test_read_every_so_many_steps(simulated: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "gauge", lambda device: (nvml.Gauge("handle"), ""))
    context = SimpleNamespace(device="cpu", plan=SimpleNamespace(config=SimpleNamespace(origins={})), log=None)
    for every, wanted in ((3, [3, 6]), (0, [])):
        built = observer.build(Options(log_gpu_util=every), context)  # type: ignore[arg-type]
        records: list[dict[str, Any]] = [{"step": step} for step in range(1, 8)]
        for record in records:
            built.step_finished(None, record)  # type: ignore[arg-type]
        assert [record["step"] for record in records if "gpu" in record] == wanted


def test_a_driver_that_fails_is_named(simulated: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise Missing("Driver Not Loaded")

    simulated.nvmlInit = fails
    assert nvml.gauge("cuda") == (None, "NVML: Driver Not Loaded")
    said: list[dict[str, Any]] = []
    context = SimpleNamespace(device="cuda", plan=SimpleNamespace(config=SimpleNamespace(origins={})), log=said.append)
    observer.build(Options(), context)  # type: ignore[arg-type]
    assert said[0]["text"] == "log_gpu_util = 100 logs nothing: NVML: Driver Not Loaded"
