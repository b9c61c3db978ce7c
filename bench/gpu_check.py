"""Everything that a GPU can show about the kernels and recipes, in one command and nine minutes.

    make gpu-check                      # or: python bench/gpu_check.py [--seconds 480] [--results DIRECTORY]

1. Builds every kernel for this GPU and compares it with its definition: fresh random inputs, poisoned outputs, odd shapes and a
   large one.
2. Trains every recipe for some steps as the GPU computes it and emulated, from the same weights on the same rows.
3. Plans the memory of some configurations and measures it: what torch's allocator gave out at most, from before the model is built.
4. Times every kernel at a large shape: microseconds, GB/s or TFLOP/s, share of the roofline (the copy rate measured here; for
   products the dense peak of the data sheet), ratio to what a user would have otherwise.

A table comes last, everything in bench/results/<date>-<gpu>.json. What does not fit into the time is left out and said to be. Exit
code 1 where something differs. Without a GPU the kernels' bodies run on the host as C++, recipes train emulated, nothing else is
measured, and it says that it was not run on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import math
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from surogate_native_kit.checks import Check, families

NOT_ON_A_GPU = "not run on a GPU: kernel bodies ran on the host, recipes were emulated, nothing was measured or timed"
ROOT = Path(__file__).resolve().parents[1]
PEAKS = {
    "H200": (989, 1979),
    "H100": (989, 1979),
    "A100": (312, 0),
    "B200": (2250, 4500),
    "RTX 4090": (165, 330),
    "L40S": (362, 733),
}
"""Dense TFLOP/s of the data sheets, bf16 and fp8."""
STEPS, ALLOWED = 12, 0.02
"""Steps of a recipe; largest relative difference of the mean loss of the later half from the emulated run's."""
NEAR = 0.03
"""Largest relative difference of a planned peak from the measured one."""
SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 32768,
}
"""Of the Qwen3 whose memory is planned. The plan counts attention as the plain one, an upper bound: it is narrow here, and rows are
short. Most tensors are whole MiB, so that the allocator adds nothing."""
SHORT = {"sequence_len": 32, "per_device_train_batch_size": 256, "gradient_accumulation_steps": 2}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "full, adamw_8bit, recompute": {"lora": False, "optimizer": "adamw_8bit", "recompute": True},
    "LoRA, recompute": {"lora": True, "optimizer": "adamw", "recompute": True},
    "QLoRA, recompute": {"lora": True, "qlora_bnb": True, "optimizer": "adamw_8bit", "recompute": True},
}
"""The configurations of which the plan is compared with a measurement."""


class Budget:
    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    def spent(self) -> bool:
        return time.monotonic() > self.end


def compare(family: str, check: Check, device: str, seed: int) -> dict[str, Any]:
    """One kernel against its definition at its odd shapes and, on a GPU, at the large one."""
    if lacking := check.lacks(device):
        return {"family": family, "kernel": check.name, "result": f"left out: {lacking}"}
    said = []
    for number, shape in enumerate((*check.shapes, *((check.large,) if device == "cuda" else ()))):
        try:
            found = check.difference(shape, seed + number, device)
        except Exception as error:  # one kernel that does not build or launch must not hide the others
            found = f"{type(error).__name__}: {error}"
        if found:
            said.append(f"{shape}: {found}")
    return {
        "family": family,
        "kernel": check.name,
        "shapes": len(check.shapes) + (device == "cuda"),
        "result": "; ".join(said) or "equal",
    }


def milliseconds(run: Callable[[], object]) -> float:
    """Median of 20, each with a cache that holds none of its data."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    times = []
    for number in range(23):
        flush.zero_()
        begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begun.record()
        run()
        ended.record()
        torch.cuda.synchronize()
        if number >= 3:
            times.append(begun.elapsed_time(ended))
    return statistics.median(times)


def copy_rate() -> float:
    """Bytes a second of a copy of 1 GiB, read and written."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / milliseconds(lambda: target.copy_(source)) * 1e3


def bench(family: str, check: Check, rate: float, peaks: tuple[int, int]) -> dict[str, Any]:
    given = check.drawn(check.large, 1, "cuda")
    spent = milliseconds(check.timed(*given) if check.timed else lambda: check.kernel(*given))
    flops, traffic = check.flops(check.large), check.traffic(check.large)
    found: dict[str, Any] = {"family": family, "kernel": check.name, "shape": check.large, "us": round(spent * 1e3, 1)}
    if flops:
        found |= {
            "TFLOP/s": round(flops / spent / 1e9, 1),
            "roofline": round(flops / spent / 1e9 / peaks[1], 3) if peaks[1] else None,
        }
    else:
        found |= {"GB/s": round(traffic / spent / 1e6, 1), "roofline": round(traffic / spent * 1e3 / rate, 3)}
    if check.baseline:
        name, run = check.baseline
        found |= {"baseline": name, "times faster": round(milliseconds(lambda: run(*given)) / spent, 2)}
    return found


def recipe(name: str, backend: str, place: Path, wide: int) -> list[float]:
    """Losses of ``STEPS`` steps of a random Qwen3."""
    import surogate_core

    keys = {
        "model": str(place / "model"),
        "from_scratch": True,
        "recipe": name,
        "recipe_backend": backend,
        "output_dir": str(place / f"{name}-{backend}"),
        "lora": False,
        "optimizer": "adamw",
        "learning_rate": 1e-3,
        "sequence_len": wide,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": STEPS,
        "save_steps": STEPS,
        "eval_steps": STEPS,
        "dataloader_num_workers": 0,
        "report_to": [],
        "datasets": [{"path": str(place / "text.jsonl"), "type": "text"}],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        surogate_core.run(keys)
    lines = (place / f"{name}-{backend}" / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if record["kind"] == "step"]


def recipes(device: str, budget: Budget) -> list[dict[str, Any]]:
    """Every installed recipe as the machine computes it, beside its emulation."""
    from surogate_model_transformers.testing import tiny_model

    from surogate_core.host import load_host
    from surogate_core.offers import capability
    from surogate_core.testing import write_rows

    wide = 512 if device == "cuda" else 64
    found = []
    with tempfile.TemporaryDirectory(prefix="surogate-gpu-check-") as directory:
        place = Path(directory)
        sizes = {"hidden_size": wide, "intermediate_size": 3 * wide, "num_attention_heads": 4, "head_dim": wide // 4}
        tiny_model(place / "model", weights=False, **sizes)
        write_rows(place / "text.jsonl", [{"text": f"{number} times {number} is {number * number}. " * 4} for number in range(400)])
        for name, offer in load_host().offers("recipes").items():
            entry: dict[str, Any] = {"recipe": name}
            found.append(entry)
            if budget.spent():
                entry["result"] = "left out: no time left"
                continue
            say(f"recipe {name}")
            try:
                emulated = entry["emulated"] = recipe(name, "emulated", place, wide)
                wanted = capability(offer.requires)
                if device != "cuda" or (wanted and torch.cuda.get_device_capability() < wanted):
                    fell = all(map(math.isfinite, emulated)) and emulated[-1] < emulated[0]
                    entry["result"] = (
                        f"emulated, its loss falls: {offer.requires or 'a GPU'} is not here" if fell else f"losses {emulated}"
                    )
                    entry["good"] = fell
                    continue
                native = entry["native"] = recipe(name, "native", place, wide)
                later = [statistics.fmean(losses[STEPS // 2 :]) for losses in (native, emulated)]
                away = later[0] / later[1] - 1
                entry |= {"result": f"{away:+.3%} from its emulation", "good": abs(away) <= ALLOWED}
            except Exception as error:  # a recipe that fails must not hide the others
                entry |= {"result": f"{type(error).__name__}: {error}", "good": False}
    return found


def allocated(plan: Any) -> int:
    """Bytes: the most that torch's allocator has given out at once, from before the model is built to the end of a second step."""
    from surogate_command_plan.rehearse import job_of_a_step, step_of
    from surogate_loop_standard.loop import optimizer_step

    from surogate_core.train.setup import bind_optimizer, build

    device = plan.device
    first = torch.ones(8, 8, dtype=torch.bfloat16, device=device, requires_grad=True)
    (first @ first).sum().backward()  # cuBLAS takes memory for each thread, autograd's too: the framework's, not a step's
    del first
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trainee = build(plan)
    job = job_of_a_step(plan, trainee, bind_optimizer(plan, trainee))
    for index in range(2):
        optimizer_step(job, step_of(plan, device), index, torch.full((), 1e-4, device=device))
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def memory(device: str, budget: Budget) -> list[dict[str, Any]]:
    """The planned peak of some configurations, less what is the framework's, beside the measured one."""
    from surogate_command_plan.fit import without_weights
    from surogate_command_plan.rehearse import rehearse
    from surogate_command_plan.show import bytes_of
    from surogate_model_transformers.testing import tiny_model

    from surogate_core.config import load
    from surogate_core.host import load_host
    from surogate_core.plan import make_plan

    found = []
    with tempfile.TemporaryDirectory(prefix="surogate-gpu-check-") as directory:
        model, host = str(tiny_model(Path(directory), weights=False, **SHAPE)), load_host()
        for name, changes in CONFIGURATIONS.items():
            entry: dict[str, Any] = {"memory": name}
            found.append(entry)
            if device != "cuda" or budget.spent():
                entry["result"] = f"left out: {'no time left' if device == 'cuda' else 'measured on a GPU alone'}"
                continue
            say(f"memory of {name}")
            try:
                config = load({"model": model, "model_dtype": "bf16", **SHORT, **changes}, host, need_data=False)
                plan = make_plan(without_weights(config), host, device)
                peak = rehearse(plan, device).peak  # type: ignore[union-attr]
                planned, measured = peak.total - peak.parts["framework"], allocated(plan)
                away = planned / measured - 1
                said = f"planned {bytes_of(planned)}, measured {bytes_of(measured)}: {away:+.2%}"
                entry |= {"planned": planned, "measured": measured, "parts": peak.parts, "result": said, "good": abs(away) <= NEAR}
            except Exception as error:  # one that does not fit this GPU must not hide the others
                entry |= {"result": f"{type(error).__name__}: {error}", "good": False}
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480, help="what is left out after so many")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000, help="of the random inputs; a fresh one by default")
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results", help="directory of the JSON file")
    given = parser.parse_args()
    budget = Budget(given.seconds)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU"

    checks = [(family, check) for family, own in families().items() for check in own]
    kernels = []
    for family, check in checks:
        say(f"{family}: {check.name}")
        kernels.append(
            {"family": family, "kernel": check.name, "result": "left out: no time left"}
            if budget.spent()
            else compare(family, check, device, given.seed)
        )
    trained, held = recipes(device, budget), memory(device, budget)
    benches: dict[str, dict[str, Any]] = {}
    rate = copy_rate() if device == "cuda" else 0.0
    peaks = next((peak for chip, peak in PEAKS.items() if chip in name), (0, 0))
    equal = {(one["family"], one["kernel"]) for one in kernels if one["result"] == "equal"}
    for family, check in checks if device == "cuda" else ():
        if (family, check.name) in equal and not budget.spent():
            say(f"timing {family}: {check.name}")
            benches[f"{family} {check.name}"] = bench(family, check, rate, peaks)

    content = {
        "gpu": name,
        "note": NOT_ON_A_GPU if device == "cpu" else "run on the GPU named",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seed": given.seed,
        "copy GB/s": round(rate / 1e9, 1),
        "kernels": kernels,
        "recipes": trained,
        "memory": held,
        "benches": list(benches.values()),
    }
    slug = "-".join("".join(letter if letter.isalnum() else " " for letter in name.lower()).split())
    path = given.results / f"{time.strftime('%Y-%m-%d')}-{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    rows: list[tuple[str, ...]] = [("what", "against its definition", "us", "rate", "roofline", "baseline")]
    for one in kernels:
        timed = benches.get(f"{one['family']} {one['kernel']}", {})
        rates = [f"{timed[unit]} {unit}" for unit in ("TFLOP/s", "GB/s") if unit in timed]
        share = "" if timed.get("roofline") is None else f"{timed['roofline']:.0%}"
        faster = f"{timed['times faster']} x {timed['baseline']}" if "baseline" in timed else ""
        rows.append((f"{one['family']} {one['kernel']}", one["result"], str(timed.get("us", "")), "".join(rates), share, faster))
    rows += [(f"recipe {one['recipe']}", one["result"], "", "", "", "") for one in trained]
    rows += [(f"memory {one['memory']}", one["result"], "", "", "", "") for one in held]
    print(table(rows))
    print(f"\n{name}, torch {torch.__version__}; written: {path}")
    if device == "cpu":
        print(NOT_ON_A_GPU)
    bad = [one for one in kernels if not one["result"].startswith(("equal", "left out"))]
    return bool(bad) or not all(one.get("good", True) for one in (*trained, *held))


if __name__ == "__main__":
    sys.exit(main())
