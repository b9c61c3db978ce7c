"""``attn_bwd_chunks``: the same gradients in less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from surogate_model_transformers import batch_loss
from surogate_model_transformers.chunked import _parts, chunked
from surogate_model_transformers.testing import held_bytes

from surogate_core.config import load as load_config
from surogate_core.errors import ConfigError
from surogate_core.host import load_host


@pytest.mark.parametrize(
    ("rows", "groups", "chunks", "count"), [(2, 4, 1, 1), (2, 4, 3, 2), (2, 4, 4, 4), (3, 2, 6, 6), (2, 2, 99, 4)]
)
def test_parts_cover_every_row_and_head_once(rows: int, groups: int, chunks: int, count: int) -> None:
    seen = torch.zeros(rows, groups)
    parts = list(_parts(rows, groups, chunks))
    for row, head in parts:
        seen[row, head] += 1
    assert (seen == 1).all()
    assert len(parts) == count <= max(chunks, 1)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt_oss", "gpt2"])
@pytest.mark.parametrize("chunks", [2, 8])
def test_loss_and_gradients_of_every_way_to_attend(
    family: str, chunks: int, tiny: Callable[..., Any], load: Callable[..., Any], packed: Callable[..., Any]
) -> None:
    """One boolean mask, softcaps, windows and sinks; the order of sums is kept, so the loss has the same bits."""
    _, directory = tiny(family)
    found = []
    for parts in (1, chunks):
        model = load(directory)
        loss = batch_loss(model, packed([[9, 12], [20]]), attention_chunks=parts)
        loss.backward()
        found.append((loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (one, wanted), (other, got) = found
    assert torch.equal(one, other)
    assert wanted.keys() == got.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(got[name], grad, rtol=1e-6, atol=1e-6 * float(grad.abs().max()), msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_for_long_rows(
    dtype: torch.dtype, tiny: Callable[..., Any], load: Callable[..., Any], packed: Callable[..., Any]
) -> None:
    _, directory = tiny("qwen3", max_position_embeddings=512)
    found = []
    for parts in (1, 2):
        model = load(directory, sequence_len=300).to(dtype)
        loss = batch_loss(model, packed([[100, 180]], length=300), attention_chunks=parts)
        loss.backward()
        found.append([loss, *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_scores_exist_for_one_part_at_a_time() -> None:
    """Plain attention of 8 heads over 128 positions: kept for the backward pass are inputs alone, and its scratch is an eighth."""
    q, k, v = (torch.randn(1, 8, 128, 16, requires_grad=True) for _ in range(3))
    scores = 8 * 128 * 128 * 4

    def compute(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: Any, rows: slice) -> torch.Tensor:
        return (torch.softmax(q @ k.transpose(2, 3), -1) @ v).transpose(1, 2)

    kept, most = {}, {}
    for chunks in (1, 8):
        with held_bytes() as held:
            out = compute(q, k, v, None, slice(None)) if chunks == 1 else chunked(compute, q, k, v, None, chunks)
            kept[chunks] = held.now
            held.peak = held.now
            out.sum().backward()
            most[chunks] = held.peak
        q.grad = k.grad = v.grad = None
    assert kept[1] >= scores + kept[8]
    assert kept[8] == 4 * q.nbytes  # with the result
    assert most[1] - most[8] >= 2 * scores
    wanted = F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2)
    torch.testing.assert_close(chunked(compute, q, k, v, None, 8), wanted)


def test_it_is_refused_beside_compile() -> None:
    with pytest.raises(ConfigError, match="attn_bwd_chunks above 1 with compile = true"):
        load_config({"model": "a/b", "attn_bwd_chunks": 2, "compile": True}, load_host(), need_data=False)
