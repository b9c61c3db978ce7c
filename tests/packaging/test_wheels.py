"""Installed from wheels, without the repository: everything together, each plugin alone, the core alone."""

from __future__ import annotations

import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from surogate_model_transformers import testing as models_testing

from surogate_core import testing

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = {
    project["name"]: project
    for tree in ("plugins/*/*", "native/*", "libraries/*")
    for project in (tomllib.loads(path.read_text())["project"] for path in sorted(ROOT.glob(f"{tree}/pyproject.toml")))
}
DISTRIBUTIONS = sorted(name for name, project in PROJECTS.items() if "entry-points" in project)
pytestmark = pytest.mark.xdist_group("wheels")


@pytest.fixture(scope="session")
def core_alone(make_environment: Callable[..., Any]) -> Any:
    return make_environment("surogate")


def job(directory: Path, **keys: str) -> Path:
    """A job of two steps on a tiny model; ``keys`` are TOML values."""
    models_testing.tiny_model(directory / "model", weights=False)
    testing.write_rows(
        directory / "text.jsonl", [{"text": f"the quick brown fox {number} jumps over the lazy dog"} for number in range(40)]
    )
    settings = {
        "model": '"model"',
        "from_scratch": "true",
        "lora": "false",
        "max_steps": "2",
        "sequence_len": "64",
        "model_dtype": '"fp32"',
        "optimizer": '"adamw"',
        "output_dir": '"out"',
        **keys,
    }
    text = "".join(f"{key} = {value}\n" for key, value in settings.items()) + '[[datasets]]\npath = "text.jsonl"\ntype = "text"\n'
    (directory / "job.toml").write_text(text)
    return directory


def ours_needed_by(distribution: str) -> list[str]:
    """Distributions of this repository that one depends on, and what these depend on."""
    direct = [name for name in PROJECTS if any(entry.startswith(f"{name} ") for entry in PROJECTS[distribution]["dependencies"])]
    return sorted({*direct, *(name for other in direct for name in ours_needed_by(other))})


def test_wheels_hold_the_package_and_its_licence_only(wheels: Path) -> None:
    for wheel in wheels.glob("*.whl"):
        package = wheel.name.split("-")[0]
        tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
        assert tops == {"surogate_core" if package == "surogate" else package, wheel.name.rsplit("-", 3)[0] + ".dist-info"}


def test_everything_is_listed_and_a_job_runs(everything: Any, tmp_path: Path) -> None:
    listed = everything.surogate("plugins")
    assert listed.returncode == 0, listed.stderr
    for distribution in DISTRIBUTIONS:
        assert distribution in listed.stdout
    done = everything.surogate("run", "job.toml", cwd=job(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "loss.png").is_file()
    located = everything.python("-c", "import surogate_core; print(surogate_core.__file__)").stdout
    assert str(ROOT) not in located


def test_the_core_alone_names_what_is_missing(core_alone: Any, tmp_path: Path) -> None:
    assert core_alone.surogate("--help").returncode == 0
    listed = core_alone.surogate("plugins")
    assert listed.returncode == 0, listed.stderr
    assert "surogate-" not in listed.stdout
    done = core_alone.forked("run", "job.toml", cwd=job(tmp_path))
    assert done.returncode == 2, done.stdout + done.stderr
    for distribution in ("surogate-recipe-bf16", "surogate-optimizer-adamw", "surogate-dataset-text"):
        assert f"pip install {distribution}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_each_plugin_installs_alone(core_alone: Any, distribution: str) -> None:
    needed = ours_needed_by(distribution)
    core_alone.install(distribution, *needed)
    try:
        listed = core_alone.surogate("plugins")
        assert listed.returncode == 0, listed.stderr
        assert distribution in listed.stdout
        code = (
            "import warnings; warnings.simplefilter('error', ImportWarning)\n"
            "from surogate_core.host import load_host; host = load_host(); assert not host.broken, host.broken\n"
            "for plugin in host.plugins:\n    for kind, offer in plugin.offers: offer.load()"
        )
        loaded = core_alone.forked_python(code)
        assert loaded.returncode == 0, loaded.stderr
    finally:
        core_alone.remove(distribution, *needed)
