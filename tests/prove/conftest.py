from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE))  # scripts and what they share are imported by name, as where a script is started


@pytest.fixture
def kept_by() -> Callable[..., Any]:
    """Start a script of this directory with ``--results FILE`` and more words, on one thread; what it kept. It must end well."""

    def run(script: str, results: Path, *words: str) -> Any:
        command = [sys.executable, str(HERE / script), *words, "--results", str(results)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return json.loads(results.read_text())

    return run
