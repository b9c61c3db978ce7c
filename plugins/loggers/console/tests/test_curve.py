from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from surogate_logger_console import plugin
from surogate_logger_console.curve import HEIGHT, Curve, draw, read_curve
from surogate_logger_console.picture import write_picture

from surogate_core.contracts import RunInfo


def info(directory: Path, *, resumed: int = 0, quiet: bool = False) -> RunInfo:
    return RunInfo(config=None, plan=None, output_dir=directory, resumed=resumed, total_steps=8, terminal=False, quiet=quiet)


def step(number: int, loss: Any) -> dict[str, Any]:
    return {"kind": "step", "step": number, "loss": loss}


def finish(run: RunInfo, *records: dict[str, Any]) -> None:
    plugin.run_started(run)
    for record in records:
        (plugin.step_finished if record["kind"] == "step" else plugin.evaluated)(run, record)
    plugin.checkpoint_saved(run, records[-1]["step"])
    plugin.run_finished(run)


def rows(text: str) -> list[str]:
    return [line.split("|", 1)[1] for line in text.splitlines() if "|" in line]


def test_a_falling_loss_goes_from_top_left_to_bottom_right() -> None:
    grid = rows(draw(Curve(train=[(number, 10.0 - number) for number in range(1, 9)])))
    assert len(grid) == HEIGHT
    places = [(index, line.index("*")) for index, line in enumerate(grid) if "*" in line]
    assert len(places) == 8
    assert places[0] == (0, 0)
    assert places == sorted(places)
    assert places[-1] == (HEIGHT - 1, 63)


def test_a_column_shows_the_mean_of_its_steps() -> None:
    noisy = Curve(train=[(number, 2.0 + (number % 2)) for number in range(6400)])
    grid = rows(draw(noisy))
    assert sum(line.count("*") for line in grid) == 64
    text = draw(noisy)
    low, high = float(text.splitlines()[HEIGHT].split("|")[0]), float(text.splitlines()[1].split("|")[0])
    assert 2.4 < low <= high < 2.6


def test_evaluations_and_checkpoints_are_marked() -> None:
    text = draw(Curve(train=[(1, 4.0), (8, 2.0)], evals=[(8, 1.0)], checkpoints=[8]))
    grid = rows(text)
    assert grid[-1].rstrip().endswith("o")
    assert "^ checkpoint)" in text.splitlines()[0]
    assert [line.strip() for line in text.splitlines()][-2] == "^"
    assert text.endswith("step 8")


@pytest.mark.parametrize("columns", [20, 40, 74, 200])
def test_the_drawing_fits(columns: int) -> None:
    text = draw(Curve(train=[(n, 9 / n) for n in range(1, 500)], evals=[(400, 2.0)], checkpoints=[499]), columns)
    assert max(map(len, text.splitlines())) == min(columns, 74)
    for mark in ("* training", "o evaluation", "^ checkpoint"):
        assert mark in text


def test_an_even_loss_is_drawn_too() -> None:
    assert rows(draw(Curve(train=[(1, 2.0), (2, 2.0)])))[0].count("*") == 2


@pytest.mark.filterwarnings("error")
def test_a_run_ends_with_a_drawing_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(info(tmp_path), step(1, 4.0), step(2, 3.0), {"kind": "eval", "step": 2, "loss": 3.5})
    output = capsys.readouterr().out
    assert "(* training, o evaluation, ^ checkpoint)" in output
    assert str(tmp_path / "loss.png") in output
    assert [entry.name for entry in tmp_path.iterdir()] == ["loss.png"]
    content = (tmp_path / "loss.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", content[16:24]) == (960, 540)


def test_the_picture_shows_the_points(tmp_path: Path) -> None:
    def pixels(curve: Curve) -> bytes:
        write_picture(curve, tmp_path / "a.png")
        content, data, place = (tmp_path / "a.png").read_bytes(), b"", 8
        while place < len(content):
            (size,) = struct.unpack(">I", content[place : place + 4])
            data += content[place + 8 : place + 8 + size] if content[place + 4 : place + 8] == b"IDAT" else b""
            place += 12 + size
        return zlib.decompress(data)

    base = Curve(train=[(1, 4.0), (2, 3.0), (3, 2.0)])
    again = Curve(train=[(1, 4.0), (2, 3.0), (3, 2.0)])
    assert pixels(base) == pixels(again)
    assert pixels(base) != pixels(Curve(train=[(1, 4.0), (2, 3.5), (3, 2.0)]))
    assert pixels(base) != pixels(Curve(train=base.train, evals=[(3, 2.5)]))
    assert pixels(base) != pixels(Curve(train=base.train, checkpoints=[2]))


def test_quiet_writes_the_picture_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(info(tmp_path, quiet=True), step(1, 4.0), step(2, 3.0))
    assert capsys.readouterr().out == ""
    assert (tmp_path / "loss.png").exists()


def test_one_point_is_no_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(info(tmp_path), step(1, 4.0), step(2, float("nan")))
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_has_its_earlier_points(tmp_path: Path) -> None:
    records = [
        step(1, 5.0),
        step(2, 4.0),
        {"kind": "eval", "step": 2, "loss": 4.5},
        {"kind": "checkpoint", "step": 2},
        step(3, 3.0),
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + '{"kind": "st')
    assert read_curve(path, 2) == Curve(train=[(1, 5.0), (2, 4.0)], evals=[(2, 4.5)], checkpoints=[2])
    assert read_curve(tmp_path / "none.jsonl", 2) == Curve()
    run = info(tmp_path, resumed=2)
    plugin.run_started(run)
    plugin.step_finished(run, step(3, 3.5))
    assert plugin._curves.pop(tmp_path).train == [(1, 5.0), (2, 4.0), (3, 3.5)]
