"""Wheels of every distribution, and fresh environments to install them into.

A fresh environment sees the third-party packages that are installed already (torch is not installed once more), but none of the
distributions of this repository: their metadata and their editable links stay behind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import define, field

ROOT = Path(__file__).resolve().parents[2]
TREES = ("plugins/*/*", "native/*", "libraries/*")
PIP = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", "--no-warn-script-location"]


FORKS = """
import atexit, gc, importlib, json, os, sys, threading, traceback
import matplotlib.backends.backend_agg, matplotlib.figure, torch._dynamo
import transformers.generation, transformers.modeling_utils, transformers.models.qwen3.modeling_qwen3
assert not [name for name in sys.modules if name.startswith("surogate")]
gc.freeze()
for line in sys.stdin:
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    given = json.loads(line)
    for number, path in enumerate((os.devnull, given["out"], given["error"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    sys.stdin = open(0)
    os.chdir(given["cwd"])
    importlib.invalidate_caches()
    sys.argv = ["-c", *given["words"]]
    status = 0
    try:
        exec(given["code"], {"__name__": "__main__"})
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)  # taking all modules apart would take a second
"""
PROGRAM = "import sys; sys.argv[0] = 'surogate'; from surogate_core.cli.main import main; main()"


@define
class Environment:
    """A virtual environment. ``surogate`` and ``python`` run in ``cwd``, offline, with one thread. So do ``forked`` and
    ``forked_python``, as a child of a process that has imported torch and transformers, but nothing of surogate: this saves the
    seconds that importing them takes."""

    path: Path
    wheels: Path
    _forks: subprocess.Popen[str] | None = field(default=None, init=False)

    def _environ(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SUROGATE", "PIP_", "COV_"))}
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        return {**kept, **offline}

    def _run(self, command: list[str], cwd: Path | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=cwd or self.path, env=self._environ(), capture_output=True, text=True, timeout=300, check=False
        )

    def forked(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return self.forked_python(PROGRAM, *arguments, cwd=cwd)

    def forked_python(self, code: str, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        if self._forks is None:
            command = [str(self.path / "bin" / "python"), "-u", "-c", FORKS]
            self._forks = subprocess.Popen(
                command, cwd=self.path, env=self._environ(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        out, error = self.path / "out", self.path / "error"
        given = {"code": code, "words": words, "cwd": str(cwd or self.path), "out": str(out), "error": str(error)}
        print(json.dumps(given), file=self._forks.stdin, flush=True)
        status = int(self._forks.stdout.readline())
        return subprocess.CompletedProcess(["surogate", *words], status, out.read_text(), error.read_text())

    def close(self) -> None:
        if self._forks is not None:
            self._forks.communicate()

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
def make_environment(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Environment]]:
    """Make a fresh environment and install these distributions into it, with the libraries that the core depends on."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    made = []

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
        made.append(environment)
        environment.install(*names, *(entry.split()[0] for entry in needed if entry.startswith("surogate-")))
        return environment

    yield make
    for environment in made:
        environment.close()


@pytest.fixture(scope="session")
def everything(wheels: Path, make_environment: Callable[..., Environment]) -> Environment:
    """An environment with the core and all plugins from their wheels. What a test adds, it removes again."""
    return make_environment(*(wheel.name.split("-")[0].replace("_", "-") for wheel in sorted(wheels.glob("*.whl"))))
