from __future__ import annotations

import pytest
import torch
from surogate_command_plan.tally import HOST, Memory, Peak, Tally


def test_bytes_of_living_storages_by_label_and_phase() -> None:
    with Tally("cpu") as tally:
        tally.label, tally.phase = "kept", "forward"
        kept = torch.zeros(100)
        view = kept[:50].view(5, 10)
        tally.label = "scratch"
        other = torch.zeros(300)
        del other
        tally.phase = "update"
        again = view + 1
    assert again.shape == (5, 10)
    assert tally.peaks["forward"] == Peak(1600, {"kept": 400, "scratch": 1200})
    assert tally.peaks["update"] == Peak(600, {"kept": 400, "scratch": 200})
    assert Memory(tally.peaks).total == 1600


def test_what_autograd_keeps_counts_until_it_lets_go() -> None:
    x = torch.ones(1000, requires_grad=True)
    with Tally("cpu") as tally:
        tally.label, tally.phase = "activations", "forward"
        loss = (x * 2).exp().sum()  # exp keeps its result
        tally.phase = "after"
        loss.backward()
        assert x.grad is not None
        tally.hold([x.grad], "gradients")
        tally.phase = "end"
        last = torch.zeros(1)
    assert last.numel() == 1
    assert tally.peaks["forward"].total >= 8000
    assert tally.peaks["end"] == Peak(4000 + 4 + 4, {"gradients": 4000, "activations": 8})


def test_a_sum_of_two_gradients_takes_no_place_of_its_own() -> None:
    """torch adds them in place when nothing watches, as its profiler's record of the allocator shows."""

    def backward() -> None:
        tied = torch.ones(100, 100, requires_grad=True)
        (tied @ (tied @ torch.ones(100, 1))).sum().backward()

    with torch.profiler.profile(profile_memory=True) as profile:
        backward()
    now = most = 0
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    with Tally("cpu") as tally:
        tally.phase = "step"
        backward()
    assert abs(tally.peaks["step"].total - most) < 1000  # the vectors


def test_tensors_made_elsewhere_are_counted_once_and_other_devices_not_at_all() -> None:
    weights = torch.zeros(10, 10)
    with Tally("cpu") as tally:
        tally.hold([weights, weights[0], weights.t()], "weights")
        tally.phase = "forward"
        away = torch.empty(1000, device="meta")
        here = torch.zeros(1)
    assert away.is_meta
    assert here.numel() == 1
    assert tally.peaks["forward"] == Peak(404, {"weights": 400, "": 4})


@pytest.mark.parametrize("device", ["meta"])
def test_a_stand_in_has_no_values_and_every_place_of_it_counts(device: str) -> None:
    with Tally(device, stand_in=True):
        x = torch.empty(4, 3, device=device)
        assert not bool(x.sum() > 1)
        assert torch.nonzero(x).shape == (12, 2)


def test_what_is_on_the_host_is_beside_the_total() -> None:
    """Also when it is held again, as an optimizer's state is."""
    with Tally("cpu") as tally:
        tally.label = HOST
        away = torch.zeros(50)
        tally.label, tally.phase = "scratch", "update"
        tally.hold([away], "optimizer")
        here = torch.zeros(10)
    assert len(here) == 10
    assert tally.peaks["update"] == Peak(40, {HOST: 200, "scratch": 40})
    with tally:
        del away
        tally.phase = "after"
        last = torch.zeros(1)
    assert len(last) == 1
    assert tally.peaks["after"] == Peak(44, {"scratch": 44})
