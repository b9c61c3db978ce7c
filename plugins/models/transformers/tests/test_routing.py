"""Router losses against transformers' own and a restatement in float64; the figures of a step; bad options."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
import torch.nn.functional as F
from surogate_model_transformers import load_model, read_config, recompute_layers, routers
from surogate_model_transformers.plugin import Options
from surogate_model_transformers.routing import FIELDS, check_experts, losses, real_tokens, routing_of, spread
from surogate_model_transformers.source import Transformers
from torch import Tensor

FAMILIES = ("qwen3_moe", "gpt_oss")


def source(core: Any, directory: Any, **changes: Any) -> tuple[Transformers, Any]:
    made = Transformers(core(directory, **changes))
    model = load_model(made.hf_config, made.settings, device="cpu")
    made.ready(model)
    return made, model


def own_logits(theirs: Any, batch: Any) -> list[Tensor]:
    """Of each layer, of the real tokens alone: every document alone through transformers' own model."""
    outs = [
        theirs(input_ids=batch.input_ids[row : row + 1, at], use_cache=False, output_router_logits=True).router_logits
        for row, at in batch.pieces
    ]
    return [torch.cat(layer) for layer in zip(*outs, strict=True)]


def restated(logits: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Equations 4 to 6 of Switch, of all layers' tokens together, and equation 5 of ST-MoE."""
    joined = torch.cat(logits)
    chosen = torch.zeros_like(joined).scatter_(1, joined.topk(k).indices, 1.0)
    share, mean = chosen.mean(0), joined.softmax(1).mean(0)
    return joined.shape[1] * (share * mean).sum(), joined.exp().sum(1).log().square().mean()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recompute", [False, True])
def test_losses_and_gradients(family: str, recompute: bool, tiny: Any, core: Any, packed: Any) -> None:
    """The gradient is that of transformers' cross-entropy, its load_balancing_loss_func and a z-loss, on documents that are alone;
    packed rows and padding change nothing. What is returned is the cross-entropy."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    theirs, directory = tiny(family)
    ours, model = source(core, directory, router_aux_loss_coef=0.3, router_z_loss_coef=0.02)
    if recompute:
        recompute_layers(model)
    batch = packed([[9, 7], [3, 2, 14]])
    loss = ours.loss(model, batch)
    loss.backward()
    theirs.zero_grad()
    ce = torch.zeros(())
    for row, at in batch.pieces:
        found = theirs(input_ids=batch.input_ids[row : row + 1, at], use_cache=False).logits[0]
        each = F.cross_entropy(found, batch.labels[row, at], reduction="none", ignore_index=-100)
        ce = ce + (each * batch.weights[row, at]).sum()
    logits = own_logits(theirs, batch)
    aux, z = (
        load_balancing_loss_func(tuple(logits), 4, 2),
        torch.stack([each.logsumexp(1).square().mean() for each in logits]).mean(),
    )
    (ce + (0.3 * aux + 0.02 * z) * batch.weights.sum()).backward()
    torch.testing.assert_close(loss, ce, rtol=1e-5, atol=1e-5)
    for (name, one), two in zip(model.named_parameters(), theirs.parameters(), strict=True):
        scale = max(1.0, float(two.grad.abs().max()))
        assert float((one.grad - two.grad).abs().max()) <= 1e-5 * scale, name
    assert ours.routing is not None
    ours.routing.seal()
    said = ours.routing.take()
    exact = restated([each.detach().double() for each in logits], 2)
    for name, wanted, known in zip(("moe_aux_loss", "moe_z_loss"), (aux, z), exact, strict=True):
        assert said[name] == pytest.approx(float(wanted.detach()), rel=1e-5) == pytest.approx(float(known), rel=1e-5)


def test_the_losses_in_double_precision() -> None:
    random = torch.Generator().manual_seed(0)
    logits = [torch.randn(12, 5, generator=random, dtype=torch.float64) * 2 for _ in range(3)]
    real = torch.tensor([[True, True, True, False], [True] * 4, [False] * 4])
    aux, z, counts = losses([(each, each.topk(2).indices) for each in logits], real)
    kept = [each[real.flatten()] for each in logits]
    torch.testing.assert_close((aux, z), restated(kept, 2), rtol=1e-14, atol=0)
    wanted = [torch.bincount(each.topk(2).indices.flatten(), minlength=5) for each in kept]
    assert torch.equal(counts, torch.stack(wanted).double())


def test_positions_in_front_of_a_row_do_not_count() -> None:
    """Virtual tokens of prompt tuning pass the routers too."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, 5, generator=random)
    own, real = logits[:, 3:].flatten(0, 1), torch.ones(2, 4, dtype=torch.bool)
    every = logits.flatten(0, 1)
    found = losses([(every, every.topk(2).indices)], real)
    assert all(torch.equal(one, two) for one, two in zip(found, losses([(own, own.topk(2).indices)], real), strict=True))


def test_padding_is_told_from_documents(packed: Any) -> None:
    batch = packed([[9, 7], [24], []])
    batch.weights[1] = 0  # a document without a trained token is none
    assert real_tokens(batch).sum(1).tolist() == [16, 24, 0]


def test_spread() -> None:
    counts = torch.tensor([[2.0, 2.0, 2.0, 2.0], [8.0, 0.0, 0.0, 0.0], [6.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert spread(counts).tolist() == [(1 + 4 + 3 + 1) / 4, (4 + 1 + 2 + 0) / 16]


def test_micro_batches_count_by_their_trained_weight(tiny: Any, core: Any, packed: Any) -> None:
    """The figures of a step, and its gradient once the loop has divided by the weight of the step."""
    ours, model = source(core, tiny("qwen3_moe")[1], router_aux_loss_coef=0.5, router_z_loss_coef=0.1)
    assert ours.routing is not None
    batches = [packed([[20]], seed=1), packed([[5, 4]], seed=2)]
    alone, weights = [], [float(batch.weights.sum()) for batch in batches]
    for batch in batches:
        ours.loss(model, batch)
        ours.routing.seal()
        alone.append(ours.routing.take())
    for batch in batches:
        (ours.loss(model, batch) / sum(weights)).backward()
    ours.routing.seal()
    step = ours.routing.take()
    for name in FIELDS[:2]:
        wanted = sum(weight * each[name] for weight, each in zip(weights, alone, strict=True)) / sum(weights)
        assert step[name] == pytest.approx(wanted, rel=1e-6)
    assert min(each["moe_load_imbalance"] for each in alone) >= 1.0
    assert step["moe_expert_utilisation"] >= max(each["moe_expert_utilisation"] for each in alone)
    assert ours.routing.take() == {}
    gradient = model.model.layers[2].mlp.gate.weight.grad.clone()
    model.zero_grad()
    ours.routing.coefficients = (0.0, 0.0)
    for batch in batches:
        (ours.loss(model, batch) / sum(weights)).backward()
    assert not torch.allclose(gradient, model.model.layers[2].mlp.gate.weight.grad, rtol=1e-2)


def test_evaluation_is_the_cross_entropy_alone(tiny: Any, core: Any, packed: Any) -> None:
    ours, model = source(core, tiny("qwen3_moe")[1], router_aux_loss_coef=100.0)
    assert ours.routing is not None
    model.eval()
    loss = ours.loss(model, packed([[20]]))
    loss.backward()
    gradient = model.model.layers[0].mlp.gate.weight.grad.clone()
    model.zero_grad()
    ours.routing.coefficients = (0.0, 0.0)
    model.train()
    ours.loss(model, packed([[20]])).backward()
    torch.testing.assert_close(gradient, model.model.layers[0].mlp.gate.weight.grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_unset_coefficients_are_the_models(family: str, tiny: Any, core: Any) -> None:
    theirs, directory = tiny(family, router_aux_loss_coef=0.125)
    settings = core(directory)
    model = load_model(read_config(settings), settings, device="cpu")
    assert routing_of(model, settings.own).coefficients == (0.125, 0.0)  # type: ignore[union-attr]
    given = attrs.evolve(settings.own, router_aux_loss_coef=0.0, router_z_loss_coef=0.5)
    assert routing_of(model, given).coefficients == (0.0, 0.5)  # type: ignore[union-attr]
    names = {name for name, module in theirs.named_modules() if type(module).__name__.endswith("TopKRouter")}
    assert set(routers(model)) == names
    assert len(names) == 3


def test_a_dense_model_has_no_routing(tiny: Any, core: Any) -> None:
    ours, _ = source(core, tiny("llama")[1])
    assert ours.routing is None


@pytest.mark.parametrize(
    ("family", "options", "stored", "device", "said"),
    [
        ("llama", {"router_aux_loss_coef": 0.01}, True, "cuda", "router_aux_loss_coef = 0.01, and this model has no routers"),
        ("llama", {"router_z_loss_coef": 0.0}, True, "cuda", "router_z_loss_coef = 0.0, and this model has no routers"),
        ("llama", {"qlora_offload_experts": True}, True, "cuda", "qlora_offload_experts = true, and this model has no stacked"),
        ("qwen3_moe", {"qlora_selective_expert_dequant": True}, False, "cuda", "no expert is held quantised"),
        ("qwen3_moe", {"qlora_offload_experts": True}, True, "cpu", "this run computes on the CPU"),
        ("qwen3_moe", {"qlora_offload_experts": True, "qlora_selective_expert_dequant": True}, True, "cuda", None),
        ("qwen3_moe", {"router_aux_loss_coef": 0.01, "router_z_loss_coef": 0.1}, False, "cpu", None),
        ("llama", {}, False, "cpu", None),
    ],
)
def test_options_that_can_have_no_effect_are_refused(
    family: str, options: dict[str, Any], stored: bool, device: str, said: str | None, tiny: Any, core: Any
) -> None:
    outline = Transformers(core(tiny(family)[1])).outline()
    origins = dict.fromkeys(options, "run.toml, line 3")
    held = [site for site in outline.sites if site.kind in ("linear", "stacked_linear")] if stored else []
    plan = SimpleNamespace(outline=outline, sites=outline.sites, stored=lambda: held, config=SimpleNamespace(origins=origins))
    found = check_experts(Options(**options), plan, device)
    assert [said in problem.what for problem in found] == ([True] if said else []), found
    for problem in found:
        assert problem.where.startswith("run.toml, line 3, key ")
