from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
from surogate_logger_console.console import Console
from surogate_logger_console.lines import banner, count, duration, summary

from surogate_core.testing import check_logger

RUN = {
    "kind": "run",
    "run_name": "small",
    "task": "pt",
    "why": "all data sets are text",
    "micro_batch": 4,
    "accumulation": 3,
    "ranks": 2,
    "tokens_per_step": 12288,
    "steps": 20,
    "epochs": 2,
    "trainable": 10_600_000,
    "parameters": 12_000_000,
    "recipe": "bf16",
    "dtype": "bfloat16",
    "optimizer": "adamw",
    "seed": 7,
    "output_dir": "out",
    "checkpoint_dir": "elsewhere",
}
STEP = {"kind": "step", "step": 5, "epoch": 0.5, "loss": 3.25, "lr": 1e-3, "grad_norm": 1.5, "tokens_per_s": 6825.4, "seconds": 2.0}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(*records: dict[str, Any], terminal: bool = False, quiet: bool = False) -> str:
    stream = Terminal() if terminal else io.StringIO()
    console = Console(terminal=terminal, quiet=quiet, stream=stream)
    for record in records:
        console.log(record)
    console.close()
    return stream.getvalue()


def test_the_banner_says_what_will_happen() -> None:
    text = "\n".join(banner(RUN))
    for part in (
        "pt (all data sets are text)",
        "10.6M trainable of 12M",
        "recipe bf16, bfloat16",
        "adamw, seed 7",
        "out",
        "elsewhere",
    ):
        assert part in text
    assert "24 rows = micro-batch 4 × accumulation 3 × ranks 2, 12,288 tokens a step" in text
    assert "20, 2 epochs, from step 8" in "\n".join(banner({**RUN, "resumed": 8}))


def test_a_step_has_place_figures_and_the_time_left() -> None:
    line = shown(RUN, {**STEP, "step": 4, "seconds": 4.0}, STEP).splitlines()[-1]
    assert line == "step 5/20  epoch 0.50  loss 3.2500  lr 0.001  norm 1.5  6,825 tokens/s  left 45s"  # 15 steps at (4 + 2) / 2 s


def test_what_is_missing_is_not_printed() -> None:
    assert shown({"kind": "step", "step": 3}) == "step 3\n"
    assert shown({"kind": "run"}) == ""
    assert shown({"kind": "end"}) == "\n"


def test_piped_output_has_no_control_characters_and_thins_out_steps() -> None:
    records = [{"kind": "run", "steps": 2000}, *({"kind": "step", "step": step, "loss": 1.0} for step in range(1, 2001))]
    output = shown(*records)
    assert "\x1b" not in output
    assert "\r" not in output
    printed = [int(line.split()[1].split("/")[0]) for line in output.splitlines() if line.startswith("step ")]
    assert printed[:10] == list(range(1, 11))
    assert printed[-1] == 2000
    assert len(printed) == 9 + 200


def test_the_other_records_have_a_line_each() -> None:
    output = shown(
        {"kind": "ledger", "rows": {"kept": 90, "dropped": 10, "split": 0}, "tokens": {"kept": 1234}},
        {"kind": "eval", "step": 10, "loss": 2.5, "tokens": 4096},
        {"kind": "checkpoint", "step": 10, "path": "out/checkpoint-00000010", "best": True},
        {"kind": "notice", "text": "no GPU"},
        {"kind": "decision", "step": 10, "owner": "x 1.0", "reason": "plateau", "scale_lr": 0.5},
        {"kind": "decision", "owner": "x 1.0", "reason": "flat", "stop": True},
    )
    assert output.splitlines() == [
        "data  rows: 90 kept, 10 dropped; tokens: 1,234 kept",
        "eval  step 10  loss 2.5000  4,096 tokens",
        "checkpoint  step 10  out/checkpoint-00000010  best so far",
        "notice: no GPU",
        "decision  learning rate × 0.5  step 10  plateau  by x 1.0",
        "decision  stop  flat  by x 1.0",
    ]


END = {
    "kind": "end",
    "loss": 2.0,
    "eval_loss": 2.5,
    "best_loss": 2.25,
    "best_step": 15,
    "tokens": 244_000,
    "tokens_per_s": 4000.0,
    "seconds": {"data": 5.0, "compute": 61.0},
    "first_step": 4.25,
    "output_dir": "out",
    "checkpoint": "out/checkpoint-00000020",
    "next": ["surogate generate out", "surogate eval c.toml"],
}


def test_the_end_says_what_came_out_and_what_next() -> None:
    lines = shown({"kind": "step", "step": 1, "loss": 4.0}, END).splitlines()[2:]
    assert [" ".join(line.split()) for line in lines] == [
        "loss 2.0000, from 4.0000 (-50.0 %)",
        "evaluation 2.5000, best 2.2500 at step 15",
        "tokens 244,000, 4,000 a second",
        "time data 5s, compute 1m01s",
        "first step 4.2s after the start",
        "output out",
        "checkpoint out/checkpoint-00000020",
        "next surogate generate out",
        "next surogate eval c.toml",
    ]


def test_a_run_that_did_not_reach_its_end_says_how_to_go_on() -> None:
    assert "stopped      SIGINT" in summary({**END, "stopped": "SIGINT"}, None)
    assert summary({"failed": "loss nan", "next": ["surogate run c"]}, None) == [
        "failed       loss nan",
        "next         surogate run c",
    ]


def test_a_continued_run_does_not_compare_with_its_own_first_step() -> None:
    assert "from 4.0" not in shown({**RUN, "resumed": 3}, {"kind": "step", "step": 4, "loss": 4.0}, END)


def test_conforms() -> None:
    check_logger(Console(terminal=False, quiet=False, stream=io.StringIO()))
    check_logger(Console(terminal=True, quiet=False, stream=Terminal()))


def test_a_terminal_has_one_live_line_for_the_steps() -> None:
    output = shown(
        RUN, STEP, {**STEP, "step": 6}, {"kind": "eval", "step": 6, "loss": 2.0}, {"kind": "end", "loss": 2.0}, terminal=True
    )
    assert "eval  step 6  loss 2.0000" in output
    assert "\x1b[2K" in output  # the live line is erased and drawn again
    assert output.count("step 6/20") >= 1
    assert output.rstrip().endswith("from 3.2500 (-38.5 %)")


def test_markup_in_a_text_is_text() -> None:
    assert "[red]x[/red] [/nothing]" in shown({"kind": "notice", "text": "[red]x[/red] [/nothing]"}, terminal=True)


def test_quiet_shows_notices_and_decisions_on_the_error_stream(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(RUN, STEP, {"kind": "notice", "text": "low disk"}, {"kind": "end", "loss": 1.0}, quiet=True, terminal=True) == ""
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "notice: low disk\n")


def test_piped_output_does_not_import_rich() -> None:
    code = (
        "import sys, surogate_logger_console.plugin, surogate_logger_console.console as c; c.Console(terminal=False, quiet=False)"
    )
    code += "; print(sorted({'rich', 'torch', 'matplotlib', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (185, "3m05s"), (7440, "2h04m")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(812, "812"), (10_600, "10.6k"), (1.23e6, "1.23M"), (4.5e9, "4.5B")])
def test_count(number: float, text: str) -> None:
    assert count(number) == text
