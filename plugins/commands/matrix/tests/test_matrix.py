"""The matrix says what plans say, the page in the docs is what it prints, and a sample trains. All: ``tests/prove/matrix.py``."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from click.testing import CliRunner
from surogate_command_matrix.matrix import FULL, KINDS, PLAIN, Cell, cells, make_model, page, plan_all, plan_cell
from surogate_command_matrix.testing import train

from surogate_core.cli.inspect import plugins
from surogate_core.errors import Problem, SurogateError
from surogate_core.hookspecs import hookimpl
from surogate_core.host import Host, load_host
from surogate_core.offers import Owner

DOCS = Path(__file__).resolve().parents[4] / "docs" / "matrix.md"
QUANTIZERS = ("bnb_nf4", "fp8_block", "nvfp4")
SAMPLE = [
    ("lora", "nvfp4", "fp8_hybrid", "Qwen3"),
    ("lora", "bnb_nf4", "nvfp4", "Llama"),
    ("lora", "fp8_block", "nvfp4_quartet", "Qwen3-VL"),
    ("lora", "bnb_nf4", "fp8_hybrid", "Qwen3-MoE"),
    ("full", "none", "nvfp4", "Llama"),
    ("full", "none", "fp8_hybrid", "Qwen3-MoE"),
    ("bottleneck", "fp8_block", "fp8_hybrid", "Qwen3"),
    ("prefix", "bnb_nf4", "nvfp4_quartet", "Qwen3-MoE"),
    ("prompt", "nvfp4", "bf16", "Llama"),
]


@pytest.fixture(scope="module")
def host() -> Host:
    return load_host()


@pytest.fixture(scope="module")
def planned(host: Host) -> tuple[list[Cell], dict[str, str]]:
    return plan_all(host)


takes_all_plans = pytest.mark.xdist_group("matrix")
"""They take ten seconds: once is enough."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: make_model(kind, tmp_path_factory.mktemp("models") / kind) for kind in KINDS}


@takes_all_plans
def test_the_docs_have_what_is_printed(planned: Any, host: Host) -> None:
    assert DOCS.read_text() == page(*planned, host), "surogate plugins --matrix > docs/matrix.md"


@takes_all_plans
def test_what_has_to_train_is_accepted_and_full_on_quantised_is_not(planned: Any) -> None:
    """{LoRA, full} × {none, NF4, FP8, NVFP4} × {bf16, fp8_hybrid, nvfp4} × {Llama, Qwen3, Qwen3-MoE}."""
    found = {(c.adapter, c.quantizer, c.recipe, c.kind): c.problems for c in planned[0]}
    assert len(found) == len(planned[0]) == 5 * 4 * 4 * len(KINDS)
    for recipe, kind in itertools.product(("bf16", "fp8_hybrid", "nvfp4"), ("Llama", "Qwen3", "Qwen3-MoE")):
        assert not found[FULL, PLAIN, recipe, kind]
        assert not any(found["lora", quantizer, recipe, kind] for quantizer in (PLAIN, *QUANTIZERS))
        for quantizer in QUANTIZERS:
            (problem,) = found[FULL, quantizer, recipe, kind]
            assert "weights that are trained cannot be held in a quantised format" in problem.what
            assert problem.how


@pytest.mark.parametrize("names", SAMPLE, ids="-".join)
def test_a_sample_trains(names: tuple[str, ...], planned: Any, models: dict[str, Path], host: Host, tmp_path: Path) -> None:
    cell = Cell(**dict(zip(("adapter", "quantizer", "recipe", "kind"), names, strict=True)))
    assert cell in planned[0], "not among the cells, or refused"
    first, second = train(cell, host, models[cell.kind], tmp_path)
    assert first > 4
    assert second != first


def test_the_sample_has_every_offer_and_kind(host: Host) -> None:
    for part, wanted in zip(zip(*SAMPLE, strict=True), ("adapter", "quantizer", "recipe"), strict=False):
        assert set(part) == {getattr(cell, wanted) for cell in cells(host)}
    assert {kind for *_, kind in SAMPLE} == KINDS.keys() - {"GPT-OSS"}


@pytest.mark.parametrize(("adapter", "quantizer", "kind"), [(FULL, "nvfp4", "Llama"), ("prefix", PLAIN, "GPT-OSS")])
def test_what_is_refused_does_not_train(
    adapter: str, quantizer: str, kind: str, planned: Any, models: dict[str, Path], host: Host, tmp_path: Path
) -> None:
    cell = Cell(adapter=adapter, quantizer=quantizer, kind=kind)
    (refused,) = [one for one in planned[0] if evolve(one, problems=()) == cell]
    with pytest.raises(SurogateError) as caught:
        train(cell, host, models[kind], tmp_path)
    assert tuple(problem.what for problem in caught.value.problems) == tuple(problem.what for problem in refused.problems)
    assert not (tmp_path / "output").exists()


def test_another_plugins_refusal_is_in_the_matrix_with_both_sides(models: dict[str, Path], planned: Any) -> None:
    class Picky:
        @hookimpl
        def check_plan(self, plan: Any, device: str) -> list[Problem]:
            wrong = plan.quantizer and "nf4" in type(plan.quantizer).__module__ and plan.config.core.recipe == "fp8_hybrid"
            return [Problem("oil and water", where="here", how="stir")] if wrong else []

    host = load_host([("picky", Picky(), Owner("acme-picky", "1"))])
    some = [Cell(adapter="lora", quantizer=q, recipe=r, kind="Llama") for q in (PLAIN, "bnb_nf4") for r in ("bf16", "fp8_hybrid")]
    text = page([plan_cell(cell, host, models[cell.kind]) for cell in some], {"Llama": "linear layers: all"}, host)
    assert "| lora | none | trains |" in text
    assert "| lora | bnb_nf4 | bf16: trains, fp8_hybrid: [1] |" in text
    assert "1. **bnb_nf4 × fp8_hybrid**" in text
    assert "oil and water. To mend it: stir." in text
    assert f"bnb_nf4: {host.offers('quantizers')['bnb_nf4'].summary}" in text
    assert f"fp8_hybrid: {host.offers('recipes')['fp8_hybrid'].summary}" in text


def test_plugins_has_the_option_and_says_who_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from surogate_command_matrix import matrix

    monkeypatch.setattr(matrix, "plan_all", lambda host: ([Cell(kind="Llama")], {"Llama": "linear layers: all"}))
    done = CliRunner().invoke(plugins, ["--matrix"], catch_exceptions=False)
    assert "| full | none | trains |" in done.output
    alone = load_host(discover=False)
    monkeypatch.setattr("surogate_core.host.load_host", lambda strict=True: alone)
    with pytest.raises(SurogateError, match="no installed plugin offers 'matrix'"):
        CliRunner().invoke(plugins, ["--matrix"], catch_exceptions=False)
