"""The loop's own functions: gradients that do not depend on how a step is split, decisions, late reading, non-finite losses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import surogate_model_transformers as models
import torch
import torch.nn.functional as F
import transformers
from surogate_distributed_single.single import Single
from surogate_loop_standard.loop import accumulate, clip, optimizer_step
from surogate_model_transformers import testing as models_testing
from surogate_pipeline_packed.batches import Batches
from surogate_pipeline_packed.corpus import Corpus

from surogate_core import testing
from surogate_core.contracts import Context, Step

SEQUENCE, ROWS = 24, 8


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_testing.tiny_model(tmp_path_factory.mktemp("model"))


def ragged() -> Corpus:
    """Eight documents that fill a row each only in part, with weights of 0, 1 and in between, one of them fully masked."""
    rng = np.random.default_rng(0)
    tokens, weights, pieces, at = [], [], [], 0
    for number in range(ROWS):
        length = int(rng.integers(13, SEQUENCE + 1))
        tokens.append(rng.integers(0, 256, length))
        weight = rng.choice([0.0, 0.5, 1.0], length, p=[0.5, 0.2, 0.3]) if number != 3 else np.zeros(length)
        weight[0] = 0.0
        weights.append(weight)
        pieces.append((at, at + length, at + length))
        at += length
    return Corpus(
        tokens=np.concatenate(tokens).astype(np.int32),
        weights=np.concatenate(weights).astype(np.float32),
        pieces=np.array(pieces, dtype=np.int64),
        sources=[f"row {number}" for number in range(ROWS)],
    )


def gradients(directory: Path, batch: int, accumulation: int) -> tuple[float, dict[str, torch.Tensor]]:
    settings = models.Settings(testing.context(model=str(directory), sequence_len=SEQUENCE, model_dtype="fp32").config)
    model = models.load_model(models.read_config(settings), settings, device=torch.device("cpu")).double()
    batches = Batches(ragged(), sequence_len=SEQUENCE, batch_size=batch, accumulation=accumulation, seed=7, packing=False, pad_id=0)
    loss = accumulate(model, batches.step(0), Single("cpu"), models.batch_loss)
    return float(loss), {name: parameter.grad for name, parameter in model.named_parameters()}


def by_hand(directory: Path) -> tuple[float, dict[str, torch.Tensor]]:
    """The same step as a plain transformers loop, one document at a time, without any of our code in the computation."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    corpus = ragged()
    total, weight = torch.zeros((), dtype=torch.float64), 0.0
    for start, stop, _ in corpus.pieces:
        ids = torch.tensor(corpus.tokens[start:stop], dtype=torch.long)
        weights = torch.tensor(corpus.weights[start + 1 : stop], dtype=torch.float64)
        logits = model(ids[None]).logits[0, :-1]
        total = total + (F.cross_entropy(logits, ids[1:], reduction="none") * weights).sum()
        weight += float(weights.sum())
    (total / weight).backward()
    return float(total.detach() / weight), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (4, 2), (1, 8)])
def test_gradients_do_not_depend_on_the_split_and_equal_a_plain_loop(directory: Path, batch: int, accumulation: int) -> None:
    wanted_loss, wanted = by_hand(directory)
    loss, found = gradients(directory, batch, accumulation)
    assert loss == pytest.approx(wanted_loss, abs=1e-10)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).abs().max()) < 1e-10, name


def test_norm_is_the_one_before_clipping() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))]
    parameters[0].grad, parameters[1].grad = torch.full((3,), 2.0), torch.full((2, 2), 1.0)
    assert float(clip(parameters, 1.0)) == pytest.approx(4.0)
    assert float(clip(parameters, 0.0)) == pytest.approx(1.0)
    assert float(clip(parameters, 0.5)) == pytest.approx(1.0)
    assert float(clip(parameters, 0.0)) == pytest.approx(0.5, rel=1e-5)


def test_context_of_a_plugin_has_the_core_options() -> None:
    assert isinstance(testing.context(learning_rate=1.0), Context)


@pytest.mark.parametrize(("master_dtype", "sum_of_ones"), [("fp32", 512.0), (None, 256.0)])
def test_small_terms_of_a_sum_of_gradients_are_not_lost_with_float32_masters(master_dtype: str | None, sum_of_ones: float) -> None:
    """512 micro-batches whose gradient is 1; a bfloat16 sum of ones ends at 256."""
    model = torch.nn.Linear(4, 1, bias=False, dtype=torch.bfloat16)
    seen: list[torch.Tensor] = []
    job: Any = SimpleNamespace(
        core=testing.context(master_dtype=master_dtype, model_dtype="bf16", max_grad_norm=0.0).config,
        model=model,
        parameters=tuple(model.parameters()),
        loss=lambda model, batch: model.weight.sum(),
        optimizer=SimpleNamespace(step=lambda lr, number: seen.append(model.weight.grad.clone())),
        parallelism=Single("cpu"),
        stepped=lambda: None,
        mark=lambda name: None,
    )
    batch: Any = SimpleNamespace(to=lambda device: None)
    step = Step(batches=(batch,) * 512, weight=1.0, tokens=1, trained=1, sources=(), epoch=0.0)
    optimizer_step(job, step, 0, torch.zeros(()))
    assert seen[0].dtype == torch.bfloat16
    assert seen[0].tolist() == [[sum_of_ones] * 4]
    assert model.weight.grad is None
