"""The memory of a run, found by going through one of its steps on tensors that have shapes and no values.

Everything is what a run has: slots filled by recipe, adapter and quantizer, the source's loss, autograd, the optimizer's own
update. So a plugin needs no formula for its memory, and none can be wrong. Only reading the weights is left out. For the CPU the
tensors are torch's FakeTensors, which compute as the CPU does; for a GPU, of which a machine without one knows nothing, they are on
the meta device: there attention counts as torch's plain one, which takes the most.

A deep model is rehearsed with few of its layers, twice: the peak of a phase grows by the same bytes with each layer.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from attrs import define, evolve, frozen
from surogate_distributed_single.single import Single
from surogate_loop_standard.loop import Job, optimizer_step
from surogate_offload import Mark, opening
from torch import Tensor, nn

from surogate_command_plan.labels import PHASES, held, labelled
from surogate_command_plan.tally import HOST, Memory, Peak, Tally
from surogate_core.contracts import Batch, HoldsGradients, Rehearses, Step
from surogate_core.plan import Plan
from surogate_core.train.setup import Trainee, bind_optimizer, build

DEPTHS = 2, 4
"""Layers of the two rehearsals of a deeper model; both even, for families whose layers alternate."""
FRAMEWORK = {"cpu": 0, "cuda": 600_000_000}
"""Bytes beside tensors: the CUDA context and the libraries' own, an assumption. On the CPU memory is counted above the imports."""


@frozen
class Planned:
    """A device of ``surogate_offload`` whose memory has no values: what is pinned counts as the host's."""

    tally: Tally
    where: str

    def empty(self, count: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(count, dtype=dtype, device=self.where)

    def pinned(self, count: int, dtype: torch.dtype) -> Tensor:
        label, self.tally.label = self.tally.label, HOST
        memory = self.empty(count, dtype)
        self.tally.hold([memory], HOST)  # also while nothing is watched
        self.tally.label = label
        return memory

    def fetch(self, buffer: Tensor, host: Tensor, after: Mark) -> Mark:
        return None

    def store(self, host: Tensor, buffer: Tensor, after: Mark) -> Mark:
        return None

    def here(self) -> Mark:
        return None

    def wait(self, mark: Mark) -> None: ...

    def settle(self) -> None: ...


@define
class _Source:
    """The model source, whose models are blank and have at most ``depth`` layers."""

    real: Any
    depth: int
    kept: Sequence[nn.Module] = ()

    def load(self, computes: Any, adapters: Any, storages: Any, *, device: torch.device, **_: Any) -> nn.Module:
        model: nn.Module = self.real.blank(computes, adapters, storages)
        blocks = self.real.blocks(model)
        for module in list(model.modules()):
            if isinstance(module, nn.ModuleList) and len(module) == len(blocks) and module[0] is blocks[0]:
                del module[self.depth :]
        self.kept = blocks[: self.depth]
        return model

    def blocks(self, model: nn.Module) -> Sequence[nn.Module]:
        return self.kept

    def ready(self, model: nn.Module) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@functools.cache
def _fake_mode() -> Any:
    """One for the whole process: what a plugin keeps of one rehearsal it meets again in the next."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def rehearse(plan: Plan, device: str) -> Memory | None:
    """The peaks of a step on ``device`` ("cpu", "cuda") with their parts; None where the model source has no blank models.

    On the CPU what plugins cache in module-level variables may have no values afterwards: to be called where nothing is computed
    later, :mod:`surogate_command_plan.apart` is for the others.
    """
    source = plan.model_source
    if not isinstance(source, Rehearses):
        return None
    layers = 1 + max((site.layer for site in plan.sites if site.layer is not None), default=-1)
    if layers <= DEPTHS[1]:
        return _memory(_peaks(plan, device, layers), device)
    low, high = (_peaks(plan, device, depth) for depth in DEPTHS)
    times = (layers - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0])
    grown = {phase: _grown(low[phase], high[phase], times) for phase in PHASES if phase in low}
    update = grown.pop(PHASES[3])  # an upper bound: the update's scratch does not grow with every layer
    if update.total > max(peak.total for peak in grown.values()):
        update = _peaks(plan, device, layers, update_only=True)[PHASES[3]]
    return _memory({**grown, PHASES[3]: update}, device)


def _grown(low: Peak, high: Peak, times: float) -> Peak:
    names = {**low.parts, **high.parts}
    parts = {name: low.parts.get(name, 0) + times * (high.parts.get(name, 0) - low.parts.get(name, 0)) for name in names}
    return Peak(
        round(low.total + times * (high.total - low.total)), {name: round(size) for name, size in parts.items() if size > 0.5}
    )


def _memory(peaks: dict[str, Peak], device: str) -> Memory:
    extra = {"framework": FRAMEWORK[device]} if FRAMEWORK[device] else {}
    whole = {phase: Peak(peak.total + FRAMEWORK[device], {**peak.parts, **extra}) for phase, peak in peaks.items()}
    return Memory({phase: whole[phase] for phase in PHASES if phase in whole})


def _peaks(plan: Plan, device: str, depth: int, *, update_only: bool = False) -> dict[str, Peak]:
    """The peaks of the phases of a step, with at most two micro-batches: from the second one on they are alike. ``update_only``
    gives that of the optimizer's update alone."""
    where = "meta" if device == "cuda" else "cpu"
    kept = {site.name for site in plan.sites if site.layer is None or site.layer < depth}
    source = _Source(plan.model_source, depth)
    stand_in = evolve(
        plan,
        model_source=source,
        parallelism=Single("meta"),
        slots={name: slots for name, slots in plan.slots.items() if name in kept},
        fused={name: fused for name, fused in plan.fused.items() if name in kept},
        config=evolve(plan.config, core=evolve(plan.config.core, compile=False)),
    )
    mode = contextlib.nullcontext() if where == "meta" else _fake_mode()
    tally = Tally(where, stand_in=True)
    planned = Planned(tally, where)
    with opening(lambda device, write_combined: planned):
        trainee = build(stand_in)
    with opening(lambda device, write_combined: planned), mode, tally:
        trainee = _moved(trainee, where)
        tally.label = "optimizer"
        optimizer = bind_optimizer(stand_in, trainee)
        for label, tensors in held(trainee.model, optimizer.state_dict()).items():
            tally.hold(tensors, label)
        tally.label, lr = "batch", torch.zeros((), device=where)
        if update_only:
            if not isinstance(optimizer, HoldsGradients):
                tally.hold(_gradients(trainee), "gradients")
            tally.phase, tally.label = PHASES[3], "scratch"
            optimizer.step(lr, 1)
            return tally.peaks
        step = step_of(plan, where)
        with labelled(tally, trainee.model, source.kept) as mark:
            job = job_of_a_step(plan, trainee, optimizer, core=stand_in.config.core, parallelism=Single(where), mark=mark)
            optimizer_step(job, step, 0, lr)
    return tally.peaks


def job_of_a_step(plan: Plan, trainee: Trainee, optimizer: Any, **changes: Any) -> Job:
    """What the loop needs for one optimizer step, and no more: nothing is read, evaluated, saved or told."""
    rest: Any = {"train": None, "validation": None, "epochs": None, "total": 1}
    told: Any = {
        "save": lambda progress, last: None,
        "stop": lambda: None,
        "save_now": lambda: False,
        "tell": lambda hook, record: [],
    }
    own: Any = {"core": plan.config.core, "parallelism": plan.parallelism, "schedule": plan.schedule, **changes}
    parameters, loss = trainee.parameters, plan.model_source.loss
    return Job(model=trainee.model, loss=loss, parameters=parameters, optimizer=optimizer, **rest, **told, **own)


def _gradients(trainee: Trainee) -> Iterator[Tensor]:
    for parameter in trainee.parameters:
        parameter.grad = torch.empty_like(parameter, requires_grad=False)
        yield parameter.grad


def step_of(plan: Plan, where: str) -> Step:
    """A step of this plan's shapes with nothing to learn, on the device ``where``: at most two micro-batches of zeros."""
    core = plan.config.core
    rows, length = core.per_device_train_batch_size, core.sequence_len

    def whole(dtype: torch.dtype) -> Tensor:
        return torch.zeros(rows, length, dtype=dtype, device=where)

    batches = tuple(
        Batch(
            input_ids=whole(torch.int64),
            labels=whole(torch.int64),
            weights=whole(torch.float32),
            position_ids=whole(torch.int64),
            document_ids=whole(torch.int32),
        )
        for _ in range(min(2, core.gradient_accumulation_steps))
    )
    positions = rows * length * len(batches)
    return Step(batches=batches, weight=1.0, tokens=positions, trained=positions, sources=(), epoch=0.0)


def _moved(trainee: Trainee, where: str) -> Trainee:
    """All tensors anew on this device; shared ones stay shared."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # with the old one, so that no other gets its id

    def new(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            empty = torch.empty_like(tensor, device=where, requires_grad=False)
            made[id(tensor)] = tensor, nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        return made[id(tensor)][1]

    roots = [trainee.model, *trainee.adapters.values(), *trainee.computes.values()]
    for module in {id(module): module for root in roots for module in root.modules()}.values():
        tables: Any = (module._parameters, module._buffers, vars(module))
        for own in tables:
            own.update({name: new(value) for name, value in own.items() if isinstance(value, Tensor)})
    return evolve(trainee, parameters=tuple(new(parameter) for parameter in trainee.parameters))
