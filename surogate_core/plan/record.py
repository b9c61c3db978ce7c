"""The records of a plan, and how it is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from attrs import frozen

from surogate_core.config import Config
from surogate_core.contracts import (
    Adapter,
    CheckpointStore,
    Loop,
    ModelSource,
    Optimizer,
    Outline,
    Parallelism,
    Pipeline,
    Quantizer,
    Recipe,
    Schedule,
    Site,
)
from surogate_core.offers import Owner
from surogate_core.plan.fuse import Fused


@frozen(kw_only=True)
class Slots:
    """Who owns the three slots of one linear site. ``compute`` or ``storage`` None: the model's own dtype, with the reason in
    ``left`` or ``kept``."""

    storage: Owner | None
    compute: Owner | None
    adapter: Owner | None
    left: str = ""
    kept: str = ""


@frozen(kw_only=True)
class Figures:
    """Counts and bytes, from shapes alone.

    ``memory`` maps the buffers that do not depend on the batch to their bytes on the device.
    ``steps`` is None when it depends on the data (``max_steps = -1``).
    """

    parameters: int
    trainable: int
    rows_per_step: int
    tokens_per_step: int
    steps: int | None
    memory: Mapping[str, int]


@frozen(kw_only=True)
class Plan:
    """One run, settled. ``lock`` maps distributions to versions; ``fingerprint`` changes with anything that changes the result."""

    config: Config
    device: str
    model_source: ModelSource
    pipeline: Pipeline
    checkpoints: CheckpointStore
    loop: Loop
    outline: Outline
    slots: Mapping[str, Slots]
    fused: Mapping[str, Fused]
    recipe: Recipe
    adapter: Adapter | None
    quantizer: Quantizer | None
    optimizer: Optimizer
    schedule: Schedule
    parallelism: Parallelism
    figures: Figures
    lock: Mapping[str, str]
    fingerprint: str
    notices: tuple[str, ...] = ()

    @property
    def sites(self) -> tuple[Site, ...]:
        return self.outline.sites

    def adapted(self) -> list[Site]:
        """The sites whose adapter slot is taken."""
        return [site for site in self.sites if site.name in self.slots and self.slots[site.name].adapter]

    def stored(self) -> list[Site]:
        """The sites whose storage slot is taken."""
        return [site for site in self.sites if site.name in self.slots and self.slots[site.name].storage]

    def render(self) -> str:
        core, figures = self.config.core, self.figures
        kinds = Counter(site.kind for site in self.sites)
        lines = [
            f"model        {core.model} ({self.outline.model_type}), {figures.parameters:,} parameters, "
            f"{figures.trainable:,} trainable ({figures.trainable / max(1, figures.parameters):.2%})",
            f"sites        {', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}",
            *(f"slots        {line}" for line in self.slot_lines()),
            *(f"fusions      {line}" for line in self.fusion_lines()),
            f"device       {self.device}, {core.model_dtype}, recompute {'on' if core.recompute else 'off'}, "
            f"compile {'on' if core.compile else 'off'}",
            f"step         {core.per_device_train_batch_size} rows x {core.gradient_accumulation_steps} micro-batches x "
            f"{self.parallelism.world_size} ranks = {figures.rows_per_step} rows of {core.sequence_len} = "
            f"{figures.tokens_per_step:,} positions",
            f"steps        {figures.steps if figures.steps else f'from the data, {core.num_epochs} epochs'}",
            "memory       " + ", ".join(f"{name} {_size(size)}" for name, size in figures.memory.items()),
            f"plugins      {', '.join(f'{name} {version}' for name, version in self.lock.items())}",
            f"fingerprint  {self.fingerprint}",
        ]
        return "\n".join(lines + [f"notice       {notice}" for notice in self.notices])

    def fusion_lines(self) -> list[str]:
        """Sites whose computation a plugin replaces, by kind."""
        kinds = {site.name: site.kind for site in self.sites}
        counted = Counter((str(fused.owner), kinds[name]) for name, fused in self.fused.items())
        return [f"{count} {kind}: {owner}" for (owner, kind), count in sorted(counted.items())]

    def slot_lines(self) -> list[str]:
        """Linear sites with equal owners on one line, by role."""
        groups: dict[tuple[str, ...], Counter[str]] = {}
        roles = {site.name: site.role for site in self.sites}
        for name, slots in self.slots.items():
            compute = str(slots.compute) if slots.compute else f"model dtype ({slots.left})"
            storage = slots.storage or f"model dtype{f' ({slots.kept})' if slots.kept else ''}"
            key = (f"storage {storage}", f"compute {compute}", f"adapter {slots.adapter or 'none'}")
            groups.setdefault(key, Counter())[roles[name]] += 1
        return [
            f"{', '.join(f'{count} {role}' for role, count in sorted(counted.items()))}: {'; '.join(key)}"
            for key, counted in groups.items()
        ]


def _size(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"
