"""Operands of emulated products: the CPU's own build against the definition, bit for bit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from surogate_native_nvfp4 import RHT_SIGNS, draws, operands, quantise, quantise_eden, rotate
from surogate_native_nvfp4.draws import Draw
from torch import Tensor

from surogate_core.errors import PluginError

SHAPES = [(1, 1), (5, 3), (16, 16), (17, 33), (130, 80), (40, 257)]
DRAW = Draw((0xFEDCBA98, 0x12345678), torch.tensor((5 << 32) + 1), 64)
SHORT, LONG = torch.tensor(RHT_SIGNS).float(), draws.signs(draws.words(4, (1, 2), DRAW.step))
FACTOR = torch.tensor(0.37)


def values(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(shape[1])
    x = torch.randn(shape, generator=generator) * torch.exp2(torch.randint(-12, 8, (shape[0], 1), generator=generator).float())
    x[torch.rand(shape, generator=generator) < 0.1] = -0.0
    return x.to(dtype)


def both(run: Any, x: Tensor, **given: Any) -> None:
    assert operands.compiled(x, "native")
    mine, wanted = run(x, **given, kernels="native"), run(x, **given, kernels="reference")
    assert torch.equal(mine.values.view(torch.int32), wanted.values.view(torch.int32))
    assert mine.values.stride() == wanted.values.stride()
    assert torch.equal(mine.decode, wanted.decode)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("metric", [None, "mse"])
def test_blocks(shape: tuple[int, int], dtype: torch.dtype, metric: str | None) -> None:
    x = values(shape, dtype)
    both(operands.quantised, x, four_over_six=metric)
    both(operands.quantised, x, four_over_six=metric, square=True)
    both(operands.quantised, x, four_over_six=metric, square=True, turned=True)
    both(operands.quantised, x, four_over_six=metric, draw=DRAW, turned=True)
    both(operands.quantised, x, four_over_six=metric, draw=DRAW, signs=SHORT)
    both(operands.quantised, x, four_over_six=metric, signs=SHORT, turned=True, factor=FACTOR)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("turned", [False, True])
def test_ms_eden(shape: tuple[int, int], dtype: torch.dtype, turned: bool) -> None:
    x = values(shape, dtype)
    both(operands.quantised_eden, x, turned=turned, draw=DRAW, signs=LONG, factor=FACTOR)
    both(operands.quantised_eden, x, turned=turned, signs=LONG)
    both(operands.quantised_eden, x, turned=turned, draw=DRAW)


def test_they_are_what_the_quantisers_define() -> None:
    x = values((48, 160), torch.bfloat16)
    matrix = rotate(x.t(), SHORT)
    for kernels in ("native", "reference"):
        found = operands.quantised(x, signs=SHORT, turned=True, four_over_six="mse", draw=DRAW, kernels=kernels)
        wanted = quantise(matrix, four_over_six="mse", bits=DRAW.bits(160, 48))
        assert torch.equal(found.values, wanted.scaled())
        assert torch.equal(found.values * found.decode, wanted.dequantised())
        found = operands.quantised_eden(x, signs=LONG, draw=DRAW, kernels=kernels)
        assert torch.equal(found.values, quantise_eden(rotate(x, LONG), DRAW.bits(48, 16)).scaled())


def test_memory_of_any_order_and_edges() -> None:
    x = values((40, 70), torch.float32)
    both(operands.quantised, x.t())
    both(operands.quantised, x[:, 3:20], draw=DRAW)
    both(operands.quantised, torch.zeros(17, 20), four_over_six="mse")
    both(operands.quantised, torch.full((17, 20), 1e-40), four_over_six="mse")
    both(operands.quantised_eden, torch.zeros(17, 20), signs=LONG, draw=DRAW)
    assert not operands.compiled(x[:0], "native")
    assert not operands.compiled(x.half(), "native")
    assert not operands.compiled(x.to("meta"), "native")
    assert operands.quantised(x, four_over_six="mae").values.shape == (40, 80)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_makes_all_values_or_the_decode_scale_so(bad: float) -> None:
    x = values((20, 40), torch.float32)
    x[3, 4] = bad
    for run in (operands.quantised, operands.quantised_eden):
        for kernels in ("native", "reference"):
            assert run(x, kernels=kernels).decode.isnan()


def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operands, "SHARE", 1)
    x, found = values((130, 80), torch.bfloat16), []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(operands.quantised_eden(x, signs=LONG, draw=DRAW, kernels="native").values)
    assert torch.equal(*found)


@pytest.fixture
def fresh() -> Iterator[None]:
    for cached in (operands._program, operands.available):
        cached.cache_clear()
    yield
    for cached in (operands._program, operands.available):
        cached.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_auto_is_plain_torch_and_native_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not operands.available("auto")
    assert not operands.available("reference")
    with pytest.raises(PluginError, match="no-such-compiler"):
        operands.available("native")


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("level", [(), ("-march=x86-64-v3",)])
def test_other_processors_have_the_same_bits(monkeypatch: pytest.MonkeyPatch, level: tuple[str, ...]) -> None:
    x = values((33, 40), torch.bfloat16)
    wanted = operands.quantised(x, four_over_six="mse", draw=DRAW, kernels="native").values
    if level and operands.LEVELS.get(torch.backends.cpu.get_cpu_capability()) is None:
        pytest.skip("this processor has no AVX2: run on one that has it")
    operands._program.cache_clear()
    monkeypatch.setattr(operands, "LEVELS", {torch.backends.cpu.get_cpu_capability(): level[0]} if level else {})
    assert torch.equal(operands.quantised(x, four_over_six="mse", draw=DRAW, kernels="native").values, wanted)
