"""Groups that are used up and down: right values, two groups on the device, one copy for each that is not there."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from surogate_offload import Ahead, Away, Kept, Lasting, Offloaded, StandIn, Unkept, open_device, opening
from torch import Tensor, nn

GROUPS, EACH, COUNT = 5, 3, 100
BLOCK = 2 * 512  # float32 and int16, each padded to 256 bytes


def values(group: int, number: int, shift: int = 0) -> list[Tensor]:
    at = 10 * group + number + shift
    return [torch.full((10, 10), float(at)), torch.tensor(at, dtype=torch.int16)]


def made(device: StandIn, groups: int = GROUPS) -> tuple[Ahead, list[list[Away]]]:
    ahead = Ahead(device)
    own = [[ahead.room(group, values(group, number)) for number in range(EACH)] for group in range(groups)]
    for group in range(groups):
        for number in range(EACH):
            ahead.fill(own[group][number], values(group, number))
    return ahead, own


def used(ahead: Ahead, own: list[list[Away]], order: list[int], shift: int = 0) -> bool:
    """Whether all values are those wanted."""
    right = True
    for group in order:
        for number in range(EACH):
            found = ahead.get(own[group][number])
            right &= all(torch.equal(one, other) for one, other in zip(found, values(group, number, shift), strict=True))
            del found  # nobody holds on to them
    return right


@pytest.mark.parametrize("order", ["late", "early"])
def test_passes_up_and_down(order: str) -> None:
    device = StandIn(order)  # type: ignore[arg-type]
    ahead, own = made(device)
    up, down = list(range(GROUPS)), list(reversed(range(GROUPS)))
    assert used(ahead, own, up + down)
    size = device.held // GROUPS // EACH
    assert size == 512 + 256
    assert device.peak == 2 * EACH * size
    first = (GROUPS + GROUPS - 2) * EACH
    assert device.copies == {"in": first, "out": 0}
    assert used(ahead, own, up + down)
    assert device.copies["in"] == first + 2 * (GROUPS - 2) * EACH, "the two that are there do not come again"
    assert used(ahead, own, up + up), "forward passes alone"
    assert used(ahead, own, [3, 0, 4, 1, 1, 2])
    assert device.peak == 2 * EACH * size


@pytest.mark.parametrize("order", ["late", "early"])
def test_values_that_change_are_not_fetched_before_they_are_there(order: str) -> None:
    device = StandIn(order)  # type: ignore[arg-type]
    ahead, own = made(device)
    for shift in (100, 200):
        assert used(ahead, own, list(reversed(range(GROUPS))), shift - 100)
        for group in own:
            for away in group:
                ahead.forget(away)
        assert device.now == 0
        before = device.copies["in"]
        for group in range(GROUPS):
            for number in range(EACH):
                ahead.put(own[group][number], values(group, number, shift))
        assert device.copies["in"] == before
    assert used(ahead, own, list(range(GROUPS)), 200)
    assert device.copies["out"] == 2 * GROUPS * EACH * 2


@pytest.mark.parametrize("groups", [1, 2])
def test_few_groups(groups: int) -> None:
    device = StandIn("late")
    ahead, own = made(device, groups)
    assert used(ahead, own, [*range(groups), *reversed(range(groups))] * 2)
    assert device.copies["in"] == groups * EACH


def test_a_wait_that_is_left_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = StandIn.wait
    for attribute in ("stored", "there"):
        device = StandIn("late")
        ahead, own = made(device)
        for group in range(GROUPS):
            for number in range(EACH):
                ahead.put(own[group][number], values(group, number, 7))
        stored = {id(away.stored) for group in own for away in group}

        def some(self: StandIn, mark: Any, of: str = attribute, stored: set[int] = stored) -> None:
            if (id(mark) in stored) != (of == "stored"):
                wait(self, mark)

        monkeypatch.setattr(StandIn, "wait", some)
        assert not used(ahead, own, list(range(GROUPS)), 7), attribute


def test_groups_whose_owner_is_gone_are_not_fetched() -> None:
    device = StandIn("early")
    ahead, own = made(device)
    del own[2:]
    gc.collect()
    assert used(ahead, own, [0, 1, 1, 0])
    assert device.copies["in"] == 2 * EACH


def test_where_copies_are_kept() -> None:
    """How often they are made: of a parameter, of what is no parameter, and when the state differs."""
    device = StandIn("late")
    ahead = Ahead(device)
    parameter, plain = nn.Parameter(torch.zeros(2)), torch.zeros(2)
    counted = 0

    def make() -> tuple[Tensor, ...]:
        nonlocal counted
        counted += 1
        return (torch.full((3,), float(counted)),)

    wanted = {
        Kept: ([1, 1, 2, 2, 3], [1, 2, 3, 4, 5]),
        Unkept: ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]),
        Offloaded: ([1, 1, 2, 2, 3], [1, 1, 2, 2, 3]),
        Lasting: ([1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    }
    for kind, found in wanted.items():
        for weight, numbers in zip((parameter, plain), found, strict=True):
            counted = 0
            if kind is Offloaded:
                copies: Kept | Unkept | Offloaded | Lasting = Offloaded(ahead, 0)
            else:
                copies = Lasting(Offloaded(ahead, 1)) if kind is Lasting else kind()
            seen = []
            for state in (0, 0, 1, 1, "forget"):
                if state == "forget":
                    copies.forget()
                seen.append(int(copies.get(weight, 1 if state == "forget" else state, make)[0][0]))
            assert seen == numbers, (kind, weight)
            assert not isinstance(copies, Lasting) or copies.made


def test_devices_are_opened_by_whoever_was_put_in_place() -> None:
    asked: list[tuple[torch.device, bool]] = []
    device = StandIn()

    def opener(where: torch.device, write_combined: bool) -> StandIn:
        asked.append((where, write_combined))
        return device

    with opening(opener):
        assert open_device(torch.device("cuda"), True) is device
        assert open_device(torch.device("meta")) is device
    assert asked == [(torch.device("cuda"), True), (torch.device("meta"), False)]
