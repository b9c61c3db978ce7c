"""Every installed family's kernels, their bodies on the host, against their definitions; and that a check can fail."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import torch
from surogate_native_kit.checks import Check, families, poisoned
from torch import Tensor

ALL = [(family, check) for family, checks in families().items() for check in checks]


def test_every_family_declares_checks() -> None:
    here = {path.name for path in Path(__file__).parents[2].iterdir() if (path / "pyproject.toml").is_file()}
    assert set(families()) == here - {"kit"}


@pytest.mark.parametrize(("family", "check"), ALL, ids=[f"{family}-{check.name}" for family, check in ALL])
def test_a_kernel_equals_its_definition_at_odd_shapes(family: str, check: Check) -> None:
    if not check.on_host:
        pytest.skip("a library's kernel: nothing of it runs on the host")
    for seed, shape in enumerate(check.shapes):
        assert check.difference(shape, seed, "cpu") is None, shape
    assert check.traffic(check.large) > 0


def double(x: Tensor) -> list[Tensor]:
    return [x * 2]


DOUBLE = Check(
    name="double",
    inputs=lambda shape, draw: [draw(*shape)],
    kernel=double,
    reference=double,
    shapes=((3, 5),),
    large=(8, 8),
    traffic=lambda shape: 8 * shape[0] * shape[1],
)


def test_what_a_gpu_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    library = attrs.evolve(DOUBLE, on_host=False, needs=(8, 9))
    assert DOUBLE.lacks("cpu") == ""
    assert library.lacks("cpu") == "a library's kernel needs a GPU"
    for capability, said in (((8, 6), "it needs compute capability 8.9"), ((8, 9), ""), ((10, 0), "")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda found=capability: found)
        assert library.lacks("cuda") == said
        assert DOUBLE.lacks("cuda") == ""


def unwritten(x: Tensor) -> list[Tensor]:
    y = torch.empty_like(x)
    y[:2] = x[:2] * 2
    return [y]


def test_what_is_wrong_is_said() -> None:
    assert DOUBLE.difference((3, 5), 1, "cpu") is None
    assert attrs.evolve(DOUBLE, kernel=unwritten).difference((3, 5), 1, "cpu") == "result 0: 20 of 60 bytes differ"
    assert "result 0 is (3, 5) torch.float64" in str(
        attrs.evolve(DOUBLE, kernel=lambda x: [x.double() * 2]).difference((3, 5), 1, "cpu")
    )
    away = attrs.evolve(DOUBLE, kernel=lambda x: [x * 2.002], close=1e-4)
    assert away.difference((3, 5), 1, "cpu") == "result 0: relative error 1.00e-03, 1e-04 is allowed"
    assert attrs.evolve(away, close=2e-3).difference((3, 5), 1, "cpu") is None


@pytest.mark.parametrize(("other", "said"), [([1, 0], None), ([1, 1], "2 of 2000"), ([2, 0], "1 of 2000 differ, by up to 2")])
def test_of_integers_a_few_may_differ_by_one(other: list[int], said: str | None) -> None:
    def off(x: Tensor) -> list[Tensor]:
        return [torch.tensor([*other, *[7] * 1998], dtype=torch.uint8)]

    check = attrs.evolve(DOUBLE, reference=off, kernel=lambda x: [torch.tensor([0, 0, *[7] * 1998], dtype=torch.uint8)])
    found = attrs.evolve(check, close=6e-4).difference((3, 5), 1, "cpu")
    assert found is None if said is None else said in str(found)


def test_memory_is_poisoned_and_inputs_are_fresh() -> None:
    with poisoned():
        assert torch.empty(4).isnan().all()
        assert torch.empty(4, dtype=torch.uint8).tolist() == [255] * 4
    assert not torch.equal(DOUBLE.drawn((3, 5), 1, "cpu")[0], DOUBLE.drawn((3, 5), 2, "cpu")[0])
