"""Routers of a mixture of experts: their auxiliary losses, and how evenly they spread the tokens.

    load balancing   E · Σ_e f_e · P_e       Switch Transformer (arXiv 2101.03961, equations 4 to 6), as transformers has it:
                                             f_e is the share of tokens that have expert e among theirs, P_e its mean
                                             probability, both over the tokens of all layers together
    z-loss           mean of logsumexp²      ST-MoE (arXiv 2202.08906, equation 5) of the logits, over tokens and layers

Padding does not count. Both are taken over a micro-batch, and each micro-batch counts by its share of the step's trained weight, so
that the loop, which divides by the weight of the step, adds their mean over the step to the loss, times their coefficients.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from surogate_core.contracts import Batch
from surogate_core.errors import Problem
from surogate_model_transformers.plugin import Options
from surogate_model_transformers.sites import blocks

COEFFICIENTS = ("router_aux_loss_coef", "router_z_loss_coef")
FIELDS = ("moe_aux_loss", "moe_z_loss", "moe_load_imbalance", "moe_expert_utilisation")
"""Of the record of a step, see ``docs/metrics.md``."""
KEPT = 4
"""Steps whose figures may wait to be read."""


def routers(model: Any) -> dict[str, int]:
    """Name of each router in the decoder blocks → where in its output the logits are, as the family tells transformers
    (``_can_record_outputs``)."""
    told = [getattr(module, "_can_record_outputs", None) or {} for module in model.modules()]
    recorders = [kinds["router_logits"] for kinds in told if "router_logits" in kinds]
    prefix, layers = blocks(model)
    found: dict[str, int] = {}
    for name, module in layers.named_modules(prefix=prefix):
        for recorder in recorders:
            for one in recorder if isinstance(recorder, list) else [recorder]:
                target = getattr(one, "target_class", None)
                if target is not None and isinstance(module, target) and isinstance(module, nn.Module):
                    found.setdefault(name, one.index)
    return found


def real_tokens(batch: Batch) -> Tensor:
    """(B, S) bool, false in the padding: the last document of a row, if no label of it is trained and its tokens are all equal."""
    ids, documents = batch.input_ids, batch.document_ids
    last = documents == documents[:, -1:]
    padding = last & ~((batch.weights > 0) & last).any(1, keepdim=True) & ~((ids != ids[:, -1:]) & last).any(1, keepdim=True)
    return ~padding


def losses(calls: list[tuple[Tensor, Tensor]], real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Load-balancing loss and z-loss, scalars, and the tokens of each expert, (layers, E); all float32, float64 for such logits.

    ``calls``: of each layer logits (T, E) and chosen experts (T, k); ``real`` (B, S). Each row of a batch may have further
    positions in front of its S, which do not count.
    """
    rows, length = real.shape
    counts, probabilities, squares = [], [], []
    for logits, chosen in calls:
        exact = logits.dtype if logits.dtype == torch.float64 else torch.float32
        mask = real.flatten().to(exact)
        own, experts = (each.unflatten(0, (rows, -1))[:, -length:].flatten(0, 1) for each in (logits.to(exact), chosen))
        probabilities.append(mask @ own.softmax(-1))
        squares.append((own.logsumexp(-1).square() * mask).sum())
        count = torch.zeros(own.shape[1], dtype=exact, device=own.device)
        counts.append(count.scatter_add_(0, experts.flatten(), mask.repeat_interleave(experts.shape[1])))
    tokens = (real.sum() * len(calls)).clamp_min(1)
    share, mean = torch.stack(counts).sum(0) / tokens, torch.stack(probabilities).sum(0) / tokens
    return len(share) * (share * mean).sum(), torch.stack(squares).sum() / tokens, torch.stack(counts)


def spread(counts: Tensor) -> Tensor:
    """(2,) of the tokens of each expert (layers, E): the largest over the mean, and the share of experts that have any; means over
    the layers. A layer without tokens is even, and none of its experts is used."""
    mean = counts.mean(1)
    uneven = torch.where(mean > 0, counts.amax(1) / mean.clamp_min(torch.finfo(counts.dtype).tiny), torch.ones_like(mean))
    return torch.stack([uneven.mean(), (counts > 0).to(counts.dtype).mean()])


class Routing:
    """Listens to the routers of one model. ``coefficients`` of load-balancing loss and z-loss."""

    def __init__(self, model: Any, coefficients: tuple[float, float]):
        self.coefficients = coefficients
        self._calls: list[tuple[Tensor, Tensor]] | None = None
        self._sums: tuple[Tensor, Tensor] | None = None
        self._steps: deque[Tensor] = deque(maxlen=KEPT)
        for name, index in routers(model).items():
            model.get_submodule(name).register_forward_hook(self._hook(index))

    def _hook(self, index: int) -> Any:
        def heard(module: nn.Module, inputs: Any, out: tuple[Tensor, ...]) -> None:
            if self._calls is not None and module.training:  # neither when recomputed, nor when the model is looked at
                chosen = next(each for each in out if not each.is_floating_point())
                self._calls.append((out[index], chosen))

        return heard

    def listen(self) -> None:
        """To the forward pass that comes."""
        self._calls = []

    def added(self, batch: Batch) -> Tensor:
        """What the forward pass since :meth:`listen` adds to the loss of its batch: a scalar that is 0 and has the gradient of both
        losses times their coefficients and the weight of the batch. The loss that is reported stays the cross-entropy."""
        calls, self._calls = self._calls or [], None
        aux, z, counts = losses(calls, real_tokens(batch))
        weight = batch.weights.sum(dtype=aux.dtype)
        with torch.no_grad():
            sums = torch.stack([aux * weight, z * weight, weight])
            self._sums = (sums, counts) if self._sums is None else (self._sums[0] + sums, self._sums[1] + counts)
        whole = (self.coefficients[0] * aux + self.coefficients[1] * z) * weight
        return whole - whole.detach()

    @torch.no_grad()
    def seal(self) -> None:
        """A step has ended: its figures are complete. They stay on the device."""
        if self._sums is not None:
            (aux, z, weight), counts = self._sums
            divisor = weight.clamp_min(torch.finfo(weight.dtype).tiny)
            self._steps.append(torch.cat([torch.stack([aux, z]) / divisor, spread(counts)]))
            self._sums = None

    def take(self) -> dict[str, float]:
        """The figures of the earliest step that was not taken, read from the device: ``FIELDS``; empty when there is none."""
        return dict(zip(FIELDS, self._steps.popleft().tolist(), strict=True)) if self._steps else {}


def routing_of(model: Any, options: Options) -> Routing | None:
    """None for a model without routers. An unset coefficient is that of the model's config, or 0."""
    if not routers(model):
        return None
    config = model.config.get_text_config()
    given = [getattr(options, name) for name in COEFFICIENTS]
    aux, z = (
        getattr(config, name, None) or 0.0 if value is None else value for name, value in zip(COEFFICIENTS, given, strict=True)
    )
    return Routing(model, (aux, z))


def check_experts(options: Options, plan: Any, device: str) -> list[Problem]:
    """Options for experts where there are none, or that can have no effect."""
    problems = []

    def problem(key: str, why: str) -> None:
        value = getattr(options, key)
        text = str(value).lower() if isinstance(value, bool) else value
        how = f"set {key} = false" if isinstance(value, bool) else f"remove {key}"
        problems.append(Problem(f"{key} = {text}, and {why}", where=f"{plan.config.origins[key]}, key {key}", how=how))

    for key in COEFFICIENTS:
        if getattr(options, key) is not None and not routers(plan.outline.skeleton):
            problem(key, "this model has no routers: it is no mixture of experts")
    for key in ("qlora_selective_expert_dequant", "qlora_offload_experts"):
        if not getattr(options, key):
            continue
        if not any(site.kind == "stacked_linear" for site in plan.sites):
            problem(key, "this model has no stacked experts")
        elif not any(site.kind == "stacked_linear" for site in plan.stored()):
            problem(key, "no expert is held quantised: choose qlora_bnb, qlora_fp8 or qlora_fp4")
        elif key == "qlora_offload_experts" and device == "cpu":
            problem(key, "this run computes on the CPU: the experts are in host memory already")
    return problems
