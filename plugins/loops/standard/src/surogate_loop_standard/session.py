"""The middle of a run: everything between a settled plan and its summary."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from surogate_core.contracts import (
    Batches,
    Data,
    FollowsSteps,
    LoggerContext,
    NamesKernels,
    ObserverContext,
    RunInfo,
    Saved,
    Summary,
)
from surogate_core.errors import PlanError, ResumeError, SurogateError
from surogate_core.host import Host, attributed
from surogate_core.offers import Offer, Owner
from surogate_core.plan import Plan
from surogate_core.train.run import resume_command
from surogate_core.train.setup import Trainee, bind_optimizer, build
from surogate_loop_standard import drift
from surogate_loop_standard.exhausted import Underway, out_of_memory_is_explained
from surogate_loop_standard.fanout import Fanout
from surogate_loop_standard.loop import Job, Progress, train
from surogate_loop_standard.observers import Observers
from surogate_loop_standard.records import Records, redact
from surogate_loop_standard.schedules import check_length
from surogate_loop_standard.signals import StopRequest
from surogate_loop_standard.state import progress_from, progress_state, read_files, rehearse, saved_bytes, write_files


class Session:
    """Holds what has to be closed: records and loggers. ``run`` is called once."""

    def __init__(
        self, plan: Plan, host: Host, output_dir: Path, checkpoint_dir: Path, stop: StopRequest, *, quiet: bool, started: float
    ):
        self.plan, self.host, self.stop, self.quiet, self.started = plan, host, stop, quiet, started
        self.core = plan.config.core
        self.output_dir = output_dir
        self.checkpoints = plan.checkpoints(checkpoint_dir, self.core.save_total_limit)
        self.observers = Observers(host, self.notice)
        self.early: list[str] = []
        self.logger_states: dict[str, Any] = {}
        self.observer_states: dict[str, Any] = {}
        self.records: Records | None = None
        self.loggers: Fanout | None = None

    # ------------------------------------------------------------ words
    def notice(self, text: str) -> None:
        """A sentence for the user: to the loggers, or kept until there are some."""
        if self.loggers is None:
            self.early.append(text)
        else:
            self.log({"kind": "notice", "text": text})

    def log(self, record: dict[str, Any]) -> None:
        assert self.records is not None
        assert self.loggers is not None
        self.loggers.log(self.records.write(record))

    def open_logs(self, resumed: int) -> None:
        self.records = Records(self.output_dir / "metrics.jsonl", resumed)
        context = LoggerContext(
            config=self.core,
            device=self.plan.device,
            output_dir=self.output_dir,
            run_name=self.run_name,
            resumed=resumed,
            terminal=sys.stdout.isatty(),
            quiet=self.quiet,
            notice=self.notice,
        )
        self.loggers = Fanout(
            self._built("loggers", context, self.logger_states), lambda text: print(text, file=sys.stderr, flush=True)
        )
        for text in (*self.plan.config.notices, *self.plan.notices, *self.early):
            self.notice(text)
        self.early.clear()

    def _built(self, kind: str, context: LoggerContext | ObserverContext, states: Mapping[str, Any]) -> Iterator[tuple[Offer, Any]]:
        """What the offers of a kind build, each with its own state; without those that this configuration does not ask for."""
        for offer in self.host.offers(kind).values():
            with attributed(offer.owner, f"build of {offer.name!r}"):
                options = self.plan.config.of(offer.options) if offer.options else None
                built = offer.load()(options, attrs.evolve(context, state=states.get(offer.name, {})))
            if built is not None:
                yield offer, built

    @functools.cached_property
    def run_name(self) -> str:
        return self.core.run_name or f"{Path(self.core.model).name}-{time.strftime('%Y%m%d-%H%M%S')}"

    def close(self) -> None:
        if self.loggers is not None:
            self.loggers.close()
        if self.records is not None:
            self.records.close()

    # ------------------------------------------------------------ the run
    def run(self, *, fresh: bool, allow_drift: bool) -> Summary:
        if fresh and (aside := self.checkpoints.set_aside(self.output_dir)):
            self.notice(f"started over; the earlier run is kept in {aside}")
        tokenizer = self.plan.model_source.tokenizer()
        data = self.plan.pipeline.prepare(tokenizer, self.notice, live=not self.quiet)
        training = data.training(self.core.per_device_train_batch_size, self.core.gradient_accumulation_steps)
        validation = data.validation(self.core.per_device_train_batch_size)
        epochs = self._epochs(training)
        total = self.core.max_steps if self.core.max_steps >= 0 else training.steps(epochs)
        check_length(self.core, total)
        saved = self._continue_from(data, total, allow_drift)
        if saved is not None:
            self.run_name = self.core.run_name or saved.state["run_name"]
            self.logger_states = saved.state.get("loggers", {})
            self.observer_states = saved.state.get("observers", {})
        if saved is not None and saved.step >= total:
            return self._finished_before(saved, total)
        trainee = build(self.plan, weights=saved.path if saved and self.plan.adapter is None else None, notice=self.notice)
        optimizer = bind_optimizer(self.plan, trainee)
        torch.manual_seed(self.core.train_seed)
        progress = Progress()
        if saved is not None:
            read_files(saved.path, self.plan, trainee, optimizer)
            progress = progress_from(saved.state["progress"])
            if progress.best_step == saved.step:  # a kill between the save and its mark leaves none
                self.checkpoints.mark_best(saved.path)
        self.checkpoints.room(saved_bytes(trainee, optimizer) * 2)
        self.open_logs(progress.step)
        context = ObserverContext(config=self.core, device=self.plan.device, plan=self.plan, log=self.log)
        for offer, observer in self._built("observers", context, self.observer_states):
            self.observers.add(offer, observer)
        info = self._introduce(data, training, validation, trainee, optimizer, total, progress.step)

        def write(directory: Path) -> None:
            write_files(directory, self.plan, trainee, optimizer, tokenizer)

        def save(progress: Progress, last: bool) -> None:
            assert self.records is not None
            assert self.loggers is not None
            state = {
                "progress": progress_state(progress),
                "total_steps": total,
                "finished": last,
                "run_name": self.run_name,
                "loggers": {**self.logger_states, **self.loggers.states()},
                "observers": {**self.observer_states, **self.observers.states()},
                "environment": drift.environment(self.host, data.fingerprint),
                "ledger": data.ledger,
            }
            self.records.flush()
            path = self.checkpoints.save(progress.step, write, redact(state))
            if progress.best_step == progress.step:
                self.checkpoints.mark_best(path)
            self.log({"kind": "checkpoint", "step": progress.step, "path": str(path)})
            self.observers.tell("checkpoint_saved", run=info, path=str(path), step=progress.step)

        def tell(hook: str, record: dict[str, Any]) -> list[tuple[Owner, Any]]:
            answers = self.observers.tell(hook, run=info, record=record) if hook else []
            self.log(record)
            if hook == "step_finished" and progress.step == 1:
                self.checkpoints.rehearse(write, lambda directory: rehearse(directory, optimizer, trainee))
            return answers

        underway = Underway(self.core.gradient_accumulation_steps)

        def mark(name: str) -> None:
            underway.mark(name)
            self.observers.tell("part_finished", run=info, name=name)

        recipe = self.plan.recipe
        job = Job(
            core=self.core,
            model=self.plan.parallelism.wrap(trainee.model),
            loss=self.plan.model_source.loss,
            parameters=trainee.parameters,
            optimizer=optimizer,
            schedule=self.plan.schedule,
            parallelism=self.plan.parallelism,
            train=training,
            validation=validation,
            total=total,
            epochs=epochs if self.core.max_steps < 0 else None,
            save=save,
            stop=lambda: self.stop.requested,
            save_now=self.stop.save_now,
            tell=tell,
            stepped=functools.partial(recipe.stepped, trainee.computes) if isinstance(recipe, FollowsSteps) else lambda: None,
            mark=mark,
        )
        self.observers.tell("run_started", run=info)
        try:
            with out_of_memory_is_explained(self.observers, info, underway, progress):
                reason = train(job, progress)
        except SurogateError as error:
            self.log({"kind": "end", "step": progress.step, "failed": error.problems[0].what})
            raise
        assert self.loggers is not None
        summary = self._summary(progress, total, reason)
        self.loggers.add_seconds(self.observers.seconds)
        told = {"next": self._next(summary), "plugins_s": dict(self.observers.seconds)}
        self.log({"kind": "end", "step": progress.step, **_plain(summary), **told})
        self.loggers.drain()  # what observers print comes after the last lines of the console
        if not self.stop.requested:
            self.observers.tell("run_finished", run=info, summary=_plain(summary))
        return summary

    def _epochs(self, training: Batches) -> int:
        """``num_epochs``, or what a plugin puts in its place."""
        epochs, by = self.core.num_epochs, None
        for owner, decision in self.host.ask("data_ready", plan=self.plan, training=training):
            if decision and by:
                raise PlanError("two plugins choose num_epochs", where=f"{by} and {owner}", how="switch one of them off")
            if decision:
                epochs, by = decision.epochs, owner
                self.notice(f"num_epochs = {epochs} by {owner}: {decision.reason}")
        return epochs

    def _continue_from(self, data: Data, total: int, allow_drift: bool) -> Saved | None:
        """The checkpoint to continue from, checked against this configuration."""
        saved = self.checkpoints.newest()
        for name, why in self.checkpoints.skipped:
            self.notice(f"{name} is not complete and is passed over: {why}")
        if saved is None:
            return None
        if not self.core.resume_from_checkpoint:
            raise ResumeError(
                f"{self.checkpoints.root} holds a checkpoint of step {saved.step}, and resume_from_checkpoint is false",
                where=str(saved.path),
                how="choose another output_dir, or start over with --fresh (the earlier run is kept aside)",
            )
        saved.verify()
        for line in drift.check(saved.state, saved.path, self.plan.config, self.host, data.fingerprint, allow_drift):
            self.notice(f"drift allowed: {line}")
        if saved.step < total:
            self.notice(f"continuing from {saved.path} (step {saved.step} of {total})")
        return saved

    def _finished_before(self, saved: Saved, total: int) -> Summary:
        self.open_logs(saved.step)
        self.notice(f"already finished: {saved.path} has all {total} steps; a larger max_steps or num_epochs extends the run")
        progress = progress_from(saved.state["progress"])
        return self._summary(progress, total, None)

    def _introduce(
        self, data: Data, training: Batches, validation: Batches | None, trainee: Trainee, optimizer: Any, total: int, step: int
    ) -> RunInfo:
        figures, source = self.plan.figures, self.plan.model_source
        self.log(
            {
                "kind": "run",
                "step": step,
                "run_name": self.run_name,
                "task": self.core.task,
                "why": self.plan.config.origins.get("task", "default").removeprefix("derived: "),
                "model": self.core.model,
                "model_type": self.plan.outline.model_type,
                "parameters": figures.parameters,
                "trainable": figures.trainable,
                "device": self.plan.device,
                "dtype": self.core.model_dtype,
                "recipe": self.core.recipe,
                "optimizer": self.core.optimizer,
                "adapter": self.core.adapter if self.core.lora else None,
                "kernels": list(source.kernels(trainee.model)) if isinstance(source, NamesKernels) else [],
                "slots": [*self.plan.slot_lines(), *self.plan.fusion_lines()],
                "micro_batch": self.core.per_device_train_batch_size,
                "accumulation": self.core.gradient_accumulation_steps,
                "ranks": self.plan.parallelism.world_size,
                "sequence_len": self.core.sequence_len,
                "tokens_per_step": figures.tokens_per_step,
                "rows": training.rows,
                "fill": round(training.fill, 4),
                "validation_rows": validation.rows if validation else 0,
                "steps": total,
                "resumed": step,
                "epochs": round(total / max(1, training.steps(1)), 2),
                "memory": dict(figures.memory),
                "seed": self.core.train_seed,
                "threads": torch.get_num_threads(),
                "output_dir": str(self.output_dir),
                "checkpoint_dir": str(self.checkpoints.root),
                "plugins": dict(self.plan.lock),
                "fingerprint": self.plan.fingerprint,
                "config": self.plan.config.resolved(),
                "origins": dict(self.plan.config.origins),
                "prepared_s": round(time.monotonic() - self.started, 3),
            }
        )
        self.log({"kind": "ledger", "step": step, **data.ledger})
        return RunInfo(
            config=self.plan.config,
            plan=self.plan,
            model=trainee.model,
            optimizer=optimizer,
            output_dir=self.output_dir,
            resumed=step,
            total_steps=total,
            terminal=sys.stdout.isatty(),
            quiet=self.quiet,
        )

    def _summary(self, progress: Progress, total: int, reason: str | None) -> Summary:
        newest = self.checkpoints.newest()
        return Summary(
            steps=progress.step,
            total_steps=total,
            loss=progress.loss,
            eval_loss=progress.eval_loss,
            best_loss=progress.best_loss,
            best_step=progress.best_step,
            tokens=progress.tokens,
            tokens_per_s=round(progress.tokens_here / max(progress.seconds["compute"] + progress.seconds["data"], 1e-9), 1),
            output_dir=self.output_dir,
            checkpoint=newest.path if newest else None,
            seconds={name: round(value, 3) for name, value in progress.seconds.items()},
            first_step=round(progress.first_step_at - self.started, 3) if progress.first_step_at else None,
            stopped=reason,
        )

    def _next(self, summary: Summary) -> list[str]:
        """Commands worth typing now."""
        if summary.steps < summary.total_steps:
            return [resume_command(self.plan.config)]
        generates = "generate" in self.host.offers("commands") and summary.checkpoint is not None
        return [f'surogate generate {summary.checkpoint} --prompt "Once upon a time"'] if generates else []


def _plain(summary: Summary) -> dict[str, Any]:
    return attrs.asdict(summary, value_serializer=lambda _, __, value: str(value) if isinstance(value, Path) else value)
