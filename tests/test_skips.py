"""What is not run is said, with its reason and how to run it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TREES = ("tests", "libraries", "native", "plugins")
FILES = [ROOT / "conftest.py", *(path for tree in TREES for path in sorted((ROOT / tree).rglob("*.py")))]


def reasons(path: Path) -> Iterator[ast.expr | None]:
    """The reason of each skip in a file, None where there is none."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        name = ast.unparse(call.func)
        if name in ("pytest.skip", "pytest.mark.skip"):
            yield named.get("reason", call.args[0] if call.args else None)
        elif name in ("pytest.mark.skipif", "pytest.importorskip"):
            yield named.get("reason")


@pytest.mark.parametrize("path", [path for path in FILES if any(True for _ in reasons(path))], ids=lambda path: path.name)
def test_a_skip_says_what_is_missing_and_how_to_get_it(path: Path) -> None:
    for reason in reasons(path):
        assert reason is not None, f"{path}: a skip without a reason"
        if not isinstance(reason, ast.Name):  # built above it
            what, _, how = ast.unparse(reason).strip("f'\"").partition(": ")
            assert what, f"{path}: {ast.unparse(reason)} does not say what is missing"
            assert how, f"{path}: {ast.unparse(reason)} does not say how to get it"


def pytest_says(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    own = {key: value for key, value in os.environ.items() if key not in ("SUROGATE_TEST_DATA", "SUROGATE_PROVE")}
    command = [sys.executable, "-m", "pytest", "-q", "-rs", *words]
    return subprocess.run(command, cwd=ROOT, env={**own, **environment}, capture_output=True, text=True, check=False)


def test_data_that_were_named_have_to_be_there(tmp_path: Path) -> None:
    done = pytest_says({"SUROGATE_TEST_DATA": str(tmp_path)}, "tests/packaging/test_packaging.py", "-k", "shared_data")
    assert done.returncode == 1
    assert f"no test data in {tmp_path}: SUROGATE_TEST_DATA has to name" in done.stdout
    assert 'export SUROGATE_TEST_DATA="' in (ROOT / ".ci" / "run").read_text()


def test_a_sweep_names_the_command_that_runs_it() -> None:
    done = pytest_says({}, "tests/prove/test_kill_sweep.py", "-k", "three_hundred")
    assert done.returncode == 0
    assert "300 kills take half an hour: make prove (SUROGATE_PROVE=1)" in done.stdout
