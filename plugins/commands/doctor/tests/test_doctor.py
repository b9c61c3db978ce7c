from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result
from surogate_command_doctor import doctor, plugin
from surogate_native_kit import compiler

from surogate_core.cli.main import main
from surogate_core.hookspecs import hookimpl
from surogate_core.host import Host, load_host
from surogate_core.offers import Offer, Owner


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Host], None]:
    """Make the command report on this host."""
    return lambda host: monkeypatch.setattr("surogate_core.host.load_host", lambda *_, **__: host)


@pytest.fixture
def surogate(use: Callable[[Host], None]) -> Callable[..., Result]:
    offers = {"recipes": "bf16", "models": "transformers"}
    hooks = {f"register_{kind}": hookimpl(lambda name=name: [Offer(name, None, build="x:y")]) for kind, name in offers.items()}
    plain = SimpleNamespace(register_commands=hookimpl(plugin.register_commands), **hooks)
    use(load_host([("stand-in", plain, Owner("surogate-stand-in", "3.1"))], discover=False))
    return lambda *words: CliRunner().invoke(main, list(words))


def test_names_versions_plugins_devices_and_disk(surogate: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "graphics", lambda: ["NVIDIA H200, 143771 MiB, 9.0, 580.1"])
    monkeypatch.setattr(doctor, "unused", lambda *_: [])  # the tests' own torch may be without CUDA
    monkeypatch.setattr(doctor, "ROOM", 0)
    done = surogate("doctor")
    assert done.exit_code == 0, done.output
    labels = {line.split()[0] for line in done.stdout.splitlines() if line}
    assert {"surogate", "python", "system", "torch", "transformers", "plugin", "GPU", "cache", "disk"} <= labels
    assert "GPU           NVIDIA H200, 143771 MiB, 9.0, 580.1" in done.stdout
    assert "surogate-stand-in 3.1: models transformers, recipes bf16, commands doctor" in done.stdout
    assert done.stdout.rstrip().endswith("nothing is wrong")


def test_names_compilers_and_the_kernel_cache(
    surogate: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("g++", "nvcc", "clang++"):
        (tmp_path / name).write_text("#!/bin/sh\necho release 13.0\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "one.cubin").write_bytes(bytes(3 << 20))
    monkeypatch.setenv("PATH", f"{tmp_path}")
    monkeypatch.setenv("NVCC", "nvcc")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("SUROGATE_NATIVE_CACHE", str(tmp_path / "cache"))
    nvrtc = metadata.version("nvidia-cuda-nvrtc")
    lines = surogate("doctor").stdout.splitlines()
    found = ("C++", tmp_path / "g++"), ("NVRTC", nvrtc), ("nvcc", tmp_path / "nvcc"), ("clang++", tmp_path / "clang++")
    assert [line for line in lines if line.startswith("compiler")] == [f"compiler      {name}: {path}" for name, path in found]
    assert f"kernel cache  {tmp_path / 'cache'}: 1 files, 3.0 MiB" in lines
    (tmp_path / "nvcc").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "clang++").unlink()
    monkeypatch.setenv("CXX", "g++-99")
    monkeypatch.setenv("SUROGATE_NATIVE_CACHE", str(tmp_path / "other"))
    out = surogate("doctor").stdout
    assert "compiler      C++: none: there is no C++ compiler 'g++-99', which" in out
    assert "set CXX to another compiler" in out
    assert "compiler      nvcc: fails: " in out
    assert "compiler      clang++: none\n" in out
    assert f"kernel cache  {tmp_path / 'other'}: 0 files, 0.0 MiB" in out
    monkeypatch.setattr(compiler, "COMPILER", "no-such-package")
    assert "compiler      NVRTC: none: the package no-such-package, which" in surogate("doctor").stdout


def test_never_shows_the_value_of_a_secret(surogate: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "HUGGINGFACE_HUB_PASSWORD", "AIM_SECRET"):
        monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = surogate("doctor")
    assert "hush" not in done.output
    assert "HF_TOKEN=(set, not shown)" in done.stdout
    assert "HF_HUB_OFFLINE=1" in done.stdout


def test_says_what_is_wrong_and_how_to_mend_it(
    surogate: Callable[..., Result], use: Callable[[Host], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = SimpleNamespace(register_recipies=hookimpl(lambda: []))
    good = SimpleNamespace(register_commands=hookimpl(plugin.register_commands))
    theirs, ours = Owner("surogate-theirs", "0.2"), Owner("surogate-command-doctor", "1")
    use(load_host([("theirs", bad, theirs), ("command-doctor", good, ours)], discover=False))
    monkeypatch.setattr(doctor, "ROOM", 2**80)
    monkeypatch.setattr(doctor, "installed", lambda name: {"torch": "2.10.1+cpu"}.get(name))
    out = surogate("doctor").stdout
    wrong = out[out.index("wrong:") :]
    assert 'torch 2.10.1+cpu: 2.11 or newer is needed: pip install "torch>=2.11"' in wrong
    assert "transformers is missing: 5.17 or newer is needed" in wrong
    assert "surogate-theirs 0.2 does not load" in wrong
    assert "no plugin can load a model: pip install" in wrong
    assert "GiB free: free some" in wrong


@pytest.mark.parametrize(("version", "wanted"), [("2.13.0+cpu", (2, 13, 0)), ("5.17", (5, 17)), ("2.11.0rc1", (2, 11))])
def test_numbers_of_a_version(version: str, wanted: tuple[int, ...]) -> None:
    assert doctor.numbers(version) == wanted


def test_no_graphics_without_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.graphics() == []


def test_full_asks_torch(surogate: Callable[..., Result]) -> None:
    import torch

    assert f"torch threads {torch.get_num_threads()}" in surogate("doctor", "--full").stdout
