"""The training loop.

One optimizer step is: forward and backward over the micro-batches, with the loss divided by the weight of the *whole* step (all
micro-batches, all ranks), so that batch size, accumulation and ranks can be rearranged without changing the gradient; clip; update.
Nothing inside a step reads a value back from the device: loss and norm stay there and are read afterwards, one step late on a GPU.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from attrs import define, field, frozen
from torch import Tensor, nn

from surogate_core.config.options import CoreOptions
from surogate_core.contracts import Batches, Decision, HoldsGradients, OptimizerState, Parallelism, Schedule, Step
from surogate_core.errors import NonFiniteLoss
from surogate_core.offers import Owner
from surogate_core.train.evaluate import Loss, evaluate
from surogate_loop_standard.schedules import learning_rate

Mark = Callable[[str], object]
Tell = Callable[[str, dict[str, Any]], list[tuple[Owner, Any]]]


@define
class Progress:
    """All that changes during a run beside tensors; it is in every checkpoint.

    ``step`` counts finished optimizer steps and is also the position in the data. ``lr_scale`` is the product of the decisions of
    observers. Times are in seconds and belong to this process alone.
    """

    step: int = 0
    tokens: int = 0
    trained: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    eval_step: int | None = None
    best_loss: float | None = None
    best_step: int | None = None
    lr_scale: float = 1.0
    tokens_here: int = field(default=0, metadata={"state": False})
    first_step_at: float | None = field(default=None, metadata={"state": False})
    seconds: dict[str, float] = field(
        factory=lambda: {"data": 0.0, "compute": 0.0, "eval": 0.0, "save": 0.0}, metadata={"state": False}
    )


@frozen(kw_only=True)
class Job:
    """What the loop works on.

    epochs    where the data end; None when ``max_steps`` is set, whatever the epoch
    save      ``save(progress, last)`` writes a checkpoint
    stop      names the reason to end early, or is None
    save_now  true once when the user asked for a checkpoint
    tell      ``tell(hook, record)`` asks the observers of ``hook`` ("" for none) and logs the record
    stepped   what the recipe does after an optimizer step
    mark      ``mark(name)`` says that a part of a step has ended
    """

    core: CoreOptions
    model: nn.Module
    loss: Loss
    parameters: Sequence[Tensor]
    optimizer: OptimizerState
    schedule: Schedule
    parallelism: Parallelism
    train: Batches
    validation: Batches | None
    total: int
    epochs: int | None
    save: Callable[[Progress, bool], None]
    stop: Callable[[], str | None]
    save_now: Callable[[], bool]
    tell: Tell
    stepped: Callable[[], None] = lambda: None
    mark: Mark = lambda name: None


def accumulate(model: nn.Module, step: Step, parallelism: Parallelism, loss_of: Loss, mark: Mark = lambda name: None) -> Tensor:
    """Gradients of one optimizer step, added to ``.grad``. Returns the mean loss, a scalar on the device."""
    device = parallelism.device()
    weight = parallelism.sum(torch.tensor(step.weight, dtype=torch.float64, device=device)).clamp_min(1e-12)
    total = torch.zeros((), device=device)
    for batch in parallelism.rows(step.batches):
        loss = loss_of(model, batch.to(device)) / weight
        mark("forward")
        loss.backward()
        total = total + loss.detach()
        mark("backward")
    return parallelism.sum(total)


@contextlib.contextmanager
def float32_sums(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Within it the gradients of 16-bit parameters are added up in float32 (4 bytes a value instead of 2), and rounded once at its
    end: in bfloat16 the sum of 256 ones and one more is 256."""
    narrow = [parameter for parameter in parameters if parameter.dtype in (torch.bfloat16, torch.float16)]
    for parameter in narrow:
        parameter.grad_dtype = torch.float32
    try:
        yield
    finally:
        for parameter in narrow:
            total, parameter.grad = parameter.grad, None
            parameter.grad_dtype = parameter.dtype
            parameter.grad = None if total is None else total.to(parameter.dtype)


def clip(parameters: Sequence[Tensor], max_norm: float) -> Tensor:
    """Norm of all gradients before clipping, on the device; clips in place when ``max_norm`` is above 0."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def optimizer_step(job: Job, step: Step, index: int, lr: Tensor) -> tuple[Tensor, Tensor]:
    """One whole step. Returns loss and gradient norm, both still on the device. With float32 masters the sums of gradients are
    float32, too."""
    wide = job.core.master_dtype == "fp32" and len(step.batches) > 1
    with float32_sums(job.parameters) if wide else contextlib.nullcontext():
        loss = accumulate(job.model, step, job.parallelism, job.loss, job.mark)
    if wide:
        job.mark("backward")
    clips = job.optimizer.clip if isinstance(job.optimizer, HoldsGradients) else clip
    norm = clips(job.parameters, job.core.max_grad_norm)
    job.optimizer.step(lr, index + 1)
    for parameter in job.parameters:
        parameter.grad = None
    job.stepped()
    job.mark("optimizer")
    return loss, norm


@frozen
class Pending:
    """A step whose figures have not been read from the device yet."""

    index: int
    step: Step
    lr: float
    loss: Tensor
    norm: Tensor
    seconds: float
    waited: float


def train(job: Job, progress: Progress) -> str | None:
    """Run from ``progress.step`` to ``job.total``. Returns why it ended early, or None."""
    device = job.parallelism.device()
    lag = 0 if device.type == "cpu" else 1
    lr_device = torch.zeros((), device=device)
    pending: deque[Pending] = deque()
    reason: str | None = None
    job.model.train()
    started = time.monotonic()
    while progress.step < job.total and reason is None:
        index = progress.step
        step = job.train.step(index, job.epochs)
        waited = time.monotonic() - started
        progress.seconds["data"] += waited
        job.mark("data")
        lr = learning_rate(job.core, job.schedule, index, job.total) * progress.lr_scale
        lr_device.fill_(lr)
        loss, norm = optimizer_step(job, step, index, lr_device)
        progress.step += 1
        elapsed = time.monotonic() - started
        progress.seconds["compute"] += elapsed - waited
        pending.append(Pending(index, step, lr, loss, norm, elapsed, waited))
        evaluates = job.validation is not None and (progress.step % job.core.eval_steps == 0 or progress.step == job.total)
        saves = job.save_now() or progress.step % job.core.save_steps == 0 or progress.step == job.total or job.stop() is not None
        while len(pending) > (0 if evaluates or saves else lag):
            reason = _finish(job, progress, pending.popleft()) or reason
        job.mark("record")
        if evaluates:
            reason = _evaluate(job, progress) or reason
            job.mark("eval")
        reason = reason or job.stop()
        if saves or reason:
            begun = time.monotonic()
            job.save(progress, progress.step == job.total)
            progress.seconds["save"] += time.monotonic() - begun
            job.mark("save")
        started = time.monotonic()
    return reason


def _finish(job: Job, progress: Progress, done: Pending) -> str | None:
    """Read the figures of a step, record them, ask the observers. Returns why to stop, if anyone says so."""
    loss, norm = float(done.loss), float(done.norm)
    progress.first_step_at = progress.first_step_at or time.monotonic()
    progress.tokens += done.step.tokens
    progress.tokens_here += done.step.tokens
    progress.trained += done.step.trained
    progress.loss = loss
    if not torch.isfinite(done.loss + done.norm):
        raise NonFiniteLoss(
            f"loss {loss} with gradient norm {norm} at step {done.index + 1}, learning rate {done.lr:.3g}",
            where="samples of this step: " + ", ".join(done.step.sources[:16]) + (" ..." if len(done.step.sources) > 16 else ""),
            how="look at these samples, lower learning_rate or set max_grad_norm = 1.0; the last checkpoint is intact",
        )
    record = {
        "kind": "step",
        "step": done.index + 1,
        "total_steps": job.total,
        "epoch": round(done.step.epoch, 4),
        "loss": loss,
        "lr": done.lr,
        "grad_norm": norm,
        "tokens": done.step.tokens,
        "trained": done.step.trained,
        "seconds": round(done.seconds, 6),
        "data_seconds": round(done.waited, 6),
        "tokens_per_s": round(done.step.tokens / max(done.seconds, 1e-9), 1),
    }
    return _decide(job, progress, "step_finished", record)


def _evaluate(job: Job, progress: Progress) -> str | None:
    assert job.validation is not None
    begun = time.monotonic()
    result = evaluate(job.model, job.validation, job.parallelism, job.loss)
    progress.seconds["eval"] += time.monotonic() - begun
    progress.eval_loss, progress.eval_step = result.loss, progress.step
    if progress.best_loss is None or result.loss < progress.best_loss:
        progress.best_loss, progress.best_step = result.loss, progress.step
    record = {"kind": "eval", "step": progress.step, "loss": result.loss, "perplexity": result.perplexity, "tokens": result.tokens}
    return _decide(job, progress, "evaluated", record)


def _decide(job: Job, progress: Progress, hook: str, record: dict[str, Any]) -> str | None:
    reason = None
    for owner, decision in job.tell(hook, record):
        if not isinstance(decision, Decision):
            continue
        progress.lr_scale *= decision.scale_lr
        if not (decision.reason or decision.stop):
            continue
        said = {"stop": decision.stop, "scale_lr": decision.scale_lr, "reason": decision.reason, "owner": str(owner)}
        job.tell("", {"kind": "decision", "step": record["step"], **said})
        if decision.stop:
            reason = f"{owner}: {decision.reason}"
    return reason
