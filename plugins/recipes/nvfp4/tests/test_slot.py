from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from attrs import evolve
from surogate_recipe_nvfp4 import linear, quartet
from surogate_recipe_nvfp4.plugin import Options
from surogate_recipe_nvfp4.slot import Slot
from torch import Tensor, nn

from surogate_core import testing
from surogate_core.contracts import Context


class Backend(NamedTuple):
    """A recipe's module under one ``recipe_backend``."""

    module: Any
    backend: str

    def build(self, options: Options, context: Context) -> Any:
        return self.module.build(options, evolve(context, config=evolve(context.config, recipe_backend=self.backend)))


BACKENDS = [Backend(module, backend) for module in (linear, quartet) for backend in ("native", "emulated")]
both = pytest.mark.parametrize("module", BACKENDS, ids=lambda one: f"{one.module.__name__.rpartition('.')[2]}-{one.backend}")


def make(module: Any, name: str = "model.layers.0.mlp.up_proj", seed: int = 1234) -> Slot:
    return module.build(Options(), testing.context(train_seed=seed)).linear(testing.site(32, 32, name=name))


def gradients(slot: Slot, weight: Tensor, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 32, generator=generator).requires_grad_()
    return torch.autograd.grad(slot(x, weight, None), [x, weight], torch.randn(16, 32, generator=generator))


@pytest.fixture
def weight() -> nn.Parameter:
    return nn.Parameter(torch.randn(32, 32, generator=torch.Generator().manual_seed(1)))


@both
def test_draws_are_a_function_of_seed_layer_and_backward_pass(module: Any, weight: nn.Parameter) -> None:
    slot = make(module)
    first, second = gradients(slot, weight), gradients(slot, weight)
    assert int(slot.draws) == 2
    again = make(module)
    for wanted in (first, second):
        assert all(torch.equal(one, two) for one, two in zip(gradients(again, weight), wanted, strict=True))
    others = [second, gradients(make(module, name="other"), weight), gradients(make(module, seed=1235), weight)]
    for other in others:
        assert not torch.equal(first[0], other[0])
        assert not torch.equal(first[1], other[1])


@both
def test_a_restored_counter_continues_the_draws(module: Any, weight: nn.Parameter) -> None:
    slot = make(module)
    for _ in range(3):
        gradients(slot, weight)
    state = {name: value.clone() for name, value in slot.state_dict().items()}
    wanted = gradients(slot, weight)
    again = make(module)
    again.load_state_dict(state)
    assert all(torch.equal(one, two) for one, two in zip(gradients(again, weight), wanted, strict=True))


@both
def test_forward_passes_draw_nothing(module: Any, weight: nn.Parameter) -> None:
    slot = make(module)
    x = torch.randn(16, 32)
    before = torch.get_rng_state()
    assert torch.equal(slot(x, weight, None), slot(x, weight, None))
    assert int(slot.draws) == 0
    gradients(slot, weight, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


@both
def test_a_weight_is_quantised_once_until_it_changes(module: Any, weight: nn.Parameter, monkeypatch: pytest.MonkeyPatch) -> None:
    slot = make(module)
    calls = []
    inner = slot.weights
    monkeypatch.setattr(slot, "weights", lambda weight: calls.append(weight) or inner(weight))
    weight.requires_grad_(False)
    x = torch.randn(16, 32)
    first = slot(x, weight, None)
    assert torch.equal(slot(x, weight, None), first)
    assert len(calls) == 1
    weight.mul_(2)
    torch.testing.assert_close(slot(x, weight, None), 2 * first)
    slot(x, weight.clone(), None)
    assert len(calls) == 3
    assert "kept" not in " ".join(slot.state_dict())


@both
def test_after_a_step_trained_weights_are_quantised_again_and_frozen_ones_are_not(module: Any, weight: nn.Parameter) -> None:
    recipe = module.build(Options(), testing.context())
    trained, frozen = (recipe.linear(testing.site(32, 32, name=name)) for name in "ab")
    still = nn.Parameter(weight.detach().clone(), requires_grad=False)
    x = torch.randn(16, 32)
    before = trained(x, weight, None), frozen(x, still, None)
    weight.data.mul_(3)  # leaves no trace in the version
    still.data.mul_(3)
    recipe.stepped({"a": trained, "b": frozen, "c": nn.Identity()})
    torch.testing.assert_close(trained(x, weight, None), 3 * before[0])
    assert torch.equal(frozen(x, still, None), before[1])


@both
def test_frozen_weights_get_no_gradient_and_frozen_inputs_neither(module: Any, weight: nn.Parameter) -> None:
    slot = make(module)
    x = torch.randn(16, 32).requires_grad_()
    slot(x, weight.detach(), None).sum().backward()
    assert x.grad is not None
    slot(x.detach(), weight, None).sum().backward()
    assert weight.grad is not None
