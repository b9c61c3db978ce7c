"""FP8: number formats exhaustively, published vectors, and every kernel body against the definition in plain torch."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from surogate_native_fp8 import ops, reference, scaled_mm
from surogate_native_fp8.reference import E4M3, E5M2
from surogate_native_kit import ARCHITECTURES, HostProgram, cubin
from surogate_native_kit.compiler import disassemble
from torch import Tensor

ML = {E4M3: ml_dtypes.float8_e4m3fn, E5M2: ml_dtypes.float8_e5m2}
SHAPES = [(1, 1), (5, 3), (16, 16), (64, 64), (63, 65), (130, 72), (17, 200), (96, 128)]


@pytest.fixture(scope="module")
def program() -> HostProgram:
    return HostProgram(ops.CAST_TRANSPOSE)


def all_bfloat16() -> Tensor:
    return torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def bytes_of(x: Tensor) -> Tensor:
    return x.view(torch.uint8)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("build", ["reference", "header"])
def test_every_bfloat16_is_cast_as_ml_dtypes_does(program: HostProgram, dtype: torch.dtype, build: str) -> None:
    x = all_bfloat16()
    if build == "reference":
        found = bytes_of(reference.cast(x, dtype)).numpy()
    else:
        convert = program.function("host_e4m3" if dtype == E4M3 else "host_e5m2", ctypes.c_uint8, ctypes.c_float)
        found = np.array([convert(value) for value in x.float().tolist()], dtype=np.uint8)
    largest = reference.LARGEST[dtype]
    nan = x.isnan().numpy()
    wanted = np.clip(x.float().nan_to_num(0, torch.inf, -torch.inf).numpy(), -largest, largest).astype(ML[dtype]).view(np.uint8)
    assert nan.sum() == 254
    assert np.array_equal(found[~nan], wanted[~nan])
    assert torch.from_numpy(found[nan]).view(dtype).isnan().all()


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(17, 16), (19, 20), (1.0625, 1.0), (1.1875, 1.25), (2**-9, 2**-9), (2**-10, 0), (1e9, 448), (-float("inf"), -448)],
)
def test_published_casts_to_e4m3(value: float, wanted: float) -> None:
    assert reference.cast(torch.tensor(float(value)), E4M3).float().item() == wanted


@pytest.mark.parametrize(("dtype", "wanted"), [(E4M3, 0.0264), (E5M2, 0.0527)])
def test_the_error_on_normal_values_is_the_published_one(dtype: torch.dtype, wanted: float) -> None:
    x = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    scale = reference.LARGEST[dtype] / x.abs().max()
    error = (reference.cast(x * scale, dtype).float() / scale - x).norm() / x.norm()
    assert error.item() == pytest.approx(wanted, abs=2e-4)


def kernel(program: HostProgram, x: Tensor, scale: Tensor, amax: Tensor, e5m2: bool, transpose: bool) -> tuple[Tensor, Tensor]:
    q, turned = ops._outputs(x, e5m2, transpose)
    bytes_of(q).fill_(0x55)
    bytes_of(turned).fill_(0x55)
    grid = (-(-q.shape[0] // ops.TILE), -(-q.shape[1] // ops.TILE))
    name = f"cast_transpose_{ops.NAMES[x.dtype]}_{'e5m2' if e5m2 else 'e4m3'}"
    program.run(name, grid, ops.THREADS, x, scale, amax, q, turned if transpose else 0, *x.shape)
    return q, turned


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("e5m2", [False, True])
def test_the_cast_kernel_equals_its_definition(
    program: HostProgram, shape: tuple[int, int], dtype: torch.dtype, e5m2: bool
) -> None:
    x = (torch.randn(shape, generator=torch.Generator().manual_seed(shape[0])) * 30).to(dtype)
    scale = torch.tensor([7.3])
    for transpose in (False, True):
        seen = {name: torch.full((1,), 0.5) for name in ("kernel", "reference")}
        wanted = reference.cast_transpose(x, scale, seen["reference"], e5m2, transpose)
        found = kernel(program, x, scale, seen["kernel"], e5m2, transpose)
        assert all(torch.equal(bytes_of(one), bytes_of(two)) for one, two in zip(found, wanted, strict=True))
        assert seen["kernel"].item() == seen["reference"].item() == max(0.5, x.abs().max().item())


def test_the_definition_pads_with_zeros_and_turns() -> None:
    x = torch.arange(15.0).reshape(3, 5)
    q, turned = reference.cast_transpose(x, torch.ones(1), torch.zeros(1), False, True)
    assert q.shape == turned.shape == (16, 16)
    assert torch.equal(q.float(), F.pad(x, (0, 11, 0, 13)))
    assert torch.equal(turned.float(), q.float().t())


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_value_that_is_not_finite_is_seen_in_the_maximum(program: HostProgram, bad: float) -> None:
    x = torch.zeros(70, 40)
    x[69, 3] = -bad
    for run in (lambda *a: kernel(program, *a), reference.cast_transpose):
        seen = torch.zeros(1)
        q, _ = run(x, torch.ones(1), seen, False, False)
        assert str(seen.item()) == str(bad)
        assert q[69, 3].isnan() if bad != bad else q[69, 3].float() == -448


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan"), 0.0])
def test_a_tensor_without_a_usable_maximum_has_the_scale_one(dtype: torch.dtype, bad: float) -> None:
    x = torch.full((3, 5), bad)
    assert reference.current_scale(x, dtype).tolist() == [1]
    x[1, 2] = 8
    wanted = 1 if bad else reference.LARGEST[dtype] / 8
    assert reference.current_scale(x.bfloat16(), dtype).tolist() == [wanted]
    assert reference.current_scale(x[:0], dtype).tolist() == [1]
    assert reference.current_scale(torch.tensor([1e-40]), dtype).tolist() == [torch.finfo(torch.float32).max]


def state(tensors: int, length: int) -> list[Tensor]:
    return [torch.zeros(tensors, length), torch.ones(tensors), torch.ones(tensors, 4), torch.full((tensors,), 448.0)]


def test_published_delayed_scales() -> None:
    history, scale, inverse, largest = state(1, 4)
    found = []
    for amax in (2, 8, 4, 1, 1, 1, 1):
        history[0, 0] = amax
        reference.update_scales(history, scale, inverse, largest)
        found.append(scale.item())
        assert inverse[0, 0].item() == pytest.approx(1 / scale.item(), rel=1e-7)
    assert found == [224, 56, 56, 56, 56, 112, 448]
    before = history.clone()
    reference.update_scales(history, scale, inverse, largest)
    assert (scale.item(), torch.equal(history, before)) == (448, True)
    history, scale, inverse, largest = state(1, 1)
    history[0, 0] = 1e-40
    reference.update_scales(history, scale, inverse, largest)
    assert scale.item() == torch.finfo(torch.float32).max


class Restated:
    """Delayed scaling in float64 on plain lists, from the description: the window is what the last L steps saw."""

    def __init__(self, length: int, largest: float):
        self.length, self.largest, self.seen, self.scale = length, largest, [], 1.0

    def step(self, amax: float) -> None:
        self.seen = [*self.seen, amax][-self.length :] if amax else self.seen
        window = self.seen if amax else self.seen[-(self.length - 1) :] if self.length > 1 else []
        top = max(window, default=0.0)
        if 0 < top < float("inf") and all(value == value for value in window):
            self.scale = min(self.largest / top, 3.4028234663852886e38)


@pytest.mark.parametrize("length", [1, 2, 16])
@pytest.mark.parametrize("build", ["reference", "kernel"])
def test_delayed_scales_follow_a_restatement_in_float64(length: int, build: str) -> None:
    generator = np.random.default_rng(length)
    history, scale, inverse, largest = state(3, length)
    restated = [Restated(length, 448.0) for _ in range(3)]
    host = HostProgram(ops.UPDATE_SCALES)
    for step in range(50):
        amaxes = np.exp(generator.normal(size=3) * 3).astype(np.float32)
        if step % 7 == 3:
            amaxes[0] = [0, np.inf, np.nan][step // 7 % 3]
        history[:, 0] = torch.from_numpy(amaxes)
        if build == "reference":
            reference.update_scales(history, scale, inverse, largest)
        else:
            host.run("update_scales", (1, 1), 32, history, scale, inverse, largest, 3, length)
        for one, amax in zip(restated, amaxes, strict=True):
            one.step(float(amax))
        assert scale.tolist() == pytest.approx([one.scale for one in restated], rel=1e-6)
        assert inverse[:, 0].tolist() == pytest.approx([1 / one.scale for one in restated], rel=1e-6)
        assert (history[:, 0].nan_to_num(-1)[1:] == 0).all()


def test_the_product_equals_float64_and_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    a = reference.cast(torch.randn(32, 48, generator=generator) * 50, E4M3)
    b = reference.cast(torch.randn(16, 48, generator=generator) * 500, E5M2)
    scales = torch.tensor(0.25), torch.tensor(3.0)
    found = scaled_mm(a, b, *scales, torch.float32)
    exact = a.double() @ b.double().t() * 0.75
    assert (found.double() - exact).abs().max() <= 1e-6 * exact.abs().max()
    assert torch.allclose(found, torch._scaled_mm(a, b.t(), *scales, out_dtype=torch.float32), rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_the_ops_are_their_definitions_on_the_cpu(kernels: str) -> None:
    x = torch.randn(20, 33)
    seen = [torch.zeros(1), torch.zeros(1)]
    wanted = reference.cast_transpose(x, torch.tensor([2.0]), seen[0], True, True)
    found = ops.cast_transpose(x, torch.tensor([2.0]), seen[1], e5m2=True, transpose=True, kernels=kernels)
    assert all(torch.equal(bytes_of(one), bytes_of(two)) for one, two in zip(found, wanted, strict=True))
    assert torch.equal(*seen)
    meta = ops.cast_transpose(x.to("meta"), seen[0], seen[0], e5m2=True, transpose=True)
    assert [(one.shape, one.dtype) for one in meta] == [(one.shape, one.dtype) for one in wanted]
    torch.library.opcheck(
        torch.ops.surogate_fp8.cast_transpose.default,
        (x, torch.ones(1), torch.zeros(1), False, True),
        test_utils=("test_schema", "test_faketensor"),
    )
    one = state(2, 4)
    one[0][:, 0] = 3
    ops.update_scales(*one, kernels=kernels)
    assert one[1].tolist() == [pytest.approx(448 / 3)] * 2


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_the_kernels_compile_to(arch: str) -> None:
    """16-byte loads and stores and no more, no spills, and the instruction for the cast where there is one."""
    text = disassemble(cubin(ops.CAST_TRANSPOSE, arch)) + disassemble(cubin(ops.UPDATE_SCALES, arch))
    assert not re.findall(r"\b(?:STL|LDL)\b", text)
    kernels = {part.split(",")[0]: part for part in re.split(r"\.section\s+\.text\.", text)[1:]}
    assert len(kernels) == 5
    for name, body in kernels.items():
        if name.startswith("cast_transpose"):
            assert len(re.findall(r"\bLDG\.E\.128", body)) == (2 if "bf16" in name else 4)
            assert len(re.findall(r"\bSTG\.E\.128", body)) == 2
            assert not re.findall(r"\b(?:LDG|STG)\.E\.64", body)
            assert bool(re.findall(r"F2FP\.SATFINITE", body)) == (arch not in ("sm_80", "sm_86"))


def test_sources_are_in_the_package() -> None:
    assert {path.name for path in Path(ops.CUDA).iterdir()} == {
        "cast_transpose.cu",
        "update_scales.cu",
        "gemm_sm90.h",
        "gemm_e4m3_sm90.cu",
        "gemm_e5m2_sm90.cu",
    }
