"""The observer: records in, phases, advice and decisions out. Its whole state is numbers and survives a checkpoint bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
from attrs import Factory, define, frozen

from surogate_core.contracts import Decision, ObserverContext, RunInfo
from surogate_observer_diagnostics.options import Options
from surogate_observer_diagnostics.plugin import TOKENS_PER_PARAMETER
from surogate_observer_diagnostics.rates import Cuts
from surogate_observer_diagnostics.signals import Experts, Level, Spikes, Stretch
from surogate_observer_diagnostics.stops import Evals, Stops

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "top_k_experts", "moe_k", "moe_topk", "num_experts_per_token")
HOLD = 10
"""Steps that a new phase has to last before it is told, so that it does not flicker."""


def build(options: Options, context: ObserverContext) -> Diagnostics:
    return Diagnostics(options, Facts.of(context.config, context.plan), context.log, context.state)


@frozen(kw_only=True)
class Facts:
    """What the diagnostics know of a run beside its records. ``warmup``: steps as configured, a share of all steps if below 1.
    ``crowd``: experts of a layer over experts of a token, 1 without experts."""

    parameters: int = 1
    warmup: float = 0.0
    clips: bool = False
    adapter: bool = False
    crowd: float = 1.0

    @classmethod
    def of(cls, core: Any, plan: Any) -> Facts:
        return cls(
            parameters=plan.figures.parameters,
            warmup=core.warmup_steps or core.warmup_ratio,
            clips=core.max_grad_norm > 0,
            adapter=core.lora,
            crowd=crowd(plan.outline.skeleton),
        )


def crowd(model: Any) -> float:
    """From what transformers' families call these numbers; 1 for a model that is none of them or has no experts."""
    text: Any = getattr(getattr(model, "config", None), "get_text_config", dict)()
    experts = next((getattr(text, name) for name in EXPERTS if getattr(text, name, None)), 1)
    return experts / next((getattr(text, name) for name in CHOSEN if getattr(text, name, None)), experts)


@define
class Memory:
    """The state. ``phase`` is what was told last, ``next`` what comes up and since when; ``told``: advice given, by its name."""

    spikes: Spikes = Factory(Spikes)
    stretch: Stretch = Factory(Stretch)
    level: Level = Factory(Level)
    cuts: Cuts = Factory(Cuts)
    evals: Evals = Factory(Evals)
    stops: Stops = Factory(Stops)
    experts: Experts = Factory(Experts)
    seen: int = 0
    phase: str = "warmup"
    next: str = "warmup"
    since: int = 0
    top_rate: float = 0.0
    top_norm: float = 0.0
    early: int = 0
    told: list[str] = Factory(list)

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Memory:
        if not state:
            return cls()
        parts = {field.name: field.default.factory for field in attrs.fields(cls) if field.name in PARTS}
        return cls(**{name: parts[name](**value) if name in parts else value for name, value in state.items()})


PARTS = ("spikes", "stretch", "level", "cuts", "evals", "stops", "experts")


class Diagnostics:
    """``log`` gets records of kind "notice". Nothing here reads a clock: what is decided follows from the losses alone."""

    def __init__(self, options: Options, facts: Facts, log: Callable[[dict[str, Any]], None], state: Mapping[str, Any] = {}):
        self.options, self.facts, self._log = options, facts, log
        self.memory = Memory.of(state)

    def state(self) -> dict[str, Any]:
        return attrs.asdict(self.memory)

    def run_started(self, run: RunInfo) -> None:
        if self.facts.adapter:
            return
        budget, planned = TOKENS_PER_PARAMETER * self.facts.parameters, run.total_steps * run.plan.figures.tokens_per_step
        share = f"{planned / budget:.1%} of it" if planned < 10 * budget else f"{planned / budget:.0f} times as many"
        needs = f"{self.facts.parameters:,} parameters x {TOKENS_PER_PARAMETER} = {budget:,} tokens"
        self._log({"kind": "notice", "text": f"Chinchilla: {needs}; this run has {planned:,}, {share}"})

    def step_finished(self, run: RunInfo, record: dict[str, Any]) -> Decision | None:
        decision = self.step(record)
        record["phase"] = self.memory.phase
        return decision

    def evaluated(self, run: RunInfo, record: dict[str, Any]) -> Decision | None:
        return self.evaluation(record)

    # ------------------------------------------------------------ without a run
    def evaluation(self, record: Mapping[str, Any]) -> Decision | None:
        loss = float(record["loss"])
        if not math.isfinite(loss):
            return None
        reason = self.memory.evals.see(record["step"], loss, self.options)
        return Decision(reason=reason, stop=True) if reason and self.options.early_stop else None

    def step(self, record: Mapping[str, Any]) -> Decision | None:
        """Takes one ``step`` record. Returns what is to be done; phases and advice go to ``log``."""
        memory, options = self.memory, self.options
        step, loss, norm, rate = record["step"], float(record["loss"]), record.get("grad_norm"), float(record.get("lr") or 0.0)
        norm = None if norm is None else float(norm)
        memory.seen += 1
        warmup = self.facts.warmup if self.facts.warmup >= 1 else self.facts.warmup * record.get("total_steps", 0)
        early = memory.seen < 20
        warm = early or step <= warmup
        spike = memory.spikes.see(step, loss, norm, options)
        factor, why = memory.cuts.see(step, spike, options) if options.auto_lr_reduction else (1.0, "")
        if not math.isfinite(loss):
            return Decision(reason=why, scale_lr=factor) if why else None
        if not warm and spike is None:
            memory.stretch.see(step, loss, options)
        if not early:
            memory.level.see(step, loss, norm, options)
        memory.experts.see(record, self.facts.crowd, options)
        self._phase(step, "warmup" if warm and not memory.level.diverging else self._now())
        self._advise(step, rate, norm, warmup, spike, warm)
        stop = None
        if not early:
            stop = memory.stops.see(
                step, loss, record.get("tokens", 0), self.facts.parameters, memory.stretch, memory.level, memory.evals, options
            )
        if stop and options.early_stop:
            return Decision(reason=stop, stop=True, scale_lr=factor)
        return Decision(reason=why, scale_lr=factor) if why or factor != 1.0 else None

    def _now(self) -> str:
        memory, options = self.memory, self.options
        if memory.level.diverging > 0:
            return "diverging"
        if len(memory.spikes.recent) >= options.unstable_spikes or memory.level.jumpy(options):
            return "unstable"
        if memory.stretch.flat(options.plateau_improvement, 2.0, options):
            return "plateau"
        return "converging"

    def _phase(self, step: int, phase: str) -> None:
        memory = self.memory
        if phase != memory.next:
            memory.next, memory.since = phase, step
        if memory.next == memory.phase or step - memory.since + 1 < HOLD:
            return
        was, memory.phase = memory.phase, memory.next
        self._log({"kind": "notice", "step": step, "phase": phase, "text": f"phase {phase} after {was}: {self._figures(phase)}"})

    def _figures(self, phase: str) -> str:
        memory = self.memory
        trend = f"the gradient norm {_trend(memory.level.trend())}"
        if phase == "plateau":
            least, greatest = memory.stretch.rate(2.0)
            n, start = memory.stretch.n, memory.stretch.start
            return f"{n} steps since step {start} in which the loss falls by {least:.2%} to {greatest:.2%} in 500 steps; {trend}"
        if phase == "diverging":
            mean = sum(memory.level.losses) / len(memory.level.losses)
            return f"the mean loss is {mean:.4f}, the best was {memory.level.best:.4f} at step {memory.level.best_step}; {trend}"
        if phase == "unstable":
            noise = f"the loss jumps by {memory.level.noise:.4f}" + (
                f", {memory.level.calm:.4f} when calm" if memory.level.calm else ""
            )
            return f"{len(memory.spikes.recent)} spikes in {2 * self.options.diagnostics_window} steps; {noise}; {trend}"
        return trend

    def _advise(self, step: int, rate: float, norm: float | None, warmup: float, spike: str | None, warm: bool) -> None:
        """Signals that say more together than alone. Each advice is given once in a run."""
        memory = self.memory
        memory.top_rate = max(memory.top_rate, rate)
        if norm is not None and math.isfinite(norm) and memory.seen >= 20:
            memory.top_norm = max(memory.top_norm, sum(memory.spikes.norms[-20:]) / 20)
        if spike and step <= max(3 * warmup, 100):
            memory.early += 1
        mean_norm = sum(memory.spikes.norms[-20:]) / 20 if len(memory.spikes.norms) >= 20 else math.inf
        flat = memory.phase == "plateau"
        grows = memory.level.trend()
        advice = {
            "plateau at a high rate": flat
            and rate >= 0.5 * memory.top_rate
            and f"the loss stands still while the learning rate is {rate:.3g}, {rate / (memory.top_rate or 1):.0%} of its peak: "
            "a lower rate or a decay that begins now may free it",
            "warmup too short": memory.early >= 3
            and f"{memory.early} spikes within {max(3 * warmup, 100):.0f} steps after a warmup of {warmup:.0f}: a longer one "
            "(warmup_steps), or a lower learning_rate",
            "vanishing gradients": not warm
            and mean_norm < 1e-3 * memory.top_norm
            and memory.phase != "converging"
            and f"the gradient norm is {mean_norm:.3g}, it was {memory.top_norm:.3g}, and the loss does not fall: "
            "nothing is learned any more; look at the data's loss mask and at the rate",
            "growing gradients": not warm
            and not self.facts.clips
            and grows > 4
            and f"the gradient norm grew {grows:.1f} times in {len(memory.level.norms)} steps and is not clipped: "
            "set max_grad_norm = 1.0",
            "MoE collapse": (experts := memory.experts.said(self.facts.crowd, self.options))
            and f"{experts}: raise router_aux_loss_coef or router_z_loss_coef, or lower the learning rate",
        }
        for name, text in advice.items():
            if text and name not in memory.told:
                memory.told.append(name)
                self._log({"kind": "notice", "step": step, "advice": name, "text": f"advice, {name}: {text}"})


def _trend(times: float) -> str:
    if 0.67 < times < 1.5:
        return "is steady"
    return f"{'grew' if times > 1 else 'fell'} {max(times, 1 / times):.1f} times"


@frozen
class Event:
    """What was said or done after a record. ``what``: "phase plateau", "advice ...", "early_stop, plateau", ..."""

    step: int
    what: str
    text: str
    decision: Decision | None = None


def watch(records: Iterable[Mapping[str, Any]], options: Options, facts: Facts, state: Mapping[str, Any] = {}) -> list[Event]:
    """What happens over the records of a run (kinds ``step`` and ``eval``), without one. It ends at the first decision to stop."""
    events: list[Event] = []

    def log(record: dict[str, Any]) -> None:
        events.append(Event(record["step"], record["text"].partition(" after ")[0].partition(":")[0], record["text"]))

    diagnostics = Diagnostics(options, facts, log, state)
    for record in records:
        take = {"step": diagnostics.step, "eval": diagnostics.evaluation}.get(record.get("kind", ""))
        decision = take(record) if take else None
        if decision and (decision.reason or decision.stop):
            events.append(Event(record["step"], decision.reason.partition(":")[0], decision.reason, decision))
        if decision and decision.stop:
            break
    return events
