"""`make gpu-check` without a GPU: it ends well, says what it did not do, and finds a kernel that is wrong."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import attrs
import pytest
import torch
from surogate_native_kit.checks import families

SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "gpu_check.py"
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU: make gpu-check")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, place: Path, *words: str) -> tuple[int, dict[str, object]]:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--results", str(place), *words])
    code = int(script.main())
    (path,) = place.iterdir()
    return code, json.loads(path.read_text())


def test_without_a_gpu_it_says_so(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = {family: checks[:1] for family, checks in families().items()}
    monkeypatch.setattr(script, "families", lambda: some)
    monkeypatch.setattr(script, "recipes", lambda device, budget: [{"recipe": "r", "result": "said", "good": True}])
    monkeypatch.setattr(script, "allocated", lambda plan: pytest.fail("nothing can be measured here"))
    code, found = run(script, monkeypatch, tmp_path)
    assert code == 0
    assert found["note"].startswith("not run on a GPU")  # type: ignore[attr-defined]
    assert [one["result"] for one in found["kernels"]] == ["equal"] * len(some)  # type: ignore[attr-defined]
    assert [one["memory"] for one in found["memory"]] == list(script.CONFIGURATIONS)  # type: ignore[attr-defined]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("what")
    assert sum(line.startswith("memory ") and "left out: measured on a GPU" in line for line in lines) == len(script.CONFIGURATIONS)
    assert lines[-1].startswith("not run on a GPU")


def test_what_there_is_no_time_for_is_named(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory = script.memory
    monkeypatch.setattr(script, "memory", lambda device, budget: memory("cuda", budget))
    code, found = run(script, monkeypatch, tmp_path, "--seconds", "0")
    assert code == 0
    assert {one["result"] for one in (*found["kernels"], *found["recipes"], *found["memory"])} == {"left out: no time left"}  # type: ignore[misc]
    assert {one["recipe"] for one in found["recipes"]} >= {"bf16", "fp8_hybrid", "nvfp4", "nvfp4_quartet"}  # type: ignore[attr-defined]


def test_a_wrong_kernel_and_a_recipe_that_fails_end_with_1(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = families()["fp8"][0]
    wrong = attrs.evolve(right, kernel=lambda x, scale, amax: right.reference(x, scale * 1.1, amax))
    broken = attrs.evolve(right, kernel=lambda *given: 1 / 0)
    monkeypatch.setattr(script, "families", lambda: {"fp8": [wrong, broken]})
    monkeypatch.setattr(script, "recipes", lambda device, budget: [])
    code, found = run(script, monkeypatch, tmp_path / "a")
    assert code == 1
    said = [one["result"] for one in found["kernels"]]  # type: ignore[attr-defined]
    assert "bytes differ" in said[0]
    assert "ZeroDivisionError" in said[1]
    monkeypatch.setattr(script, "families", dict)
    monkeypatch.setattr(script, "recipes", lambda device, budget: [{"recipe": "r", "result": "far", "good": False}])
    assert run(script, monkeypatch, tmp_path / "b")[0] == 1


def test_a_recipe_is_trained_emulated(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "STEPS", 3)
    budget = script.Budget(600)
    monkeypatch.setattr(budget, "spent", iter([True, False, True, True]).__next__)  # time for the second recipe alone
    found = [one for one in script.recipes("cpu", budget) if "emulated" in one]
    assert [one["recipe"] for one in found] == ["fp8_hybrid"]
    assert found[0]["result"] == "emulated, its loss falls: sm_89+ is not here"
    assert found[0]["good"]
    assert len(found[0]["emulated"]) == 3


@pytest.mark.parametrize(("away", "code"), [(1.04, 1), (0.96, 1), (1.02, 0), (0.98, 0)])
def test_a_peak_that_is_not_the_planned_one_ends_with_1(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    away: float,
    code: int,
) -> None:
    """A GPU that is said to be there, and what was allocated on it. The framework's share is not part of the comparison."""
    from surogate_command_plan import rehearse
    from surogate_command_plan.tally import Memory, Peak

    parts = {"weights": 10**9, "framework": 6 * 10**8}
    memory = script.memory
    monkeypatch.setattr(rehearse, "rehearse", lambda plan, device: Memory({"forward": Peak(sum(parts.values()), parts)}))
    monkeypatch.setattr(script, "allocated", lambda plan: round(10**9 / away))
    monkeypatch.setattr(script, "families", dict)
    monkeypatch.setattr(script, "recipes", lambda device, budget: [])
    monkeypatch.setattr(script, "memory", lambda device, budget: memory("cuda", budget))
    ended, found = run(script, monkeypatch, tmp_path)
    assert ended == code
    assert [one["planned"] for one in found["memory"]] == [10**9] * len(script.CONFIGURATIONS)  # type: ignore[attr-defined]
    assert capsys.readouterr().out.count(f": {away - 1:+.2%}") == len(script.CONFIGURATIONS)


def test_what_is_measured_is_the_model_and_two_steps_of_it(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On the CPU, at a small shape, with the bytes of living tensors in place of the GPU's allocator."""
    from surogate_command_plan.rehearse import rehearse
    from surogate_model_transformers.testing import held_bytes, tiny_model

    from surogate_core.config import load
    from surogate_core.host import load_host
    from surogate_core.plan import make_plan

    host, model = load_host(), tiny_model(tmp_path / "model", hidden_size=128, intermediate_size=512)
    base = {"model": str(model), "model_dtype": "bf16", **script.SHORT, "per_device_train_batch_size": 1}
    for name, changes in script.CONFIGURATIONS.items():
        plan = make_plan(load({**base, **changes}, host, need_data=False), host, "cpu")
        peak = rehearse(plan, "cuda").peak  # type: ignore[union-attr]
        held = held_bytes()
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda held=held: held.now)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda held=held: held.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        with held:
            measured = script.allocated(plan)
        assert measured == pytest.approx(peak.total - peak.parts["framework"], rel=0.05), name
