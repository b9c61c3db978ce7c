"""Faults planted in a real installation: `surogate doctor` runs in a process of its own and names each, with how to mend it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SMI = 'echo "NVIDIA H200, 143771 MiB, 9.0, 580.1"'
PLUGIN = "from surogate_core import Offer, hookimpl\n@hookimpl\ndef {hook}():\n    return [Offer('bf16', None, build='x:y')]\n"


def doctor(place: Path, **environment: str) -> str:
    """What stands below "wrong:"; modules and distributions in ``place`` come first."""
    path = os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])])
    given = {**os.environ, "PYTHONPATH": path, "HF_HOME": str(place / "cache"), **environment}
    words = [sys.executable, "-m", "surogate_core", "doctor"]
    done = subprocess.run(words, capture_output=True, text=True, env=given, cwd=place, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout.partition("wrong:")[2]


def distribution(place: Path, name: str, version: str, module: str = "", code: str = "", group: str = "surogate.v1") -> None:
    info = place / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if module:
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
        (place / f"{module}.py").write_text(code)


def command(place: Path, name: str, script: str) -> dict[str, str]:
    programs = place / "programs"
    programs.mkdir(exist_ok=True)
    (programs / name).write_text(f"#!/bin/sh\n{script}\n")
    (programs / name).chmod(0o755)
    return {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def test_an_old_library(tmp_path: Path) -> None:
    distribution(tmp_path, "transformers", "4.40.1")
    assert 'transformers 4.40.1: 5.17 or newer is needed: pip install "transformers>=5.17"' in doctor(tmp_path)


def test_a_plugin_that_does_not_import(tmp_path: Path) -> None:
    distribution(tmp_path, "acme-broken", "0.3", "acme_broken", "import no_such_library\n")
    assert "acme-broken 0.3 does not load: pip install --force-reinstall acme-broken" in doctor(tmp_path)


def test_a_misspelt_hook(tmp_path: Path) -> None:
    distribution(tmp_path, "acme-misspelt", "0.4", "acme_misspelt", PLUGIN.format(hook="register_recipies"))
    assert "acme-misspelt 0.4 does not load" in doctor(tmp_path)


def test_two_plugins_of_one_name(tmp_path: Path) -> None:
    distribution(tmp_path, "acme-bf16", "0.5", "acme_bf16", PLUGIN.format(hook="register_recipes"))
    wrong = doctor(tmp_path)
    assert "two plugins offer 'bf16' among the recipes (acme-bf16 0.5 and surogate-recipe-bf16" in wrong
    assert "pip uninstall" in wrong


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    assert "/proc is not writable" in doctor(tmp_path, HF_HOME="/proc/cache")


def test_a_kernel_cache_that_cannot_be_written(tmp_path: Path) -> None:
    wrong = doctor(tmp_path, SUROGATE_NATIVE_CACHE="/proc/kernels")
    assert "/proc is not writable" in wrong
    assert "set SUROGATE_NATIVE_CACHE to a directory that is" in wrong


def test_torch_without_cuda_beside_a_gpu(tmp_path: Path) -> None:
    distribution(tmp_path, "torch", "2.13.0+cpu")
    wrong = doctor(tmp_path, **command(tmp_path, "nvidia-smi", SMI))
    assert "torch 2.13.0+cpu is built without CUDA, and there is a GPU: pip install torch==2.13.0" in wrong


def test_a_driver_that_does_not_answer(tmp_path: Path) -> None:
    assert "there is a GPU driver, but nvidia-smi fails" in doctor(tmp_path, **command(tmp_path, "nvidia-smi", "exit 9"))


@pytest.mark.parametrize("value", ["", "-1"])
def test_a_hidden_gpu(tmp_path: Path, value: str) -> None:
    wrong = doctor(tmp_path, **command(tmp_path, "nvidia-smi", SMI), CUDA_VISIBLE_DEVICES=value)
    assert f"CUDA_VISIBLE_DEVICES={value} hides the GPU" in wrong


def test_a_full_disk(tmp_path: Path) -> None:
    lie = "import shutil\nwhole = shutil.disk_usage\nshutil.disk_usage = lambda path: whole(path)._replace(free=2**30)\n"
    (tmp_path / "sitecustomize.py").write_text(lie)
    assert "has 1.0 GiB free: free some" in doctor(tmp_path)


def test_none_of_these_without_a_fault(tmp_path: Path) -> None:
    distribution(tmp_path, "torch", "2.13.0+cu130")
    wrong = doctor(tmp_path, **command(tmp_path, "nvidia-smi", SMI), CUDA_VISIBLE_DEVICES="0")
    assert [line for line in wrong.splitlines() if line.strip() and "GiB free" not in line] == []
