"""The rules that every distribution of this repository follows."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(ROOT.glob("plugins/*/*/pyproject.toml"))
KINDS = {
    "models": "model",
    "pipelines": "pipeline",
    "checkpoints": "checkpoint",
    "loops": "loop",
    "recipes": "recipe",
    "adapters": "adapter",
    "quantizers": "quantizer",
    "fusions": "fusion",
    "optimizers": "optimizer",
    "schedules": "schedule",
    "datasets": "dataset",
    "loggers": "logger",
    "observers": "observer",
    "distributed": "distributed",
    "commands": "command",
}
NATIVE = sorted(ROOT.glob("native/*/pyproject.toml"))
LIBRARIES = sorted(ROOT.glob("libraries/*/pyproject.toml"))
TESTING = ROOT / "libraries" / "testing" / "pyproject.toml"
ALL = [*PLUGINS, *NATIVE, *LIBRARIES]
ACROSS = {
    "packaging": "the repository itself",
    "prove": "full sweeps",
    "data": "formats, tokenizers, templates and the pipeline together, on real files",
    "docs": "the documentation against all plugins",
    "gpu_check": "bench/gpu_check.py",
    "real_model": "a run of a real model through the whole program",
    "skips": "what tests say when they are skipped",
}
"""What tests/ has beside a mirror of surogate_core/."""
every_distribution = pytest.mark.parametrize("path", ALL, ids=lambda path: "/".join(path.parts[-3:-1]))
every_plugin = pytest.mark.parametrize("path", PLUGINS, ids=lambda path: "/".join(path.parts[-3:-1]))


def load(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


CORE = load(ROOT / "pyproject.toml")


def names(path: Path) -> tuple[str, str]:
    """(distribution, package) that the directory of a plugin, of a kernel package or of a library calls for."""
    kind = "" if path in LIBRARIES else f"{KINDS.get(path.parts[-3], 'native')}-"
    distribution = f"surogate-{kind}{path.parts[-2].replace('_', '-')}"
    return distribution, distribution.replace("-", "_")


def sources(*suffixes: str) -> list[Path]:
    """Files that git tracks or would track."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [ROOT / name for name in listed if (ROOT / name).is_file() and (not suffixes or name.endswith(suffixes))]


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_there_are_plugins_of_every_kind_built_so_far() -> None:
    assert {path.parts[-3] for path in PLUGINS} >= KINDS.keys() - {"distributed"}
    assert {path.parts[-3] for path in PLUGINS} <= KINDS.keys()


@every_distribution
def test_names_match_one_to_one(path: Path) -> None:
    distribution, package = names(path)
    project = load(path)
    assert project["project"]["name"] == distribution
    assert project["tool"]["flit"]["module"]["name"] == package
    assert [entry.name for entry in (path.parent / "src").iterdir()] == [package]
    assert (path.parent / "src" / package / "plugin.py").is_file() == (path in PLUGINS)


@every_plugin
def test_the_entry_point_is_named_like_the_distribution(path: Path) -> None:
    distribution, package = names(path)
    project = load(path)["project"]
    assert project["entry-points"] == {"surogate.v1": {distribution.removeprefix("surogate-"): f"{package}.plugin"}}
    assert "scripts" not in project


def test_kernel_packages_and_libraries_have_no_entry_point() -> None:
    assert NATIVE
    assert LIBRARIES
    projects = [load(path)["project"] for path in [*NATIVE, *LIBRARIES]]
    assert not [project["name"] for project in projects if "entry-points" in project or "scripts" in project]


@every_distribution
def test_the_core_is_required_in_the_exact_version_that_no_index_serves(path: Path) -> None:
    project, version = load(path)["project"], CORE["project"]["version"]
    assert "+" in version, "a version without a local part can be on the public index"
    ours = [entry for entry in project["dependencies"] if entry.lower().startswith("surogate")]
    if path == TESTING:
        assert ours == [f"surogate == {version}"], "checks know contracts, which are the core's, and no plugin"
    elif path in LIBRARIES:
        assert not ours, "a library knows neither the core nor a plugin"
    else:
        assert ours[0] == f"surogate == {version}"
    assert set(ours[1:]) <= {f"{names(other)[0]} == {version}" for other in ALL if other != path}
    assert project["version"] == version
    package = path.parent / "src" / names(path)[1] / "__init__.py"
    declared = re.search(r'^__version__ = "(.+)"$', package.read_text(), re.MULTILINE)
    assert declared is None or declared[1] == version


@every_distribution
def test_no_extra_names_our_own_plugins_and_nothing_is_compiled(path: Path) -> None:
    project = load(path)
    assert "surogate" not in repr(project["project"].get("optional-dependencies", {}))
    assert project["build-system"]["build-backend"] == "flit_core.buildapi"


def test_the_core_depends_on_no_plugin() -> None:
    ours = [entry for entry in CORE["project"]["dependencies"] if "surogate" in entry]
    assert set(ours) <= {f"{names(path)[0]} == {CORE['project']['version']}" for path in LIBRARIES}
    assert "surogate" not in repr(CORE["project"].get("optional-dependencies", {}))
    assert 'version = "{}"'.format(CORE["project"]["version"]) in (ROOT / "pyproject.toml").read_text()


@every_plugin
def test_the_readme_has_a_config(path: Path) -> None:
    assert "```toml" in (path.parent / "README.md").read_text()


@every_distribution
def test_there_are_tests(path: Path) -> None:
    assert list((path.parent / "tests").glob("test_*.py"))


def test_the_tests_mirror_the_packages_of_the_core() -> None:
    packages = {path.parent.name for path in (ROOT / "surogate_core").glob("*/__init__.py")}
    modules = {path.stem for path in (ROOT / "surogate_core").glob("*.py")}
    directories = {path.parent.name for path in sources(".py") if path.parent.parent == ROOT / "tests"}
    files = {path.stem.removeprefix("test_") for path in sources(".py") if path.parent == ROOT / "tests"}
    assert directories - packages == ACROSS.keys() & directories
    assert files - packages - modules == ACROSS.keys() & files
    assert packages <= directories | files
    assert ACROSS.keys() <= directories | files, "an exception that is none any more"


@every_distribution
def test_licence_and_python_are_the_cores(path: Path) -> None:
    project = load(path)["project"]
    for key in ("license", "requires-python"):
        assert project[key] == CORE["project"][key]


def test_one_requirements_file_lists_everything() -> None:
    listed = re.findall(r"^-e (\S+)$", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted([".", *(str(path.parent.relative_to(ROOT)) for path in ALL)])


def test_torch_is_pinned_exactly() -> None:
    pins = (ROOT / "constraints.txt").read_text()
    assert re.search(r"^torch==\d+\.\d+\.\d+$", pins, re.MULTILINE)
    required = (ROOT / "requirements-dev.txt").read_text().splitlines()
    for name in (line for line in required if line and not line.startswith(("#", "-e"))):
        assert re.search(rf"^{re.escape(name)}==", pins, re.MULTILINE), f"{name} has no pin"


@every_plugin
def test_listing_a_plugin_imports_nothing_heavy(path: Path) -> None:
    package = names(path)[1]
    code = f"import sys, {package}.plugin as p; [getattr(p, n)() for n in dir(p) if n.startswith('register_')]"
    code += "; print(*sorted({'torch', 'transformers', 'numpy', 'rich', 'datasets', 'peft'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", ["plugins", "tests", "native", "libraries"])
def test_the_installed_checkout_puts_only_its_package_on_the_path(name: str, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", f"import {name}; print(list({name}.__path__))"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert repr(str(ROOT / name)) not in done.stdout  # Aim's wheel brings a package `tests`: .venv may have one
    located = "import surogate_core; print(surogate_core.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", located], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    assert Path(found.stdout.strip()).is_file()


def test_the_core_is_small() -> None:
    """Below 3,500 lines, everything counted."""
    core = [path for path in sources(".py") if path.is_relative_to(ROOT / "surogate_core")]
    assert len(core) > 10
    assert sum(map(lines, core)) < 3500


def test_no_source_file_is_long() -> None:
    long = {str(path.relative_to(ROOT)): lines(path) for path in sources(".py") if "tests" not in path.parts and lines(path) > 350}
    assert not long


def test_nothing_is_copied_from_the_shared_data(shared_data: Path) -> None:
    sizes = {path.stat().st_size for path in sources()}
    digests = {hashlib.sha256(path.read_bytes()).digest(): path for path in sources() if path.stat().st_size}
    for path in shared_data.rglob("*"):
        if path.is_file() and path.stat().st_size in sizes and path.stat().st_size:
            assert hashlib.sha256(path.read_bytes()).digest() not in digests, f"{path.name} is in the repository"
