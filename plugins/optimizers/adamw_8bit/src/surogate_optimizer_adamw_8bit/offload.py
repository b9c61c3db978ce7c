"""Where the states lie: on the device, or in pinned memory of the host, from which each stretch comes to the device and goes back
while others are worked on. With ``use_zero_copy`` the kernel itself reads and writes the host's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from attrs import evolve
from surogate_native_adam8 import BLOCK, States
from surogate_offload import in_turns, open_device
from torch import Tensor

from surogate_optimizer_adamw_8bit.gradients import Gradients
from surogate_optimizer_adamw_8bit.places import Place, Stretch
from surogate_optimizer_adamw_8bit.plugin import OFFLOADED, Options


class Store:
    """Memory for states, and for gradients that wait for the update, as the options say."""

    def __init__(self, options: Options, device: torch.device):
        self._options, self._device = options, device
        offloads = any(getattr(options, key) for key in OFFLOADED)
        self._host = open_device(device, options.use_write_combined) if offloads else None
        self.gradients: Gradients | None = None

    @property
    def walks(self) -> bool:
        """Whether something comes to the device a stretch at a time."""
        return self._host is not None and (self.gradients is not None or not self._options.use_zero_copy)

    def take_gradients(self, places: Sequence[Place], wide: bool) -> None:
        """From now on gradients go to the host, if the options say so; ``wide``: in float32."""
        if self._options.offload_grads:
            assert self._host is not None
            self.gradients = Gradients(self._host, [one.param for one in places], wide)

    def states(self, coded: int, end: int, masters: bool) -> States:
        """Zeros for an arena of ``end`` values, ``coded`` of which have codes."""

        def both(empty: Callable[[int, torch.dtype], Tensor], count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            return empty(count, dtype), empty(count, dtype)

        moments, remainder = self._memory(self._options.offload_optimizer), self._memory(self._options.offload_master)
        return States(
            codes=both(moments, coded, torch.uint8),
            absmax=both(moments, coded // BLOCK, torch.float32),
            exact=both(moments, end - coded, torch.float32),
            remainder=remainder(end, torch.int16) if masters else None,
        )

    def _memory(self, on_host: bool) -> Callable[[int, torch.dtype], Tensor]:
        if on_host and self._host is not None:
            return self._host.pinned
        return lambda count, dtype: torch.zeros(count, dtype=dtype, device=self._device)

    def walk(self, states: States, stretches: Sequence[Stretch]) -> Iterator[tuple[Stretch, States]]:
        """Each stretch with its states on the device, and its gradients where ``gradients`` finds them. What becomes of the states
        by the next one is kept."""
        parts = [states.part(stretch.start // BLOCK, stretch.stop // BLOCK) for stretch in stretches]
        if not self.walks:
            yield from zip(stretches, parts, strict=True)
            return
        assert self._host is not None
        here = [self._there(part) for part in parts]
        if self.gradients:
            self.gradients.settle()
        read = [self.gradients.of(stretch) for stretch in stretches] if self.gradients else ()
        for stretch, part, own, there in zip(stretches, parts, here, in_turns(self._host, here, read), strict=True):
            if self.gradients:
                self.gradients.arrived(stretch, there[len(own) :])
            yield stretch, self._with(part, there[: len(own)])
        if self.gradients:
            self.gradients.start_anew()

    def _there(self, part: States) -> list[Tensor]:
        """The tensors of a part that come from the host's memory."""
        if self._options.use_zero_copy:
            return []
        moments = [tensor for pair in (part.codes, part.absmax, part.exact) for tensor in pair if len(tensor)]
        kept = moments if self._options.offload_optimizer else []
        return [*kept, part.remainder] if self._options.offload_master and part.remainder is not None else kept

    def _with(self, part: States, there: Sequence[Tensor]) -> States:
        """The part with its tensors of the host replaced by those on the device."""
        if not there:
            return part
        names = [name for name in ("codes", "absmax", "exact") if len(getattr(part, name)[0])]
        found = (
            {name: (there[2 * at], there[2 * at + 1]) for at, name in enumerate(names)} if self._options.offload_optimizer else {}
        )
        remainder = there[-1] if self._options.offload_master and part.remainder is not None else part.remainder
        return evolve(part, **found, remainder=remainder)

    def settle(self) -> None:
        """What is read next in the host's memory is what the last step left there."""
        if self._host is not None:
            self._host.settle()
            if self._options.use_zero_copy and self._device.type == "cuda":
                torch.cuda.current_stream(self._device).synchronize()
