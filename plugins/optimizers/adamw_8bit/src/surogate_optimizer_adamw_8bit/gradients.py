"""`offload_grads`: gradients that wait for the update in the memory of the host.

When a backward pass has completed a parameter's gradient, it goes to pinned memory and is let go of. In the step's further micro-
batches what is there comes back, one parameter ahead, is added to the new gradient, and the sum goes out again. The norm of each
parameter is taken while its gradient is on the device, by the functions that torch's clipping uses, so that clipping is the same to
the bit. The update brings them back stretch by stretch, to be read. Sums of several micro-batches may be float32 (``wide``): then
they are kept so on the host, and rounded to the parameter's dtype where they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from attrs import define, field
from surogate_offload import Device, Mark
from torch import Tensor
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype, _has_foreach_support

from surogate_optimizer_adamw_8bit.places import Stretch

ALIGNED = 32
"""Values: each gradient begins at a multiple of it, so that the kernel loads 16 bytes at a time."""


@define(eq=False)
class Held:
    """The gradient of one parameter: its place ``start`` among those of its dtype, on the host. Of this step: the backward passes
    that gave one (``taken``), the norm of their sum. ``buffer``: the sum on the device again, or on its way (``there``)."""

    start: int
    count: int
    host: Tensor
    taken: int = 0
    norm: Tensor | None = None
    stored: Mark = None
    buffer: Tensor | None = None
    there: Mark = None
    follows: Held | None = None


@define(eq=False)
class Gradients:
    """All gradients of an optimizer. ``params`` in the order of the arena; ``wide``: they come and are kept in float32."""

    device: Device
    params: Sequence[Tensor]
    wide: bool = False
    _held: dict[int, Held] = field(factory=dict)
    _arenas: dict[torch.dtype, Tensor] = field(factory=dict)
    _last: Held | None = None
    _coming: Held | None = None
    _coefficient: Tensor | None = None
    _here: dict[int, Tensor] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        ends: dict[torch.dtype, int] = {}
        starts = []
        for param in self.params:
            starts.append(ends.get(param.dtype, 0))
            ends[param.dtype] = starts[-1] + -(-param.numel() // ALIGNED) * ALIGNED
        self._arenas.update((dtype, self.device.pinned(end, torch.float32 if self.wide else dtype)) for dtype, end in ends.items())
        for param, start in zip(self.params, starts, strict=True):
            count = param.numel()
            self._held[id(param)] = Held(start, count, self._arenas[param.dtype][start : start + count])
            param.register_post_accumulate_grad_hook(partial(self._take, self._held[id(param)]))

    # ------------------------------------------------------------ backward
    def _take(self, own: Held, param: Tensor) -> None:
        """A backward pass has completed this gradient."""
        grad, param.grad = param.grad, None
        assert grad is not None
        flat = grad.detach().reshape(-1)
        if own.taken:
            self._bring(own)
            self.device.wait(own.there)
            assert own.buffer is not None
            flat.add_(own.buffer)
            own.buffer = None
        own.taken += 1
        own.norm = _norm(flat.view(grad.shape).to(param.dtype))
        own.stored = self.device.store(own.host, flat, self.device.here())
        if self._last is not None and self._last.taken == own.taken:
            self._last.follows = own
        self._last = own
        if own.follows is not None and own.follows.taken == own.taken - 1 > 0:
            self._bring(own.follows)

    def _bring(self, own: Held) -> None:
        """What earlier micro-batches gave. At most one waits to be used."""
        if own.buffer is not None:
            return
        self._leave()
        own.buffer = self.device.empty(own.count, own.host.dtype)
        self.device.wait(own.stored)
        own.there = self.device.fetch(own.buffer, own.host, self.device.here())
        self._coming = own

    def _leave(self) -> None:
        """What was brought and not used: not all parameters get a gradient in each micro-batch."""
        if self._coming is not None and self._coming.buffer is not None:
            self.device.wait(self._coming.there)
            self._coming.buffer = None
        self._coming = None

    # ------------------------------------------------------------ clipping
    def clip(self, parameters: Sequence[Tensor], max_norm: float) -> Tensor:
        """See :class:`surogate_core.contracts.HoldsGradients`; ``torch.nn.utils.get_total_norm`` on the norms of the parts."""
        norms: list[Tensor | None] = [own.norm for param in parameters if (own := self._held[id(param)]).norm is not None]
        if not norms:
            return torch.tensor(0.0)
        first = norms[0].device if norms[0] is not None else None
        groups = _group_tensors_by_device_and_dtype([norms])
        ordered = [norm.to(first) for ([group], _) in groups.values() for norm in group if norm is not None]
        total: Tensor = torch.linalg.vector_norm(torch.stack(ordered))
        if max_norm > 0:
            self._coefficient = torch.clamp(max_norm / (total + 1e-6), max=1.0)
        return total

    # ------------------------------------------------------------ update
    def settle(self) -> None:
        """What is fetched next is what the backward passes left."""
        self._leave()
        if self._last is not None:  # they were stored in order
            self.device.wait(self._last.stored)

    def of(self, stretch: Stretch) -> list[Tensor]:
        """The gradients of a stretch on the host: one tensor for each dtype."""
        ends: dict[torch.dtype, tuple[int, int]] = {}
        for param, first, last, _ in stretch.pieces:
            start = self._held[id(param)].start
            ends[param.dtype] = ends.get(param.dtype, (start + first, 0))[0], start + last
        return [self._arenas[dtype][first:last] for dtype, (first, last) in ends.items()]

    def arrived(self, stretch: Stretch, parts: Sequence[Tensor]) -> None:
        """Those of a stretch, on the device until the next one: clips them."""
        dtypes = dict.fromkeys(param.dtype for param, *_ in stretch.pieces)
        found = {dtype: part.to(dtype) for dtype, part in zip(dtypes, parts, strict=True)}
        if self._coefficient is not None:
            for part in found.values():
                torch._foreach_mul_([part], self._coefficient)
        begin: dict[torch.dtype, int] = {}
        self._here.clear()
        for param, first, last, _ in stretch.pieces:
            own = self._held[id(param)]
            low = begin.setdefault(param.dtype, own.start + first)
            if own.taken:
                self._here[id(param)] = found[param.dtype][own.start + first - low : own.start + last - low]

    def piece(self, param: Tensor, first: int, last: int) -> Tensor | None:
        """Values ``first`` to ``last`` of a gradient of the stretch that arrived; None where the step gave none."""
        return self._here.get(id(param))

    def addresses(self, stretch: Stretch) -> dict[int, int]:
        """id of each parameter of the stretch → where value 0 of its gradient would be; 0 without a gradient."""
        return {
            id(param): 0 if (found := self._here.get(id(param))) is None else found.data_ptr() - first * found.element_size()
            for param, first, _, _ in stretch.pieces
        }

    def start_anew(self) -> None:
        """After an update: the next step has no gradients yet."""
        for own in self._held.values():
            own.taken, own.norm = 0, None
        self._last = self._coefficient = None
        self._here.clear()


def _norm(grad: Tensor) -> Tensor:
    """As ``torch.nn.utils.get_total_norm`` takes it of one of many."""
    return torch._foreach_norm([grad])[0] if _has_foreach_support([grad], grad.device) else torch.linalg.vector_norm(grad)
