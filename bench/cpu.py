"""The same small job in surogate, a bare transformers loop, TRL and LitGPT, side by side on this CPU.

    python bench/cpu.py [--quick] [--rounds 2] [--steps 8] [--sides surogate,bare] [--jobs fp32-full,bf16-lora] [--whole]

Every run is a process of its own with the same environment; the sides take turns, so that a busy machine disturbs all alike.
Figures are medians over the rounds; ratios are taken within a round. See ``bench/README.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from prepare import config

HERE = Path(__file__).resolve().parent
PEERS = {"bare": "bare.py", "trl": "trl_sft.py", "litgpt": "lit.py"}
NEEDS = {"trl": "trl", "litgpt": "litgpt"}
SIDES = ("surogate", "compiled", *PEERS)
JOBS = ("fp32-full", "bf16-full", "fp32-lora", "bf16-lora")
SKIP = 3
"""Steps that count as warming up."""
THREADS = 2
RATES = {"full": 5e-4, "lora": 1e-3}
LIMIT = 240
"""Seconds after which a run is given up."""
AGREE, AGREE_APART = 2e-3, 0.05
"""Largest relative difference of final losses in fp32-full from the bare loop's; LitGPT's attention crosses documents."""


def environment(work: Path) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(THREADS),
        "MKL_NUM_THREADS": str(THREADS),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(work / "datasets"),
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(work / "compiled"),
        "PYTHONWARNINGS": "ignore",
    }


def command(side: str, job: str, work: Path, output: Path, steps: int) -> list[str]:
    dtype, kind = job.split("-")
    if side in PEERS:
        options = ["--work", str(work), "--output", str(output), "--dtype", dtype, "--lr", str(RATES[kind])]
        return [sys.executable, str(HERE / "peers" / PEERS[side]), *options, *(["--lora"] if kind == "lora" else [])]
    path = work / f"{side}-{job}.toml"
    lora, compiled = kind == "lora", side == "compiled"
    path.write_text(config(work, output, dtype=dtype, lora=lora, compiled=compiled, steps=steps, lr=RATES[kind]))
    return [sys.executable, "-m", "surogate_core", "run", str(path)]


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Step records of surogate's metrics so far."""
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return [record for record in records if record["kind"] == "step"]


def measure(side: str, job: str, work: Path, output: Path, tokens: Sequence[int]) -> dict[str, Any]:
    """One run from the command to its end. ``rate``: median tokens/s of the steps after the first few, wall clock;
    ``first``: seconds from the command to the end of the first optimizer step; ``peak``: MB, largest resident set."""
    steps = len(tokens)
    words = command(side, job, work, output, steps)
    metrics = output / "metrics.jsonl"
    with (work / "log.txt").open("w") as log:
        begun = time.monotonic()
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment(work))
        seen: list[float] = []
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if side not in PEERS and metrics.exists():
                count = metrics.read_bytes().count(b'"kind": "step"')
                seen += [time.monotonic()] * (count - len(seen))
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                break
            if time.monotonic() - begun > LIMIT:
                process.kill()
            time.sleep(0.02)
    if process.returncode:
        tail = (work / "log.txt").read_text(errors="replace").strip().splitlines()[-3:]
        return {"failed": f"exit {process.returncode}: {' | '.join(tail)}"}
    if side in PEERS:
        made = json.loads((output / "peer.json").read_text())
        ended, losses = made["ended"], made["losses"]
        seconds = [later - earlier for earlier, later in pairwise(ended)]
        rates = [count / took for count, took in zip(tokens[1:], seconds, strict=True)]
    else:
        records = lines_of(metrics)
        if [record["tokens"] for record in records] != list(tokens):
            return {"failed": "surogate trained other rows than the peers were given"}
        ended, losses = seen, [record["loss"] for record in records]
        rates = [record["tokens_per_s"] for record in records[1:]]
    return {
        "rate": statistics.median(rates[SKIP - 1 :]),
        "rates": [round(rate, 1) for rate in rates],
        "first": round(ended[0] - begun, 3),
        "peak": round(usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)),
        "loss": losses[-1],
        "losses": losses,
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
    }


def spread(values: Sequence[float], form: str) -> str:
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}}–{max(values):{form}})"


def summarise(runs: Sequence[dict[str, Any]], job: str, side: str) -> dict[str, Any] | None:
    """Figures of one side at one job over its rounds, with the ratio to the bare loop of the same round."""
    good = {run["round"]: run for run in runs if (run["job"], run["side"]) == (job, side) and "failed" not in run}
    if not good:
        return None
    bare = {run["round"]: run for run in runs if (run["job"], run["side"]) == (job, "bare") and "failed" not in run}
    return {
        "rate": [run["rate"] for run in good.values()],
        "ratio": [run["rate"] / bare[number]["rate"] for number, run in good.items() if number in bare],
        "first": [run["first"] for number, run in good.items() if side != "compiled" or number > 0] or None,
        "cold": good[0]["first"] if side == "compiled" and 0 in good else None,
        "peak": [run["peak"] for run in good.values()],
        "loss": [run["loss"] for run in good.values()],
    }


def table(runs: Sequence[dict[str, Any]], jobs: Sequence[str], sides: Sequence[str]) -> list[str]:
    lines = ["| job | side | tokens/s | × bare | first step s | peak MB | final loss |", "|---|---|---|---|---|---|---|"]
    for job in jobs:
        for side in sides:
            found = summarise(runs, job, side)
            if found is None:
                continue
            first = spread(found["first"], ".1f") if found["first"] else ""
            if found["cold"] is not None:
                first = f"{first}; empty cache {found['cold']:.1f}".removeprefix("; ")
            ratio = spread(found["ratio"], ".2f") if found["ratio"] else ""
            figures = [
                spread(found["rate"], ".0f"),
                ratio,
                first,
                spread(found["peak"], ".0f"),
                f"{statistics.median(found['loss']):.4f}",
            ]
            lines.append(f"| {job} | {side} | {' | '.join(figures)} |")
    return lines


def disagreements(runs: Sequence[dict[str, Any]], whole: bool) -> list[str]:
    """Sides whose final loss in full fp32 training is not the bare loop's: they would not be doing the same work."""
    losses = {side: found["loss"] for side in SIDES if (found := summarise(runs, "fp32-full", side))}
    if "bare" not in losses:
        return []
    wanted = statistics.median(losses["bare"])
    return [
        f"{side}: final loss {value:.5f}, bare loop {wanted:.5f}"
        for side, values in losses.items()
        for value in values
        if abs(value - wanted) > (AGREE_APART if side == "litgpt" and not whole else AGREE) * wanted
    ]


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of full training with fewer steps")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--sides", type=lambda text: text.split(","), default=list(SIDES), help=f"of {','.join(SIDES)}")
    parser.add_argument("--jobs", type=lambda text: text.split(","), help=f"of {','.join(JOBS)}")
    parser.add_argument("--whole", action="store_true", help="one long document instead of many short ones in a row")
    parser.add_argument("--work", type=Path, help="keep rows, model and compiled code here")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = parser.parse_args()
    given.rounds = given.rounds or (1 if given.quick else 2)
    given.steps = given.steps or (6 if given.quick else 8)
    given.jobs = given.jobs or list(JOBS[:2] if given.quick else JOBS)
    for name, known in (("sides", SIDES), ("jobs", JOBS)):
        if unknown := [word for word in getattr(given, name) if word not in known]:
            parser.error(f"--{name}: {', '.join(unknown)} is not one of {', '.join(known)}")
    if given.steps <= SKIP:
        parser.error(f"--steps: at least {SKIP + 1}, the first {SKIP} are not counted")
    return given


def work_through(given: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    from safetensors.numpy import load_file

    prepare = [
        sys.executable,
        str(HERE / "prepare.py"),
        str(work),
        "--steps",
        str(given.steps),
        *(["--whole"] if given.whole else []),
    ]
    if not (work / "rows.safetensors").exists():
        subprocess.run(prepare, check=True, env=environment(work))
    tokens = [int(count) for count in load_file(work / "rows.safetensors")["tokens"]]
    runs: list[dict[str, Any]] = []
    for number in range(given.rounds):
        for job in given.jobs:
            for side in given.sides:
                if side == "litgpt" and job.endswith("lora"):
                    continue
                with tempfile.TemporaryDirectory(dir=work) as output:
                    found = measure(side, job, work, Path(output), tokens)
                runs.append({"round": number, "job": job, "side": side, "load": round(os.getloadavg()[0], 1), **found})
                said = (
                    found.get("failed")
                    or f"{found['rate']:.0f} tokens/s, first step {found['first']:.1f} s, loss {found['loss']:.4f}"
                )
                print(f"round {number + 1} {job} {side}: {said}", flush=True)
    return runs


def main() -> int:
    given = arguments()
    for side, package in NEEDS.items():
        if side in given.sides and installed(package) is None:
            print(f"{side} is left out: {package} is not installed (see bench/README.md)")
            given.sides.remove(side)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="surogate-bench-") as made:
        work = given.work or Path(made)
        work.mkdir(parents=True, exist_ok=True)
        runs = work_through(given, work.resolve())
    apart = disagreements(runs, given.whole)
    packages = ("torch", "transformers", "peft", "trl", "litgpt")
    result = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "versions": {"python": platform.python_version(), **{name: installed(name) for name in packages}},
        "steps": given.steps,
        "rows": "one long document" if given.whole else "packed short documents",
        "seconds": round(time.monotonic() - begun),
        "runs": runs,
    }
    given.results.mkdir(parents=True, exist_ok=True)
    name = "".join(letter if letter.isalnum() else "-" for letter in cpu_name().lower())
    path = given.results / f"{time.strftime('%Y-%m-%d')}-{name}{'-whole' if given.whole else ''}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{path}\nload average during the runs: {spread([run['load'] for run in runs], '.1f')} on {os.cpu_count()} cores")
    print("peak MB is the largest resident set of the process, files and libraries included: no measure of tensors\n")
    print("\n".join(table(runs, given.jobs, given.sides)))
    for line in apart:
        print(f"NOT THE SAME WORK: {line}")
    return 1 if apart or any("failed" in run for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
