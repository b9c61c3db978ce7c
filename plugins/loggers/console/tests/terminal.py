"""What a run shows, as text: recorded through a pipe and on a pseudo-terminal, in the modes of ``MODES``.

    python plugins/loggers/console/tests/terminal.py DIRECTORY            # about ten seconds

writes ``DIRECTORY/<mode>.txt``, the screen as it is when the command has ended, and ``live.txt``, the progress line before that.
The same small run each time: a QLoRA adapter on a random model of 27,000 parameters. One process imports torch; each run is a fork.
"""

from __future__ import annotations

import fcntl
import functools
import importlib
import os
import pty
import re
import struct
import sys
import tempfile
import termios
import traceback
from collections.abc import Callable
from pathlib import Path

from attrs import Factory, define, frozen


@frozen
class Mode:
    """``columns``: those of a terminal; 0 is a pipe. ``environ`` is added to the environment, ``words`` to the command."""

    columns: int = 0
    words: tuple[str, ...] = ()
    environ: dict[str, str] = Factory(dict)


MODES = {
    "piped": Mode(),
    "terminal": Mode(columns=132),
    "narrow": Mode(columns=40),
    "no-color": Mode(columns=132, environ={"NO_COLOR": "1"}),
    "quiet": Mode(columns=132, words=("--quiet",)),
}
CONFIG = """\
model = "tiny"
output_dir = "out"
run_name = "bottles"
model_dtype = "fp32"
sequence_len = 64
lora_rank = 4
lora = true
qlora_bnb = true
optimizer = "adamw"
learning_rate = 1.0
lr_scheduler_type = "constant"
auto_lr_reduction = true
diagnostics_window = 20
grad_explosion = 1.1
gradient_accumulation_steps = 1
dataloader_num_workers = 0
max_steps = 30
eval_steps = 15
save_steps = 15
datasets = [{ path = "rows.jsonl", type = "text" }]
validation_datasets = [{ path = "held.jsonl", type = "text" }]
"""


@define
class Screen:
    """A terminal of ``columns`` columns and no end of rows: characters, carriage return, line feed, cursor up, erase line. SGR
    sequences (ECMA-48, 8.3.117) are kept aside in ``styles``, whether the cursor is ``hidden``; other sequences are an error.

    ``wrapped`` has the rows that begin because a character did not fit into the row before. ``frames`` has what the row of the
    cursor said each time before it was erased.
    """

    columns: int
    rows: list[list[str]] = Factory(lambda: [[]])
    row: int = 0
    column: int = 0
    wrapped: set[int] = Factory(set)
    styles: list[str] = Factory(list)
    frames: list[str] = Factory(list)
    hidden: bool = False

    def feed(self, text: str) -> None:
        for piece in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[^\x1b]|\x1b", text):
            if len(piece) == 1:
                self._write(piece)
            elif piece[-1] == "m":
                self.styles.append(piece[2:-1])
            elif piece[-1] == "A":
                self.row -= int(piece[2:-1] or 1)
                assert self.row >= 0
            elif piece == "\x1b[2K":
                self.frames.append("".join(self.rows[self.row]).rstrip())
                self.rows[self.row] = []
            else:
                assert piece in ("\x1b[?25l", "\x1b[?25h"), f"unknown sequence {piece!r}"
                self.hidden = piece[-1] == "l"

    def _write(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":  # the line discipline of a terminal sends a carriage return before it
            self.row, self.column = self.row + 1, self.column
        else:
            assert character >= " ", f"control character {character!r}"
            if self.column == self.columns:
                self.row, self.column = self.row + 1, 0
                self.wrapped.add(self.row)
            self._reach()
            cells = self.rows[self.row]
            cells.extend(" " * (self.column + 1 - len(cells)))
            cells[self.column] = character
            self.column += 1
        self._reach()

    def _reach(self) -> None:
        while len(self.rows) <= self.row:
            self.rows.append([])

    def text(self) -> str:
        return "\n".join("".join(row).rstrip() for row in self.rows).rstrip("\n") + "\n"


def output(action: Callable[[], None], mode: Mode) -> str:
    """All that ``action`` writes to stdout and stderr in a fork of this process. Raises ``RuntimeError`` with it if it fails."""
    reading, writing = pty.openpty() if mode.columns else os.pipe()
    if mode.columns:
        fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, mode.columns, 0, 0))
    child = os.fork()
    if not child:
        _become(action, mode, writing)
    os.close(writing)
    found = bytearray()
    while piece := _read(reading):
        found += piece
    os.close(reading)
    _, status = os.waitpid(child, 0)
    text = found.decode()
    if status:
        raise RuntimeError(f"ended with {os.waitstatus_to_exitcode(status)}:\n{text}")
    return text


def _become(action: Callable[[], None], mode: Mode, writing: int) -> None:
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream in (1, 2):
            os.dup2(writing, stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", encoding="utf-8", buffering=1) for stream in (1, 2))
        for name in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR", "COLORTERM"):
            os.environ.pop(name, None)
        os.environ.update({"TERM": "xterm-256color", **mode.environ})
        action()
        sys.stdout.flush()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _read(handle: int) -> bytes:
    try:
        return os.read(handle, 65536)
    except OSError:  # how Linux says that no process has the other side of a terminal open
        return b""


def shown(mode: Mode, text: str) -> Screen:
    screen = Screen(mode.columns or 10_000)
    screen.feed(text if mode.columns else text.replace("\n", "\r\n"))
    return screen


def record(place: Path) -> dict[str, Screen]:
    """The screen of each mode; ``place`` is an empty directory to work in."""
    import torch
    from surogate_model_transformers.testing import tiny_model

    from surogate_core import testing

    for slow in (
        "rich.live",
        "surogate_logger_console.picture",
        "surogate_loop_standard.session",
        "surogate_quantizer_bnb_nf4.nf4",
    ):
        importlib.import_module(slow)  # once, not in each fork
    torch.set_num_threads(1)  # a fork has no threads of torch
    os.environ["SUROGATE_CACHE"] = "cache"
    tiny_model(place / "tiny")
    testing.write_rows(place / "rows.jsonl", [{"text": f"{n} green bottles hanging on the wall " * 8} for n in range(60)])
    testing.write_rows(place / "held.jsonl", [{"text": f"{n} brown bottles hanging on the wall " * 8} for n in range(3)])
    (place / "run.toml").write_text(CONFIG)
    found = {}
    for name, mode in MODES.items():
        words = ["run", "run.toml", "--output-dir", name, *mode.words]
        found[name] = shown(mode, output(functools.partial(_surogate, words, place), mode))
    return found


def _surogate(words: list[str], directory: Path) -> None:
    from surogate_core.cli.main import main

    os.chdir(directory)
    try:
        main(words)
    except SystemExit as ended:
        if ended.code:
            raise


def samples(screens: dict[str, Screen]) -> dict[str, str]:
    """Name → text of each sample; ``live`` has the last progress line of a wide and of a narrow terminal."""
    live = (screens[name].frames[-1] + "\n" for name in ("terminal", "narrow"))
    return {**{name: screen.text() for name, screen in screens.items()}, "live": "".join(live)}


def main(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        for name, text in samples(record(Path(place).resolve())).items():
            (directory / f"{name}.txt").write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
