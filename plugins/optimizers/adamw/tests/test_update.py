from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from surogate_optimizer_adamw import update
from surogate_optimizer_adamw.plugin import register_optimizers
from surogate_optimizer_adamw.update import AdamW, build
from torch import Tensor, nn

from surogate_core.config import CoreOptions
from surogate_core.contracts import Context, ParamGroup
from surogate_core.errors import ResumeError

RULE = AdamW(beta1=0.9, beta2=0.99, epsilon=1e-8)
SHAPES = [(64, 33), (7,), (3, 5, 11), (1000,), (2049,)]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def groups(params: list[nn.Parameter]) -> list[ParamGroup]:
    """Two groups, the second without decay."""
    names = tuple(f"p{index}" for index in range(len(params)))
    return [
        ParamGroup(names=names[:3], params=tuple(params[:3]), weight_decay=0.1),
        ParamGroup(names=names[3:], params=tuple(params[3:]), weight_decay=0.0),
    ]


def set_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def rate(step: int) -> Tensor:
    return torch.tensor(1e-2 / step)


def test_float32_is_torchs_adamw() -> None:
    ours, theirs = parameters(), parameters()
    state = RULE.bind(groups(ours), seed=0)
    reference = torch.optim.AdamW(
        [{"params": theirs[:3], "weight_decay": 0.1}, {"params": theirs[3:], "weight_decay": 0.0}], betas=(0.9, 0.99), eps=1e-8
    )
    for step in range(1, 21):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        for group in reference.param_groups:
            group["lr"] = float(rate(step))
        reference.step()
        state.step(rate(step), step)
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(state.state_dict()[f"p{index}.m"], reference.state[other]["exp_avg"], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(state.state_dict()[f"p{index}.v"], reference.state[other]["exp_avg_sq"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("chunk", [512, 1 << 18])
def test_bfloat16_is_the_float32_update_rounded_to_a_neighbour(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    """After each step from equal parameters: one of the two bfloat16 values around torch's float32 result, and float32 moments."""
    monkeypatch.setitem(update.CHUNK, "cpu", chunk)
    ours, theirs = parameters(torch.bfloat16), [nn.Parameter(param.detach().float()) for param in parameters(torch.bfloat16)]
    state = RULE.bind(groups(ours), seed=0)
    reference = torch.optim.AdamW(
        [{"params": theirs[:3], "weight_decay": 0.1}, {"params": theirs[3:], "weight_decay": 0.0}], betas=(0.9, 0.99), eps=1e-8
    )
    moved = 0
    for step in range(1, 11):
        set_gradients(ours, step)
        for one, other in zip(ours, theirs, strict=True):
            assert one.grad is not None
            other.grad = one.grad.float()
        for group in reference.param_groups:
            group["lr"] = float(rate(step))
        reference.step()
        state.step(rate(step), step)
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            exact = other.detach()
            assert ((one.float() - exact).abs() < exact.abs() * 2**-7 + 1e-30).all()
            moved += int((one != exact.bfloat16()).sum())
            torch.testing.assert_close(state.state_dict()[f"p{index}.m"], reference.state[other]["exp_avg"], rtol=1e-5, atol=1e-7)
            other.data.copy_(one.data)
    assert moved > 1000  # rounding to nearest would never differ


def test_small_updates_of_bfloat16_are_not_lost() -> None:
    param = nn.Parameter(torch.ones(40_000, dtype=torch.bfloat16))
    state = RULE.bind([ParamGroup(names=("p",), params=(param,), weight_decay=0.0)], seed=4)
    for step in range(1, 41):
        param.grad = torch.ones_like(param)
        state.step(torch.tensor(4e-4), step)
    assert 1 - param.detach().float().mean().item() == pytest.approx(0.016, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_bit_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    whole, params = parameters(dtype), parameters(dtype)
    one, two = RULE.bind(groups(whole), seed=9), RULE.bind(groups(params), seed=9)
    for step in range(1, 7):
        set_gradients(whole, step)
        one.step(rate(step), step)
        if step == 4:
            save_file(two.state_dict(), tmp_path / "optimizer.safetensors")
            two = RULE.bind(groups(params), seed=9)
            two.load_state_dict(load_file(tmp_path / "optimizer.safetensors"))
        set_gradients(params, step)
        two.step(rate(step), step)
    assert all(torch.equal(a, b) for a, b in zip(whole, params, strict=True))
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_state_bytes_are_what_is_allocated() -> None:
    state = RULE.bind(groups(parameters(torch.bfloat16)), seed=0)
    assert sum(tensor.nbytes for tensor in state.state_dict().values()) == sum(map(RULE.state_bytes, SHAPES))


def test_a_state_of_another_layout_is_refused_by_name() -> None:
    state = RULE.bind(groups(parameters()), seed=0)
    good = {name: tensor.clone() for name, tensor in state.state_dict().items()}
    for change, said in (
        ({"p0.m": None}, "p0.m: float32 (64, 33) wanted, none found"),
        ({"p0.m": torch.zeros(64, 33, dtype=torch.uint8)}, "p0.m: float32 (64, 33) wanted, uint8 (64, 33) found"),
        ({"p0.m_absmax": torch.zeros(9)}, "p0.m_absmax: none wanted, float32 (9,) found"),
    ):
        changed = {name: tensor for name, tensor in {**good, **change}.items() if tensor is not None}
        with pytest.raises(ResumeError) as caught:
            state.load_state_dict(changed)
        assert said in caught.value.problems[0].what
        assert caught.value.problems[0].where
        assert "--fresh" in caught.value.problems[0].how


def test_the_offer_builds_from_the_options_of_the_core() -> None:
    (offer,) = register_optimizers()
    core = CoreOptions(model="m", adamw_beta1=0.8, adamw_beta2=0.7, adamw_epsilon=1e-3)
    assert offer.load() is build
    assert build(None, Context(config=core)) == AdamW(beta1=0.8, beta2=0.7, epsilon=1e-3)
