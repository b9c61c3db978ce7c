"""Wheels of every distribution, and fresh environments to install them into.

A fresh environment sees the third-party packages that are installed already (torch is not installed once more), but none of the
distributions of this repository: their metadata and their editable links stay behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import frozen

ROOT = Path(__file__).resolve().parents[2]
TREES = ("plugins/*/*", "native/*", "libraries/*")
PIP = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", "--no-warn-script-location"]


@frozen
class Environment:
    """A virtual environment. ``surogate`` and ``python`` run in ``cwd``, offline, with one thread."""

    path: Path
    wheels: Path

    def _run(self, command: list[str], cwd: Path | None) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SUROGATE", "PIP_", "COV_"))}
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        return subprocess.run(
            command, cwd=cwd or self.path, env={**kept, **offline}, capture_output=True, text=True, timeout=300, check=False
        )

    def surogate(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return self._run([str(self.path / "bin" / "surogate"), *arguments], cwd)

    def python(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return self._run([str(self.path / "bin" / "python"), *arguments], cwd)

    def install(self, *what: str | Path) -> None:
        """Distributions by name, from the wheels, or directories with a pyproject.toml."""
        names = [str(item) for item in what]
        done = self.python("-m", "pip", "install", *PIP, "--no-build-isolation", "--find-links", str(self.wheels), *names)
        assert done.returncode == 0, done.stdout + done.stderr

    def remove(self, *names: str) -> None:
        done = self.python("-m", "pip", "uninstall", "--quiet", "--yes", *names)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a wheel of every distribution of the repository."""
    directory = tmp_path_factory.mktemp("wheels")
    projects = [ROOT, *(path.parent for tree in TREES for path in sorted(ROOT.glob(f"{tree}/pyproject.toml")))]
    command = [sys.executable, "-m", "pip", "wheel", *PIP[:4], "--no-build-isolation", "--wheel-dir", str(directory)]
    subprocess.run([*command, *map(str, projects)], check=True)
    assert len(list(directory.glob("*.whl"))) == len(projects)
    return directory


@pytest.fixture(scope="session")
def make_environment(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Environment]:
    """Make a fresh environment and install these distributions into it, with the libraries that the core depends on."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]

    def make(*names: str) -> Environment:
        path = tmp_path_factory.mktemp("environment") / "env"
        subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
        site = Path(sysconfig.get_path("purelib", vars={"base": str(path), "platbase": str(path)}))
        third_party = path / "third-party"
        third_party.mkdir()
        for place in reversed([Path(entry) for entry in sys.path if entry.endswith("site-packages")]):
            for entry in place.iterdir():
                link = third_party / entry.name
                if entry.name.startswith(("surogate", "__")) or entry.suffix == ".pth":
                    continue
                link.unlink(missing_ok=True)
                link.symlink_to(entry)
        (site / "third-party.pth").write_text(str(third_party))
        environment = Environment(path, wheels)
        environment.install(*names, *(entry.split()[0] for entry in needed if entry.startswith("surogate-")))
        return environment

    return make


@pytest.fixture(scope="session")
def everything(wheels: Path, make_environment: Callable[..., Environment]) -> Environment:
    """An environment with the core and all plugins from their wheels. What a test adds, it removes again."""
    return make_environment(*(wheel.name.split("-")[0].replace("_", "-") for wheel in sorted(wheels.glob("*.whl"))))
