"""`aim up`, with the command that a run prints, in a real browser: the run is there, with its curves."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from surogate_logger_aim import logger
from surogate_logger_aim.plugin import Options

from surogate_core import testing
from surogate_core.contracts import LoggerContext

CHROMIUM = os.environ.get("SUROGATE_TEST_CHROMIUM")
AIM = "from aim.cli.cli import cli_entry_point; cli_entry_point()"
BROWSER = """
import json, sys
from playwright.sync_api import sync_playwright
address, chromium, picture = sys.argv[1:]
flags = ["--no-sandbox", "--disable-gpu", "--headless", "--single-process", "--no-zygote", "--disable-dev-shm-usage"]
with sync_playwright() as play:
    browser = play.chromium.launch(executable_path=chromium, args=flags)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(address) else route.abort())
    seen = {}
    for name, path, wanted in json.loads(sys.stdin.read()):
        page.goto(address + path, timeout=60_000)
        page.get_by_text(wanted).first.wait_for(timeout=60_000)
        page.wait_for_timeout(1000)
        seen[name] = page.inner_text("body")
        seen[name + " curves"] = page.locator("svg path").count()
        page.screenshot(path=f"{picture}-{name}.png")
    browser.close()
print(json.dumps(seen))
"""


def answers(address: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(address, timeout=5) as page:
        return page.status == 200
    return False


@pytest.mark.prove("Aim's server takes half a minute")
@pytest.mark.skipif(not CHROMIUM, reason="no page was opened: SUROGATE_TEST_CHROMIUM has to name a Chromium")
def test_the_printed_command_shows_the_run_in_a_real_browser(tmp_path: Path) -> None:
    """SUROGATE_TEST_PLAYWRIGHT names a Python that has playwright (default: this one). Nothing but Aim's server is let through."""
    told: list[str] = []
    core = testing.context(report_to=["aim"]).config
    given = {"output_dir": tmp_path, "terminal": False, "quiet": True, "run_name": "bottles", "resumed": 0}
    made = logger.build(
        Options(aim_repo=str(tmp_path), aim_experiment="tea"), LoggerContext(config=core, notice=told.append, **given)
    )
    assert made is not None
    made.log({"kind": "run", "step": 0, "config": {"learning_rate": 0.125}})
    for step in range(1, 41):
        made.log({"kind": "step", "step": step, "loss": 4 / step, "lr": 1e-3})
    made.close()

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = shlex.split(told[0].partition("see it with: ")[2])
    assert command[:2] == ["aim", "up"]
    words = [sys.executable, "-c", AIM, *command[1:], "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(words, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        address, end = f"http://127.0.0.1:{port}", time.monotonic() + 180
        while not answers(f"{address}/"):
            assert server.poll() is None, "aim up has ended"
            assert time.monotonic() < end, "aim up does not answer"
            time.sleep(0.5)
        run = f"/runs/{made.state()['run_hash']}"
        pages = [("metrics", f"{run}/metrics", "train/loss"), ("settings", f"{run}/parameters", "learning_rate")]
        python = os.environ.get("SUROGATE_TEST_PLAYWRIGHT", sys.executable)
        words = [python, "-c", BROWSER, address, str(CHROMIUM), str(tmp_path / "page")]
        done = subprocess.run(words, input=json.dumps(pages), capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    seen = json.loads(done.stdout)
    for text in ("bottles", "tea", "Finished", "train/loss", "train/lr"):
        assert text in seen["metrics"], text
    assert seen["metrics curves"] >= 2
    assert "0.125" in seen["settings"]
