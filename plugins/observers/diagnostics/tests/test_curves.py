"""What fires on 45 curves, and when, with `auto_lr_reduction` and `early_stop` on and every threshold at its default.

Eighteen are recorded from real runs (``record_curves.py``), most with a real fault; the rest are made. The defaults were fixed
before the recorded ones were looked at; the README says which rules were changed after that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import curves
import pytest
from attrs import frozen
from surogate_observer_diagnostics.observer import Event, Facts, watch
from surogate_observer_diagnostics.options import Options

ON = Options(auto_lr_reduction=True, early_stop=True)
MADE = Facts(parameters=1_000_000, warmup=100, crowd=8.0)
ROOT = Path(__file__).resolve().parents[4]
WINDOW = 15
"""Steps by which an event may be off: the last digits of exp and log are the platform's."""


@frozen
class Row:
    """``phases``: those told, by their first step. ``fires``: step and name of each decision and advice, in order."""

    name: str
    phases: str
    fires: list[str]


HEALTHY = (
    "healthy fast",
    "healthy slow",
    "healthy noisy",
    "healthy adapter",
    "mixture healthy",
    "mixture healthy, plays",
    "power law",
    "power law with evaluations",
    "very slow",
    "very slow with evaluations",
    "very slow and noisy",
    "fast",
    "noise of single rows",
    "periods of epochs",
    "experts specialise",
    "experts waver",
)
TABLE = [
    Row("healthy fast", "converging", []),
    Row("healthy slow", "converging", []),
    Row("healthy noisy", "converging", ["570 temporary cut 1"]),
    Row("healthy adapter", "converging", ["376 temporary cut 1"]),
    Row(
        "spike",
        "converging unstable",
        [
            "67 temporary cut 1",
            "143 temporary cut 1",
            "176 temporary cut 2",
            "328 temporary cut 1",
            "541 temporary cut 1",
            "578 temporary cut 2",
        ],
    ),
    Row(
        "explosion",
        "diverging",
        [
            "123 temporary cut 1",
            "126 advice, warmup too short",
            "197 temporary cut 1",
            "254 temporary cut 1",
            "274 temporary cut 2",
            "294 permanent cut 1",
            "301 advice, growing gradients",
            "346 temporary cut 1",
            "349 early_stop, divergence",
        ],
    ),
    Row("nan", "", []),
    Row("plateau", "converging plateau", ["129 advice, plateau at a high rate"]),
    Row("plateau after learning", "converging", ["500 early_stop, convergence"]),
    Row("oscillating", "converging", []),
    Row("diverging", "diverging", ["500 early_stop, convergence"]),
    Row("overfitting", "converging", ["25 temporary cut 1", "500 early_stop, convergence"]),
    Row("no warmup", "converging", ["156 temporary cut 1"]),
    Row("mixture at a high rate", "converging", ["34 temporary cut 1", "122 temporary cut 1", "597 temporary cut 1"]),
    Row("mixture healthy", "converging", ["122 temporary cut 1"]),
    Row("mixture collapse", "converging", ["122 temporary cut 1", "349 advice, MoE collapse"]),
    Row("mixture healthy, plays", "converging", []),
    Row("mixture collapse, plays", "converging", ["349 advice, MoE collapse"]),
    Row("power law", "converging", []),
    Row("power law with evaluations", "converging", []),
    Row("very slow", "converging plateau", ["425 advice, plateau at a high rate"]),
    Row("very slow with evaluations", "converging plateau", ["1708 advice, plateau at a high rate"]),
    Row(
        "very slow and noisy",
        "converging plateau",
        [
            "121 temporary cut 1",
            "173 temporary cut 1",
            "314 temporary cut 1",
            "538 temporary cut 1",
            "1019 temporary cut 1",
            "1060 temporary cut 2",
            "1112 temporary cut 1",
            "1465 advice, plateau at a high rate",
            "2126 temporary cut 1",
            "3353 temporary cut 1",
            "3527 temporary cut 1",
            "3660 temporary cut 1",
        ],
    ),
    Row("fast", "converging", []),
    Row("noise of single rows", "converging", ["732 temporary cut 1", "1796 temporary cut 1", "2719 temporary cut 1"]),
    Row("periods of epochs", "converging", []),
    Row("two descents", "converging", ["2413 early_stop, efficiency"]),
    Row("one spike", "converging unstable", ["1200 temporary cut 1"]),
    Row(
        "spikes in a row",
        "converging unstable",
        [
            "810 temporary cut 1",
            "840 temporary cut 2",
            "870 permanent cut 1",
            "900 permanent cut 2",
            "930 permanent cut 3",
            "960 permanent cut 4",
            "990 permanent cut 5",
            "1020 no cut left after 5 permanent ones",
            "1080 temporary cut 1",
            "1110 temporary cut 2",
            "1170 temporary cut 1",
            "1200 temporary cut 2",
            "1260 temporary cut 1",
            "1290 temporary cut 2",
            "1350 temporary cut 1",
            "1380 temporary cut 2",
            "1440 temporary cut 1",
            "1470 temporary cut 2",
        ],
    ),
    Row("gradient explodes", "converging unstable", ["500 temporary cut 1", "530 temporary cut 2", "560 permanent cut 1"]),
    Row("level jumps", "converging diverging", ["701 temporary cut 1", "721 temporary cut 2", "907 early_stop, divergence"]),
    Row("flat from the start", "converging plateau", ["209 advice, plateau at a high rate", "655 early_stop, plateau"]),
    Row("flat after learning", "converging plateau", ["731 advice, plateau at a high rate", "1400 early_stop, convergence"]),
    Row(
        "flat after learning, without evaluations",
        "converging plateau",
        ["756 advice, plateau at a high rate", "1855 early_stop, plateau"],
    ),
    Row("rises slowly", "converging diverging", ["1193 early_stop, divergence"]),
    Row("oscillates", "converging unstable", ["604 temporary cut 1"]),
    Row(
        "gradients vanish",
        "converging plateau",
        ["479 advice, plateau at a high rate", "479 advice, vanishing gradients", "972 early_stop, plateau"],
    ),
    Row("gradients grow", "converging", ["101 advice, growing gradients"]),
    Row("overfits", "converging", ["1796 temporary cut 1", "1800 early_stop, convergence"]),
    Row("experts specialise", "converging", []),
    Row("few tokens for many experts", "converging", []),
    Row("experts fall away", "converging", ["824 advice, MoE collapse"]),
    Row("experts collapse", "converging", ["929 advice, MoE collapse"]),
    Row("experts waver", "converging", []),
    Row("diverges and comes back", "converging unstable diverging", ["801 temporary cut 1"]),
]


def happens(name: str) -> list[Event]:
    if name in curves.MADE:
        return watch(curves.MADE[name](), ON, MADE)
    records, facts = curves.real(name)
    return watch(records, ON, facts)


def short(event: Event) -> str:
    return event.what.removeprefix("auto_lr_reduction, ").partition(" of ")[0]


def test_the_table_has_every_curve() -> None:
    assert [row.name for row in TABLE] == [*curves.recorded(), *curves.MADE]
    assert len(TABLE) >= 30
    assert len(curves.recorded()) >= 10


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_what_fires_and_when(row: Row) -> None:
    events = happens(row.name)
    phases = [event.what.removeprefix("phase ") for event in events if event.what.startswith("phase ")]
    assert " ".join(dict.fromkeys(phases)) == row.phases
    fired = [event for event in events if not event.what.startswith("phase ")]
    assert [short(event) for event in fired] == [text.partition(" ")[2] for text in row.fires]
    for event, text in zip(fired, row.fires, strict=True):
        assert abs(event.step - int(text.partition(" ")[0])) <= WINDOW, text


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_is_never_stopped_nor_cut_for_good(name: str) -> None:
    decisions = [event.decision for event in happens(name) if event.decision]
    assert not [decision for decision in decisions if decision.stop]
    assert not [decision for decision in decisions if "permanent" in decision.reason]


@pytest.mark.parametrize("shift", [1000, 2000])
@pytest.mark.parametrize("name", [name for name in HEALTHY if name in curves.MADE])
def test_nor_with_other_noise(name: str, shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = curves.made
    monkeypatch.setattr(curves, "made", lambda seed, *given, **named: made(seed + shift, *given, **named))
    assert not [event for event in happens(name) if event.decision and event.decision.stop]


@pytest.mark.prove("230 runs take a minute")
def test_nor_with_many_other_noises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops: none. Cuts for good, which three spikes of mere noise within 100 steps can bring: in at most one run of twenty."""
    made, cut, runs = curves.made, 0, 0
    for shift in range(10_000, 10_023):
        monkeypatch.setattr(curves, "made", lambda seed, *given, shift=shift, **named: made(seed + shift, *given, **named))
        for name in HEALTHY:
            if name in curves.MADE:
                events, runs = happens(name), runs + 1
                assert not [event for event in events if event.decision and event.decision.stop], (name, shift)
                cut += any("permanent" in event.text for event in events)
    assert runs == 230
    assert cut <= runs / 20
    told = {"healthy runs": runs, "stopped": 0, "cut for good": cut}
    (ROOT / "docs/proof/diagnostics.json").write_text(json.dumps(told, indent=1) + "\n")


def test_the_run_that_became_nan_ended_by_itself() -> None:
    """No observer sees a step that is not finite: the loop ends the run and names the samples."""
    curve: dict[str, Any] = curves.recorded()["nan"]
    assert "nan" in curve["ended"]
    assert all(other["ended"] == "finished" for name, other in curves.recorded().items() if name != "nan")


def test_a_decision_has_criterion_and_figures() -> None:
    for name in ("flat from the start", "two descents", "level jumps", "overfits"):
        last = happens(name)[-1]
        assert last.decision
        assert last.decision.stop
        assert last.text.startswith("early_stop, ")
        assert sum(character.isdigit() for character in last.text) > 8
    criteria = {happens(name)[-1].what for name in ("flat from the start", "two descents", "level jumps", "overfits")}
    assert criteria == {f"early_stop, {name}" for name in ("plateau", "efficiency", "divergence", "convergence")}
