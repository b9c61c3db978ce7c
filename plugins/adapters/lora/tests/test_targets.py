from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from surogate_adapter_lora.plugin import Options, check_plan
from surogate_adapter_lora.targets import NO_DORA, check_targets, refusal

from surogate_core.contracts import Site

DENSE = (
    Site(name="model.embed_tokens", kind="embedding", shape=(10, 4)),
    *(
        Site(name=f"model.layers.{layer}.{part}", kind="linear", shape=(4, 4), layer=layer)
        for layer in range(2)
        for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
    ),
    Site(name="model.layers.0.input_layernorm", kind="norm", shape=(4,), layer=0),
    Site(name="lm_head", kind="head", shape=(10, 4)),
)
EXPERTS = (
    Site(name="model.layers.0.self_attn.q_proj", kind="linear", shape=(4, 4), layer=0),
    Site(name="model.layers.0.mlp.experts.gate_up_proj", kind="stacked_linear", shape=(2, 8, 4), layer=0),
)


def claimed(*targets: str) -> list[str]:
    return [site.name for site in DENSE if refusal(site, targets) is None]


def test_targets_are_names_and_ends_of_names() -> None:
    assert len(claimed("all")) == 6
    assert claimed("q_proj") == ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    assert claimed("layers.1.mlp.up_proj", "model.layers.0.self_attn.v_proj") == [
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.mlp.up_proj",
    ]
    assert claimed("proj") == claimed("lm_head") == claimed("embed_tokens") == claimed("input_layernorm") == []
    assert check_targets(["all"], DENSE) == check_targets(["q_proj", "mlp.up_proj"], DENSE) == []


def test_a_target_that_matches_nothing_names_the_nearest() -> None:
    (problem,) = check_targets(["q_proj", "qproj"], DENSE)
    assert problem.what == "'qproj' matches no layer of this model"
    assert problem.where == "lora_target_modules"
    assert problem.how == 'did you mean q_proj or v_proj or up_proj? there are q_proj, up_proj, v_proj, or "all"'


@pytest.mark.parametrize(("target", "kind"), [("lm_head", "head"), ("embed_tokens", "embedding"), ("input_layernorm", "norm")])
def test_a_target_that_is_no_linear_layer_says_what_it_is(target: str, kind: str) -> None:
    (problem,) = check_targets([target], DENSE)
    assert f"({kind} " in problem.what
    assert "q_proj, up_proj, v_proj" in problem.how


@pytest.mark.parametrize("target", ["all", "gate_up_proj"])
def test_experts_are_named_as_other_layers_are_but_have_no_dora(target: str) -> None:
    assert refusal(EXPERTS[1], [target]) is None
    assert check_targets([target], EXPERTS) == []
    (problem,) = check_targets([target], EXPERTS, dora=True)
    assert NO_DORA in problem.what
    assert problem.how == 'set lora_target_modules = ["q_proj"], or lora_use_dora = false'
    assert refusal(EXPERTS[1], [target], dora=True) == NO_DORA
    assert check_targets(["q_proj"], EXPERTS, dora=True) == []


def plan(adapter: str = "lora", lora: bool = True, targets: tuple[str, ...] = ("nothing",)) -> Any:
    core = SimpleNamespace(lora=lora, adapter=adapter, model="m")
    options = Options(lora_target_modules=list(targets))
    return SimpleNamespace(
        config=SimpleNamespace(core=core, of=lambda cls: options), sites=DENSE, adapter=None, adapted=list, outline=None
    )


def test_check_plan_asks_only_for_this_adapter() -> None:
    assert len(check_plan(plan(), "cpu")) == 1
    assert check_plan(plan(targets=("all",)), "cpu") == check_plan(plan(lora=False), "cpu") == check_plan(plan("dora"), "cpu") == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora_rank", 0),
        ("lora_alpha", 0),
        ("lora_alpha", -1),
        ("lora_dropout", 1.0),
        ("lora_dropout", -0.1),
        ("lora_target_modules", []),
    ],
)
def test_options_have_bounds(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match="must"):
        Options(**{key: value})
    assert attrs.asdict(Options())["lora_target_modules"] == ["all"]
