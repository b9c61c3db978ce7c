"""The conformance checks of ``surogate_testing`` over every installed offer: what a third party's plugin has to pass too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import surogate_testing
import torch
from surogate_model_transformers import testing as models_testing
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, apply_rotary_pos_emb

from surogate_core import testing
from surogate_core.config import load
from surogate_core.config.options import DatasetOptions
from surogate_core.contracts import Attaches, FormatContext, LoggerContext, PipelineContext, Sample
from surogate_core.errors import ModelError
from surogate_core.host import KINDS, load_host
from surogate_core.offers import Offer
from surogate_core.plan import make_plan

HOST = load_host()
COARSE = {"fp8_hybrid": 0.08, "nvfp4": 0.22, "nvfp4_quartet": 0.22}
"""Recipes that round, with the relative error of one small linear layer that they may have."""
HELD = {"bnb_nf4": (0.12, 4.13), "fp8_block": (0.03, 8.01), "nvfp4": (0.1, 4.51)}
"""Quantizers, with the relative error of a weight and the bits that they need for one."""


class Turned(nn.Module):
    """What attention does with its heads before they meet: x (B, S, 48) → the sum of two heads that are turned."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1.0, 1.0, 48))
        angles = torch.linspace(0.0, 9.0, 7 * 24).view(1, 7, 24).repeat(1, 1, 2)
        self.cos, self.sin = nn.Buffer(angles.cos()), nn.Buffer(angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        q, k = apply_rotary_pos_emb((x * self.weight)[:, None], x.square()[:, None], self.cos, self.sin)
        return (q + k)[:, 0]


FUSED = {
    "norm": ("norm", LlamaRMSNorm(48, eps=1e-6)),
    "rotary": ("attention", Turned()),
    "swiglu": ("mlp", LlamaMLP(LlamaConfig(hidden_size=48, intermediate_size=40, num_attention_heads=4))),
}
"""Fusions, with the kind of site and the module that they take."""
TALK = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]
ROWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": ({"text": "The cat sat on the mat."}, {}),
    "instruction": ({"question": "What is 2 + 2?", "answer": "4"}, {"instruction_field": "question", "output_field": "answer"}),
    "conversation": ({"messages": TALK}, {}),
    "auto": ({"messages": TALK}, {}),
}
"""Formats, with a row and options for it."""
WATCHED: dict[str, list[dict[str, Any]]] = {
    "resources": [{}, {"debug_time_breakdown": True}],
    "diagnostics": [{}, {"early_stop": True, "auto_lr_reduction": True}],
    "memory": [{"debug_memory_breakdown": True}],
}
"""Observers, with options under which they are built on the CPU."""


def offers(kind: str) -> list[Offer]:
    return list(HOST.offers(kind).values())


def build(offer: Offer, context: object, **options: Any) -> Any:
    return offer.load()(offer.options(**options) if offer.options else None, context)


def each(kind: str, but: set[str] = frozenset()) -> pytest.MarkDecorator:  # type: ignore[assignment]
    return pytest.mark.parametrize("offer", [o for o in offers(kind) if o.name not in but], ids=lambda offer: offer.name)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = [{"text": f"{number} times the quick brown fox jumps over the lazy dog"} for number in range(40)]
    return testing.write_rows(tmp_path / "texts.jsonl", rows)


@pytest.fixture
def run(tiny: Path, texts: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    return partial(models_testing.short_run, tiny, texts, tmp_path)


def test_every_kind_has_a_check() -> None:
    assert {*surogate_testing.CHECKS, "commands"} == set(KINDS)
    assert testing.check_recipe is surogate_testing.check_recipe
    with pytest.raises(AttributeError, match="has no attribute 'chek_recipe'"):
        testing.chek_recipe  # noqa: B018


@each("models")
def test_model(offer: Offer, tiny: Path, tmp_path: Path) -> None:
    context = testing.context(model=str(tiny), model_dtype="fp32", sequence_len=64)
    reference = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    surogate_testing.check_model(lambda: build(offer, context), reference, tmp_path / "saved")


@each("models")
def test_model_with_experts(offer: Offer, tmp_path: Path) -> None:
    shape = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
    directory = models_testing.tiny_model(tmp_path / "model", "qwen3_moe", **shape)
    context = testing.context(model=str(directory), model_dtype="fp32", sequence_len=64)
    reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    off = {"router_aux_loss_coef": 0.0}  # the reference's loss is the cross-entropy alone
    surogate_testing.check_model(lambda: build(offer, context, **off), reference, tmp_path / "saved")


@each("pipelines")
@pytest.mark.parametrize("options", [{}, {"sample_packing": False, "padding_side": "left"}, {"dataloader_num_workers": 2}], ids=str)
def test_pipeline(offer: Offer, options: dict[str, Any], tiny: Path, texts: Path, tmp_path: Path) -> None:
    form = HOST.offer("datasets", "text").options
    assert form is not None
    data = [DatasetOptions(path=str(texts), type="text", format_options=form())]

    def make(seed: int) -> Any:
        core = testing.context(sequence_len=96, train_seed=seed, datasets=data).config
        given = {"cache_dir": str(tmp_path / "cache"), "validation_split_ratio": 0.1, "dataloader_num_workers": 0, **options}
        return build(offer, PipelineContext(config=core, format=partial(HOST.offer, "datasets")), **given)

    surogate_testing.check_pipeline(make, AutoTokenizer.from_pretrained(tiny))


@each("checkpoints")
def test_checkpoints(offer: Offer, tmp_path: Path) -> None:
    surogate_testing.check_checkpoints(build(offer, testing.context()), tmp_path)


@each("loops")
@pytest.mark.parametrize("lora", [True, False])
def test_loop(offer: Offer, lora: bool, run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    config = run(lora=lora, training_loop=offer.name, gradient_accumulation_steps=2)
    surogate_testing.check_loop(config, tmp_path / "runs")


@each("recipes")
def test_recipe(offer: Offer) -> None:
    context = testing.context(model_dtype="fp32", recipe_backend="emulated")
    surogate_testing.check_recipe(build(offer, context), bound=COARSE.get(offer.name, 1e-6))


@each("quantizers")
def test_quantizer(offer: Offer) -> None:
    error, bits = HELD[offer.name]
    surogate_testing.check_quantizer(build(offer, testing.context()), error=error, bits=bits)


NO_SLOTS = {"prompt", "prefix"}
"""Adapters of the whole model; their plugin's tests compare them with PEFT's."""


@each("adapters", but=NO_SLOTS)
def test_adapter(offer: Offer, tmp_path: Path) -> None:
    adapter = build(offer, testing.context())
    nonlinear = offer.name == "bottleneck"
    place = testing.site(name="model.layers.0.mlp.down_proj")
    surogate_testing.check_adapter(adapter, tmp_path, place, merges=not nonlinear)
    if nonlinear:
        with pytest.raises(ModelError, match="cannot be merged"):
            adapter.delta(adapter.linear(place))


@pytest.mark.parametrize("name", sorted(NO_SLOTS))
def test_an_adapter_of_the_whole_model_takes_no_slot(name: str) -> None:
    adapter = build(HOST.offers("adapters")[name], testing.context())
    assert isinstance(adapter, Attaches)
    assert adapter.claim(testing.site())


@each("fusions")
def test_fusion(offer: Offer) -> None:
    kind, module = FUSED[offer.name]
    shape = tuple(module.weight.shape) if kind == "norm" else ()
    site = attrs.evolve(testing.site(), name="model.part", kind=kind, shape=shape)
    x = torch.randn(5, 7, 48, generator=torch.Generator().manual_seed(3))
    surogate_testing.check_fusion(build(offer, testing.context()), site, module, x)


@each("optimizers")
def test_optimizer(offer: Offer) -> None:
    surogate_testing.check_optimizer(build(offer, testing.context()))


@each("schedules")
def test_schedule(offer: Offer) -> None:
    surogate_testing.check_schedule(build(offer, testing.context()))


@each("datasets")
def test_format(offer: Offer, tiny: Path) -> None:
    def render(messages: Any, tools: Any = None, kind: str = "conversation") -> Sample:
        ids = [len(message["content"]) for message in messages]
        return Sample(input_ids=ids, weights=[float(message["role"] == "assistant") for message in messages], kind=kind)

    def weigh(text: str, spans: Any, kind: str, marker: str, special: bool = False) -> Sample:
        weights = [next((span[2] for span in reversed(spans) if span[0] <= at < span[1]), 0.0) for at in range(len(text))]
        return Sample(input_ids=list(text.encode()), weights=weights, kind=kind, marker=marker)

    tokenizer, core = AutoTokenizer.from_pretrained(tiny), testing.context().config
    context = FormatContext(config=core, tokenizer=tokenizer, system=None, background=0.0, render=render, weigh=weigh)
    row, options = ROWS[offer.name]
    surogate_testing.check_format(build(offer, context, **options), [row])


@each("loggers")
def test_logger(offer: Offer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    context = LoggerContext(
        config=testing.context(report_to=[offer.name]).config,
        output_dir=tmp_path,
        run_name="run",
        resumed=0,
        terminal=False,
        quiet=False,
    )
    takes = attrs.fields_dict(offer.options) if offer.options else {}
    options = {"log_file": str(tmp_path / "log.jsonl")} if "log_file" in takes else {}
    surogate_testing.check_logger(build(offer, context, **options))


@each("observers")
def test_observer(offer: Offer, run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    for options in WATCHED[offer.name]:
        plan = make_plan(load(run(**options), HOST), HOST)
        surogate_testing.check_observer(partial(build, offer, **options), plan, tmp_path)


@each("parallelisms")
def test_parallelism(offer: Offer) -> None:
    surogate_testing.check_parallelism([build(offer, testing.context())])


@each("commands")
def test_command_has_help(offer: Offer) -> None:
    assert offer.load().help
