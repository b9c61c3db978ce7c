"""Benchmark of the optimizers: one update of all parameters, side by side.

    python bench/optim.py                          # 10, 30, 100 and 300 million parameters; float32 and bfloat16
    python bench/optim.py --quick                  # 10 million, fewer rounds
    python bench/optim.py --sizes 10,100 --dtypes bf16 --rounds 9 --output results.json

The parameters are those of decoder layers (width w: four matrices of w x w, three of w x 4w, two norms) and an embedding. All
sides update the same parameters from the same gradients in one process and take turns, so that what else the machine does falls
on all of them; the order of a round changes from round to round. Times are medians and (smallest-largest) over the rounds after
the first; a ratio is taken within a round. Needs bitsandbytes for its side; without it that side is left out. ``OMP_NUM_THREADS``
sets the threads.

On a GPU the times are of events around each update, and the bytes that an update has to move are divided by its time and by the
rate of a copy on the same device: the share of copy bandwidth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from surogate_optimizer_adamw.update import AdamW
from surogate_optimizer_adamw_8bit.update import AdamW8bit
from surogate_optimizer_normuon.update import NorMuon
from torch import nn

from surogate_core.contracts import Optimizer, ParamGroup

RATES: dict[str, float] = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
DECAY, LEARNING_RATE = 0.1, 1e-4
BASE = "torch AdamW(fused)"
Step = Callable[[int], object]
SLOW = 40_000_000
"""Above this many parameters the sides that take seconds a step on a CPU are left out there."""


def shapes(size: int) -> list[tuple[str, tuple[int, ...]]]:
    """About ``size`` parameters, by name."""
    width = next(w for w in (2048, 1024, 512, 320) if 16 * w * w * 4 <= size or w == 320)
    layer = {f"self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
    layer |= {f"mlp.{name}_proj.weight": (4 * width, width) for name in ("gate", "up")}
    layer |= {"mlp.down_proj.weight": (width, 4 * width), "input_layernorm.weight": (width,), "norm.weight": (width,)}
    vocabulary = 8 * width
    layers = max(1, round((size - vocabulary * width) / (16 * width * width)))
    found = [("model.embed_tokens.weight", (vocabulary, width))]
    return found + [(f"model.layers.{i}.{name}", shape) for i in range(layers) for name, shape in layer.items()]


def ours(rule: Optimizer, names: list[str], params: list[nn.Parameter]) -> Step:
    state = rule.bind([ParamGroup(names=tuple(names), params=tuple(params), weight_decay=DECAY)], seed=0)
    lr = torch.tensor(LEARNING_RATE, device=params[0].device)
    return lambda step: state.step(lr, step)


def sides(names: list[str], params: list[nn.Parameter], slow: bool) -> dict[str, Step]:
    reference, native = (AdamW8bit(**RATES, kernels=kernels) for kernels in ("reference", "native"))
    settings: dict[str, Any] = {"lr": LEARNING_RATE, "weight_decay": DECAY}
    found: dict[str, Step] = {
        BASE: stepping(torch.optim.AdamW(params, fused=True, **settings)),
        "adamw": ours(AdamW(**RATES), names, params),
        "adamw_8bit, native": ours(native, names, params),
        "adamw_8bit, reference": ours(reference, names, params),
    }
    try:
        import bitsandbytes

        found["bitsandbytes AdamW8bit"] = stepping(bitsandbytes.optim.AdamW8bit(params, **settings))
    except ImportError:
        print("bitsandbytes is not installed and is left out", file=sys.stderr)
    if slow:
        rule = NorMuon(momentum=0.95, beta2=0.95, cautious=True, adamw=native)
        found["normuon"] = ours(rule, names, params)
    return found


def stepping(optimizer: torch.optim.Optimizer) -> Step:
    return lambda step: optimizer.step()


def seconds(step: Step, index: int, device: torch.device) -> float:
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        step(index)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    started = time.perf_counter()
    step(index)
    return time.perf_counter() - started


def copy_rate(device: torch.device) -> float:
    """Bytes read and written in a second by a copy of 1 GiB."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds(lambda _: target.copy_(source), 0, device) for _ in range(10))


def moved(params: list[nn.Parameter]) -> float:
    """Bytes that one update in 8 bits has to read or write: parameter and both codes twice, the gradient once, scales twice."""
    size = params[0].element_size()
    return sum(param.numel() * (2 * size + size + 4 + 4 * 4 / 256) for param in params)


def measure(size: int, dtype: torch.dtype, rounds: int, device: torch.device) -> dict[str, Any]:
    names, found = zip(*shapes(size), strict=True)
    params = [nn.Parameter((torch.randn(shape, device=device) * 0.02).to(dtype)) for shape in found]
    for param in params:
        param.grad = torch.randn_like(param) * 1e-3
    count = sum(param.numel() for param in params)
    ways = sides(list(names), params, slow=device.type == "cuda" or count < SLOW)
    times: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    for index in range(1, rounds + 2):
        order = order[1:] + order[:1]
        for name in order:
            taken = seconds(ways[name], index, device)
            if index > 1:  # states are made and code is compiled in the first
                times[name].append(taken)
    result: dict[str, Any] = {"parameters": count, "dtype": str(dtype).removeprefix("torch."), "sides": {}}
    for name, taken in times.items():
        ratios = [base / own for base, own in zip(times[BASE], taken, strict=True)]
        result["sides"][name] = {"ms": spread([value * 1e3 for value in taken]), "x torch": spread(ratios)}
        if (bnb := times.get("bitsandbytes AdamW8bit")) is not None:
            result["sides"][name]["x bitsandbytes"] = spread([base / own for base, own in zip(bnb, taken, strict=True)])
    if device.type == "cuda":
        native = min(times["adamw_8bit, native"])
        result["share of copy bandwidth"] = round(moved(params) / native / copy_rate(device), 3)
    return result


def spread(values: list[float]) -> list[float]:
    """Median, smallest and largest."""
    return [round(value, 3) for value in (statistics.median(values), min(values), max(values))]


def show(result: dict[str, Any]) -> None:
    print(f"\n{result['parameters'] / 1e6:.1f} million parameters, {result['dtype']}")
    for name, figures in result["sides"].items():
        middle, least, most = figures["ms"]
        ratios = "".join(
            f"  {key} {values[0]:.2f} ({values[1]:.2f}-{values[2]:.2f})" for key, values in figures.items() if key != "ms"
        )
        print(f"  {name:24s} {middle:9.1f} ms ({least:.1f}-{most:.1f}){ratios}")
    if share := result.get("share of copy bandwidth"):
        print(f"  adamw_8bit, native: {share:.0%} of copy bandwidth")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="10 million parameters, three rounds")
    arguments.add_argument("--sizes", default="10,30,100,300", help="millions of parameters")
    arguments.add_argument("--dtypes", default="fp32,bf16")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--output", type=Path, help="JSON file for the results")
    given = arguments.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = [10.0] if given.quick else [float(size) for size in given.sizes.split(",")]
    rounds = 3 if given.quick else given.rounds
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    results = []
    for size in sizes:
        for dtype in given.dtypes.split(","):
            results.append(measure(int(size * 1e6), dtypes[dtype], rounds, device))
            show(results[-1])
    if given.output:
        machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
        machine |= {"torch": torch.__version__, "load": os.getloadavg(), "device": str(device)}
        given.output.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    with torch.compiler.set_stance("force_eager"):  # bitsandbytes compiles its update of small tensors for most of a minute
        main()
