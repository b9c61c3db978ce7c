"""Milliseconds and state of one update of a 9.9M-parameter model (320 wide, 14 layers), best of ten: ``python bench.py``.

Needs surogate-optimizer-adamw-8bit, surogate-optimizer-adamw and bitsandbytes. ``OMP_NUM_THREADS`` sets the threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import bitsandbytes
import torch
from surogate_optimizer_adamw.update import AdamW
from surogate_optimizer_adamw_8bit.update import AdamW8bit
from torch import nn

from surogate_core.contracts import Optimizer, ParamGroup

SHAPES = [(4096, 320)] + [(320, 320)] * 28 + [(1280, 320)] * 14 + [(320,)] * 15


def ours(rule: Optimizer) -> Callable[[list[nn.Parameter]], Callable[[int], None]]:
    def bind(params: list[nn.Parameter]) -> Callable[[int], None]:
        group = ParamGroup(names=tuple(map(str, range(len(params)))), params=tuple(params), weight_decay=0.1)
        state, lr = rule.bind([group], seed=0), torch.tensor(1e-3)
        return lambda step: state.step(lr, step)

    return bind


def theirs(make: Callable[..., Any], **settings: Any) -> Callable[[list[nn.Parameter]], Callable[[int], None]]:
    def bind(params: list[nn.Parameter]) -> Callable[[int], None]:
        optimizer = make(params, lr=1e-3, weight_decay=0.1, **settings)
        return lambda step: optimizer.step()

    return bind


def main() -> None:
    rules: dict[str, Callable[[list[nn.Parameter]], Callable[[int], None]]] = {
        "surogate adamw_8bit": ours(AdamW8bit(beta1=0.9, beta2=0.999, epsilon=1e-8)),
        "bitsandbytes AdamW8bit": theirs(bitsandbytes.optim.AdamW8bit),
        "surogate adamw": ours(AdamW(beta1=0.9, beta2=0.999, epsilon=1e-8)),
        "torch AdamW(fused)": theirs(torch.optim.AdamW, fused=True),
    }
    print(f"{torch.get_num_threads()} threads")
    for dtype in (torch.float32, torch.bfloat16):
        for name, bind in rules.items():
            params = [nn.Parameter(torch.randn(shape).mul_(0.02).to(dtype)) for shape in SHAPES]
            for param in params:
                param.grad = torch.randn_like(param) * 1e-3
            step = bind(params)
            seconds = []
            for index in range(1, 12):
                started = time.perf_counter()
                step(index)
                seconds.append(time.perf_counter() - started)
            print(f"{str(dtype).removeprefix('torch.'):9s} {name:24s} {min(seconds) * 1e3:7.1f} ms")


if __name__ == "__main__":
    main()
