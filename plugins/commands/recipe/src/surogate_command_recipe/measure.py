"""Two short trainings and one look at every layer.

Both trainings start from the same weights and see the same rows at the same rates; the recipe's comes first. Then, with the weights
and the scales that it ended with, the next micro-batch goes through the model twice: with plain products, during which each layer's
inputs, weight and output gradient are given to the recipe's own rounding; and with the recipe, for the gradient.
"""

from __future__ import annotations

import copy
import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch
from surogate_loop_standard.loop import accumulate, clip
from surogate_loop_standard.schedules import learning_rate
from torch import Tensor, nn

from surogate_command_recipe.figures import Layer, Operand, Report, Training, cosine, relative_error
from surogate_command_recipe.memory import peak
from surogate_command_recipe.probe import Probed
from surogate_core.contracts import Batches, Step
from surogate_core.errors import PlanError
from surogate_core.plan import Plan, make_plan
from surogate_core.train.setup import Trainee, bind_optimizer, build

if TYPE_CHECKING:
    from surogate_core.config import Config
    from surogate_core.host import Host


def measure(config: Config, host: Host, steps: int, say: Callable[[str], None]) -> Report:
    """The report of ``config.core.recipe`` over ``steps`` steps. Raises PlanError for a loss that is not finite."""
    plan = make_plan(config, host)
    core = config.core
    data = plan.pipeline.prepare(plan.model_source.tokenizer(), say)
    rows = data.training(core.per_device_train_batch_size, core.gradient_accumulation_steps)
    total = core.max_steps if core.max_steps >= 0 else rows.steps(core.num_epochs)
    say(f"{steps} steps with {core.recipe}")
    probed = Probed(plan.recipe)
    watched = attrs.evolve(plan, recipe=probed)
    trained, trainee = train(watched, rows, steps, max(total, steps))
    layers, gradient = look(watched, trainee, probed, rows.step(steps))
    del trainee
    say(f"{steps} steps with plain products in {core.model_dtype}")
    plain, _ = train(attrs.evolve(plan, recipe=Probed(plan.recipe, plain=True)), rows, steps, max(total, steps))
    return Report(
        recipe=core.recipe,
        emulated=plan.device != "cuda" or core.recipe_backend == "emulated",
        device=torch.cuda.get_device_name() if plan.device == "cuda" else "cpu",
        model=core.model,
        layers=layers,
        gradient=gradient,
        with_recipe=trained,
        plain=plain,
        bounds=dict(getattr(plan.recipe, "bounds", {})),
    )


def train(plan: Plan, rows: Batches, steps: int, total: int) -> tuple[Training, Trainee]:
    """The loop's steps, with the loop's functions, and nothing else."""
    core = plan.config.core
    trainee = build(plan)
    optimizer = bind_optimizer(plan, trainee)
    torch.manual_seed(core.train_seed)
    rate = torch.zeros((), device=plan.parallelism.device())
    trainee.model.train()
    losses, seconds = [], []

    def one(index: int) -> Tensor:
        loss = accumulate(trainee.model, rows.step(index), plan.parallelism, plan.model_source.loss)
        clip(trainee.parameters, core.max_grad_norm)
        rate.fill_(learning_rate(core, plan.schedule, index, total))
        optimizer.step(rate, index + 1)
        for parameter in trainee.parameters:
            parameter.grad = None
        plan.recipe.stepped(trainee.computes)  # type: ignore[attr-defined]
        return loss

    for index in range(steps):
        begun = time.perf_counter()
        losses.append(float(one(index)))
        seconds.append(time.perf_counter() - begun)
    if not all(map(math.isfinite, losses)):
        raise PlanError(f"the loss is not finite: {losses}", where=core.model, how="lower learning_rate")
    memory, _ = peak(trainee, optimizer, functools.partial(one, steps - 1))  # the last one again, to be watched
    timed = seconds[2:] or seconds
    return Training(losses=losses, seconds=statistics.median(timed), memory=memory), trainee


def look(plan: Plan, trainee: Trainee, probed: Probed, step: Step) -> tuple[dict[str, Layer], float]:
    """Figures of each layer on the first micro-batch of ``step``, and the cosine of the whole gradient."""
    only = attrs.evolve(step, batches=step.batches[:1])
    layers: dict[str, Layer] = {}

    def seen(name: str, compute: nn.Module, x: Tensor, weight: Tensor, dy: Tensor) -> None:
        if name not in layers:
            layers[name] = layer(probed.inner, compute, x, weight, dy)

    def gradients() -> dict[str, Tensor]:
        accumulate(trainee.model, only, plan.parallelism, plan.model_source.loss)
        named = zip(trainee.names, trainee.parameters, strict=True)
        found = {name: parameter.grad.detach().clone() for name, parameter in named if parameter.grad is not None}
        for parameter in trainee.parameters:
            parameter.grad = None
        return found

    def seeded() -> dict[str, Tensor]:
        torch.manual_seed(plan.config.core.train_seed)  # dropout is the same in both
        return gradients()

    probed.plain, probed.seen = True, seen
    wanted = seeded()
    probed.plain, probed.seen = False, None
    got = seeded()
    order = [name for name in plan.slots if name in layers]
    ends = {name: [one for one in wanted if one.startswith(f"{name}.")] for name in order}
    with_cosine = {
        name: attrs.evolve(layers[name], gradient=_together(got, wanted, ends[name]) if ends[name] else None) for name in order
    }
    return with_cosine, _together(got, wanted, list(wanted))


def _together(got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], names: list[str]) -> float:
    one, other = (torch.cat([side[name].double().flatten() for name in names]) for side in (got, wanted))
    return cosine(one, other)


def layer(recipe: Any, compute: Any, x: Tensor, weight: Tensor, dy: Tensor) -> Layer:
    """One layer by itself. The compute is copied: nothing of this stays in its scales or draws."""
    own = copy.deepcopy(compute) if isinstance(compute, nn.Module) else compute
    given = recipe.operands(own, x, weight, dy) if hasattr(recipe, "operands") else {}
    operands = {name: Operand.of(*parts) for name, parts in given.items()}
    with torch.enable_grad():
        inputs = x.clone().requires_grad_(), nn.Parameter(weight.clone())
        y = own(inputs[0], inputs[1], None)
        dx, dw = torch.autograd.grad(y, inputs, dy)
    wide = [tensor.double() for tensor in (x, weight, dy)]
    exact = {"y": wide[0] @ wide[1].t(), "dx": wide[2] @ wide[1], "dW": wide[2].t() @ wide[0]}
    products = {name: relative_error(found.detach(), exact[name]) for name, found in (("y", y), ("dx", dx), ("dW", dw))}
    return Layer(operands=operands, products=products)
