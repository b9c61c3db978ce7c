"""What a user sees, as text: a whole run through a pipe and on pseudo-terminals, beside the samples in ``docs/terminal``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import terminal
from surogate_logger_console.console import Console, build
from surogate_logger_console.lines import WHOLE, fold, step_line
from terminal import Mode, Screen

from surogate_core import testing
from surogate_core.contracts import LoggerContext

pytestmark = pytest.mark.xdist_group("terminal")  # what is recorded takes half a minute: once is enough
HERE = Path(__file__).resolve().parent
SAMPLES = HERE.parents[3] / "docs" / "terminal"
RECORD = """
import json, sys, attrs, terminal
from pathlib import Path
screens = terminal.record(Path(sys.argv[1]))
plain = lambda of, field, value: sorted(value) if isinstance(value, set) else value
found = {name: attrs.asdict(screen, value_serializer=plain) for name, screen in screens.items()}
Path(sys.argv[2]).write_text(json.dumps({"screens": found, "samples": terminal.samples(screens)}))
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A process of its own: this one may have threads, which do not survive a fork."""
    place = tmp_path_factory.mktemp("record")
    (place / "work").mkdir()
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    words = [sys.executable, "-c", RECORD, str(place / "work"), str(place / "found.json")]
    done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((place / "found.json").read_text())


@pytest.fixture(scope="module")
def screens(recorded: dict[str, Any]) -> dict[str, Screen]:
    return {name: Screen(**{**told, "wrapped": set(told["wrapped"])}) for name, told in recorded["screens"].items()}


def settled(text: str) -> str:
    """A sample without what differs from run to run and from machine to machine: times, speeds, memory, the digits of losses, the
    drawing within its axes, how many plugins are installed, and where lines are folded."""
    text = "\n".join(line for line in text.splitlines() if " |" not in line)
    text = re.sub(r"\n +(?=\S)", " ", text)
    for figure in (
        r"[\d,]+(?= tokens/s| a second)",
        r"(?<=left )\w+",
        r"(?<=waits )\d+",
        r"(?<=norm )[\d.e-]+",
        r"(?<=norm is )[\w ]+",
        r"[\d.]+ MB",
        r"(?<=data )\d\w*(?=, compute)|(?<=compute )\d\w*|(?<=eval )\d\w*(?=, save)|(?<=save )\d\w*",
        r"[\d.]+(?= ms a step|s after)",
        r"\d+(?= plugins)",
        r"[0-9a-f]{10,}(?= |\n|$)",
        r"[+-]\d+\.\d(?= %)",
        r"\d+\.\d{3,}",
        r"(?<=perplexity )[\d.]+",
    ):
        text = re.sub(figure, "#", text)
    return re.sub(r"# (?=#)", "", text)


@pytest.mark.parametrize("name", [*terminal.MODES, "live"])
def test_the_sample_in_the_docs_is_what_the_program_shows(name: str, recorded: dict[str, Any]) -> None:
    """``make samples`` records them anew."""
    assert settled((SAMPLES / f"{name}.txt").read_text()) == settled(recorded["samples"][name])


def test_a_pipe_gets_plain_lines(screens: dict[str, Screen]) -> None:
    piped = screens["piped"]
    assert not piped.frames
    assert not piped.styles
    assert not piped.hidden
    steps = [line for line in piped.text().splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == [*(f"{n}/30" for n in range(1, 11)), *(f"{n}/30" for n in range(11, 31))]
    for figure in ("epoch", "loss", "lr", "norm", "tokens/s", "MB", "waits", "warmup", "left"):
        assert all(figure in line for line in steps[:9]), figure


def test_the_start_names_everything_that_computes(screens: dict[str, Screen]) -> None:
    text = screens["piped"].text()
    for part in ("storage surogate-quantizer-bnb-nf4", "compute surogate-recipe-bf16", "adapter surogate-adapter-lora"):
        assert part in text
    assert "norm: surogate-fusion-norm" in text
    assert re.search(r"\nkernels +attention by torch with one mask a batch, loss by torch in chunks\n", text)
    assert re.search(r"\nmemory +110 kB are kept in tensors: weights 34.6 kB, quantised weights 9.62 kB, ", text)
    assert re.search(r"\nmemory +peak \d+ MB \(the whole process\), 110 kB of it kept in tensors\n", text)
    assert re.search(r"\nversions +surogate \S+ and \d+ plugins of this version\n", text)
    assert re.search(r"\ndecision  learning rate × 0.5  step \d+  auto_lr_reduction, .+  by surogate-observer-diagnostics ", text)


@pytest.mark.parametrize("name", ["terminal", "narrow", "no-color"])
def test_a_terminal_has_one_live_line_and_gets_its_cursor_back(name: str, screens: dict[str, Screen]) -> None:
    screen = screens[name]
    assert len(screen.frames) > 3
    assert all(re.match(r"([━╸╺ ]+ )?step \d+/30", frame) for frame in screen.frames), "one row, begun at its first column"
    assert not screen.hidden
    rows = screen.text().splitlines()
    assert [row for row in rows if re.match("([━╸╺ ]+ )?step ", row)] == [next(row for row in rows if row.startswith("step 30/30"))]


def test_a_narrow_terminal_wraps_nothing_but_what_is_to_be_copied(screens: dict[str, Screen]) -> None:
    screen = screens["narrow"]
    rows = ["".join(row).rstrip() for row in screen.rows]
    for row in screen.wrapped:
        first = row - 1
        while first in screen.wrapped:
            first -= 1
        assert rows[first][:13].strip() in WHOLE or " " not in rows[first].strip(), rows[first]
    assert max(map(len, rows)) <= 40
    assert max(map(len, screen.frames)) < 40
    assert "step 30/30  loss" in screen.text()


def test_no_color_has_none_and_the_same_text(screens: dict[str, Screen]) -> None:
    def colours(name: str) -> list[int]:
        codes = [int(code or 0) for style in screens[name].styles for code in style.split(";")]
        return [code for code in codes if 30 <= code <= 49 or 90 <= code <= 107]

    assert colours("terminal")
    assert not colours("no-color")
    assert settled(screens["no-color"].text()) == settled(screens["terminal"].text().replace("terminal", "no-color"))


def test_quiet_has_notices_and_decisions_only(screens: dict[str, Screen]) -> None:
    quiet = screens["quiet"]
    lines = re.sub(r"\n(?!notice|decision)", "", quiet.text().rstrip())  # nobody folds these
    kinds = {line.partition(" ")[0] for line in lines.splitlines()}
    assert kinds == {"notice:", "decision"}
    assert not quiet.frames
    assert not quiet.styles


RUN = {"kind": "run", "steps": 1000, "run_name": "a run with a name of several words", "output_dir": "o" * 300, "model": "m"}
STEP = {"kind": "step", "loss": 3.25, "lr": 1e-3, "grad_norm": 1.5, "tokens_per_s": 6825.4, "seconds": 2.0, "data_seconds": 0.5}
MORE = {"memory": 81_000_000_000, "gpu": {"util": 93.0}, "phase": "converging", "epoch": 0.5}


@pytest.mark.parametrize("columns", [12, 21, 40, 66, 80, 100, 101, 122, 200])
def test_the_live_line_fits_into_any_terminal(columns: int) -> None:
    def show() -> None:
        console = Console(terminal=True, quiet=False)
        console.log(RUN)
        for step in (1, 20, 1000):
            console.log({**STEP, **MORE, "step": step})
            console.log({"kind": "notice", "text": "some words of which there are many " * 3})
        console.close()

    screen = terminal.shown(Mode(columns), terminal.output(show, Mode(columns)))
    assert all(re.match(r"([━╸╺ ]+ )?step (1|20|1000)(/|$)", frame) for frame in screen.frames)
    assert {"".join(screen.rows[row]).strip("o ") for row in screen.wrapped} <= {""}, "only the long path"
    assert any("/1000" in frame for frame in screen.frames)


def test_what_others_write_to_the_error_stream_goes_above_the_live_line() -> None:
    def show() -> None:
        console = Console(terminal=True, quiet=False)
        console.log({**STEP, "step": 1})
        print("SIGINT: stopping after this step; once more aborts", file=sys.stderr)
        console.log({**STEP, "step": 2})
        console.close()

    screen = terminal.shown(Mode(100), terminal.output(show, Mode(100)))
    first, last = screen.text().splitlines()
    assert first == "SIGINT: stopping after this step; once more aborts"
    assert last.startswith("step 2  loss 3.2500")


def test_figures_are_left_out_by_their_importance() -> None:
    record = {**STEP, **MORE, "step": 7}
    whole = step_line(record, 1000, 60.0)
    assert whole == (
        "step 7/1000  epoch 0.50  loss 3.2500  lr 0.001  norm 1.5  6,825 tokens/s  81 GB  gpu 93%  waits 25%"
        "  converging  left 1m00s"
    )
    found = [step_line(record, 1000, 60.0, width) for width in range(1, len(whole) + 1)]
    assert all(len(line) <= width for width, line in enumerate(found, 1) if width >= 11)
    assert found[-1] == whole
    assert found[39] == "step 7/1000  loss 3.2500  left 1m00s"
    assert found[0] == "step 7/1000"


def test_folding_breaks_between_words() -> None:
    line = "batch        24 rows = micro-batch 4 × accumulation 3"
    assert fold(line, 80) == line
    assert fold(line, 40).splitlines() == ["batch        24 rows = micro-batch 4 ×", "  accumulation 3"]
    assert fold(f"next         surogate run {'c' * 90}", 40).count("\n") == 0
    wide = fold("memory       " + "weights 1 GB, " * 9, 60).splitlines()
    assert all(row.startswith(" " * 13 + "weights") for row in wide[1:])


def test_a_terminal_that_cannot_move_its_cursor_is_written_to_like_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"output_dir": Path("out"), "run_name": "r", "resumed": 0, "quiet": False}
    context = LoggerContext(config=testing.context().config, terminal=True, **given)
    monkeypatch.setenv("TERM", "dumb")
    assert build(None, context)._progress is None
    monkeypatch.setenv("TERM", "xterm")
    assert build(None, context)._progress is not None
