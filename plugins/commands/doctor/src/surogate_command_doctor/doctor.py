"""``surogate doctor``: one page about this installation that can be pasted into a bug report. Values of secrets never appear."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import click
from surogate_settings.sources import is_secret

from surogate_core.errors import SurogateError

DISTRIBUTIONS = {
    "torch": "2.11",
    "transformers": "5.17",
    "tokenizers": "",
    "datasets": "",
    "safetensors": "",
    "peft": "",
    "click": "",
}
PREFIXES = (
    "HF_",
    "HUGGINGFACE_",
    "TRANSFORMERS_",
    "CUDA_",
    "NVIDIA_",
    "TORCH",
    "PYTORCH_",
    "OMP_",
    "MKL_",
    "SUROGATE_",
    "WANDB_",
    "AIM_",
)
NAMES = ("NO_COLOR", "LOCAL_RANK", "RANK", "WORLD_SIZE", "TOKENIZERS_PARALLELISM", "XDG_CACHE_HOME")
ROOM = 5 * 2**30


def numbers(version: str) -> tuple[int, ...]:
    """``2.13.0+cpu`` → (2, 13, 0)."""
    return tuple(int(part) for part in version.split("+")[0].split(".") if part.isdigit())


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def graphics() -> list[str]:
    """One line a GPU as nvidia-smi tells it, without importing torch."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ["nvidia-smi does not answer"]
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else ["nvidia-smi fails"]


def unused(gpus: list[str], torch: str, visible: str | None) -> list[str]:
    """Why a GPU that is there would not be used, with how to mend it."""
    if not gpus:
        return []
    if gpus[0].startswith("nvidia-smi"):
        return [f"there is a GPU driver, but {gpus[0]}: reload the driver or restart the machine, then try nvidia-smi alone"]
    found = []
    if torch.endswith("+cpu"):
        found.append(f"torch {torch} is built without CUDA, and there is a GPU: pip install torch=={torch.removesuffix('+cpu')}")
    if visible is not None and visible.strip() in ("", "-1"):
        found.append(f"CUDA_VISIBLE_DEVICES={visible} hides the GPU from every program: unset it")
    return found


def refuses(directory: Path) -> str:
    """Why no file can be made in a directory, "" if one can. Permissions do not tell: root has them all."""
    try:
        with tempfile.TemporaryFile(dir=directory):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def cache_directory() -> Path:
    base = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(base).expanduser()


def compilers() -> Iterator[tuple[str, str]]:
    """(compiler, where it is or what to install), as the native packages find it, without importing torch."""
    from surogate_native_kit import compiler, host, nvcc

    finders: dict[str, Callable[[], str | None]] = {
        "C++": lambda: shutil.which(host.compiler()),
        "NVRTC": compiler.version,
        "nvcc": lambda: nvcc.compiler()[0],
    }
    for name, find in finders.items():
        try:
            yield name, str(find())
        except SurogateError as error:
            yield name, f"none: {error.problems[0].what}: {error.problems[0].how}"
        except (OSError, subprocess.SubprocessError) as error:
            yield name, f"fails: {error}"
    yield "clang++", shutil.which("clang++") or "none"


def kernels() -> tuple[Path, str]:
    """Where compiled kernels are kept, and how many of what size there are."""
    from surogate_native_kit import cache

    place = cache.directory()
    sizes = [entry.stat().st_size for entry in os.scandir(place) if entry.is_file()] if place.is_dir() else []
    return place, f"{len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB"


def existing(path: Path) -> Path:
    """The path, or the nearest directory above it that is there."""
    return next(parent for parent in (path, *path.parents) if parent.exists())


def environment() -> Iterator[tuple[str, str]]:
    for name in sorted(os.environ):
        if name.startswith(PREFIXES) or name in NAMES:
            yield name, "(set, not shown)" if is_secret(name) else os.environ[name]


def full_check() -> Iterator[tuple[str, str]]:
    """What only an import of torch can tell."""
    import torch

    yield "torch threads", str(torch.get_num_threads())
    yield "torch CUDA", str(torch.version.cuda)
    yield "torch sees", f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device"


@click.command()
@click.option("--full", is_flag=True, help="Also import torch and ask it.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def doctor(full: bool) -> None:
    """Show versions, plugins, devices, compilers, disk, environment, and what is wrong with how to mend it. Ready to paste."""
    from surogate_core.host import load_host

    host = load_host(strict=False)
    wrong: list[str] = []

    def line(label: str, value: str) -> None:
        click.echo(f"{label:<14}{value}")

    line("surogate", installed("surogate") or "not installed as a distribution")
    line("python", f"{platform.python_version()} {sys.executable}")
    line("system", f"{platform.platform()}, {os.cpu_count()} CPUs")
    for name, least in DISTRIBUTIONS.items():
        version = installed(name)
        line(name, version or "not installed")
        if least and (version is None or numbers(version) < numbers(least)):
            wrong.append(f'{name} {version or "is missing"}: {least} or newer is needed: pip install "{name}>={least}"')
    for plugin in host.plugins:
        offers = ", ".join(f"{kind} {offer.name}" for kind, offer in plugin.offers)
        line("plugin", f"{plugin.owner}: {offers or 'hooks only'}")
    if not host.offers("models"):
        wrong.append("no plugin can load a model: pip install surogate-model-transformers and what your configuration names")
    for broken in host.broken:
        line("broken", f"{broken.owner} ({broken.name}): {broken.error}")
        wrong.append(f"{broken.owner} does not load: pip install --force-reinstall {broken.owner.distribution}, or uninstall it")
    wrong += [f"{problem.what} ({problem.where}): {problem.how}" for problem in host.collisions]
    gpus = graphics()
    for gpu in gpus or ["none (nvidia-smi is not there): runs use the CPU"]:
        line("GPU", gpu)
    wrong += unused(gpus, installed("torch") or "", os.environ.get("CUDA_VISIBLE_DEVICES"))
    cache = cache_directory()
    line("cache", f"{cache}{'' if cache.exists() else ' (not there yet)'}")
    caches = [(existing(cache), "HF_HOME")]
    if importlib.util.find_spec("surogate_native_kit"):
        for name, found in compilers():
            line("compiler", f"{name}: {found}")
        place, kept = kernels()
        line("kernel cache", f"{place}: {kept}")
        caches.append((existing(place.absolute()), "SUROGATE_NATIVE_CACHE"))
    else:
        line("compiler", "none is needed: surogate-native-kit is not installed")
    for label, path in (("disk here", Path.cwd()), ("disk cache", caches[0][0])):
        usage = shutil.disk_usage(path)
        line(label, f"{usage.free / 2**30:.1f} GiB free of {usage.total / 2**30:.1f} GiB")
        if usage.free < ROOM:
            wrong.append(f"{path} has {usage.free / 2**30:.1f} GiB free: free some, or move it (output_dir, HF_HOME)")
    for there, variable in caches:
        if refusal := refuses(there):
            wrong.append(f"{there} is not writable ({refusal}): set {variable} to a directory that is")
    for name, value in environment():
        line("environment", f"{name}={value}")
    for label, value in full_check() if full else ():
        line(label, value)
    click.echo("\n".join(["", "wrong:", *(f"- {text}" for text in wrong)] if wrong else ["", "nothing is wrong"]))
