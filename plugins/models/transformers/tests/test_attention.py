from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from surogate_model_transformers import attention, batch_loss, check_head, logits, recompute_layers, run_hidden
from surogate_model_transformers import loss as loss_module
from torch._dynamo.testing import CompileCounterWithBackend

from surogate_core.errors import ModelError

FAMILIES = [
    "llama", "llama_tied", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3",
    "gpt_oss", "qwen3_moe", "mixtral", "olmo2", "granite", "cohere", "gpt2",
]  # fmt: skip


def alone(model: Any, batch: Any, row: int, at: slice) -> torch.Tensor:
    """transformers' own logits (n, V) of one document in a call of its own."""
    with torch.no_grad():
        return model(input_ids=batch.input_ids[row : row + 1, at], use_cache=False).logits[0]


def assert_equal_documents(ours: Any, theirs: Any, batch: Any) -> None:
    with torch.no_grad():
        got = logits(ours, batch)
    for row, at in batch.pieces:
        torch.testing.assert_close(got[row, at], alone(theirs, batch, row, at), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_have_the_logits_that_they_have_alone(family: str, tiny: Any, load: Any, packed: Any) -> None:
    theirs, directory = tiny(family)
    ours = load(directory)
    assert_equal_documents(ours, theirs, packed([[9, 12], [1, 8, 7, 3], [24]]))


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_that_of_transformers_logits(family: str, tiny: Any, load: Any, packed: Any) -> None:
    theirs, directory = tiny(family)
    ours, batch = load(directory), packed([[9, 12], [1, 8, 7, 3]])
    assert check_head(ours) is None
    expected = torch.zeros(())
    for row, at in batch.pieces:
        each = torch.nn.functional.cross_entropy(alone(theirs, batch, row, at), batch.labels[row, at], reduction="none")
        expected += (each * batch.weights[row, at]).sum()
    torch.testing.assert_close(batch_loss(ours, batch).detach(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt_oss"])
def test_long_rows_take_the_other_kernel_and_agree(
    family: str, tiny: Any, load: Any, packed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, directory = tiny(family)
    monkeypatch.setattr("surogate_model_transformers.attention.LONG_ROW", 16)
    assert_equal_documents(load(directory), theirs, packed([[9, 12], [1, 8, 7, 3], [24]]))


@pytest.mark.parametrize(
    ("family", "long", "wanted", "loss"),
    [
        ("llama", 1000, "attention by torch with one mask a batch", "loss by surogate_loss::cross_entropy_ in chunks"),
        ("llama", 16, "attention document by document", "loss by surogate_loss::cross_entropy_ in chunks"),
        ("gemma3", 16, "attention document by document", "loss by torch in chunks"),
        ("gpt_oss", 16, "attention by plain softmax", "loss by surogate_loss::cross_entropy_ in chunks"),
    ],
)
def test_what_is_said_to_compute_computes(
    family: str, long: int, wanted: str, loss: str, tiny: Any, load: Any, packed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "LONG_ROW", long)
    monkeypatch.setattr(loss_module, "KERNEL_ON", ("cpu",))
    model, batch, called = load(tiny(family)[1]).train(), packed([[9, 12], [1, 8, 7, 3]]), set()
    check_head(model)

    def listen(module: Any, name: str, says: str) -> None:
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, **more: (called.add(says), original(*given, **more))[1])

    listen(attention, "packed_attention", "attention document by document")
    listen(attention, "_plain", "attention by plain softmax")
    listen(attention.F, "scaled_dot_product_attention", "attention by torch with one mask a batch")
    listen(loss_module, "_by_kernel", "loss by surogate_loss::cross_entropy_ in chunks")
    listen(loss_module, "_by_torch", "loss by torch in chunks")
    batch_loss(model, batch)
    said = attention.said(model, batch.input_ids.device, batch.input_ids.shape[1]), loss_module.said(model, "auto")
    assert said == (wanted, loss)
    assert called == {wanted, loss}


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma3", "phi3", "gpt_oss", "qwen3_moe"])
def test_scaled_rotary_positions(kind: str, family: str, tiny: Any, load: Any, packed: Any) -> None:
    """Rows of a context that is twice the original one, as transformers computes them from an equal config; in float64, because
    rounding over long rows alone comes near to the tolerance in float32."""
    _, directory = tiny(family, **({"rope": {"rope_type": "default"}} if family == "gpt_oss" else {}))  # its own is scaled already
    ours = load(directory, rope_scaling=kind, max_model_len=128, sequence_len=128)
    theirs = type(ours)(copy.deepcopy(ours.config)).eval()
    theirs.load_state_dict(ours.state_dict())
    theirs.set_attn_implementation("eager")
    rows = [[128], [64, 64]]
    if kind != "dynamic":  # there a call of its own with fewer than the original positions would not be scaled
        rows.append([9, 12, 70])
    batch, unscaled = packed(rows, length=128), load(directory)
    with torch.no_grad():
        assert (logits(unscaled, batch) - logits(ours, batch)).abs().max() > 0.01
    for model in (ours, theirs):
        model.double().set_experts_implementation("eager")  # the grouped product of experts has no float64
    assert_equal_documents(ours, theirs, batch)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile looks at it while it traces
@pytest.mark.parametrize("long", [False, True])
def test_compile_and_recompute_change_nothing(
    long: bool, tiny: Any, load: Any, packed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if long:
        monkeypatch.setattr("surogate_model_transformers.attention.LONG_ROW", 16)
    _, directory = tiny("qwen3")
    batches = [packed([[9, 12], [1, 8, 7, 3]]), packed([[3, 3, 3], [20]], seed=1)]

    def gradients(model: Any) -> list[torch.Tensor]:
        model.train()
        found = []
        for batch in batches:
            loss = batch_loss(model, batch)
            model.zero_grad()
            loss.backward()
            found += [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
        return found

    expected = gradients(load(directory))
    recomputed = load(directory)
    recompute_layers(recomputed)
    compiled = load(directory)
    recompute_layers(compiled)
    run_hidden(compiled, batches[0])
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    for layer in compiled.model.layers:
        layer.compile(backend=counter, fullgraph=True)
    for model in (recomputed, compiled):
        for got, wanted in zip(gradients(model), expected, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    assert counter.frame_count == 1  # one graph for all layers and both batches


def test_a_call_without_documents_is_refused(tiny: Any, load: Any, packed: Any) -> None:
    batch = packed([[24]])
    with pytest.raises(ModelError, match="not told which document"):
        load(tiny("llama")[1])(input_ids=batch.input_ids)


def test_layers_that_mix_documents_are_refused(tiny: Any, load: Any, packed: Any) -> None:
    """A layer that shifts its input by one token, as a convolution or a recurrence would."""
    model = load(tiny("llama")[1])
    model.model.layers[1].mlp.register_forward_hook(lambda module, args, out: out + args[0].roll(1, 1))
    with pytest.raises(ModelError, match="mix documents"):
        run_hidden(model, packed([[12, 12]]))


def test_unknown_kinds_of_attention_are_refused(tiny: Any, load: Any, packed: Any) -> None:
    model = load(tiny("qwen3")[1])
    model.config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    with pytest.raises(ModelError, match="chunked_attention"):
        run_hidden(model, packed([[12, 12]]))


def test_attention_that_bypasses_the_interface_is_refused(tiny: Any, load: Any, packed: Any) -> None:
    model = load(tiny("llama")[1])
    model.set_attn_implementation("eager")
    with pytest.raises(ModelError, match="attention interface"):
        run_hidden(model, packed([[12, 12]]))
