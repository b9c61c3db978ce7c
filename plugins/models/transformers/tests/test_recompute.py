"""``recompute`` and ``lmhead_chunks``: equal losses and gradients, less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from surogate_model_transformers import batch_loss, recompute_layers
from surogate_model_transformers.testing import held_bytes

ROWS, LENGTH, WIDTH = 2, 48, 32


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt_oss", "gpt2"])
def test_loss_and_gradients_have_the_same_bits(
    family: str, tiny: Callable[..., Any], load: Callable[..., Any], packed: Callable[..., Any]
) -> None:
    _, directory = tiny(family)
    found = []
    for again in (False, True):
        model = load(directory).train()
        if again:
            recompute_layers(model)
        torch.manual_seed(0)
        loss = batch_loss(model, packed([[20, 20], [45]], length=LENGTH))
        loss.backward()
        found.append([loss, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_each_block_keeps_one_residual_and_no_more(
    tiny: Callable[..., Any], load: Callable[..., Any], packed: Callable[..., Any]
) -> None:
    """Bytes that are kept between forward and backward, by the number of layers."""
    kept = {}
    for again in (False, True):
        for layers in (2, 6):
            model = load(tiny("qwen3", num_hidden_layers=layers)[1]).train()
            if again:
                recompute_layers(model)
            batch = packed([[20, 20], [45]], length=LENGTH)
            batch_loss(model, batch)  # looks at the model once
            with held_bytes() as held:
                loss = batch_loss(model, batch)
                weights = sum(p.nbytes for p in model.parameters() if p.ndim == 2)  # seen through views of them
                kept[again, layers] = held.now - weights
            loss.backward()
    residual = ROWS * LENGTH * WIDTH * 4
    assert kept[True, 6] - kept[True, 2] <= 4 * residual
    assert kept[True, 6] > kept[True, 2]
    assert kept[False, 6] - kept[False, 2] > 40 * residual


def test_chunks_of_the_head_lower_the_peak_by_their_logits() -> None:
    """The float32 logits of T tokens and what is made of them; the budget of bytes would take them all at once."""
    from surogate_model_transformers.loss import head_loss

    tokens, words = 512, 4096
    random = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, 16, generator=random, requires_grad=True)
    weight = torch.randn(words, 16, generator=random)
    labels, weights = torch.randint(0, words, (tokens,), generator=random), torch.ones(tokens)
    peaks, found = {}, {}
    for chunks in (1, 8):
        with held_bytes() as held:
            loss = head_loss(x, weight, None, labels, weights, chunks=chunks)
            peaks[chunks] = held.peak
        found[chunks] = loss.detach(), *torch.autograd.grad(loss, x)
    logits = tokens * words * 4
    assert peaks[1] >= logits
    assert peaks[8] <= peaks[1] - 0.8 * logits
    torch.testing.assert_close(found[1], found[8], rtol=1e-6, atol=1e-6)
