from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from surogate_model_transformers.attention import mask
from surogate_model_transformers.packed import packed_attention
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_equals_masked_softmax_with_its_gradients(
    window: int, heads: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    ids = torch.tensor([[0] * 7 + [1] * 1 + [2] * 13 + [3] * 3, [0] * 24])
    inputs = [torch.randn(2, count, 24, 8, dtype=dtype, requires_grad=True) for count in (heads[0], heads[1], heads[1])]
    weight = torch.randn(2, 24, heads[0], 8, dtype=dtype)
    got = packed_attention(inputs[0], inputs[1], inputs[2], ids, 0.3, window)

    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    q, k, v = (tensor.repeat_interleave(heads[0] // tensor.shape[1], 1) for tensor in exact)
    scores = (q @ k.transpose(2, 3) * 0.3).masked_fill(~mask(ids, window), float("-inf"))
    expected = (scores.softmax(-1) @ v).transpose(1, 2)

    torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)
    for ours, theirs in zip(
        torch.autograd.grad(got, inputs, weight), torch.autograd.grad(expected, exact, weight.double()), strict=True
    ):
        torch.testing.assert_close(ours.double(), theirs, atol=tolerance * 4, rtol=tolerance * 4)


def test_mask_by_hand() -> None:
    ids = torch.tensor([[0, 0, 0, 1, 1]])
    rows = ["x....", "xx...", ".xx..", "...x.", "...xx"]
    assert mask(ids, 2)[0, 0].tolist() == [[cell == "x" for cell in row] for row in rows]
    assert mask(ids, 0)[0, 0, 2].tolist() == [True, True, True, False, False]


def test_operator_is_sound_for_compilers() -> None:
    q = torch.randn(2, 4, 12, 8, requires_grad=True)
    k, v = (torch.randn(2, 2, 12, 8, requires_grad=True) for _ in range(2))
    ids = torch.arange(24).reshape(2, 12) // 5
    torch.library.opcheck(torch.ops.surogate.packed_attention.default, (q, k, v, ids, 0.3, 3))


def test_fused_attention_agrees() -> None:
    q, k, v = (torch.randn(1, 4, 40, 8) for _ in range(3))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(packed_attention(q, k, v, torch.zeros(1, 40, dtype=torch.int32), 8**-0.5), expected)


@pytest.mark.parametrize("size", [1.0, 3.0])
def test_bfloat16_documents_are_as_near_to_float64_as_torch_is(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with torch's own attention in bfloat16 under one boolean mask, of sharp and of flat scores; with rows that hold
    documents on both sides of the length up to which weights are kept."""
    monkeypatch.setattr("surogate_model_transformers.packed.KEPT", 128)
    torch.manual_seed(0)
    ids = torch.cat([torch.arange(320)[None] // 64, (torch.arange(320)[None] > 40).long()])
    rounded = [(torch.randn(2, 4, 320, 32) * size).bfloat16().requires_grad_() for _ in range(3)]
    grad = torch.randn(2, 320, 4, 32).bfloat16()

    def results(kind: str, dtype: torch.dtype) -> list[Tensor]:
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in rounded]
        if kind == "ours":
            out = packed_attention(inputs[0], inputs[1], inputs[2], ids, 0.2)
        else:
            out = F.scaled_dot_product_attention(*inputs, mask(ids, 0), scale=0.2).transpose(1, 2)
        return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(dtype))]

    exact = results("torch", torch.float64)

    def errors(kind: str) -> list[float]:
        return [
            float((one.double() - other).norm() / other.norm())
            for one, other in zip(results(kind, torch.bfloat16), exact, strict=True)
        ]

    for ours, theirs in zip(errors("ours"), errors("torch"), strict=True):
        assert ours <= 1.35 * theirs


def test_bfloat16_operator_is_sound_for_compilers() -> None:
    q = torch.randn(2, 4, 12, 8).bfloat16().requires_grad_()
    k, v = (torch.randn(2, 2, 12, 8).bfloat16().requires_grad_() for _ in range(2))
    ids = torch.arange(24).reshape(2, 12) // 5
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")  # values: room that no document needs is not written
    torch.library.opcheck(torch.ops.surogate.packed_attention.default, (q, k, v, ids, 0.3, 3), test_utils=tests)


def test_nothing_is_made_for_gradients_of_what_has_none() -> None:
    """Autograd otherwise fills zeros in the shape of the attention weights, a layer's largest tensor, in each backward pass."""

    class Zeros(TorchDispatchMode):
        sizes: list[int]

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket in (torch.ops.aten.zeros, torch.ops.aten.zero_, torch.ops.aten.zeros_like):
                self.sizes.append(math.prod(args[0].shape if isinstance(args[0], Tensor) else args[0]))
            return function(*args, **(kwargs or {}))

    q, k, v = (torch.randn(2, heads, 300, 16, dtype=torch.bfloat16, requires_grad=True) for heads in (4, 2, 2))
    out = packed_attention(q, k, v, torch.zeros(2, 300, dtype=torch.int64), 0.25)
    with (seen := Zeros()):
        seen.sizes = []
        out.backward(torch.ones_like(out))
    assert max(seen.sizes, default=0) < 2 * 300 * 4 * 300
