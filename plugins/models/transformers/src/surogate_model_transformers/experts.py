"""The experts of a mixture-of-experts layer: stacked linear layers with slots, computed for the tokens that are routed to them.

transformers 5 holds the experts of a layer in one module, as stacked parameters ``gate_up_proj`` and ``down_proj`` and their
biases. :func:`take_over` gives that module our forward, which sorts the (token, expert) pairs by expert and multiplies each run of
rows with its expert's weight, and a :class:`Stack` of slots for each stacked weight. Gate and activation stay the family's own
(``_apply_gate``), parameters keep their names.

Shapes: T tokens, k experts a token, S = T·k pairs sorted by expert, E experts, K inputs and N outputs of an expert.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from attrs import frozen
from surogate_offload import Lasting
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from surogate_core.contracts import Storage

Compute = Callable[[Tensor, Tensor, Tensor | None], Tensor]
ROLES = ("gate_up_proj", "up_proj", "down_proj")
GROUPED = (torch.float32, torch.bfloat16, torch.float16)
ALIGNMENT = 16
"""Bytes: rows of the operands of torch's grouped GEMM begin at multiples of it."""


# ---------------------------------------------------------------- products of sorted rows
@frozen(eq=False)
class Groups:
    """``expert`` (S,) int64: that of each row, ascending. ``ends`` (E,) int32: where each expert's rows end."""

    expert: Tensor
    ends: Tensor

    @classmethod
    def of(cls, expert: Tensor, experts: int) -> Groups:
        counts = torch.zeros(experts, dtype=torch.int32, device=expert.device)
        counts.scatter_add_(0, expert, torch.ones_like(expert, dtype=torch.int32))
        return cls(expert, counts.cumsum(0, dtype=torch.int32))

    def runs(self) -> list[tuple[int, slice]]:
        """(expert, its rows) of those that have any. Reads the counts back from the device."""
        ends = _numbers(self.ends, len(self.expert))
        return [
            (number, slice(begin, end)) for number, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)) if end > begin
        ]


def grouped(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """x (S, K), rows sorted by expert, times weights (E, K, N) → (S, N), one GEMM an expert: torch's grouped GEMM, which needs no
    counts on the host, or a loop where it does not take the dtype or the sizes."""
    size, taken = x.element_size(), GROUPED if _has_values(x) else (torch.bfloat16,)  # as a GPU would have it
    if x.dtype in taken and x.shape[1] * size % ALIGNMENT == 0 == weights.shape[2] * size % ALIGNMENT:
        return F.grouped_mm(x.contiguous(), weights, offs=ends)
    stops = _numbers(ends, len(x))
    sizes = [stop - start for start, stop in zip([0, *stops], stops, strict=False)]
    return torch.cat([rows @ weight for rows, weight in zip(x.split(sizes), weights.unbind(0), strict=True)])


def _has_values(x: Tensor) -> bool:
    return not (x.is_meta or isinstance(x, FakeTensor))


def _numbers(ends: Tensor, rows: int) -> list[int]:
    """``ends`` on the host; in a rehearsal, on tensors without values, the experts share the rows evenly."""
    if _has_values(ends):
        return cast(list[int], ends.tolist())
    return [rows * (number + 1) // len(ends) for number in range(len(ends))]


def experts_forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Forward of a family's experts module: hidden_states (T, H), the experts of each token and their weights (T, k) → (T, H)."""
    k = top_k_index.shape[-1]
    expert, order = top_k_index.reshape(-1).sort(stable=True)
    groups = Groups.of(expert, self.slots["down_proj"].experts)
    # A copy of each token for each of its experts, then a permutation: its gradient adds up without atomics.
    x = hidden_states.repeat_interleave(k, 0)[order]
    if getattr(self, "has_gate", True):
        x = self._apply_gate(_projected(self, "gate_up_proj", x, groups))
    else:
        x = self.act_fn(_projected(self, "up_proj", x, groups))
    y = _projected(self, "down_proj", x, groups)
    if getattr(self, "has_post_expert_norm", False):
        y = self.post_expert_norm(y)
    y = y * top_k_weights.reshape(-1)[order, None]
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return y[back].view(-1, k, y.shape[-1]).sum(1).to(hidden_states.dtype)


def _projected(module: Any, role: str, x: Tensor, groups: Groups) -> Tensor:
    return cast(Tensor, module.slots[role](x, getattr(module, role), getattr(module, f"{role}_bias", None), groups))


# ---------------------------------------------------------------- slots
class Stack(nn.Module):
    """The slots of one stacked weight. Each expert has a compute and a storage of its own, so that its scales are its own and an
    expert to which no token is routed costs nothing; the adapter is one module, called as ``adapter(x, y, ends)``.

    ``selective``: of stored weights, unpack those alone that tokens are routed to (their number is read back from the device).
    ``fetched``, where the storages are in the memory of the host: gives them with their buffers on the device, for one use.
    """

    adapter: nn.Module | None

    def __init__(self, shape: tuple[int, ...], transposed: bool):
        super().__init__()
        self.shape, self.transposed = shape, transposed
        self.computes: tuple[Compute, ...] = (F.linear,) * self.experts
        self.compute = nn.ModuleList()  # those of them that are modules, to be found as parts of the model
        self.adapter = None
        self.storages: tuple[Any, ...] = ()
        self.storage = nn.ModuleList()  # likewise, unless they are to stay where they are
        self.selective = False
        self.fetched: Callable[[], Sequence[Any]] | None = None

    @property
    def experts(self) -> int:
        return self.shape[0]

    @property
    def plain(self) -> bool:
        return all(compute is F.linear for compute in self.computes)

    def set_compute(self, expert: int, compute: Compute) -> None:
        self.computes = (*self.computes[:expert], compute, *self.computes[expert + 1 :])
        self.compute = nn.ModuleList(each for each in self.computes if isinstance(each, nn.Module))

    def set_storages(self, storages: Sequence[Storage], fetched: Callable[[], Sequence[Any]] | None = None) -> None:
        """One for each expert. With ``fetched`` they do not move with the model."""
        self.fetched = fetched
        self.storages = tuple(storages)
        self.storage = nn.ModuleList(() if fetched else self.storages)

    def pack(self, weight: Tensor) -> None:
        """Hand the stacked weight, as the family holds it, to the storages, expert by expert."""
        with torch.no_grad():
            for storage, own in zip(self.storages, self.upright(weight.detach()), strict=True):
                storage.pack(own)

    def upright(self, weight: Tensor) -> Tensor:
        """(E, N, K), a view of the weight as the family holds it."""
        return weight.transpose(1, 2) if self.transposed else weight

    def forward(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: Groups) -> Tensor:
        """x (S, K) → (S, N); ``weight`` None when it is stored; ``bias`` (E, N)."""
        if weight is None:
            y = self._stored(x, groups)
        elif self.plain:
            y = grouped(x, self.upright(weight).transpose(1, 2), groups.ends)
        else:
            y = self._looped(x, weight, groups)
        if bias is not None:
            y = y + bias[groups.expert]
        return y if self.adapter is None else self.adapter(x, y, groups.ends)

    @torch.compiler.disable
    def _looped(self, x: Tensor, weight: Tensor, groups: Groups) -> Tensor:
        experts = self.upright(weight).unbind(0)
        if not weight.requires_grad:  # a recipe may keep what it makes of a frozen parameter
            experts = tuple(nn.Parameter(own, requires_grad=False) for own in experts)
        return torch.cat([self.computes[number](x[rows], experts[number], None) for number, rows in groups.runs()])

    @torch.compiler.disable
    def _stored(self, x: Tensor, groups: Groups) -> Tensor:
        return cast(Tensor, _Stored.apply(x, self, groups))

    def unpacked(self, like: Tensor, groups: Groups) -> tuple[Tensor, Tensor]:
        """Weights (E', N, K) and ends (E',) of all experts, or of those with rows."""
        held = self.held()
        if not self.selective:
            return torch.stack([one.unpack(like.dtype) for one in held]), groups.ends
        runs = groups.runs()
        weights = [held[number].unpack(like.dtype) for number, _ in runs]
        return torch.stack(weights), groups.ends.new_tensor([rows.stop for _, rows in runs])

    def held(self) -> Sequence[Any]:
        """The storages, on the device; those that were fetched must not be held on to."""
        return self.storages if self.fetched is None else self.fetched()

    def unpacked_for(self, number: int, held: Sequence[Any], like: Tensor) -> Tensor:
        """The weight (N, K) of one expert, for its compute."""
        return weight_for(self.computes[number], held[number], self.shape[1:], like)


class _Stored(torch.autograd.Function):
    """The product with weights that exist only while they are used: kept for the backward pass is x, and the weights are unpacked
    again; computes other than ``F.linear`` run again under autograd (see ``slots.Unpacked``), one expert after the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stack: Stack, groups: Groups) -> Tensor:
        ctx.save_for_backward(x)
        ctx.stack, ctx.groups = stack, groups
        if stack.plain:
            weights, ends = stack.unpacked(x, groups)
            return grouped(x, weights.transpose(1, 2), ends)
        held = stack.held()
        return torch.cat([stack.computes[at](x[rows], stack.unpacked_for(at, held, x), None) for at, rows in groups.runs()])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), (x,) = grads, ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None, None
        if ctx.stack.plain:
            weights, ends = ctx.stack.unpacked(x, ctx.groups)
            return grouped(dy, weights, ends), None, None
        parts, held = [], ctx.stack.held()
        for at, rows in ctx.groups.runs():
            with torch.enable_grad():
                own = x[rows].detach().requires_grad_()
                y = ctx.stack.computes[at](own, ctx.stack.unpacked_for(at, held, x), None)
            parts += torch.autograd.grad(y, own, dy[rows])
        return torch.cat(parts), None, None


def weight_for(compute: Any, storage: Any, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """What a storage unpacks for this compute, in the dtype of ``like``. Where the compute has its copy for good (``Lasting``): a
    tensor of the weight's shape whose values nobody reads."""
    copies = getattr(compute, "copies", None)
    if isinstance(copies, Lasting) and copies.made:
        return like.new_empty(()).expand(shape)
    return cast(Tensor, storage.unpack(like.dtype))


# ---------------------------------------------------------------- finding them
def is_experts(module: nn.Module) -> bool:
    """Whether this is a module of stacked experts as transformers 5 marks them (``use_experts_implementation``)."""
    return hasattr(module, "is_transposed") and hasattr(module, "_apply_gate") and "down_proj" in module._parameters


def stacked(module: Any) -> dict[str, tuple[int, int, int]]:
    """Role → (E, N, K) of the stacked weights of an experts module."""
    found = {}
    for role in ROLES:
        weight = module._parameters.get(role)
        if weight is not None:
            experts, rows, columns = weight.shape
            found[role] = (experts, columns, rows) if module.is_transposed else (experts, rows, columns)
    return found


def take_over(model: nn.Module) -> None:
    """Give every experts module of the model our forward and empty slots; those that have them keep them."""
    for module in model.modules():
        if is_experts(module) and not hasattr(module, "slots"):
            stacks = {role: Stack(shape, bool(module.is_transposed)) for role, shape in stacked(module).items()}
            module.slots = nn.ModuleDict(stacks)
            module.forward = functools.partial(experts_forward, module)


def stacks(model: nn.Module) -> Iterator[tuple[str, Any, str, Stack]]:
    """(site name, experts module, role, slots) of every stacked weight that was taken over."""
    for name, module in model.named_modules():
        if is_experts(module) and isinstance(getattr(module, "slots", None), nn.ModuleDict):
            yield from ((f"{name}.{role}", module, role, stack) for role, stack in module.slots.items())


def stack_at(model: nn.Module, name: str) -> tuple[Stack, int | None] | None:
    """The slots of the stacked weight ``experts.role``, or of one expert of it, ``experts.role.number``; None for another name."""
    parent, _, last = name.rpartition(".")
    number = int(last) if last.isdigit() else None
    if number is not None:
        parent, _, last = parent.rpartition(".")
    try:
        module: Any = model.get_submodule(parent)
    except AttributeError:
        return None
    if not is_experts(module):
        return None
    take_over(module)
    if last not in module.slots or (number or 0) >= module.slots[last].experts:
        return None
    return module.slots[last], number


def stacked_weight(model: nn.Module, site: str) -> Tensor | None:
    """(E, N, K), a view of the stacked weight of this site; None where it is stored or there is none."""
    found, (parent, _, role) = stack_at(model, site), site.rpartition(".")
    if found is None or found[1] is not None:
        return None
    weight: Tensor | None = getattr(model.get_submodule(parent), role)
    return None if weight is None else found[0].upright(weight)
