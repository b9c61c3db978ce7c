from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from surogate_loop_standard.fanout import Fanout
from surogate_loop_standard.records import Records, encode, redact

from surogate_core.errors import SaveFailed
from surogate_core.offers import Offer
from surogate_core.train import durable


def lines(path: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_bytes().decode("ascii").split("\n")[:-1]]


# ---------------------------------------------------------------- metrics.jsonl
def test_one_strict_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    records = Records(path, 0)
    third = {"kind": "step", "step": 1, "loss": 0.1 + 0.2, "lr": 1e-4}
    records.write(third)
    records.write({"kind": "step", "loss": float("nan"), "norms": [float("inf"), -float("inf"), 1.0]})
    records.write({"kind": "notice", "text": "two\nlines\u2028and \u00e4 \ud800", "path": tmp_path})
    records.close()
    records.close()
    assert lines(path) == [
        third,
        {"kind": "step", "loss": "nan", "norms": ["inf", "-inf", 1.0]},
        {"kind": "notice", "text": "two\nlines\u2028and \u00e4 \ud800", "path": str(tmp_path)},
    ]


def test_a_continued_run_replaces_the_records_of_replayed_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = Records(path, 0)
    records.write({"kind": "run", "task": "pt"})
    for step in (1, 2, 3, 4):
        records.write({"kind": "step", "step": step, "loss": 9.0})
        records.write({"kind": "eval", "step": step})
    records.close()
    with path.open("ab") as file:
        file.write(b'{"kind": "step", "st')  # torn by a kill
    records = Records(path, 2)
    records.write({"kind": "step", "step": 3, "loss": 1.0})
    records.close()
    assert [(one["kind"], one.get("step"), one.get("loss")) for one in lines(path)] == [
        ("run", None, None),
        ("step", 1, 9.0),
        ("eval", 1, None),
        ("step", 2, 9.0),
        ("eval", 2, None),
        ("step", 3, 1.0),
    ]
    assert [one.name for one in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_torn_in_the_middle_is_dropped_and_a_line_end_is_supplied(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "step", "step": 1}\n{"kind": "st\n\xff\n[1]\n{"kind": "step", "step": 2}')
    Records(path, 5).close()
    assert path.read_bytes() == b'{"kind": "step", "step": 1}\n{"kind": "step", "step": 2}\n'


def test_dropping_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    old = b'{"kind": "step", "step": 1}\n{"kind": "step", "step": 2}\n'
    for name in ("write", "flush", "rename"):
        path.write_bytes(old)

        def refuse(*arguments: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(durable, name, refuse)
            with pytest.raises(SaveFailed, match=r"metrics\.jsonl cannot be written: No space left"):
                Records(path, 1)
        assert path.read_bytes() == old
    Records(path, 1).close()
    assert path.read_bytes() == b'{"kind": "step", "step": 1}\n'


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_record_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    child = os.fork()
    if child == 0:
        Records(path, 0).write({"kind": "step", "step": 1})
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert lines(path) == [{"kind": "step", "step": 1}]


def test_a_full_disk_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(tmp_path / "metrics.jsonl", 0)

    def refuse(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", refuse)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(SaveFailed, match="No space left"):
        records.write({"kind": "step"})
    with pytest.raises(SaveFailed, match="No space left"):
        records.flush()
    records.close()


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(tmp_path / "metrics.jsonl", 0)
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:3]))
    records.write({"kind": "step", "step": 12345})
    assert lines(tmp_path / "metrics.jsonl") == [{"kind": "step", "step": 12345}]
    records.close()


# ---------------------------------------------------------------- redaction
TOKEN = "hf_" + "aB3" * 11


@pytest.mark.parametrize(
    "value",
    [
        {"hf_token": "abcdef"},
        {"wandb_api_key": "abcdef"},
        {"nested": [{"client_secret": "abcdef"}]},
        {"password": "abcdef"},
        {"text": "abcdef"},
        {"url": "https://x.example/?a=abcdef&b=1"},
        {"text": f"see https://user:{TOKEN}@huggingface.co/x and {TOKEN}"},
        {"url": "https://me:abcdef@host/path"},
        {"curl": "Authorization: Bearer abcdef12345"},
        {"text": "sk-abcdefabcdefabcdefabcdef"},
    ],
)
def test_secrets_are_hidden(value: dict[str, Any]) -> None:
    hidden = json.dumps(redact(value, {"MY_API_KEY": "abcdef"}))
    assert "abcdef" not in hidden
    assert TOKEN not in hidden
    assert "***" in hidden


def test_the_environment_of_the_process_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "plain-looking")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789")
    assert redact({"path": "plain-looking", "note": "with 0123456789"}) == {"path": "***", "note": "with ***"}


@pytest.mark.parametrize(
    "value",
    [
        {"tokens": 4096, "tokens_per_s": 12.5, "max_tokens": 12, "hf_token": None, "api_key": "", "last_token": 7},
        {"eos_token": "<|im_end|>", "pad_token": "<pad>", "key": "learning_rate", "text_field": "text"},
        {"path": "/data/hf_models_of_some_length_and_more/x", "sha": "a" * 40, "url": "https://host:8080/a@b"},
        {"value": "1", "tokenizer": "abcdef"},
    ],
)
def test_ordinary_values_are_left_alone(value: dict[str, Any]) -> None:
    assert redact(value, {"SHORT_KEY": "1", "TOKENIZERS_PARALLELISM": "abcdef", "EMPTY_TOKEN": ""}) == value


def test_records_and_loggers_get_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Listener:
        def __init__(self) -> None:
            self.records: list[Mapping[str, Any]] = []

        def log(self, record: Mapping[str, Any]) -> None:
            self.records.append(record)

        def close(self) -> None:
            return

    monkeypatch.setenv("HF_TOKEN", "plain-looking")
    records, listener = Records(tmp_path / "m.jsonl", 0), Listener()
    fanout = Fanout([(Offer("a", None, build=""), listener)], print)
    fanout.log(records.write({"kind": "run", "config": {"path": "x/plain-looking", "token": "t"}}))
    records.close()
    fanout.close()
    assert lines(tmp_path / "m.jsonl") == listener.records == [{"kind": "run", "config": {"path": "x/***", "token": "***"}}]


def test_encode_ends_each_line() -> None:
    assert encode({"a": 1}) == b'{"a": 1}\n'
