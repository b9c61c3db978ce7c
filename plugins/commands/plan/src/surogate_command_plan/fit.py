"""Which ways to train a model fit a device: planned peaks of every method, the recommended one first.

The recommendation follows the guide of the documentation: below 24 GB a quantised base, up to 48 GB LoRA, above that all weights;
where nothing of that fits, what takes less. Within a method the fastest that fits comes first: without recomputation, then with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from surogate_command_plan.tally import Memory
from surogate_core.config import Config, load
from surogate_core.config.catalogue import catalogue
from surogate_core.errors import ConfigError, PlanError, Problem
from surogate_core.host import Host

UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
FAMILIES = ("full", "LoRA", "QLoRA")
"""From the most memory to the least."""
LORA_FROM, FULL_FROM = 24e9, 48e9
"""Bytes of the device from which LoRA, and training all weights, are recommended."""
Changes = dict[str, Any]
OFFLOADS: Changes = {"offload_optimizer": True, "offload_grads": True, "offload_residual": True, "zero_level": 2, "recompute": True}
"""Keys that are tried where installed plugins have all of them."""


@frozen
class Method:
    """A way to train, the keys that set it, and its planned peak; ``why`` it cannot be planned."""

    family: str
    name: str
    keys: Changes
    peak: Memory | None = None
    why: str = ""

    def fits(self, size: float) -> bool:
        return self.peak is not None and self.peak.total <= size


def size_of(text: str) -> float:
    """Bytes of ``24GB`` (10⁹), ``24GiB`` (2³⁰), ``24g``. Raises ConfigError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?\s*", text.lower())
    if found is None or not float(found[1]):
        raise ConfigError(f"--fit {text} is no size of a memory", how="write it like 24GB or 80GiB")
    return float(found[1]) * UNITS[found[2]]


def methods(host: Host) -> Iterator[Method]:
    """All that are installed, each without and with recomputation."""
    formats = [offer.key for offer in host.offers("quantizers").values()]
    off = dict.fromkeys(formats, False)
    kinds: list[tuple[str, str, Changes]] = [("full", "full", {"lora": False, **off}), ("LoRA", "LoRA", {"lora": True, **off})]
    kinds += [("QLoRA", f"QLoRA, {key}", {"lora": True, **off, key: True}) for key in formats]
    for family, name, keys in kinds:
        yield Method(family, name, {**keys, "recompute": False})
        yield Method(family, f"{name}, recompute", {**keys, "recompute": True})
    if catalogue(host).keys.keys() >= OFFLOADS.keys():
        yield Method("full", "full, recompute, offload", {"lora": False, **off, **OFFLOADS})


def planned(source: Path | Mapping[str, Any], host: Host, given: list[tuple[str, Any]], device: str) -> Memory:
    """The peak on a device that need not be here. No weights are needed: the model's config.json says it all."""
    from surogate_command_plan.rehearse import rehearse
    from surogate_core.plan import make_plan

    config = load(source, host, given, need_data=False)
    peak = rehearse(make_plan(without_weights(config), host, device), device)
    if peak is None:
        raise PlanError(f"models of {config.core.model_backend!r} cannot be rehearsed", how="use another model_backend")
    return peak


def without_weights(config: Config) -> Config:
    """The configuration with a recipe that is emulated where the device lacks it, and a model without weights."""
    return attrs.evolve(config, core=attrs.evolve(config.core, from_scratch=True, recipe_backend="emulated"))


def compare(source: Path | Mapping[str, Any], host: Host, given: list[tuple[str, Any]], size: float) -> list[Method]:
    """Every method with its peak on a GPU: the recommended one first, then those that fit, by family, then the others."""
    found = []
    for method in methods(host):
        try:
            found.append(attrs.evolve(method, peak=planned(source, host, [*given, *method.keys.items()], "cuda")))
        except (ConfigError, PlanError) as error:
            found.append(attrs.evolve(method, why=error.problems[0].what))
    return ranked(found, size)


def ranked(found: list[Method], size: float) -> list[Method]:
    """The recommended method first, then the others that fit, then those that do not."""
    fitting = [method for method in found if method.fits(size)]
    start = FAMILIES.index("full" if size > FULL_FROM else "LoRA" if size >= LORA_FROM else "QLoRA")
    down = [method for family in FAMILIES[start:] for method in fitting if method.family == family]
    first = down[:1] or fitting[-1:]
    return [*first, *(m for m in fitting if m not in first), *(m for m in found if not m.fits(size))]


def lines_of(changes: Mapping[str, Any]) -> list[str]:
    """The lines of a config that set these keys."""
    return [f"{key} = {json.dumps(value)}" for key, value in changes.items()]


def steps(config: Config, device: str) -> Iterator[Changes]:
    """Changes that lower the peak, from the cheapest in time and quality to the dearest; those that change nothing are left out.
    Offloading comes before LoRA: it costs time, and trains the same weights."""
    core = config.core
    rows, micro = core.per_device_train_batch_size, core.gradient_accumulation_steps
    quantised = any(getattr(config.core, key, config.resolved().get(key)) for key in ("qlora_bnb", "qlora_fp8", "qlora_fp4"))
    if not core.recompute:
        yield {"recompute": True}
    yield {"lmhead_chunks": 8}
    if rows > 1:
        yield {"per_device_train_batch_size": 1, "gradient_accumulation_steps": rows * micro}
    yield {"attn_bwd_chunks": 8}
    if core.optimizer != "adamw_8bit":
        yield {"optimizer": "adamw_8bit"}
    if device == "cuda" and not core.lora:
        yield {"optimizer": "adamw_8bit", **OFFLOADS}
    if not core.lora:
        yield {"lora": True, "task": "sft"}
    if not quantised:
        yield {"qlora_bnb": True}


def cheapest(
    config: Config, source: Any, host: Host, given: list[tuple[str, Any]], size: float, device: str
) -> tuple[Changes, int]:
    """The first of the changes, taken one after the other, that make it fit, without those that are not needed; and the peak with
    them. No changes where nothing helps."""

    def peak(changes: Changes) -> int:
        return planned(source, host, [*given, *changes.items()], device).total

    taken: list[Changes] = []
    known = catalogue(host).keys
    for step in steps(config, device):
        if all(key in known for key in step):
            taken.append(step)
            if peak(_merged(taken)) <= size:
                break
    else:
        return {}, peak(_merged(taken))
    for step in taken[:-1]:
        rest = [other for other in taken if other is not step]
        if peak(_merged(rest)) <= size:
            taken = rest
    return _merged(taken), peak(_merged(taken))


def _merged(changes: list[Changes]) -> Changes:
    return {key: value for change in changes for key, value in change.items()}


def too_large(
    config: Config, source: Any, host: Host, given: list[tuple[str, Any]], memory: Memory, size: float, device: str
) -> PlanError:
    """That it does not fit, with the cheapest changes that would."""
    from surogate_command_plan.show import bytes_of

    changes, left = cheapest(config, source, host, given, size, device)
    how = ", ".join(lines_of(changes))
    parts = memory.peak.parts
    largest = max(parts, key=lambda name: parts[name])
    what = f"does not fit: {bytes_of(memory.total)} planned, {bytes_of(size)} of memory; most of it is {largest}"
    wanted = (
        f"{how}: {bytes_of(left)}"
        if changes
        else f"take a smaller model or shorter rows: all changes together leave {bytes_of(left)}"
    )
    return PlanError([Problem(what, where=f"memory of the device ({device})", how=wanted)])
