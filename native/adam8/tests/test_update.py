"""The kernel, run on the host thread by thread, and the CPU's build of the same source, against the definition in plain torch; the
tables against a search in float64; and what the kernel compiles to."""

from __future__ import annotations

import ctypes
import functools
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from surogate_native_adam8 import BLOCK, States, checks, codebook, native_on, ops
from surogate_native_adam8.checks import blocks_of, starts_of
from surogate_native_kit import ARCHITECTURES, HostProgram, cubin
from surogate_native_kit.compiler import disassemble
from torch import Tensor

from surogate_core.errors import PluginError

CPU = torch.device("cpu")
DECAY = 0.1
SIZES = (4096, 5003, 256 * 40, 17, 256)
CODED = 3
"""The first three have codes, the others exact moments."""


class Case:
    """Parameters with gradients and states from a few steps, and all that the update wants to know."""

    def __init__(self, dtype: torch.dtype, masters: bool, misplaced: bool = False):
        generator = torch.Generator().manual_seed(5)
        self.books = codebook(True, CPU), codebook(False, CPU)
        # misplaced: no tensor begins at a multiple of 16 bytes
        self.params = []
        for size in SIZES:
            room = (torch.randn(size + 1, generator=generator) * 0.02).to(dtype)
            param = torch.nn.Parameter(room[1:] if misplaced else room[:-1])
            param.grad = (torch.randn(size, generator=generator) * 1e-3).to(dtype)
            self.params.append(param)
        self.params[1].grad[7:9] = torch.tensor([math.nan, -math.inf])  # type: ignore[index]
        self.params[3].grad[16] = 1e30  # type: ignore[index]
        self.params[2].grad = None
        counts = [blocks_of(size) for size in SIZES]
        self.starts = starts_of(SIZES)
        self.coded, self.blocks = sum(counts[:CODED]), sum(counts)
        values = [torch.randn(self.coded * BLOCK, generator=generator) * 1e-3, torch.rand(self.coded * BLOCK, generator=generator)]
        for value in values:
            for start, size in zip(self.starts[:CODED], SIZES, strict=False):
                value[start + size : start + blocks_of(size) * BLOCK] = 0
        values[0][: 2 * BLOCK] = 0
        codes, absmax = [], []
        for book, value in zip(self.books, values, strict=True):
            codes.append(torch.empty(len(value), dtype=torch.uint8))
            absmax.append(torch.empty(self.coded))
            book.quantize_(value * (1 if book.offset else 1e-5), codes[-1], absmax[-1])
        exact = [torch.zeros((self.blocks - self.coded) * BLOCK) for _ in range(2)]
        exact[0][:17], exact[1][:17] = 1e-3, 1e-6
        remainder = torch.randint(-(2**15), 2**15, (self.blocks * BLOCK,), dtype=torch.int16, generator=generator)
        self.states = States(
            codes=(codes[0], codes[1]),
            absmax=(absmax[0], absmax[1]),
            exact=(exact[0], exact[1]),
            remainder=remainder if masters else None,
        )
        numbers = functools.partial(torch.randint, -(2**15), 2**15, dtype=torch.int16, generator=generator)
        noise = numbers((4096,)), numbers((blocks_of(self.blocks * BLOCK) // 16 + 1,))
        self.arena = checks.Arena(self.params, [DECAY, 0.0, DECAY, DECAY, 0.0], self.states, None if masters else noise)

    def step(self, run: Callable[[Tensor, int, int], None] | None, ranges: list[tuple[int, int]]) -> None:
        checks.step(checks.update_of(self.arena, run), self.arena, ranges)

    def define(self) -> None:
        checks.define(self.arena)


@pytest.mark.parametrize("misplaced", [False, True])
@pytest.mark.parametrize(("dtype", "masters"), [(torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)])
@pytest.mark.parametrize("run", [ops.launch, None], ids=["kernel", "cpu"])
def test_it_is_the_definition(
    run: Callable[[Tensor, int, int], None] | None, dtype: torch.dtype, masters: bool, misplaced: bool
) -> None:
    one, other = Case(dtype, masters, misplaced), Case(dtype, masters, misplaced)
    start = [param.detach().clone() for param in one.params]
    one.step(run, [(0, one.blocks)])
    other.define()
    for mine, wanted, before in zip(one.params, other.params, start, strict=True):
        assert not torch.equal(wanted, before)
        if dtype == torch.float32:
            torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-9)
        else:  # torch rounds m and v once less here and there, and a boundary of bfloat16 may lie between
            assert (mine != wanted).float().mean() <= 1e-3
            assert (mine.view(torch.int16).int() - wanted.view(torch.int16).int()).abs().max() <= 1
    assert torch.equal(one.params[1][7:9], start[1][7:9])
    for mine, wanted in zip(one.states.codes, other.states.codes, strict=True):
        assert (mine.int() - wanted.int()).abs().max() <= 1
        assert (mine != wanted).float().mean() <= 2e-4
    for pair in ("absmax", "exact"):
        for mine, wanted in zip(getattr(one.states, pair), getattr(other.states, pair), strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-12)
    if masters:
        masters_of = [
            torch.cat([param.detach().view(torch.int16).int() << 16 for param in case.params])
            + torch.cat([case.states.remainder[s : s + n] for s, n in zip(case.starts, SIZES, strict=True)])  # type: ignore[index]
            for case in (one, other)
        ]
        floats = [bits.view(torch.float32) for bits in masters_of]
        torch.testing.assert_close(*floats, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("run", [ops.launch, None], ids=["kernel", "cpu"])
def test_the_arena_may_be_worked_through_in_parts(run: Callable[[Tensor, int, int], None] | None) -> None:
    """Parts end inside of parameters and where the codes do."""
    whole, parts = Case(torch.bfloat16, False), Case(torch.bfloat16, False)
    whole.step(run, [(0, whole.blocks)])
    end = parts.coded + 1
    parts.step(run, [(0, 5), (5, 33), (33, parts.coded), (parts.coded, end), (end, parts.blocks)])
    assert all(torch.equal(a, b) for a, b in zip(whole.params, parts.params, strict=True))
    for name in ("codes", "absmax", "exact"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(whole.states, name), getattr(parts.states, name), strict=True))


def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "SHARE", 3)
    cases = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        cases.append(Case(torch.float32, False))
        cases[-1].step(None, [(0, cases[-1].blocks)])
    assert all(torch.equal(a, b) for a, b in zip(cases[0].params, cases[1].params, strict=True))
    assert torch.equal(cases[0].states.codes[0], cases[1].states.codes[0])


@pytest.mark.parametrize("signed", [True, False])
def test_the_tables_give_the_codes_of_the_definition(signed: bool) -> None:
    """At each boundary, one float32 to each side of it, at the ends of cells, around zero and above 1."""
    books = codebook(True, CPU), codebook(False, CPU)
    table, book = ops._tables(books), books[0 if signed else 1]
    bounds = ((book.values[:-1] + book.values[1:]) / 2).abs()
    near = torch.cat([bounds, *(torch.nextafter(bounds, bounds + way) for way in (1, -1))])
    upper = torch.arange(0, ops.LAST_CELL + 1, dtype=torch.int32) << 16
    x = torch.cat([near, upper.view(torch.float32), (upper[:-1] | 0xFFFF).view(torch.float32), torch.tensor([1 + 2**-23])])
    x = torch.cat([x, -x]) if signed else x
    cells = (x.view(torch.int32) >> 16) + book.offset
    wanted = book.bases[cells] + (x > book.bounds[cells])
    code = HostProgram(ops.SOURCE).function("host_code", ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int, ctypes.c_float)
    found = [code(table.data_ptr(), 0 if signed else 1, value) for value in x.tolist()]
    assert found == wanted.tolist()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_what_the_kernel_compiles_to(arch: str) -> None:
    """Codes, parameters and gradients come and go 16 bytes at a time, and nothing is spilled."""
    text = disassemble(cubin(ops.SOURCE, arch))
    assert not re.findall(r"\b(?:STL|LDL)\b", text)
    loads, stores = (len(re.findall(rf"\b{name}[.\w]*\.128\b", text)) for name in ("LDG", "STG"))
    # codes of m and v, four of float32 and two of bfloat16 values and gradients, exact moments, remainders, noise
    assert loads == 2 + 2 * (4 + 2) + 2 * 4 + 2 + 2
    assert stores == 2 + (4 + 2) + 2 * 4 + 2


def test_without_a_compiler_auto_is_plain_torch_and_native_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fresh(**environment: str) -> None:
        ops._program.cache_clear()
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    assert native_on(CPU, "auto")
    assert native_on(torch.device("cuda"), "auto")
    assert not native_on(CPU, "reference")
    assert not native_on(torch.device("cuda"), "reference")
    fresh(CXX="no-such-compiler")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not native_on(CPU, "auto")
    with pytest.raises(PluginError, match="no-such-compiler"):
        native_on(CPU, "native")
    fresh()


def test_a_compiler_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ops._program.cache_clear()
    monkeypatch.setenv("SUROGATE_NATIVE_CACHE", str(tmp_path))
    monkeypatch.setattr(ops, "FAST", ("-no-such-flag",))
    with pytest.warns(UserWarning, match=r"goes on in plain torch: .*does not compile as C\+\+"):
        assert not native_on(CPU, "auto")
    ops._program.cache_clear()


def test_a_parameter_of_another_type_is_refused() -> None:
    case = Case(torch.float32, False)
    case.params[0] = torch.nn.Parameter(torch.zeros(SIZES[0], dtype=torch.float16))
    with pytest.raises(TypeError, match=r"float16: bfloat16 or float32 wanted"):
        case.step(None, [(0, 1)])
