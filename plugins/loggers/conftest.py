"""How wandb's and Aim's files are read in tests: through wandb's own messages, and Aim's own queries."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no settings and nothing that phones home, whoever runs the tests."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("AIM_UI_TELEMETRY_ENABLED", "0")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from surogate_model_transformers import testing as models_testing

    return models_testing.tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def read_wandb() -> Callable[[Path], list[Any]]:
    """All records of an offline run's file so far. The frames are those of a LevelDB log, the records wandb's own messages."""

    def records(path: Path) -> Iterator[Any]:
        from wandb.proto.wandb_internal_pb2 import Record

        data = path.read_bytes()
        assert data[:4] in (b":W&B", b"")
        place, payload = 7, b""
        while place + 7 <= len(data):
            if 32768 - place % 32768 < 7:
                place += 32768 - place % 32768
                continue
            checksum, size, kind = struct.unpack("<IHB", data[place : place + 7])
            piece = data[place + 7 : place + 7 + size]
            if len(piece) < size:
                return  # the process was killed while it wrote this
            assert checksum == zlib.crc32(bytes([kind]) + piece)
            place, payload = place + 7 + size, payload + piece
            if kind in (1, 4):  # whole, or the last piece
                record = Record()
                record.ParseFromString(payload)
                payload = b""
                yield record

    return lambda path: list(records(path))


@pytest.fixture
def read_aim() -> Callable[[Path], list[dict[str, Any]]]:
    """What Aim's own query finds in a repository once it is indexed, as `aim up` does: a dictionary for each run."""

    def runs(directory: Path) -> list[dict[str, Any]]:
        from aim import Repo

        repo = Repo(str(directory))
        repo._recreate_index()
        found = {run.hash: about(run) for run in repo.iter_runs()}
        for query in (repo.query_metrics("metric.name != ''", report_mode=0), repo.query_texts("", report_mode=0)):
            for sequences in query.iter_runs():
                for one in sequences:
                    for step, (value, *_) in one.data.items():
                        rows = found[one.run.hash]["rows"]
                        rows.setdefault(step, {})[one.name] = value if isinstance(value, float | int) else value.data
        return list(found.values())

    def about(run: Any) -> dict[str, Any]:
        records = run.get_log_records()
        lines = [json.loads(record.message) for record in records.data.values_list()[0]] if records else []
        told = {"hash": run.hash, "name": run.name, "experiment": run.experiment, "ended": run.end_time is not None}
        return {**told, "rows": {}, "lines": lines, "settings": run[...]}

    return runs
