"""The update of an arena, for ``make gpu-check``, and its definition a parameter at a time. Sums may differ in their last bits:
parameters, scales and exact moments are close; of the codes, and of bfloat16 values rounded by noise, a few are a step away."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from surogate_native_kit.checks import Check, Shape
from torch import Tensor

from surogate_native_adam8 import ops
from surogate_native_adam8.codes import BLOCK, Codebook, codebook
from surogate_native_adam8.ops import States, Update
from surogate_native_adam8.reference import Rates, update_

RATES = Rates(beta1=0.9, beta2=0.99, epsilon=1e-8, step=3)
LR, SCALE, ROW = 1e-3, 0.5, 4096
SMALL = 4096
"""Parameters of fewer values have no codes; they come last."""
MISSING = 2
"""The parameter that has no gradient."""
GUARDS = 16, 5
"""Values before and behind a parameter. The first one starts at a multiple of 16 bytes, the second does not, and so on."""
CLOSE, APART = 1e-6, 1e-3


def blocks_of(size: int) -> int:
    return -(-size // BLOCK)


def starts_of(sizes: Sequence[int]) -> list[int]:
    return [BLOCK * sum(map(blocks_of, sizes[:index])) for index in range(len(sizes))]


class Arena(NamedTuple):
    """Parameters with their gradients, and what belongs to them. ``noise`` as in :meth:`Update.prepare`."""

    params: Sequence[Tensor]
    decays: Sequence[float]
    states: States
    noise: tuple[Tensor, Tensor] | None

    @property
    def starts(self) -> list[int]:
        return starts_of([param.numel() for param in self.params])

    @property
    def blocks(self) -> int:
        return sum(blocks_of(param.numel()) for param in self.params)


def books_on(device: torch.device) -> tuple[Codebook, Codebook]:
    return codebook(True, device), codebook(False, device)


def update_of(arena: Arena, run: Callable[[Tensor, int, int], None] | None) -> Update:
    device = arena.params[0].device
    return Update(
        blocks=arena.blocks,
        coded=arena.states.coded,
        params=arena.params,
        starts=arena.starts,
        decays=arena.decays,
        books=books_on(device),
        device=device,
        run=run,
    )


def step(update: Update, arena: Arena, ranges: Sequence[tuple[int, int]]) -> None:
    """One step, a launch for each range of blocks."""
    update.prepare(torch.tensor(LR), RATES, arena.noise, scale=SCALE)
    for first, last in ranges:
        update.launch(arena.states.part(first, last), first, last)
    update.release()


def define(arena: Arena) -> None:
    """The same by the definition, a parameter at a time."""
    device = arena.params[0].device
    books, lr = books_on(device), torch.tensor(LR, device=device)
    for param, start, decay in zip(arena.params, arena.starts, arena.decays, strict=True):
        size, count = param.numel(), blocks_of(param.numel()) * BLOCK
        own = arena.states.part(start // BLOCK, (start + count) // BLOCK)
        p, g = torch.zeros(2, count, device=device)
        p[:size] = param.detach().float()
        if param.grad is not None:
            g[:size] = param.grad.float() * SCALE
        half = param.dtype == torch.bfloat16
        if half and own.remainder is not None:
            p.view(torch.int32).add_(own.remainder)
        if own.coded:
            pairs = list(zip(books, own.codes, own.absmax, strict=True))
            m, v = (book.dequantize(codes, absmax) for book, codes, absmax in pairs)
            update_(p, g, m, v, lr, RATES, decay)
            for moment, (book, codes, absmax) in zip((m, v), pairs, strict=True):
                book.quantize_(moment, codes, absmax)
        else:
            update_(p, g, *own.exact, lr, RATES, decay)
        bits = p.view(torch.int32)
        upper = bits
        if half and own.remainder is not None:
            upper = (bits + 2**15) >> 16
            own.remainder.copy_(bits - (upper << 16))
        elif half:
            assert arena.noise is not None
            place = torch.arange(start, start + count, device=device)
            upper = (bits + (arena.noise[0][place % ROW] + arena.noise[1][place // ROW]) + 2**15) >> 16
        param.data.copy_((upper.to(torch.int16).view(torch.bfloat16) if half else p)[:size])


def _integers(drawn: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the whole range of the type."""
    return (drawn * 1e6).to(torch.int32).to(dtype)


def _inputs(dtype: torch.dtype, masters: bool, shape: Shape, draw: Callable[..., Tensor]) -> Sequence[Tensor]:
    """Parameters and gradients between values that are not theirs, codes, scales and exact moments of m and v, and the remainder or
    the noise. ``shape``: the sizes of the parameters."""
    coded, blocks = (sum(blocks_of(size) for size in shape if size >= least) for least in (SMALL, 0))
    rooms = [size + 2 * GUARDS[index % 2] for index, size in enumerate(shape)]
    params = [(draw(room) * 0.02).to(dtype) for room in rooms]
    grads = [(draw(0 if index == MISSING else room) * 1e-3).to(dtype) for index, room in enumerate(rooms)]
    for grad, size in zip(grads, shape, strict=True):
        guard = (len(grad) - size) // 2
        grad[23::509], grad[29::503] = torch.nan, -torch.inf
        grad[:guard], grad[guard + size :] = torch.nan, torch.nan
    codes = [_integers(draw(coded * BLOCK), torch.uint8) for _ in range(2)]
    codes[1] = codes[1] % 192 + 64  # a v near 0 beside an m that is not makes a step of any size
    absmax = [1e-3 * draw(coded).abs(), 1e-6 * (draw(coded).abs() + 0.1)]
    for scales in absmax:
        scales[::7] = 0  # what has had no gradient yet
    exact = [1e-3 * draw((blocks - coded) * BLOCK), 1e-6 * (draw((blocks - coded) * BLOCK).abs() + 0.1)]
    if masters:
        rest = [_integers(draw(blocks * BLOCK), torch.int16)]
    elif dtype == torch.bfloat16:
        rest = [_integers(draw(size), torch.int16) for size in (ROW, -(-blocks * BLOCK // ROW))]
    else:
        rest = []
    return *params, *grads, *codes, *absmax, *exact, *rest


def _arena(dtype: torch.dtype, masters: bool, given: Sequence[Tensor]) -> tuple[Arena, list[Tensor]]:
    """The arena of these inputs, and all that an update writes."""
    count = (len(given) - 6 - (1 if masters else 2 * (dtype == torch.bfloat16))) // 2
    rooms, grads, (m, v, m_absmax, v_absmax, m_exact, v_exact, *rest) = given[:count], given[count : 2 * count], given[2 * count :]
    params = []
    for index, (room, grad) in enumerate(zip(rooms, grads, strict=True)):
        guard = GUARDS[index % 2]
        params.append(torch.nn.Parameter(room[guard:-guard]))
        params[-1].grad = grad[guard:-guard] if len(grad) else None
    decays = [0.1 * (index % 2) for index in range(count)]
    remainder = rest[0] if masters else None
    states = States(codes=(m, v), absmax=(m_absmax, v_absmax), exact=(m_exact, v_exact), remainder=remainder)
    arena = Arena(params, decays, states, (rest[0], rest[1]) if rest and not masters else None)
    return arena, [*rooms, m, v, m_absmax, v_absmax, m_exact, v_exact]


def _written(dtype: torch.dtype, arena: Arena, written: Sequence[Tensor]) -> Sequence[Tensor]:
    """bfloat16 values by their bits; with masters also these, whose remainders alone say nothing where they are close."""
    rooms, states = written[:-6], written[-6:]
    values = torch.cat([*rooms])
    found = [values.view(torch.int16) if dtype == torch.bfloat16 else values, *states]
    if arena.states.remainder is not None:
        remainders = [
            arena.states.remainder[start : start + param.numel()] for param, start in zip(arena.params, arena.starts, strict=True)
        ]
        uppers = [param.detach().view(torch.int16).int() << 16 for param in arena.params]
        found.append((torch.cat(uppers) + torch.cat(remainders)).view(torch.float32))
    return found


def _timed(dtype: torch.dtype, masters: bool, *given: Tensor) -> Callable[[], None]:
    arena, _ = _arena(dtype, masters, given)
    update = update_of(arena, ops.launch)
    return lambda: step(update, arena, [(0, arena.blocks)])


def _kernel(dtype: torch.dtype, masters: bool, *given: Tensor) -> Sequence[Tensor]:
    _timed(dtype, masters, *given)()
    return _written(dtype, *_arena(dtype, masters, given))


def _reference(dtype: torch.dtype, masters: bool, *given: Tensor) -> Sequence[Tensor]:
    arena, written = _arena(dtype, masters, given)
    define(arena)
    return _written(dtype, arena, written)


def _traffic(dtype: torch.dtype, masters: bool, shape: Shape) -> int:
    """Parameters, remainders and moments read and written, gradients read."""
    values, coded = sum(shape), sum(size for size in shape if size >= SMALL)
    missing = shape[MISSING] if len(shape) > MISSING else 0
    each = 3 * dtype.itemsize + 4 * masters
    return values * each - missing * dtype.itemsize + coded * 4 + coded // BLOCK * 16 + (values - coded) * 16


CHECKS = tuple(
    Check(
        name=f"update {name}",
        inputs=functools.partial(_inputs, dtype, masters),
        kernel=functools.partial(_kernel, dtype, masters),
        reference=functools.partial(_reference, dtype, masters),
        shapes=((4099, 5003, 17, 256, 1), (4096, 8192), (3000, 1)),
        large=(1 << 26, 5003, 17),
        traffic=functools.partial(_traffic, dtype, masters),
        close=(CLOSE if dtype == torch.float32 else APART, APART, APART, *[CLOSE] * (4 + masters)),
        timed=functools.partial(_timed, dtype, masters),
        baseline=("torch", functools.partial(_reference, dtype, masters)),
    )
    for name, dtype, masters in (
        ("fp32", torch.float32, False),
        ("bf16 noise", torch.bfloat16, False),
        ("bf16 remainder", torch.bfloat16, True),
    )
)
