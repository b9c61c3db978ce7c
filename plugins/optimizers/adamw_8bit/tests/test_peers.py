"""200 steps beside bitsandbytes' AdamW8bit, and a training beside AdamW with float32 moments."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from surogate_optimizer_adamw_8bit.places import SMALL
from surogate_optimizer_adamw_8bit.update import AdamW8bit
from torch import Tensor, nn

import surogate_core
from surogate_core.contracts import ParamGroup

STEPS = 200
SHAPES = [(64, 64), (4097,), (33, 127), (4095,), (5, 7), (10_000,)]
both_builds = pytest.mark.parametrize("kernels", ["reference", "native"])
Gradients = Callable[[int, list[nn.Parameter]], list[Tensor]]


def beside_bitsandbytes(kernels: str, start: list[Tensor], gradients: Gradients) -> None:
    """The same gradients to both, each going on from its own state. Parameters stay within the format's rounding of each other, and
    99.9 % of the codes are equal."""
    theirs, ours = ([nn.Parameter(values.clone()) for values in start] for _ in range(2))
    settings: dict[str, Any] = {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
    reference = bitsandbytes.optim.AdamW8bit(theirs, lr=1e-3, **settings)
    names = tuple(map(str, range(len(ours))))
    rule = AdamW8bit(beta1=0.9, beta2=0.99, epsilon=1e-8, kernels=kernels)
    state = rule.bind([ParamGroup(names=names, params=tuple(ours), weight_decay=0.0)], seed=1)
    for step in range(1, STEPS + 1):
        given = gradients(step, theirs)
        for params in (theirs, ours):
            for param, gradient in zip(params, given, strict=True):
                param.grad = gradient.clone()
        reference.step()
        state.step(torch.tensor(1e-3), step)
    held = state.state_dict()
    equal = codes = 0
    for name, mine, other, before in zip(names, ours, theirs, start, strict=True):
        moved = (other.detach() - before).norm()
        assert (mine - other).norm() <= 2e-3 * moved
        if mine.numel() < SMALL:
            torch.testing.assert_close(held[f"{name}.v"], reference.state[other]["state2"], rtol=1e-4, atol=1e-14)
            continue
        for moment, key in (("m", "state1"), ("v", "state2")):
            got, wanted = held[f"{name}.{moment}"], reference.state[other][key]
            equal += int((got == wanted).sum())
            codes += got.numel()
    assert equal >= 0.999 * codes


@both_builds
@pytest.mark.usefixtures("exact_codes")
def test_two_hundred_steps_on_random_gradients(kernels: str) -> None:
    """Whole blocks, ragged ones, and tensors below 4,096 values."""
    generator = torch.Generator().manual_seed(0)

    def gradients(step: int, params: list[nn.Parameter]) -> list[Tensor]:
        size = [1e-3 * (1 + math.sin(step + index)) for index in range(len(params))]
        return [torch.randn(p.shape, generator=generator) * s for p, s in zip(params, size, strict=True)]

    beside_bitsandbytes(kernels, [torch.randn(shape, generator=generator) * 0.02 for shape in SHAPES], gradients)


@both_builds
@pytest.mark.usefixtures("exact_codes")
def test_two_hundred_steps_on_gradients_of_a_real_model(kernels: str, shared_data: Path) -> None:
    """stories260K on tiny Shakespeare; the gradients are those where bitsandbytes stands."""
    import transformers

    where = shared_data / "models" / "stories260K"
    model = transformers.AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(where)
    text = (shared_data / "pretrain" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:60_000]
    ids = torch.tensor(tokenizer(text)["input_ids"])
    rows = ids[: len(ids) // 64 * 64].view(-1, 64)
    chosen = dict(list(model.named_parameters())[:10])  # the embedding and the first layer

    def gradients(step: int, params: list[nn.Parameter]) -> list[Tensor]:
        batch = rows[torch.arange(2) * 7 + step]
        loss = torch.func.functional_call(
            model, dict(zip(chosen, params, strict=True)), kwargs={"input_ids": batch, "labels": batch}
        ).loss
        return list(torch.autograd.grad(loss, params))

    beside_bitsandbytes(kernels, [param.detach() for param in chosen.values()], gradients)


def test_the_loss_of_a_training_is_that_of_float32_moments(shared_data: Path, tmp_path: Path) -> None:
    """stories260K further trained on tiny Shakespeare: the loss of the last steps within 0.5 %."""
    text = (shared_data / "pretrain" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    (tmp_path / "training.txt").write_text(text[:50_000], encoding="utf-8")
    (tmp_path / "validation.txt").write_text(text[-10_000:], encoding="utf-8")
    losses = {}
    for optimizer, kernels in (("adamw", "reference"), ("adamw_8bit", "reference"), ("adamw_8bit", "native")):
        config: dict[str, Any] = {
            "model": str(shared_data / "models" / "stories260K"),
            "lora": False,
            "model_dtype": "fp32",
            "recompute": False,
            "output_dir": str(tmp_path / f"{optimizer}-{kernels}"),
            "optimizer": optimizer,
            "kernels": kernels,
            "learning_rate": 1e-3,
            "sequence_len": 128,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "max_steps": 40,
            "save_steps": 40,
            "eval_steps": 40,
            "dataloader_num_workers": 0,
            "datasets": [{"path": str(tmp_path / "training.txt"), "type": "text"}],
            "validation_datasets": [{"path": str(tmp_path / "validation.txt"), "type": "text"}],
        }
        losses[optimizer, kernels] = surogate_core.run(config)
    exact = losses.pop(("adamw", "reference"))
    for other in losses.values():
        assert other.eval_loss == pytest.approx(exact.eval_loss, rel=5e-3)
        assert other.loss == pytest.approx(exact.loss, rel=5e-3)
        assert other.loss != exact.loss
