"""For the tests of plugins: hosts without discovery, and a conformance check for each kind of offer.

A check raises AssertionError with a sentence. A plugin's test suite is a few lines:

    def test_conforms(tmp_path):
        testing.check_optimizer(plugin.build(None, testing.context()))
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from surogate_core.config.options import CoreOptions
from surogate_core.contracts import Adapter, Context, Format, KeepsState, Logger, Optimizer, ParamGroup, Recipe, Schedule, Site
from surogate_core.host import Host, load_host
from surogate_core.offers import Owner


def host_with(*modules: Any, owner: Owner | None = None, discover: bool = False) -> Host:
    """A host with these plugin modules, and without the installed ones unless ``discover``."""
    return load_host(
        [(f"test-{number}", module, owner or Owner(f"test-{number}", "1.0")) for number, module in enumerate(modules)],
        discover=discover,
    )


def context(device: str = "cpu", **options: Any) -> Context:
    """A context with default core options, changed by ``options``."""
    return Context(config=CoreOptions(**{"model": "none", **options}), device=device)


def site(rows: int = 48, columns: int = 32, name: str = "model.layers.0.mlp.up_proj", bias: bool = False) -> Site:
    """A linear site of N = ``rows`` outputs and K = ``columns`` inputs."""
    return Site(name=name, kind="linear", shape=(rows, columns), bias=bias, layer=0)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def check_recipe(recipe: Recipe, *, bound: float, dtype: Any = None, where: Site | None = None) -> None:
    """Output and both gradients of one linear, (24, K) inputs, against float64: relative Frobenius error at most ``bound``."""
    import torch

    place = where or site()
    assert recipe.claim(place) is None, f"the recipe does not claim {place.name}: {recipe.claim(place)}"
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(24, place.shape[1], generator=generator)
    weight = torch.randn(place.shape, generator=generator) * 0.1
    dy = torch.randn(24, place.shape[0], generator=generator)
    compute = recipe.linear(place)
    xs = x.clone().to(dtype or torch.float32).requires_grad_()
    ws = weight.clone().to(dtype or torch.float32).requires_grad_()
    y = compute(xs, ws, None)
    y.backward(dy.to(y.dtype))
    assert xs.grad is not None
    assert ws.grad is not None
    exact = {
        "output": (y, x.double() @ weight.double().t()),
        "input gradient": (xs.grad, dy.double() @ weight.double()),
        "weight gradient": (ws.grad, dy.double().t() @ x.double()),
    }
    for what, (found, wanted) in exact.items():
        error = float((found.detach().double() - wanted).norm() / wanted.norm())
        assert error <= bound, f"{what}: relative error {error:.2e} above the bound {bound:.2e}"


def check_optimizer(
    optimizer: Optimizer, *, shapes: Sequence[tuple[int, ...]] = ((96, 64), (7, 5), (33,)), names: Sequence[str] | None = None
) -> None:
    """State round-trips bit for bit in mid-run, nothing moves without gradient and decay, and ``state_bytes`` tells the truth.
    ``names``: of the parameters with these shapes, for rules that go by the name."""
    import torch

    called = tuple(names or (f"p{number}" for number in range(len(shapes))))

    def parameters() -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(5)
        return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]

    def bind(params: list[torch.Tensor], decay: float = 0.1) -> Any:
        return optimizer.bind([ParamGroup(names=called, params=tuple(params), weight_decay=decay)], 11)

    def steps(params: list[torch.Tensor], bound: Any, first: int, last: int) -> None:
        for step in range(first, last + 1):
            generator = torch.Generator().manual_seed(step)
            for parameter in params:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            bound.step(torch.tensor(1e-2), step)

    whole, resumed = parameters(), parameters()
    bound = bind(whole)
    steps(whole, bound, 1, 6)
    before = bind(resumed)
    steps(resumed, before, 1, 3)
    saved = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    after = bind(resumed)
    after.load_state_dict(saved)
    steps(resumed, after, 4, 6)
    for one, two in zip(whole, resumed, strict=True):
        assert torch.equal(one, two), "3 steps, save, load and 3 steps differ from 6 steps"
    for name, tensor in bound.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name]), f"state {name!r} differs after a round trip"
    still = parameters()
    quiet = bind(still, decay=0.0)
    for parameter in still:
        parameter.grad = torch.zeros_like(parameter)
    quiet.step(torch.tensor(1e-2), 1)
    for one, two in zip(parameters(), still, strict=True):
        assert torch.equal(one, two), "a parameter moved without a gradient"
    held = sum(tensor.nbytes for tensor in bound.state_dict().values())
    said = sum(map(optimizer.state_bytes, shapes, called))
    assert abs(held - said) <= 0.05 * held + 4096, f"state_bytes says {said}, the state holds {held}"


def check_adapter(adapter: Adapter, directory: Path, where: Site | None = None, merges: bool = True) -> None:
    """Identity at the start; save and load keep every bit; ``delta`` equals what the adapter adds, to 1e-5, if it ``merges``. For
    adapters that fill slots."""
    import torch

    place = where or site()
    assert adapter.claim(place) is None, f"the adapter does not claim {place.name}"

    def fresh() -> torch.nn.Module:
        module = adapter.linear(place)
        module.to_empty(device="cpu")
        adapter.reset(module, torch.Generator().manual_seed(1))
        return module.eval()

    module = fresh()
    x, y = torch.randn(5, place.shape[1]), torch.randn(5, place.shape[0])
    assert torch.equal(module(x, y), y), "the adapter is not the identity at its start"
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape).to(parameter.dtype) * 0.1)
    added = module(x, y) - y
    assert not merges or torch.allclose(added, x @ adapter.delta(module).t(), atol=1e-4), "delta is not what the adapter adds"
    adapter.save({place.name: module}, directory, "base")
    again = fresh()
    adapter.load({place.name: again}, directory)
    for (name, one), two in zip(module.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two), f"{name} changed through save and load"


def check_schedule(schedule: Schedule) -> None:
    """1 at the start, never above 1 nor below 0, never rising."""
    values = [schedule(number / 100) for number in range(101)]
    assert values[0] == 1.0, f"the shape starts at {values[0]}, not at 1"
    assert all(-1e-9 <= value <= 1 for value in values), "the shape leaves [0, 1]"
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(values)), "the shape rises"


def check_format(encoder: Format, rows: Sequence[Mapping[str, Any]]) -> None:
    """As many weights as tokens, weights finite and not negative, the same answer twice."""
    assert encoder.overlong in ("split", "truncate")
    for row in rows:
        samples = encoder.encode(row)
        for one, two in zip(samples, encoder.encode(row), strict=True):
            assert len(one.input_ids) == len(one.weights), "as many weights as tokens"
            assert all(0 <= weight < float("inf") for weight in one.weights), "weights are finite and not negative"
            assert list(one.input_ids) == list(two.input_ids), "the same row gave two answers"


def check_logger(logger: Logger) -> None:
    """Every kind of record is taken, with no more than ``kind`` and ``step`` in it, close may be called twice, a state is JSON."""
    for kind in ("run", "ledger", "step", "eval", "checkpoint", "notice", "decision", "end"):
        logger.log({"kind": kind, "step": 1})
    if isinstance(logger, KeepsState):
        assert json.loads(json.dumps(logger.state())) == logger.state(), "the state does not survive JSON"
    logger.close()
    logger.close()
