"""The memory of a run, found by going through one of its steps on tensors that have shapes and no values.

Everything is what a run has: the slots filled by recipe, adapter and quantizer, the source's loss, autograd, the optimizer's own
update. So a plugin needs no formula for its memory, and none can be wrong. Only the model's loading is left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor, nn

from surogate_command_plan.tally import SCRATCH, Tally
from surogate_core.contracts import Batch, Step
from surogate_core.plan import Plan
from surogate_core.train.loop import Job, optimizer_step
from surogate_core.train.setup import Trainee, bind_optimizer, build


@frozen
class _Source:
    """The model source, whose models have no values."""

    real: Any

    def load(self, computes: Any, adapters: Any, storages: Any, *, device: torch.device, **_: Any) -> nn.Module:
        return self.real.blank(computes, adapters, storages)

    def ready(self, model: nn.Module) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@frozen
class _Place:
    """The parallelism of one process, on the stand-in's device."""

    where: str
    rank: int = 0
    world_size: int = 1

    def device(self) -> torch.device:
        return torch.device(self.where)

    def sum(self, value: Tensor) -> Tensor:
        return value

    def rows(self, rows: Any) -> Any:
        return iter(rows)

    def wrap(self, model: nn.Module) -> nn.Module:
        return model


@contextlib.contextmanager
def labelled(tally: Tally, model: nn.Module, blocks: Any, parameters: Any) -> Iterator[Any]:
    """Within it ``tally`` knows activations of blocks, the head, gradients and scratch apart. Gives the loop's ``mark``."""
    phase = ["forward"]

    def enter(*_: Any) -> None:
        tally.label = "activations" if phase[0] == "forward" else "recomputed block"

    def leave(*_: Any) -> None:
        tally.label = "head" if phase[0] == "forward" else SCRATCH

    def mark(name: str) -> None:
        phase[0] = {"forward": "backward"}.get(name, "forward")
        tally.label = {"forward": SCRATCH, "backward": "activations"}.get(name, SCRATCH)

    handles = [block.register_forward_pre_hook(enter) for block in blocks] + [blocks[-1].register_forward_hook(leave)]
    handles += [block.register_forward_hook(lambda *_: leave() if phase[0] != "forward" else None) for block in blocks]
    handles += [p.register_post_accumulate_grad_hook(lambda p: tally.hold([p.grad], "gradients")) for p in parameters]
    tally.label = "activations"
    try:
        yield mark
    finally:
        for handle in handles:
            handle.remove()


def held(plan: Plan, trainee: Trainee, optimizer: Any) -> dict[str, list[Tensor]]:
    """What lives from step to step, by buffer."""
    storages = [part for module in trainee.model.modules() if isinstance(part := getattr(module, "storage", None), nn.Module)]
    adapters = [p for module in trainee.adapters.values() for p in module.parameters()]
    state = optimizer.state_dict()
    return {
        "weights": [*trainee.model.parameters(), *trainee.model.buffers()],
        "adapter": adapters,
        "quantised weights": [tensor for storage in storages for tensor in storage.buffers()],
        "optimizer": [tensor for name, tensor in state.items() if not name.endswith(".remainder")],
        "masters": [tensor for name, tensor in state.items() if name.endswith(".remainder")],
    }


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
        for own in (module._parameters, module._buffers, vars(module)):
            own.update({name: new(value) for name, value in own.items() if isinstance(value, Tensor)})
    return evolve(trainee, parameters=tuple(new(parameter) for parameter in trainee.parameters))


def rehearse(plan: Plan, device: str) -> Tally:
    from torch._subclasses.fake_tensor import FakeTensorMode

    core = plan.config.core
    where = "meta" if device == "cuda" else "cpu"
    mode: Any = contextlib.nullcontext() if where == "meta" else FakeTensorMode(allow_non_fake_inputs=True)
    stand_in = evolve(plan, model_source=_Source(plan.model_source), parallelism=_Place("meta"))
    tally = Tally("weights", stand_in=True)
    trainee = build(stand_in)
    with mode, tally:
        trainee = _moved(trainee, where)
        tally.label = "optimizer"
        optimizer = bind_optimizer(stand_in, trainee)
        for label, tensors in held(plan, trainee, optimizer).items():
            tally.hold(tensors, label)
        rows, length = core.per_device_train_batch_size, core.sequence_len
        tally.label = "batch"
        whole = lambda dtype: torch.zeros(rows, length, dtype=dtype, device=where)
        batches = [
            Batch(
                input_ids=whole(torch.int64),
                labels=whole(torch.int64),
                weights=whole(torch.float32),
                position_ids=whole(torch.int64),
                document_ids=whole(torch.int32),
            )
            for _ in range(min(2, core.gradient_accumulation_steps))
        ]
        tally.restart()
        step = Step(tuple(batches), 1.0, rows * length, rows * length, (), 0.0)
        blocks = plan.model_source.blocks(trainee.model)
        with labelled(tally, trainee.model, blocks, trainee.parameters) as mark:
            job: Any = Job(
                core=core, model=trainee.model, loss=plan.model_source.loss, parameters=trainee.parameters, optimizer=optimizer,
                schedule=plan.schedule, parallelism=_Place(where), train=None, validation=None, total=1, epochs=None,
                save=None, stop=None, save_now=None, tell=None, mark=mark,
            )
            optimizer_step(job, step, 0, torch.zeros((), device=where))
    return tally
