"""The update rule against a restatement of the paper in float64 that takes singular value decompositions, and torch.optim.Muon."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from safetensors.torch import load_file, save_file
from surogate_optimizer_adamw_8bit.update import AdamW8bit
from surogate_optimizer_normuon import orthogonal, update
from surogate_optimizer_normuon.plugin import Options, register_optimizers
from surogate_optimizer_normuon.update import NorMuon, State, build
from torch import Tensor, nn

from surogate_core import testing
from surogate_core.contracts import ParamGroup
from surogate_core.errors import ResumeError

ADAMW = AdamW8bit(beta1=0.9, beta2=0.99, epsilon=1e-8)
SMALL = [(48, 64), (64, 48), (40, 40)]
LARGE = [(64, 80), (96, 100), (160, 48)]  # 9,600 values are 37.5 blocks
JOINED = ["layers.0.mlp.gate_up_proj.weight", "layers.0.self_attn.qkv_proj.weight", "layers.0.self_attn.o_proj.weight"]
RATE = 1e-2


def rule(**changes: Any) -> NorMuon:
    return NorMuon(**{"momentum": 0.95, "beta2": 0.9, "cautious": True, "adamw": ADAMW, "work": torch.float32, **changes})


def parameters(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter((torch.randn(shape, generator=generator) * 0.02).to(dtype)) for shape in shapes]


def gradients(shapes: list[tuple[int, ...]], step: int) -> list[Tensor]:
    """Rows of very different size, and a common part so that momentum matters."""
    fixed, new = torch.Generator().manual_seed(7), torch.Generator().manual_seed(1000 + step)
    rows = [torch.logspace(-2, 0, shape[-2])[:, None] for shape in shapes]
    return [
        1e-3 * size * (torch.randn(shape, generator=fixed) + torch.randn(shape, generator=new))
        for size, shape in zip(rows, shapes, strict=True)
    ]


def bind(params: list[nn.Parameter], made: NorMuon, decay: float = 0.0, names: list[str] | None = None) -> State:
    called = names or [f"layers.{number}.mlp.up_proj.weight" for number in range(len(params))]
    return made.bind([ParamGroup(names=tuple(called), params=tuple(params), weight_decay=decay)], seed=1)


def steps(params: list[nn.Parameter], state: State, first: int, last: int, rate: float = RATE) -> None:
    for step in range(first, last + 1):
        for param, gradient in zip(params, gradients([tuple(p.shape) for p in params], step), strict=True):
            param.grad = gradient.to(param.dtype)
        state.step(torch.tensor(rate), step)


class Paper:
    """Algorithm 1 of arXiv 2510.05491 for one matrix in float64, with the exact effect of Polar Express on singular values, and
    momentum that is rounded after each step to the nearest value of bitsandbytes' signed map, blocks of 256, if it is large."""

    def __init__(self, matrix: Tensor, made: NorMuon, decay: float):
        self.w, self.made, self.decay = matrix.detach().double(), made, decay
        self.m, self.v = torch.zeros_like(self.w), torch.zeros(len(matrix), dtype=torch.float64)
        self.map = bitsandbytes.functional.create_dynamic_map(signed=True).double()

    def step(self, gradient: Tensor, rate: float) -> None:
        made = self.made
        m = made.momentum * self.m + (1 - made.momentum) * gradient.double()
        u, s, vh = torch.linalg.svd(m, full_matrices=False)
        s = s / (1.02 * s.square().sum().sqrt())
        for a, b, c in orthogonal.COEFFICIENTS:
            s = a * s + b * s**3 + c * s**5
        o = u * s @ vh
        self.v = made.beta2 * self.v + (1 - made.beta2) * o.square().mean(dim=1)
        scaled = o / (self.v.sqrt() + 1e-8)[:, None]
        change = 0.2 * rate * math.sqrt(o.numel()) / scaled.norm() * scaled
        mask = (change * self.w >= 0).double() if made.cautious else 1.0
        self.w = self.w - rate * self.decay * mask * self.w - change
        self.m = self.rounded(m) if m.numel() >= 4096 else m

    def rounded(self, m: Tensor) -> Tensor:
        flat = torch.cat([m.flatten(), m.new_zeros(-m.numel() % 256)]).view(-1, 256)
        absmax = flat.abs().amax(dim=1, keepdim=True)
        near = self.map[(flat[..., None] / absmax[..., None].clamp_min(1e-300) - self.map).abs().argmin(dim=2)] * absmax
        return near.flatten()[: m.numel()].view(m.shape)


@pytest.mark.parametrize("cautious", [True, False])
@pytest.mark.parametrize("shapes", [SMALL, LARGE], ids=["float32", "8bit"])
def test_fifty_steps_follow_the_paper(shapes: list[tuple[int, ...]], cautious: bool) -> None:
    made, params = rule(cautious=cautious), parameters(shapes)
    start = [param.detach().clone() for param in params]
    papers = [Paper(param, made, 0.5) for param in params]
    state = bind(params, made, 0.5)
    for step in range(1, 51):
        steps(params, state, step, step, RATE / step)
        for paper, gradient in zip(papers, gradients(shapes, step), strict=True):
            paper.step(gradient, RATE / step)
    for param, paper, before in zip(params, papers, start, strict=True):
        error = (param.double() - paper.w).norm() / (paper.w - before).norm()
        assert error < (1e-4 if shapes is SMALL else 2e-3)  # a value on the edge between two codes may take the other one


def test_bfloat16_products_turn_the_update_little() -> None:
    exact, params = parameters(LARGE), parameters(LARGE)
    before = [param.detach().clone() for param in params]
    steps(exact, bind(exact, rule()), 1, 5)
    steps(params, bind(params, rule(work=torch.bfloat16)), 1, 5)
    for one, other, start in zip(exact, params, before, strict=True):
        assert torch.cosine_similarity((one - start).flatten(), (other - start).flatten(), dim=0) > 0.999
        assert not torch.equal(one, other)


def test_without_the_second_moment_it_is_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's Muon with five equal Newton-Schulz steps, its rates for AdamW's size of update, and its plain decay. Its factors are
    0.2 sqrt(max(m, n)) for an O that is taken as orthogonal; ours measures O."""
    monkeypatch.setattr(orthogonal, "COEFFICIENTS", ((3.4445, -4.7750, 2.0315),) * 5)
    monkeypatch.setattr(orthogonal, "SAFETY", 1.0)
    monkeypatch.setattr(update, "normalize_rows", lambda o, v, beta2: o)
    params, theirs = parameters(SMALL), parameters(SMALL)
    state = bind(params, rule(cautious=False, work=torch.bfloat16), 0.1)
    muon = torch.optim.Muon(theirs, lr=RATE, weight_decay=0.1, momentum=0.95, nesterov=False, adjust_lr_fn="match_rms_adamw")
    for step in range(1, 11):
        before = [param.detach().clone() for param in params]
        steps(params, state, step, step)
        for param, gradient, start in zip(theirs, gradients(SMALL, step), before, strict=True):
            param.data.copy_(start)
            param.grad = gradient
        muon.step()
        for one, other, start in zip(params, theirs, before, strict=True):
            kept = start * (1 - RATE * 0.1)
            mine, muons = one.detach() - kept, other.detach() - kept
            assert torch.cosine_similarity(mine.flatten(), muons.flatten(), dim=0) > 0.9995
            assert float(mine.square().mean().sqrt()) == pytest.approx(0.2 * RATE, rel=1e-4)
            assert float(muons.norm() / mine.norm()) == pytest.approx(0.87, abs=0.12)  # its singular values lie in .68 to 1.13


@pytest.mark.parametrize("shape", [(16, 200), (200, 16), (64, 64), (1, 8), (4, 32, 48)])
def test_the_update_has_the_stated_size_whatever_the_shape(shape: tuple[int, ...]) -> None:
    (param,) = parameters([shape])
    state = bind([param], rule(), names=["layers.0.mlp.experts.down_proj"])
    for step in range(1, 8):
        before = param.detach().clone()
        steps([param], state, step, step, rate=3e-3)
        change = (param.detach() - before).view(-1, *shape[-2:])
        assert change.square().mean(dim=(1, 2)).sqrt().tolist() == pytest.approx([0.2 * 3e-3] * len(change), rel=1e-4)


def moved(made: NorMuon, count: int = 6) -> Tensor:
    (param,) = parameters([(48, 64)])
    before = param.detach().clone()
    steps([param], bind([param], made), 1, count)
    return param.detach() - before


def test_momentum_and_beta2_change_the_update() -> None:
    base = moved(rule())
    assert not torch.allclose(base, moved(rule(momentum=0.5)), rtol=0.01)
    assert not torch.allclose(base, moved(rule(beta2=0.5)), rtol=0.01)


def test_the_second_moment_gives_rows_equal_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With beta2 = 0 each row's update has the same norm, however different the rows of the gradient (a tall matrix, where an
    orthogonal factor has rows of different norm)."""

    def rows(made: NorMuon) -> Tensor:
        (param,) = parameters([(96, 16)])
        before = param.detach().clone()
        steps([param], bind([param], made), 1, 1)
        return (param.detach() - before).norm(dim=1)

    equal = rows(rule(beta2=0.0))
    assert float(equal.max() / equal.min()) == pytest.approx(1, rel=1e-3)
    monkeypatch.setattr(update, "normalize_rows", lambda o, v, beta2: o)
    assert float(rows(rule()).max() / rows(rule()).min()) > 3


@pytest.mark.parametrize("shape", [(48, 64), (96, 100)])
def test_cautious_decay_is_plain_decay_where_the_update_shrinks_the_weight(shape: tuple[int, int]) -> None:
    ends = {}
    for label, made, decay in (
        ("none", rule(), 0.0),
        ("plain", rule(cautious=False), 0.4),
        ("cautious", rule(), 0.4),
    ):
        (param,) = parameters([shape])
        start = param.detach().clone()
        steps([param], bind([param], made, decay), 1, 1)
        ends[label] = param.detach()
    shrinks = (start - ends["none"]) * start >= 0
    assert 0.3 < float(shrinks.float().mean()) < 0.7
    torch.testing.assert_close(ends["plain"], ends["none"] - RATE * 0.4 * start, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(ends["cautious"], torch.where(shrinks, ends["plain"], ends["none"]), rtol=1e-5, atol=1e-8)


def test_matrices_do_not_depend_on_their_company(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, all in one bank, and a bank cut into chunks of one matrix give the same weights."""
    shapes = [(64, 80), (64, 80), (3, 64, 80)]
    names = ["layers.0.q_proj.weight", "layers.1.q_proj.weight", "layers.2.experts.down_proj"]

    def run() -> list[nn.Parameter]:
        params = parameters(shapes)
        steps(params, bind(params, rule(), 0.1, names), 1, 4)
        return params

    together = run()
    monkeypatch.setitem(update.CHUNK, "cpu", 64 * 80)
    chunked = run()
    alone = parameters(shapes)
    states = [bind([param], rule(), 0.1, [name]) for param, name in zip(alone, names, strict=True)]
    for step in range(1, 5):
        for param, state, gradient in zip(alone, states, gradients(shapes, step), strict=True):
            param.grad = gradient
            state.step(torch.tensor(RATE), step)
    for one, two, three in zip(together, chunked, alone, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(one, three, rtol=1e-5, atol=1e-7)


def test_parts_of_a_joined_weight_are_updated_as_separate_weights() -> None:
    joined = parameters([(96, 64), (128, 64), (64, 64)])
    rows = {0: (48, 48), 1: (64, 32, 32), 2: (64,)}
    apart = [nn.Parameter(part.clone()) for number, param in enumerate(joined) for part in param.detach().split(rows[number])]
    states = bind(joined, rule(), 0.1, JOINED), bind(apart, rule(), 0.1)
    whole = parameters([(96, 64)])
    single = bind(whole, rule(), 0.1)
    for step in range(1, 5):
        grads = gradients([(96, 64), (128, 64), (64, 64)], step)
        for param, gradient in zip(joined, grads, strict=True):
            param.grad = gradient
        parts = [part for number, gradient in enumerate(grads) for part in gradient.split(rows[number])]
        for param, gradient in zip([*apart, *whole], [*parts, grads[0]], strict=True):
            param.grad = gradient
        for state in (*states, single):
            state.step(torch.tensor(RATE), step)
    pieces = iter(apart)
    for number, param in enumerate(joined):
        torch.testing.assert_close(param, torch.cat([next(pieces) for _ in rows[number]]), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(joined[0], whole[0], atol=1e-4)


def test_groups_have_their_own_decay() -> None:
    params = parameters([(48, 64), (48, 64)])
    start = [param.detach().clone() for param in params]
    groups = [
        ParamGroup(names=(f"layers.{number}.up_proj.weight",), params=(param,), weight_decay=decay)
        for number, (param, decay) in enumerate(zip(params, (0.5, 0.0), strict=True))
    ]
    for param in params:
        param.grad = torch.zeros_like(param)
    rule().bind(groups, seed=1).step(torch.tensor(0.1), 1)
    assert [param.detach().div(before).mean().item() for param, before in zip(params, start, strict=True)] == pytest.approx(
        [0.95, 1]
    )


OTHERS = ["model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "model.layers.0.q_proj.adapter.lora_A", "lm_head"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_else_is_updated_by_adamw_8bit(dtype: torch.dtype) -> None:
    shapes: list[tuple[int, ...]] = [(96, 64), (64, 1), (8, 64), (96, 64)]
    mixed, plain = parameters([*shapes, (64, 64)], dtype), parameters(shapes, dtype)
    both = bind(mixed, rule(), 0.1, [*OTHERS, "model.layers.0.q_proj.weight"])
    state = ADAMW.bind([ParamGroup(names=tuple(OTHERS), params=tuple(plain), weight_decay=0.1)], seed=1)
    for step in range(1, 5):
        for params in (mixed, plain):
            for param, gradient in zip(params, gradients([*shapes, (64, 64)], step), strict=False):
                param.grad = gradient.to(dtype)
        both.step(torch.tensor(RATE), step)
        state.step(torch.tensor(RATE), step)
    assert all(torch.equal(one, other) for one, other in zip(mixed, plain, strict=False))
    mine = both.state_dict()
    assert all(torch.equal(mine[name], tensor) for name, tensor in state.state_dict().items())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_matrix_without_a_finite_gradient_stays_and_goes_on(bad: float) -> None:
    shapes: list[tuple[int, ...]] = [(64, 80), (64, 80)]
    params, twins = parameters(shapes), parameters(shapes)
    state, twin = bind(params, rule(), 0.1), bind(twins, rule(), 0.1)
    for step in (1, 2, 3):
        before = params[0].detach().clone()
        for group, one in ((params, state), (twins, twin)):
            for param, gradient in zip(group, gradients(shapes, step), strict=True):
                param.grad = gradient
            if step == 2:
                assert group[0].grad is not None
                group[0].grad.view(-1)[5] = bad if group is params else 0
            one.step(torch.tensor(RATE), step)
        assert torch.equal(params[0], before) is (step == 2)
        assert torch.equal(params[1], twins[1])
    assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in (*params, *state.state_dict().values()))


def test_bfloat16_weights_follow_the_float32_ones_on_average() -> None:
    """Updates of a few hundredths of a bfloat16 step would be lost by rounding to nearest."""
    moves = []
    for dtype in (torch.float32, torch.bfloat16):
        param = nn.Parameter(torch.ones(200, 200, dtype=dtype))
        state = bind([param], rule())
        for step in range(1, 41):
            param.grad = torch.full_like(param, 1e-3)
            state.step(torch.tensor(5e-4), step)
        moves.append(1 - param.detach().float().mean().item())
    assert moves[0] == pytest.approx(40 * 0.2 * 5e-4, rel=1e-3)
    assert moves[1] == pytest.approx(moves[0], rel=0.02)


def test_conforms() -> None:
    names = ["layers.0.q_proj.weight", "layers.0.k_proj.weight", "layers.0.norm.weight", "layers.0.experts.down_proj", "embed"]
    testing.check_optimizer(rule(work=torch.bfloat16), shapes=[(96, 64), (7, 5), (33,), (3, 64, 96), (512, 64)], names=names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_bit_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    shapes: list[tuple[int, ...]] = [(192, 64), (128, 64), (64, 64)]
    whole, params = parameters(shapes, dtype), parameters(shapes, dtype)
    made = rule(work=torch.bfloat16)
    one, two = bind(whole, made, 0.1, JOINED), bind(params, made, 0.1, JOINED)
    steps(whole, one, 1, 6)
    steps(params, two, 1, 3)
    save_file({name: tensor.contiguous() for name, tensor in two.state_dict().items()}, tmp_path / "optimizer.safetensors")
    two = bind(params, made, 0.1, JOINED)
    two.load_state_dict(load_file(tmp_path / "optimizer.safetensors"))
    steps(params, two, 4, 6)
    assert all(torch.equal(a, b) for a, b in zip(whole, params, strict=True))
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("layers.0.q_proj.weight", (512, 256)),
        ("layers.0.q_proj.weight", (24, 16)),
        ("layers.0.experts.down_proj", (4, 128, 96)),
        ("embed_tokens.weight", (512, 64)),
        ("layers.0.q_proj.adapter.lora_B", (512, 64)),
    ],
)
def test_state_bytes_are_what_is_held(name: str, shape: tuple[int, ...]) -> None:
    state = bind(parameters([shape]), rule(), names=[name])
    assert rule().state_bytes(shape, name) == sum(tensor.nbytes for tensor in state.state_dict().values())


def test_half_the_state_of_adamw_8bit() -> None:
    name = "layers.0.q_proj.weight"
    assert rule().state_bytes((1024, 1024), name) / ADAMW.state_bytes((1024, 1024)) == pytest.approx(0.5, abs=0.002)


def test_a_state_of_another_optimizer_is_refused_by_name() -> None:
    params = parameters([(64, 80)])
    state = bind(params, rule())
    other = ADAMW.bind([ParamGroup(names=("layers.0.mlp.up_proj.weight",), params=tuple(params), weight_decay=0.0)], 1)
    with pytest.raises(ResumeError, match=r"not one of normuon .*up_proj.weight.v: float32 \(1, 64\) wanted, uint8"):
        state.load_state_dict(other.state_dict())


def test_the_offer_builds_from_its_options_and_those_of_the_core() -> None:
    (offer,) = register_optimizers()
    options = Options(normuon_momentum=0.5, normuon_beta2=0.6, normuon_cautious_wd=False)
    assert offer.load() is build
    made = build(options, testing.context(adamw_beta1=0.8, adamw_beta2=0.7, adamw_epsilon=1e-3))
    adamw = AdamW8bit(beta1=0.8, beta2=0.7, epsilon=1e-3)
    assert made == NorMuon(momentum=0.5, beta2=0.6, cautious=False, adamw=adamw, work=torch.bfloat16)
