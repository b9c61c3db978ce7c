"""What a plan says before anything is loaded: sites, slots, figures, conflicts, and what changes its fingerprint."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from surogate_model_transformers import testing as models_testing

from surogate_core import Offer, Problem, hookimpl, testing
from surogate_core.config import load
from surogate_core.errors import ConfigError, PlanError
from surogate_core.host import load_host
from surogate_core.offers import Owner
from surogate_core.plan import Plan, build, figures, make_plan
from surogate_core.train.run import execute


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_testing.tiny_model(tmp_path_factory.mktemp("tiny"))


def plan(model: Path, tmp_path: Path, *extra: Any, **options: Any) -> Plan:
    data = testing.write_rows(tmp_path / "text.jsonl", [{"text": "one"}])
    host = load_host([(f"extra-{number}", module, Owner("acme", "2.0")) for number, module in enumerate(extra)])
    config = {
        "model": str(model),
        "sequence_len": 64,
        "model_dtype": "fp32",
        "datasets": [{"path": str(data), "type": "text"}],
        **options,
    }
    return make_plan(load(config, host), host)


def test_figures_equal_the_model_and_the_settings(model: Path, tmp_path: Path) -> None:
    made = plan(model, tmp_path, per_device_train_batch_size=3, gradient_accumulation_steps=5, max_steps=7)
    real = transformers.AutoModelForCausalLM.from_pretrained(model)
    count = sum(parameter.numel() for parameter in real.parameters())
    assert (made.figures.parameters, made.figures.trainable) == (count, count)
    assert (made.figures.rows_per_step, made.figures.tokens_per_step, made.figures.steps) == (15, 15 * 64, 7)
    assert made.figures.memory["weights"] == made.figures.memory["gradients"] == 4 * count
    assert plan(model, tmp_path, model_dtype="bf16").figures.memory["weights"] == 2 * count
    assert plan(model, tmp_path).figures.steps is None


def test_lora_figures_equal_peft(model: Path, tmp_path: Path) -> None:
    import peft

    made = plan(model, tmp_path, lora=True, lora_rank=4)
    adapted = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(model), peft.LoraConfig(r=4, target_modules="all-linear")
    )
    assert made.figures.trainable == adapted.get_nb_trainable_parameters()[0]
    assert len(made.adapted()) == 14
    assert made.figures.memory["gradients"] == 4 * made.figures.trainable


def test_every_linear_of_a_block_has_three_slots_and_head_and_embedding_none(model: Path, tmp_path: Path) -> None:
    made = plan(model, tmp_path, lora=True, lora_target_modules=["q_proj"])
    assert len(made.slots) == 14
    assert not [name for name in made.slots if "lm_head" in name or "embed" in name]
    owners = {site.role: made.slots[site.name].adapter for site in made.sites if site.name in made.slots}
    assert owners["q_proj"] is not None
    assert owners["q_proj"].distribution == "surogate-adapter-lora"
    assert owners["k_proj"] is None
    assert {str(slots.compute).split()[0] for slots in made.slots.values()} == {"surogate-recipe-bf16"}


def test_a_target_that_matches_nothing_names_the_nearest(model: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError) as caught:
        plan(model, tmp_path, lora=True, lora_target_modules=["q_prj", "query"])
    whats = [problem.what for problem in caught.value.problems]
    assert any("'q_prj' matches no layer" in what for what in whats)
    assert any("'query' matches no layer" in what for what in whats)
    assert any("did you mean q_proj" in problem.how for problem in caught.value.problems)


def third(build: str, requires: str = "", name: str = "theirs") -> type:
    class Module:
        @staticmethod
        @hookimpl
        def register_recipes() -> list[Offer]:
            return [Offer(name, None, build=build, requires=requires, summary="Theirs.")]

    return Module


class Picky:
    def claim(self, site: Any) -> str | None:
        return "too deep" if site.layer else None

    def linear(self, site: Any) -> Any:
        return torch.nn.functional.linear


def build_picky(options: None, context: Any) -> Picky:
    return Picky()


def build_broken(options: None, context: Any) -> Picky:
    raise ValueError("no luck")


def test_a_recipe_says_why_it_leaves_a_site(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surogate_core.testing.build_picky", build_picky, raising=False)
    made = plan(model, tmp_path, third("surogate_core.testing:build_picky"), recipe="theirs")
    assert {slots.left for name, slots in made.slots.items() if ".layers.1." in name} == {"too deep"}
    assert {str(slots.compute) for name, slots in made.slots.items() if ".layers.0." in name} == {"acme 2.0"}
    assert "model dtype (too deep)" in made.render()


def test_a_build_that_raises_is_attributed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surogate_core.testing.build_broken", build_broken, raising=False)
    with pytest.raises(ValueError, match="no luck") as caught:
        plan(model, tmp_path, third("surogate_core.testing:build_broken"), recipe="theirs")
    assert caught.value.__notes__ == ["raised by plugin acme 2.0 in hook build of 'theirs'"]


def test_hardware_that_is_not_there_is_named(model: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, and this is about one without: CUDA_VISIBLE_DEVICES= hides it")
    with pytest.raises(PlanError, match=r"theirs needs sm_89\+, this machine has no GPU"):
        plan(model, tmp_path, third("surogate_core.testing:build_picky", "sm_89+"), recipe="theirs")


@pytest.mark.parametrize("backend", ["auto", "native"])
def test_a_recipe_the_device_lacks_names_the_nearest_and_the_emulation(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setattr("surogate_core.testing.build_picky", build_picky, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    build = "surogate_core.testing:build_picky"
    others = [third(build, "sm_90+", "older"), third(build, "sm_100+", "theirs")]
    with pytest.raises(PlanError, match=r"theirs needs sm_100\+, this machine has a GPU of compute capability 9\.0") as caught:
        plan(model, tmp_path, *others, recipe="theirs", recipe_backend=backend)
    assert 'recipe = "older", which runs here' in caught.value.problems[0].how
    assert 'recipe_backend = "emulated"' in caught.value.problems[0].how


def test_an_emulated_recipe_runs_on_any_device(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surogate_core.testing.build_picky", build_picky, raising=False)
    other = third("surogate_core.testing:build_picky", "sm_999+")
    made = plan(model, tmp_path, other, recipe="theirs", recipe_backend="emulated")
    assert {str(slots.compute) for name, slots in made.slots.items() if ".layers.0." in name} == {"acme 2.0"}


@pytest.mark.parametrize(("first", "last", "left"), [(0, 0, set()), (1, 0, {0}), (0, 1, {1}), (1, 1, {0, 1}), (9, 9, {0, 1})])
def test_first_and_last_layers_are_left_to_the_models_dtype(
    model: Path, tmp_path: Path, first: int, last: int, left: set[int]
) -> None:
    made = plan(model, tmp_path, skip_quant_first_layers=first, skip_quant_last_layers=last)
    layers = {site.name: site.layer for site in made.sites}
    assert {layers[name] for name, slots in made.slots.items() if slots.compute is None} == left
    assert {layers[name] for name, slots in made.slots.items() if slots.left == "skip_quant"} == left


def test_all_plan_problems_are_shown_together(model: Path, tmp_path: Path) -> None:
    def check(text: str) -> type:
        class Module:
            @staticmethod
            @hookimpl
            def check_plan(plan: Plan) -> list[Problem]:
                return [Problem(f"{text} of {plan.config.core.sequence_len}")]

        return Module

    with pytest.raises(PlanError) as caught:
        plan(model, tmp_path, check("first"), check("second"))
    assert {problem.what for problem in caught.value.problems} == {"first of 64", "second of 64"}


def test_the_fingerprint_changes_with_what_changes_the_result(model: Path, tmp_path: Path) -> None:
    one = plan(model, tmp_path)
    assert one.fingerprint == plan(model, tmp_path).fingerprint
    assert one.fingerprint != plan(model, tmp_path, learning_rate=1e-3).fingerprint
    assert one.fingerprint != plan(model, tmp_path, third("surogate_core.testing:build_picky")).fingerprint


def test_render_names_what_matters(model: Path, tmp_path: Path) -> None:
    text = plan(model, tmp_path, max_steps=9).render()
    for part in ("qwen3", "14 linear", "2 rows x 4 micro-batches x 1 ranks = 8 rows of 64", "weights", "surogate-recipe-bf16"):
        assert part in text


def test_planning_reads_no_weights(tmp_path: Path) -> None:
    directory = models_testing.tiny_model(tmp_path / "shape", weights=False)
    made = plan(directory, tmp_path, from_scratch=True)
    assert made.figures.parameters > 0


class AnyNorm:
    def claim(self, site: Any, module: Any) -> str | None:
        return None if site.kind == "norm" else "not a norm"


def build_any_norm(options: None, context: Any) -> AnyNorm:
    return AnyNorm()


class SecondFusion:
    @staticmethod
    @hookimpl
    def register_fusions() -> list[Offer]:
        return [Offer("any_norm", None, build="surogate_core.testing:build_any_norm", summary="Every norm.")]


def test_two_fusions_for_one_site_are_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surogate_core.testing.build_any_norm", build_any_norm, raising=False)
    with pytest.raises(PlanError, match=r"two fusions claim model\.\S+: those of .*surogate-fusion-norm.*") as caught:
        plan(model, tmp_path, SecondFusion)
    assert "acme 2.0" in caught.value.problems[0].what
    assert not plan(model, tmp_path, SecondFusion, compile=True).fused


def test_fusions_are_counted(model: Path, tmp_path: Path) -> None:
    made = plan(model, tmp_path)
    plugins = {"norm": "surogate-fusion-norm", "attention": "surogate-fusion-rotary", "mlp": "surogate-fusion-swiglu"}
    assert made.fused.keys() == {site.name for site in made.sites if site.kind in plugins}
    for kind, plugin in plugins.items():
        count = sum(site.kind == kind for site in made.sites)
        assert re.search(rf"^fusions      {count} {kind}: {plugin} ", made.render(), re.MULTILINE)


def test_no_garbage_is_looked_for_while_libraries_are_imported(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    monkeypatch.setattr(build, "count", lambda *given: found.append(gc.isenabled()) or figures.count(*given))
    plan(model, tmp_path)
    assert found == [False]
    assert gc.isenabled()


class Elsewhere:
    """A model source (ours under another name), a pipeline, a place for checkpoints and a training loop of a third party."""

    @staticmethod
    @hookimpl
    def register_models() -> list[Offer]:
        return [Offer("elsewhere", None, build="surogate_core.testing:build_models", summary="Models from elsewhere.")]

    @staticmethod
    @hookimpl
    def register_pipelines() -> list[Offer]:
        return [Offer("elsewhere", None, build="surogate_core.testing:build_pipeline", summary="Data from elsewhere.")]

    @staticmethod
    @hookimpl
    def register_checkpoints() -> list[Offer]:
        return [Offer("elsewhere", None, build="surogate_core.testing:build_store", summary="Checkpoints elsewhere.")]

    @staticmethod
    @hookimpl
    def register_loops() -> list[Offer]:
        return [Offer("elsewhere", None, build="surogate_core.testing:build_loop", summary="Another loop.")]


def open_nothing(root: Path, limit: int) -> Any:
    pytest.fail("a plan opens no checkpoints")


def test_models_data_and_checkpoints_can_come_from_elsewhere(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from surogate_model_transformers.plugin import Options as ModelOptions
    from surogate_model_transformers.source import build as ours

    class Pipeline:
        def __init__(self, context: Any):
            self.format = context.format

    monkeypatch.setattr(testing, "build_models", lambda options, context: ours(ModelOptions(), context), raising=False)
    monkeypatch.setattr(testing, "build_pipeline", lambda options, context: Pipeline(context), raising=False)
    monkeypatch.setattr(testing, "build_store", lambda options, context: open_nothing, raising=False)
    made = plan(model, tmp_path, Elsewhere, model_backend="elsewhere", data_pipeline="elsewhere", checkpoint_store="elsewhere")
    assert made.checkpoints is open_nothing
    assert made.sites == plan(model, tmp_path).sites
    assert isinstance(made.pipeline, Pipeline)
    assert made.pipeline.format("text").name == "text"
    with pytest.raises(ConfigError, match='model_backend = "elswhere" is not installed'):
        plan(model, tmp_path, Elsewhere, model_backend="elswhere")
    monkeypatch.setattr(testing, "build_models", build_broken, raising=False)
    with pytest.raises(ValueError, match="no luck"):
        plan(model, tmp_path, Elsewhere, model_backend="elsewhere")


def test_the_loop_that_is_chosen_runs_the_plan(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted:
        def run(self, plan: Any, host: Any, **asked: Any) -> Any:
            return plan.figures.parameters, asked["fresh"]

    monkeypatch.setattr(testing, "build_loop", lambda options, context: Counted(), raising=False)
    host = testing.host_with(Elsewhere, owner=Owner("acme", "2.0"), discover=True)
    made = plan(model, tmp_path, Elsewhere, training_loop="elsewhere")
    assert execute(made.config, host, fresh=True) == (made.figures.parameters, True)


def test_adapter_chooses_among_the_installed_kinds(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Theirs:
        claim = staticmethod(lambda site: None if site.role == "o_proj" else "another layer")
        linear = staticmethod(lambda site: torch.nn.Linear(site.shape[1], 1))

    monkeypatch.setitem(sys.modules, "acme_adapters", SimpleNamespace(build=lambda options, context: Theirs()))
    offer = Offer("acme", None, build="acme_adapters:build")
    brought = SimpleNamespace(register_adapters=hookimpl(lambda: [offer]))
    made = plan(model, tmp_path, brought, lora=True, adapter="acme")
    assert isinstance(made.adapter, Theirs)
    assert {site.role for site in made.adapted()} == {"o_proj"}
    assert {str(made.slots[site.name].adapter) for site in made.adapted()} == {"acme 2.0"}
    assert not isinstance(plan(model, tmp_path, brought, lora=True).adapter, Theirs)
