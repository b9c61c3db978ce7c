"""The conformance checks of ``surogate_core.testing`` over every installed offer: what a third party's plugin has to pass too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from surogate_core import testing
from surogate_core.contracts import Attaches, LoggerContext, Sample
from surogate_core.errors import ModelError
from surogate_core.host import load_host
from surogate_core.offers import Offer

HOST = load_host()
COARSE = {"fp8_hybrid": 0.08, "nvfp4": 0.22, "nvfp4_quartet": 0.22}
"""Recipes that round, with the relative error of one small linear layer that they may have."""


def offers(kind: str) -> list[Offer]:
    return list(HOST.offers(kind).values())


def build(offer: Offer, context: object) -> object:
    return offer.load()(offer.options() if offer.options else None, context)


def each(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("offer", offers(kind), ids=lambda offer: offer.name)


@each("recipes")
def test_recipe(offer: Offer) -> None:
    context = testing.context(model_dtype="fp32", recipe_backend="emulated")
    testing.check_recipe(build(offer, context), bound=COARSE.get(offer.name, 1e-6))  # type: ignore[arg-type]


@each("optimizers")
def test_optimizer(offer: Offer) -> None:
    testing.check_optimizer(build(offer, testing.context()))  # type: ignore[arg-type]


NO_SLOTS = {"prompt", "prefix"}
"""Adapters of the whole model; their plugin's tests compare them with PEFT's."""


@pytest.mark.parametrize(
    "offer", [offer for offer in offers("adapters") if offer.name not in NO_SLOTS], ids=lambda offer: offer.name
)
def test_adapter(offer: Offer, tmp_path: Path) -> None:
    adapter: Any = build(offer, testing.context())
    nonlinear = offer.name == "bottleneck"
    place = testing.site(name="model.layers.0.mlp.down_proj")
    testing.check_adapter(adapter, tmp_path, place, merges=not nonlinear)
    if nonlinear:
        with pytest.raises(ModelError, match="cannot be merged"):
            adapter.delta(adapter.linear(place))


@pytest.mark.parametrize("name", sorted(NO_SLOTS))
def test_an_adapter_of_the_whole_model_takes_no_slot(name: str) -> None:
    adapter: Any = build(HOST.offers("adapters")[name], testing.context())
    assert isinstance(adapter, Attaches)
    assert adapter.claim(testing.site())


@each("schedules")
def test_schedule(offer: Offer) -> None:
    testing.check_schedule(build(offer, testing.context()))  # type: ignore[arg-type]


@each("loggers")
def test_logger(offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    context = LoggerContext(
        config=testing.context(report_to=[offer.name]).config,
        output_dir=tmp_path,
        run_name="run",
        resumed=0,
        terminal=False,
        quiet=False,
    )
    options = offer.options
    if options is not None and "log_file" in {field.name for field in attrs.fields(options)}:
        logger = offer.load()(options(log_file=str(tmp_path / "log.jsonl")), context)
    else:
        logger = build(offer, context)
    testing.check_logger(logger)  # type: ignore[arg-type]


@each("commands")
def test_command_has_help(offer: Offer) -> None:
    assert offer.load().help


class TestTheChecksCanFail:
    """A wrong reference plugin fails each check."""

    def test_recipe(self) -> None:
        class Halved:
            def claim(self, site: object) -> None: ...
            def linear(self, site: object) -> object:
                return lambda x, weight, bias: 0.5 * (x @ weight.t())

        with pytest.raises(AssertionError, match="output: relative error 5"):
            testing.check_recipe(Halved(), bound=1e-3)  # type: ignore[arg-type]

    def test_schedule(self) -> None:
        with pytest.raises(AssertionError, match="rises"):
            testing.check_schedule(lambda progress: 1.0 - progress if progress < 0.5 else 0.8)

    def test_optimizer(self) -> None:
        import torch

        class Forgetful:
            """Momentum that is not in its state."""

            def state_bytes(self, shape: tuple[int, ...], name: str = "") -> int:
                return 0

            def bind(self, groups: object, seed: int) -> object:
                params = groups[0].params  # type: ignore[index]
                momentum = [torch.zeros_like(parameter) for parameter in params]

                class State:
                    def step(self, lr: torch.Tensor, step: int) -> None:
                        with torch.no_grad():
                            for parameter, velocity in zip(params, momentum, strict=True):
                                velocity.mul_(0.9).add_(parameter.grad)
                                parameter.sub_(lr * velocity)

                    def state_dict(self) -> dict[str, torch.Tensor]:
                        return {}

                    def load_state_dict(self, state: object) -> None: ...

                return State()

        with pytest.raises(AssertionError, match="differ from 6 steps"):
            testing.check_optimizer(Forgetful())  # type: ignore[arg-type]

    def test_format(self) -> None:
        class Counted:
            overlong = "split"

            def __init__(self, weights: list[float]):
                self.weights = weights

            def encode(self, row: dict[str, str]) -> list[Sample]:
                return [Sample(input_ids=[1, 2, 3], weights=self.weights)]

        testing.check_format(Counted([0.0, 1.0, 0.5]), [{"text": "a"}])  # type: ignore[arg-type]
        with pytest.raises(AssertionError, match="as many weights as tokens"):
            testing.check_format(Counted([1.0]), [{"text": "a"}])  # type: ignore[arg-type]
        with pytest.raises(AssertionError, match="finite and not negative"):
            testing.check_format(Counted([0.0, 1.0, -1.0]), [{"text": "a"}])  # type: ignore[arg-type]

    def test_logger(self) -> None:
        class Picky:
            def log(self, record: dict[str, object]) -> None:
                record["loss"]

            def close(self) -> None: ...

        with pytest.raises(KeyError):
            testing.check_logger(Picky())  # type: ignore[arg-type]
