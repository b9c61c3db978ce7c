"""The page: what is on it, that nothing is lost by thinning, and that a real browser opens it without a word."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from surogate_command_report.command import report
from surogate_command_report.page import render
from surogate_command_report.read import read_run
from surogate_command_report.thin import COLUMNS, short, thin

import surogate_core
from surogate_core import testing
from surogate_core.errors import Refused

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A run of ``steps`` steps as its records: a power law with noise, one spike, an evaluation each hundredth of the run."""

    def make(name: str = "run", steps: int = 400, *, spike: int = 0, tail: str = "", **changes: Any) -> Path:
        draw, directory = random.Random(steps), tmp_path / name
        directory.mkdir(parents=True, exist_ok=True)
        run = {"kind": "run", "step": 0, "run_name": name, "steps": steps, "tokens_per_step": 4096, "memory": {"weights": 2000}}
        config = {"learning_rate": 1e-3, "model": "somewhere", **changes}
        run |= {"config": config, "origins": dict.fromkeys(config, "config.toml:7"), "plugins": {"surogate": "0.1"}}
        records = [run, {"kind": "ledger", "step": 0, "rows": {"read": 12, "kept": 9, "dropped": 3}, "tokens": {"read": 777}}]
        records[1]["pieces"] = {"of 1 to 2 tokens": 4, "of 3 to 4 tokens": 0, "of 5 to 8 tokens": 5}
        for step in range(1, steps + 1):
            loss = 2 + 7 / math.sqrt(1 + step / 60) + draw.gauss(0, 0.05) + (30.0 if step == spike else 0.0)
            phase = "warmup" if step < steps // 10 else "converging" if step < steps // 2 else "plateau"
            figures = {"lr": 1e-3, "grad_norm": 1.0, "tokens": 4000, "seconds": 0.1, "tokens_per_s": 40000.0, "memory": 1900}
            records.append({"kind": "step", "step": step, "loss": loss, "phase": phase, **figures})
            if step % max(1, steps // 100) == 0:
                records.append({"kind": "eval", "step": step, "loss": loss})
        said = {"owner": "surogate-observer-diagnostics 0.1", "stop": False, "scale_lr": 0.5}
        records.append({"kind": "decision", "step": steps // 2, "reason": "auto_lr_reduction: a <script> & more", **said})
        records.append({"kind": "notice", "step": steps // 2, "text": "phase plateau after converging", "phase": "plateau"})
        records.append({"kind": "checkpoint", "step": steps, "path": "checkpoint"})
        records.append({"kind": "end", "step": steps, "seconds": {"data": 1.0, "compute": 9.0}, "plugins_s": {"one": 0.2}})
        (directory / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
        return directory

    return make


class Page(HTMLParser):
    """Elements, what they load, and the texts of scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.texts: dict[str, str] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self._inside = "data" if given.get("id") == "data" else tag

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style", "data"):
            self.texts[self._inside] = self.texts.get(self._inside, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def data_of(page: Page) -> dict[str, Any]:
    return json.loads(page.texts["data"])


def test_one_file_that_loads_nothing(write: Write) -> None:
    done = CliRunner().invoke(report, [str(write())])
    assert done.exit_code == 0, done.output
    path = Path(done.stdout.splitlines()[-1])
    text = path.read_text()
    page = Page(text)
    assert page.loads == ["data:,"]  # the empty icon, without which a browser asks for one
    assert "default-src 'none'" in text
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.search(r"@import|url\(", page.texts["style"])
    assert {"script", "style", "main"} <= set(page.tags)
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")] == []
    assert (path.parent / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_on_the_page(write: Write) -> None:
    run = data_of(Page(render([read_run(write(steps=400))])))["runs"][0]
    figures = {label: value for label, value, _ in run["figures"]}
    assert figures["steps"] == 400
    assert figures["tokens"] == 400 * 4000
    assert figures["speed"] == 40000
    assert figures["peak memory"] == 1900
    assert run["plan"][0] == ["memory, bytes", 2000, 1900]
    assert run["time"] == [["data", 1.0], ["compute", 9.0]]
    assert run["ledger"]["rows"]["dropped"] == 3
    assert run["pieces"] == [["of 1 to 2 tokens", 4], ["of 5 to 8 tokens", 5]]
    assert ["learning_rate", "0.001", "config.toml:7"] in run["config"]
    assert run["plugins"] == {"surogate": "0.1"}
    assert run["observers"] == [["one", 0.5]]
    assert run["phases"] == [[1, "warmup"], [40, "converging"], [200, "plateau"], [400, ""]]
    assert [event["kind"] for event in run["events"]] == ["decision", "notice"]
    assert run["checkpoints"] == [400]
    assert len(run["evals"]) == 100


def test_experts_have_curves_where_there_are_any(write: Write) -> None:
    tail = json.dumps({"kind": "step", "step": 401, "loss": 2.0, "moe_load_imbalance": 3.5, "moe_expert_utilisation": 0.25})
    data = data_of(Page(render([read_run(write("dense")), read_run(write("mixture", tail=tail + "\n"))])))
    names = [name for name, *_ in data["curves"]]
    assert names[-2:] == ["moe_load_imbalance", "moe_expert_utilisation"]
    assert data["runs"][1]["curves"]["moe_load_imbalance"] == {"x": [401], "y": [3.5]}
    assert data["runs"][0]["curves"]["moe_load_imbalance"]["x"] == []
    assert not [name for name, *_ in data_of(Page(render([read_run(write("dense"))])))["curves"] if "moe" in name]


def generated(directory: Path, count: int, **changes: Any) -> None:
    made = {"checkpoint": "checkpoint-00000400", "prompt": "2 + 2 =", "temperature": 0.0, "seed": 7}
    records = [{**made, "text": f"</script><img src=x> {number}", **changes} for number in range(count)]
    (directory / "generations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"torn')


def test_the_newest_generations_are_listed_and_escaped(write: Write) -> None:
    directory = write()
    assert data_of(Page(render([read_run(directory)])))["runs"][0]["generations"] == []
    generated(directory, 50)
    page = Page(render([read_run(directory)]))
    listed = data_of(page)["runs"][0]["generations"]
    assert len(listed) == 40
    assert listed[-1] == ["checkpoint-00000400", "2 + 2 =", "</script><img src=x> 49"]
    assert "img" not in page.tags
    assert page.loads == ["data:,"]
    generated(directory, 1, temperature=0.7)
    assert read_run(directory).generations[0]["seed"] == 7
    assert data_of(Page(render([read_run(directory)])))["runs"][0]["generations"][0][0].endswith(", temperature 0.7, seed 7")


def test_text_of_a_run_cannot_break_out_of_the_page(write: Write) -> None:
    text = render([read_run(write(name="x</title><b>", model="</script><img src=x onerror=alert(1)>"))])
    page = Page(text)
    assert "img" not in page.tags
    assert "b" not in page.tags
    assert ["model", '"</script><img src=x onerror=alert(1)>"', "config.toml:7"] in data_of(page)["runs"][0]["config"]


def test_thinning_keeps_every_extreme_and_the_mean() -> None:
    draw = random.Random(3)
    values = [draw.gauss(0, 1) for _ in range(100_000)]
    values[54_321], values[99_999] = 50.0, -60.0
    thinned = thin(range(1, 100_001), values)
    assert len(thinned["x"]) == COLUMNS
    assert max(thinned["hi"]) == 50.0
    assert min(thinned["lo"]) == -60.0
    assert all(low <= mean <= high for low, mean, high in zip(thinned["lo"], thinned["y"], thinned["hi"], strict=True))
    sizes = [b - a for a, b in zip(thinned["x"], [*thinned["x"][1:], 100_001], strict=True)]
    assert sum(size * mean for size, mean in zip(sizes, thinned["y"], strict=True)) == pytest.approx(sum(values), abs=1.0)
    few = thin([1, 2, 4], [1.5, None, 2.5])
    assert few == {"x": [1, 4], "y": [1.5, 2.5]}


@pytest.mark.parametrize(
    ("value", "wanted"), [(1 / 3, 0.333333), (123456789.0, 123457000), (0.0, 0.0), (None, None), (-2.5e-9, -2.5e-9)]
)
def test_six_digits(value: float | None, wanted: float | None) -> None:
    assert short(value) == wanted


def test_a_hundred_thousand_steps_make_a_small_page(write: Write) -> None:
    text = render([read_run(write(steps=100_000, spike=77_777))])
    assert len(text) < 300_000
    assert max(data_of(Page(text))["runs"][0]["curves"]["loss"]["hi"]) > 30


def test_torn_lines_nan_and_unknown_records_are_no_harm(write: Write) -> None:
    tail = json.dumps({"kind": "step", "step": 401, "loss": "nan", "grad_norm": "inf"}) + '\n{"kind": "new"}\n[1]\n{"kind": "st'
    run = read_run(write(tail=tail))
    assert run.columns["loss"][-1] is None
    assert "NaN" not in Page(render([run])).texts["data"]


def test_a_directory_without_a_run_is_refused(tmp_path: Path, write: Write) -> None:
    with pytest.raises(Refused, match=r"metrics\.jsonl cannot be read"):
        read_run(tmp_path / "nowhere")
    (tmp_path / "metrics.jsonl").write_text('{"kind": "run"}\n')
    with pytest.raises(Refused, match="no step is recorded"):
        read_run(tmp_path)


def test_of_a_real_run(tmp_path: Path, tiny: Path) -> None:
    rows = testing.write_rows(tmp_path / "text.jsonl", [{"text": f"Number {n} and {n + 1}."} for n in range(40)])
    settings = {
        "model_dtype": "fp32",
        "sequence_len": 64,
        "max_steps": 4,
        "save_steps": 2,
        "recompute": False,
        "dataloader_num_workers": 0,
    }
    config = {
        "model": str(tiny),
        "output_dir": str(tmp_path / "out"),
        "datasets": [{"path": str(rows), "type": "text"}],
        **settings,
    }
    summary = surogate_core.run({**config, "debug_time_breakdown": True})
    done = CliRunner().invoke(report, [str(summary.output_dir)])
    assert done.exit_code == 0, done.output
    run = data_of(Page((summary.output_dir / "report.html").read_text()))["runs"][0]
    assert {name for name, _ in run["parts"]} >= {"data", "forward", "backward", "optimizer", "record"}
    lines = map(json.loads, (summary.output_dir / "metrics.jsonl").read_text().splitlines())
    saves = [record["ms"].get("save", 0.0) for record in lines if record["kind"] == "step"]
    assert dict(run["parts"]).get("save", 0.0) == pytest.approx(sum(saves) / 4, rel=1e-4)  # a mean over all steps
    assert run["curves"]["memory"]["y"][0] > 1e6
    assert ["max_steps", "4", "mapping"] in run["config"]
    assert {name for name, _ in run["observers"]} >= {"surogate-logger-console", "surogate-observer-diagnostics"}


def test_the_script_is_valid(write: Write, tmp_path: Path) -> None:
    if not (node := shutil.which("node")):
        pytest.skip("no node to check the script with: install Node.js")
    script = tmp_path / "page.js"
    script.write_text(Page(render([read_run(write())])).texts["script"])
    subprocess.run([node, "--check", str(script)], check=True, capture_output=True)


BROWSER = """
import json, sys
from playwright.sync_api import sync_playwright
path, chromium, picture, scheme = sys.argv[1:]
flags = ["--no-sandbox", "--disable-gpu", "--headless", "--single-process", "--no-zygote", "--disable-dev-shm-usage"]
seen = {"console": [], "errors": [], "requests": []}
with sync_playwright() as play:
    browser = play.chromium.launch(executable_path=chromium, args=flags)
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: seen["console"].append(message.text))
    page.on("pageerror", lambda error: seen["errors"].append(str(error)))
    page.on("request", lambda request: seen["requests"].append(request.url))
    page.goto("file://" + path)
    seen["ready"] = page.evaluate("Number(document.documentElement.dataset.ready)")
    count = "selector => document.querySelectorAll(selector).length"
    wanted = ("svg", ".phase", ".decision", ".checkpoint", "polygon", "circle")
    seen["counts"] = {what: page.evaluate(count, what) for what in wanted}
    box = page.locator("svg").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    seen["tip"] = page.inner_text("#tip")
    page.mouse.down(); page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 90); page.mouse.up()
    seen["ticks"] = page.locator("svg").first.locator("text").all_text_contents()
    page.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + 90)
    page.fill("input", "learning")
    seen["text"] = page.inner_text("main")
    page.mouse.move(0, 0)
    page.screenshot(path=picture, full_page=True)
    browser.close()
print(json.dumps(seen))
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_real_browser(write: Write, tmp_path: Path, scheme: str) -> None:
    """SUROGATE_TEST_CHROMIUM names a Chromium, SUROGATE_TEST_PLAYWRIGHT a Python that has playwright (default: this one)."""
    import sys

    chromium, python = os.environ.get("SUROGATE_TEST_CHROMIUM"), os.environ.get("SUROGATE_TEST_PLAYWRIGHT", sys.executable)
    if not chromium:
        pytest.skip("the page was parsed, but not opened: SUROGATE_TEST_CHROMIUM has to name a Chromium")
    runs = [write("first", 100_000, spike=77_777), write("second", 3000, learning_rate=3e-3)]
    generated(runs[1], 1)
    assert CliRunner().invoke(report, list(map(str, runs))).exit_code == 0
    words = [python, "-c", BROWSER, str(runs[0] / "report.html"), chromium, str(tmp_path / "page.png"), scheme]
    done = subprocess.run(words, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["console"] == seen["errors"] == []
    assert seen["requests"] == [f"file://{runs[0] / 'report.html'}"]
    assert seen["ready"] < 3000
    assert seen["counts"]["svg"] == 5
    assert seen["counts"][".phase"] == 6
    assert seen["counts"][".decision"] == 2
    assert seen["counts"][".checkpoint"] == 2
    assert seen["counts"]["circle"] == 200
    assert "first" in seen["tip"]
    assert "second" not in seen["tip"] or "step" in seen["tip"]
    assert "60,000" in seen["ticks"]
    assert "20,000" not in seen["ticks"]
    assert "a <script> & more" in seen["text"]
    assert "2 + 2 =" in seen["text"]
    assert "of 5 to 8 tokens 5 pieces (55.6 %)" in seen["text"]
    assert "</script><img src=x> 0" in seen["text"]
    assert "0.003" in seen["text"]
