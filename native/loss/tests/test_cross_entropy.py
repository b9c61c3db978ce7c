"""Definition and kernel body, run on the host, against torch's own cross-entropy and autograd in float64; what it compiles to."""

from __future__ import annotations

import re
import subprocess
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from surogate_native_kit import ARCHITECTURES, cubin
from surogate_native_kit.checks import poisoned
from surogate_native_kit.compiler import disassemble
from surogate_native_loss import cross_entropy_, kernel, reference
from torch import Tensor

both_sides = pytest.mark.parametrize("side", [reference, kernel], ids=["definition", "kernel"])
both_types = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
RELATIVE = {torch.bfloat16: 2.0**-8, torch.float32: 2e-5}
"""Of each gradient: half a step of the type, and what float32 exponentials of arguments down to -30 lose."""
GUARD = 5


def drawn(rows: int, columns: int, dtype: torch.dtype, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, between values that nothing may write to and at an odd address; labels; weights."""
    random = torch.Generator().manual_seed(seed)
    held = torch.full((rows * columns + 2 * GUARD,), 7.0, dtype=dtype)
    logits = held[GUARD:-GUARD].view(rows, columns)
    logits.copy_(torch.randn(rows, columns, generator=random) * 4)
    labels = torch.randint(0, columns, (rows,), generator=random)
    return logits, labels, torch.rand(rows, generator=random) + 0.1


def torchs(logits: Tensor, labels: Tensor, weights: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Losses and gradients in float64."""
    held = logits.to(torch.float64, copy=True).requires_grad_()
    losses = F.cross_entropy(held, labels, reduction="none", ignore_index=-100) * weights.double()
    return losses.detach(), torch.autograd.grad(losses.sum() * factor, held)[0]


def assert_gradient(found: Tensor, wanted: Tensor, labels: Tensor, relative: float) -> None:
    """Element by element. The label's own is a difference from 1 and has an absolute error beside."""
    absolute = torch.zeros_like(wanted).scatter_(1, labels.clamp(0)[:, None], 2e-6) + 1e-37
    worst = ((found.double() - wanted).abs() - relative * wanted.abs() - absolute).max()
    assert worst <= 0, worst


@both_types
@both_sides
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (4, 3), (9, 33), (6, 1000), (3, 50257), (2, 201088), (2, 151935)])
def test_it_is_torchs_cross_entropy_in_float64(side: ModuleType, dtype: torch.dtype, rows: int, columns: int) -> None:
    logits, labels, weights = drawn(rows, columns, dtype)
    losses, gradient = torchs(logits, labels, weights, 0.3)
    normaliser = logits.double().logsumexp(1)
    with poisoned():
        found = side.cross_entropy_(logits, labels, weights, torch.tensor([0.3]))
    torch.testing.assert_close(found[0].double(), losses, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(found[1].double(), normaliser, rtol=1e-6, atol=1e-6)
    assert_gradient(logits, gradient, labels, RELATIVE[dtype])
    base = logits._base
    assert base is not None
    assert base[:GUARD].eq(7).all()
    assert base[-GUARD:].eq(7).all()


@both_types
@both_sides
def test_rows_that_count_for_nothing_are_not_read_and_have_no_gradient(side: ModuleType, dtype: torch.dtype) -> None:
    logits, labels, weights = drawn(7, 45, dtype)
    labels[2], weights[4] = -100, 0.0
    losses, gradient = torchs(logits, labels, weights)
    logits[[2, 4]] = torch.nan
    found, normaliser = side.cross_entropy_(logits, labels, weights)
    assert not logits[[2, 4]].any()
    assert found[[2, 4]].tolist() == normaliser[[2, 4]].tolist() == [0, 0]
    torch.testing.assert_close(found.double(), losses, rtol=1e-6, atol=1e-6)
    assert_gradient(logits, gradient, labels, RELATIVE[dtype])


@both_sides
def test_without_gradient_the_logits_stay(side: ModuleType) -> None:
    logits, labels, weights = drawn(3, 33, torch.bfloat16)
    weights[1] = 0
    before = logits.clone()
    found = side.cross_entropy_(logits, labels, weights, gradient=False)[0]
    assert torch.equal(logits, before)
    torch.testing.assert_close(found.double(), torchs(logits, labels, weights)[0], rtol=1e-6, atol=1e-6)


@both_sides
def test_large_and_forbidden_logits(side: ModuleType) -> None:
    """Logits of -inf (a masked vocabulary) and of the largest sizes; a first chunk of nothing but -inf."""
    logits, labels, weights = drawn(3, 9000, torch.float32)
    logits[0, :5000], logits[1] = -torch.inf, logits[1] * 1e37
    logits[2] -= 3e4
    labels[0], labels[1] = 8000, logits[1].argmax()
    losses, gradient = torchs(logits, labels, weights)
    found = side.cross_entropy_(logits, labels, weights)[0]
    torch.testing.assert_close(found.double(), losses, rtol=1e-6, atol=1e-2)  # 3e4 in float32 has steps of 0.002
    assert_gradient(logits[:2], gradient[:2], labels[:2], RELATIVE[torch.float32])
    assert not logits[0, :5000].any()


@both_sides
@pytest.mark.parametrize("wrong", ["a value that is not a number", "a label out of range"])
def test_what_is_wrong_shows_in_its_row_alone(side: ModuleType, wrong: str) -> None:
    logits, labels, weights = drawn(3, 40, torch.float32)
    if wrong == "a label out of range":
        labels[1] = 40
    else:
        logits[1, 7] = torch.nan
    losses, _ = side.cross_entropy_(logits, labels, weights)
    assert losses.isnan().tolist() == [False, True, False]
    assert logits.isnan().all(1).tolist() == logits.isnan().any(1).tolist() == [False, True, False]


def test_the_definition_in_float64_is_exact() -> None:
    logits, labels, weights = drawn(5, 33, torch.float64)
    losses, gradient = torchs(logits, labels, weights.double())
    found = reference.cross_entropy_(logits, labels, weights.double())[0]
    torch.testing.assert_close(found, losses, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(logits, gradient, rtol=1e-12, atol=1e-15)


def test_the_kernel_takes_what_it_can_overwrite() -> None:
    logits, labels, weights = drawn(4, 8, torch.float32)
    for wrong in (logits.t().contiguous().t(), logits.double(), logits.flatten()):
        with pytest.raises(ValueError, match="contiguous rows, bfloat16 or float32"):
            kernel.cross_entropy_(wrong, labels, weights)
    with pytest.raises(ValueError, match=r"4 rows of logits with labels \(3,\) and weights \(4,\)"):
        kernel.cross_entropy_(logits, labels[:3], weights)
    assert kernel.cross_entropy_(logits[:0], labels[:0], weights[:0])[0].shape == (0,)


def test_the_op_is_its_definition_on_the_cpu_and_shapes_on_meta() -> None:
    logits, labels, weights = drawn(4, 33, torch.float32)
    other, factor = logits.clone(), torch.tensor(2.0)
    wanted = reference.cross_entropy_(other, labels, weights, factor)
    before = logits._version
    found = cross_entropy_(logits, labels, weights, factor)
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))
    assert torch.equal(logits, other)
    assert logits._version > before
    given = (other, labels, weights, factor, True)
    torch.library.opcheck(torch.ops.surogate_loss.cross_entropy_.default, given, test_utils=("test_schema", "test_faketensor"))
    losses, normaliser = cross_entropy_(*(tensor.to("meta") for tensor in (logits, labels, weights)))
    assert losses.shape == normaliser.shape == (4,)
    assert losses.device.type == "meta"


def test_16_bytes_at_a_time_are_at_multiples_of_16() -> None:
    """The host's processor does not mind where they are, a GPU stops. Built so that it minds."""
    code = """
import torch
from surogate_native_kit import HostProgram
from surogate_native_loss import kernel
program = HostProgram(kernel.SOURCE, ("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"))
one, number = torch.ones(9), torch.zeros(9, dtype=torch.int64)
for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
    for first in range(2):
        logits = torch.randn(9 * 75 + 1).to(dtype)[first : first + 9 * 75]
        given = logits, number, one, 0, one.clone(), one.clone(), 75, 1
        program.run(f"cross_entropy_{name}", (9, 1), kernel.THREADS, *given)
        given = logits, number - 1, *given[2:]
        program.run(f"cross_entropy_{name}", (9, 1), kernel.THREADS, *given)
print("done")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", f"signal {-done.returncode}: {done.stderr}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_the_kernel_compiles_to(arch: str) -> None:
    """Both passes load 16 bytes at a time, the first with four loads on their way; the gradient is stored so; exponentials are one
    instruction; no spills."""
    text = disassemble(cubin(kernel.SOURCE, arch))
    kernels = {part.split(",")[0]: part for part in re.split(r"\.section\s+\.text\.", text)[1:]}
    assert set(kernels) == {"cross_entropy_bf16", "cross_entropy_fp32"}
    for body in kernels.values():
        assert not re.findall(r"\b(?:STL|LDL)\b", body)
        assert len(re.findall(r"\bLDG\.E\.128", body)) == len(re.findall(r"\bSTG\.E\.128", body)) == 10
        order = re.findall(r"\b(?:LDG|STG)\.E\.128|\bBRA\b", body)
        assert ["LDG.E.128"] * 4 in [order[at : at + 4] for at in range(len(order))]
        assert len(re.findall(r"\bMUFU\.EX2\b", body)) > 80
