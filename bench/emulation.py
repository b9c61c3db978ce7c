"""What emulated NVFP4 costs a step of training: the CPU's own build of the kernels' arithmetic beside plain torch, and beside bf16.

    python bench/emulation.py [--rounds 5] [--keep FILE]

A random Qwen3 of 20 million parameters in bfloat16 (384 wide, 11 layers), 1,024 tokens a step in rows of 256, one thread; a step is
forward, backward and torch's fused AdamW, the decoder's linear layers are the recipe's. All sides take turns within a round, each
with a model of its own that started alike; the figure is processor time, the ratio is taken within a round. If the losses of both
builds are not equal, bit for bit, it fails. "fp32 products" are the products of a step's linear layers in float32, which emulation
cannot do without.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from surogate_recipe_nvfp4 import linear, quartet
from surogate_recipe_nvfp4.plugin import Options
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from surogate_core import testing

CONFIG = Qwen3Config(
    vocab_size=512,
    hidden_size=384,
    intermediate_size=1152,
    num_hidden_layers=11,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=64,
    tie_word_embeddings=True,
)
RECIPES = {"nvfp4": linear, "nvfp4_quartet": quartet}
BUILDS = {"plain torch": "reference", "own build": "native"}


def stepping(recipe: str | None, kernels: str) -> Callable[[], float]:
    """A model, and what makes one step of it and gives the loss."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(CONFIG).to(torch.bfloat16)
    slots = {}
    if recipe:
        built = RECIPES[recipe].build(Options(), testing.context(recipe_backend="emulated", kernels=kernels))
        for name, module in model.model.named_modules():
            if isinstance(module, nn.Linear):
                slots[name] = built.linear(testing.site(*module.weight.shape, name=name))
                module.forward = functools.partial(_through, slots[name], module)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(CONFIG.vocab_size, (4, 256))

    def step() -> float:
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if recipe:
            built.stepped(slots)
        return loss.item()

    return step


def _through(slot: nn.Module, module: nn.Linear, x: Tensor) -> Tensor:
    return slot(x, module.weight, None)


def products() -> Callable[[], float]:
    """The three products of every linear layer in float32."""
    shapes = [module.weight.shape for module in Qwen3ForCausalLM(CONFIG).model.modules() if isinstance(module, nn.Linear)]
    operands = {shape: [torch.randn(size) for size in ((1024, shape[1]), shape, (1024, shape[0]))] for shape in set(shapes)}

    def step() -> float:
        for x, weight, dy in (operands[shape] for shape in shapes):
            x @ weight.t(), dy @ weight, dy.t() @ x
        return 0.0

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sides = {"bf16": stepping(None, ""), "fp32 products": products()}
    sides |= {f"{recipe}, {build}": stepping(recipe, kernels) for recipe in RECIPES for build, kernels in BUILDS.items()}
    taken: dict[str, list[float]] = {side: [] for side in sides}
    losses: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(options.rounds + 1):
        for side, step in sides.items():
            begun = time.process_time()
            losses[side].append(step())
            if number:  # the first step compiles and warms up
                taken[side].append(time.process_time() - begun)
    for recipe in RECIPES:
        one, other = (losses[f"{recipe}, {build}"] for build in BUILDS)
        if one != other:
            raise SystemExit(f"{recipe}: the losses of both builds differ")
    ratios = {side: [own / base for own, base in zip(taken[side], taken["bf16"], strict=True)] for side in sides}
    for side, own in ratios.items():
        seconds = statistics.median(taken[side])
        print(f"{side}: {seconds:.2f} s, {statistics.median(own):.2f} times bf16 ({min(own):.2f} to {max(own):.2f})")
    print(f"load {os.getloadavg()[0]:.1f}")
    if options.keep:
        machine = {"torch": torch.__version__, "threads": 1, "load": os.getloadavg()}
        options.keep.write_text(json.dumps({"machine": machine, "seconds": taken, "times bf16": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
