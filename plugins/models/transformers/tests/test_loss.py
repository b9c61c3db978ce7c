from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from surogate_model_transformers import batch_loss, check_head, load_model, load_tokenizer, logits, read_config
from surogate_model_transformers import loss as loss_module
from surogate_model_transformers.loss import head_loss
from surogate_model_transformers.source import Transformers


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 1.5), (2.0, 1.5)])
@pytest.mark.parametrize("bias", [False, True])
def test_chunks_equal_cross_entropy_in_float64(
    frozen: bool, scale: float, softcap: float | None, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 1)  # 128 rows: three chunks
    x = torch.randn(300, 8, dtype=torch.float64, requires_grad=True)
    head = torch.randn(50, 8, dtype=torch.float64, requires_grad=not frozen)
    shift = torch.randn(50, dtype=torch.float64, requires_grad=not frozen) if bias else None
    labels, weights = torch.randint(0, 50, (300,)), torch.rand(300)
    labels[::7], weights[::7] = -100, 0.0

    z = F.linear(x, head, shift) * scale
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    expected = (F.cross_entropy(z, labels, reduction="none") * weights).sum()
    inputs = [tensor for tensor in (x, head, shift) if tensor is not None and tensor.requires_grad]
    expected_gradients = torch.autograd.grad(expected * 3, inputs)

    got = head_loss(x, head, shift, labels, weights, scale=scale, softcap=softcap)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-12)
    for ours, theirs in zip(torch.autograd.grad(got * 3, inputs), expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-12)


def test_head_gradient_is_accumulated_wider_than_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many chunks that each add little: a bf16 sum would stop growing."""
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 1)
    x, labels = torch.ones(128 * 600, 8, dtype=torch.bfloat16), torch.zeros(128 * 600, dtype=torch.int64)
    head = torch.zeros(4, 8, dtype=torch.bfloat16, requires_grad=True)
    head_loss(x, head, None, labels, torch.ones(len(labels))).backward()
    assert head.grad is not None
    torch.testing.assert_close(head.grad[1].float(), torch.full((8,), 128 * 600 / 4.0), rtol=0.01, atol=0)


def test_logits_are_never_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 128 * 4 * 1000)
    sizes = []
    original = loss_module._logits

    def counted(*args: Any) -> torch.Tensor:
        z = original(*args)
        sizes.append(z.numel())
        return z

    monkeypatch.setattr(loss_module, "_logits", counted)
    x, head = torch.randn(1000, 4, requires_grad=True), torch.randn(1000, 4)
    head_loss(x, head, None, torch.zeros(1000, dtype=torch.int64), torch.ones(1000)).backward()
    assert max(sizes) == 128 * 1000


def test_chunks_of_the_head_are_as_many_as_asked_for(
    tiny: Any, load: Any, packed: Any, core: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget of bytes would take all tokens at once. Losses and gradients are those of one chunk."""
    sizes: list[int] = []
    original = loss_module._logits

    def counted(*args: Any) -> torch.Tensor:
        z = original(*args)
        sizes.append(len(z))
        return z

    monkeypatch.setattr(loss_module, "_logits", counted)
    model, found = load(tiny("llama")[1], model_dtype="fp32"), []
    for chunks in (1, 4):
        sizes.clear()
        model.zero_grad()
        loss = Transformers(core(tiny("llama")[1], lmhead_chunks=chunks)).loss(model, packed([[9, 12], [20]]))
        loss.backward()
        found.append((loss.detach(), [parameter.grad.clone() for parameter in model.parameters()]))
        tokens = sum(sizes)
        assert max(sizes) == -(-tokens // chunks)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=1e-6)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * float(other.abs().max()))


def test_tokens_without_weight_are_dropped_before_the_head(
    tiny: Any, load: Any, packed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = load(tiny("llama")[1]), packed([[9, 12], [1, 8, 7, 3]])
    rows = []
    original = loss_module._HeadLoss.apply

    def counted(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(len(x))
        return original(x, *rest)

    monkeypatch.setattr(loss_module._HeadLoss, "apply", counted)
    batch_loss(model, batch)
    assert rows == [int((batch.weights > 0).sum())]


def test_whole_model_gradients_in_float64(tiny: Any, load: Any, packed: Any) -> None:
    model, batch = load(tiny("qwen3")[1]).double(), packed([[9, 12], [1, 8, 7, 3]])
    gradients = torch.autograd.grad(batch_loss(model, batch), list(model.parameters()))
    z = logits(model, batch).flatten(0, 1)
    whole = (F.cross_entropy(z, batch.labels.flatten(), reduction="none") * batch.weights.flatten()).sum()
    for got, expected in zip(gradients, torch.autograd.grad(whole, list(model.parameters())), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-8)


def test_a_batch_without_labels_has_a_loss_of_zero(tiny: Any, load: Any, packed: Any) -> None:
    loss = batch_loss(load(tiny("llama")[1]), packed([[], []]))
    loss.backward()
    assert loss.item() == 0.0


def test_a_head_that_is_not_linear_falls_back_to_the_models_own_logits(tiny: Any, load: Any, packed: Any) -> None:
    """A model that adds something to its logits, which its config does not tell."""
    model, batch = load(tiny("llama")[1]), packed([[9, 12]])

    def scaled(module: Any, args: Any, out: Any) -> Any:
        out.logits = out.logits * torch.linspace(1, 2, 96)
        return out

    model.register_forward_hook(scaled)
    said = check_head(model)
    assert "logits" in str(said)
    with torch.no_grad():
        each = F.cross_entropy(logits(model, batch).flatten(0, 1), batch.labels.flatten(), reduction="none")
    torch.testing.assert_close(batch_loss(model, batch).detach(), (each * batch.weights.flatten()).sum())


def test_stories260k_has_its_known_loss(shared_data: Path, core: Any, packed: Any) -> None:
    """Mean token loss over the first 200 stories, each with BOS and without EOS, cut at 512: 1.482, measured with transformers."""
    options = core(shared_data / "models" / "stories260K", sequence_len=512)
    tokenizer, model = load_tokenizer(options), load_model(read_config(options), options, device="cpu").eval()
    total, count = 0.0, 0
    with (shared_data / "pretrain" / "tinystories.jsonl").open(encoding="utf-8") as lines:
        rows = []
        for _, line in zip(range(200), lines, strict=False):
            ids = tokenizer(json.loads(line)["text"], add_special_tokens=False)["input_ids"]
            rows.append([tokenizer.bos_token_id, *ids][:512])
    for start in range(0, 200, 20):
        part = rows[start : start + 20]
        batch = packed([[len(row)] for row in part], length=512)
        for index, row in enumerate(part):
            batch.input_ids[index, : len(row)] = torch.tensor(row)
            batch.labels[index, : len(row) - 1] = torch.tensor(row[1:])
            batch.weights[index] = (batch.labels[index] >= 0).float()
        with torch.no_grad():
            total += batch_loss(model, batch).item()
        count += int(batch.weights.sum())
    assert total / count == pytest.approx(1.482, abs=0.003)


@pytest.mark.parametrize(("dtype", "backward"), [(torch.float32, True), (torch.bfloat16, True), (torch.bfloat16, False)])
def test_the_way_through_the_op_equals_torchs(dtype: torch.dtype, backward: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's way, here with the op's definition: several chunks, a bias, tokens without weight, a head in training."""
    random = torch.Generator().manual_seed(0)
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 1)
    x, head, shift = (torch.randn(*size, generator=random).to(dtype) for size in ((140, 8), (50, 8), (50,)))
    labels, weights = torch.randint(0, 50, (140,), generator=random), torch.rand(140, generator=random)
    labels[::7], weights[::7] = -100, 0.0
    inputs = [tensor.requires_grad_(backward) for tensor in (x, head, shift)]
    calls, found = [], []
    original = loss_module.cross_entropy_

    def counted(logits: torch.Tensor, *rest: Any, **more: Any) -> Any:
        calls.append(logits.dtype)
        return original(logits, *rest, **more)

    monkeypatch.setattr(loss_module, "cross_entropy_", counted)
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(loss_module, "KERNEL_ON", devices)
        loss = head_loss(x, head, shift, labels, weights)
        found.append([loss.detach(), *(torch.autograd.grad(loss * 3, inputs) if backward else [])])
    assert calls == [dtype] * 2
    assert len(found[1]) == (4 if backward else 1)
    for torchs, ops in zip(*found, strict=True):
        assert ops.dtype == torchs.dtype
        wide = torch.float64
        torch.testing.assert_close(ops.to(wide), torchs.to(wide), rtol=1e-5 if dtype == torch.float32 else 8e-3, atol=1e-4)


def test_the_kernel_is_for_what_it_can_do_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for scaled or capped logits, float64, or ``kernels = "reference"``; and the plan of a GPU's memory counts with it."""
    used: list[bool] = []
    monkeypatch.setattr(loss_module._HeadLoss, "apply", lambda *given: used.append(given[-1]))

    def uses(device: str = "meta", dtype: torch.dtype = torch.bfloat16, **more: Any) -> bool:
        x, weight = (torch.empty(4, 8, device=device, dtype=dtype) for _ in range(2))
        head_loss(x, weight, None, torch.zeros(4, dtype=torch.int64), torch.ones(4), **more)
        return used[-1]

    assert uses()
    assert uses(dtype=torch.float32)
    assert uses(kernels="native")
    for wrong in ({"device": "cpu"}, {"dtype": torch.float64}, {"scale": 0.5}, {"softcap": 30.0}, {"kernels": "reference"}):
        assert not uses(**wrong)
