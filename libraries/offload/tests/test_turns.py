"""Two buffers in turn, on a device whose copies come as late, or as early, as their order allows."""

from __future__ import annotations

import gc
from typing import Any, Literal

import pytest
import torch
from surogate_offload import StandIn, in_turns, size_of_turns
from surogate_offload import device as devices
from torch import Tensor

Order = Literal["late", "early"]
both_orders = pytest.mark.parametrize("order", ["late", "early"])


def pieces(device: StandIn, count: int) -> list[list[Tensor]]:
    """Tensors of two types and of changing sizes."""
    made = []
    for index in range(count):
        bytes_, floats = device.pinned(300 + 7 * index, torch.uint8), device.pinned(10 + index % 3, torch.float32)
        bytes_.fill_(index)
        floats.fill_(index / 2)
        made.append([bytes_, floats])
    return made


@both_orders
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_each_piece_comes_as_it_is_and_goes_back_as_it_was_left(order: Order, count: int) -> None:
    device = StandIn(order)
    held = pieces(device, count)
    for turn in range(3):
        seen = []
        for parts in in_turns(device, held):
            seen.append([part.clone() for part in parts])
            for part in parts:
                part.add_(1)
        for index, before in enumerate(seen):
            assert [tensor.unique().tolist() for tensor in before] == [[index + turn], [index / 2 + turn]]
    device.settle()
    for index, after in enumerate(held):
        assert [tensor.unique().tolist() for tensor in after] == [[index + 3], [index / 2 + 3]]
    assert device.copies == {"in": 3 * 2 * count, "out": 3 * 2 * count}
    size = 3 * sum(tensor.nbytes for piece in held for tensor in piece)
    assert device.bytes == {"in": size, "out": size}


@both_orders
def test_the_device_holds_two_pieces_whatever_their_number(order: Order) -> None:
    peaks = []
    for count in (3, 12):
        device = StandIn(order)
        held = pieces(device, count)
        for parts in in_turns(device, held):
            del parts
        device.settle()
        assert device.peak == size_of_turns(held)
        assert device.held == sum(tensor.nbytes for piece in held for tensor in piece)
        peaks.append(device.peak)
    assert peaks[0] == peaks[1] == 2 * (512 + 256)
    assert size_of_turns([]) == 0
    gc.collect()
    assert device.now == 0


def test_the_next_piece_is_under_way_while_one_is_worked_on() -> None:
    device = StandIn("late")
    seen = []
    for _ in in_turns(device, pieces(device, 4)):
        seen.append((device.copies["in"], device.copies["out"]))
    assert seen == [(4, 0), (6, 2), (8, 4), (8, 6)]


@pytest.mark.parametrize("forgotten", ["wait", "after"])
def test_the_stand_in_shows_what_is_not_waited_for(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a wait for what comes in, or of a copy into a buffer for the one out of it, some numbers are wrong."""
    wrong = False
    for order in ("late", "early"):
        device = StandIn(order)  # type: ignore[arg-type]
        held = pieces(device, 6)
        if forgotten == "wait":
            monkeypatch.setattr(device.__class__, "wait", lambda self, mark: None)
        else:
            monkeypatch.setattr(StandIn, "fetch", lambda self, buffer, host, after: self._ask("in", buffer, host, None))
        for parts in in_turns(device, held):
            for part in parts:
                part.add_(1)
        monkeypatch.undo()
        device.settle()
        wrong |= any(int(tensor.min()) != index + 1 for index, (tensor, _) in enumerate(held))
    assert wrong


def test_write_combined_memory_is_asked_for_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the driver replaced: the flags, zeros, the error, and that it is freed once."""
    from cuda.bindings import runtime

    asked: list[tuple[int, int]] = []
    freed: list[int] = []
    memory = torch.full((4096,), 7, dtype=torch.uint8)

    def allocate(size: int, flags: int) -> tuple[Any, int]:
        asked.append((size, flags))
        return runtime.cudaError_t.cudaSuccess, memory.data_ptr()

    monkeypatch.setattr(runtime, "cudaHostAlloc", allocate)
    monkeypatch.setattr(runtime, "cudaFreeHost", freed.append)
    tensor = devices.write_combined(1000)
    assert asked == [(1000, 1 | 2 | 4)]  # portable, mapped, write-combined
    assert tensor.shape == (1000,)
    assert tensor.data_ptr() == memory.data_ptr()
    assert not tensor.any()
    view = tensor.view(torch.float32)
    del tensor
    gc.collect()
    assert freed == []
    del view
    gc.collect()
    assert freed == [memory.data_ptr()]
    monkeypatch.setattr(runtime, "cudaHostAlloc", lambda size, flags: (runtime.cudaError_t.cudaErrorMemoryAllocation, 0))
    with pytest.raises(MemoryError, match="cudaHostAlloc of 5 bytes"):
        devices.write_combined(5)
