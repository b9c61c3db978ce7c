"""The hooks: every point where a plugin can add something. This file is the reference documentation.

A plugin is a distribution with an entry point in the group ``surogate.v1``, named like the distribution without ``surogate-``,
that loads a module (or object) with functions marked ``@hookimpl``. Rules:

* ``register_*`` hooks take nothing and return a list of :class:`~surogate_core.offers.Offer`. They run for every command, so
  their module imports neither torch nor anything else that is slow.
* Arguments are passed by name; an implementation may leave out those it does not need. There are no defaults, no wrappers,
  no ordering: two answers to one question are an error to show, not an order to guess.
* A hook name that the core does not know makes the plugin *broken*: it is listed with the nearest known name, and the rest of
  the program goes on without it.
* ``check_*`` and ``register_*`` that raise stop the run, with the plugin's name and version in the message. Observers
  (``run_started`` and the rest) that raise are reported once and detached; training goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from surogate_core.config import Config
    from surogate_core.contracts import Batches, Decision, RunInfo
    from surogate_core.errors import Problem
    from surogate_core.offers import Offer
    from surogate_core.plan import Plan

GROUP = "surogate.v1"
"""Entry-point group. A plugin that has an entry point only in another ``surogate.vN`` is listed as made for that version."""

hookspec = pluggy.HookspecMarker("surogate")
hookimpl = pluggy.HookimplMarker("surogate")


# ---------------------------------------------------------------- offers: asked once, at start
@hookspec
def register_models() -> list[Offer]:
    """Where models come from, chosen by ``model_backend``. ``build(options, context)`` returns a
    :class:`~surogate_core.contracts.ModelSource`, which reads, runs and writes the model that ``model`` names."""


@hookspec
def register_pipelines() -> list[Offer]:
    """The data phase, chosen by ``data_pipeline``. ``build(options, context)`` gets a
    :class:`~surogate_core.contracts.PipelineContext` and returns a :class:`~surogate_core.contracts.Pipeline`."""


@hookspec
def register_checkpoints() -> list[Offer]:
    """Where checkpoints are kept, chosen by ``checkpoint_store``. ``build(options, context)`` returns a
    :data:`~surogate_core.contracts.CheckpointStore`: ``open(root, limit)`` gives the checkpoints of one run."""


@hookspec
def register_loops() -> list[Offer]:
    """The training loop, chosen by ``training_loop``. ``build(options, context)`` returns a
    :class:`~surogate_core.contracts.Loop`, which makes a run of a plan and is who asks the observers below."""


@hookspec
def register_recipes() -> list[Offer]:
    """Precision recipes, chosen by ``recipe``. ``build(options, context)`` returns a :class:`~surogate_core.contracts.Recipe`,
    which fills the compute slot of the linear layers that it claims; one that has something to say about the run is a
    :class:`~surogate_core.contracts.Tells` besides."""


@hookspec
def register_quantizers() -> list[Offer]:
    """Formats in which frozen weights are held, each chosen by the boolean option that its offer names as ``key``, or by a
    checkpoint in its format (``ReadsCheckpoints``); at most one, and only beside an adapter. ``build(options, context)`` returns a
    :class:`~surogate_core.contracts.Quantizer`, which fills the storage slot of the linear layers that it claims."""


@hookspec
def register_adapters() -> list[Offer]:
    """Adapters, chosen by ``adapter`` when ``lora`` is true. ``build(options, context)`` returns an
    :class:`~surogate_core.contracts.Adapter`, which fills the adapter slot of the linear layers that it claims; one that reaches
    beyond its slots is a :class:`~surogate_core.contracts.Attaches` besides."""


@hookspec
def register_fusions() -> list[Offer]:
    """Faster functions for norms, activations, attention and feed-forward blocks. Every installed one is asked, unless
    ``compile`` is on. ``build(options, context)`` returns a :class:`~surogate_core.contracts.Fusion`, which replaces the forward
    function of the modules that it claims; two that claim one module are an error."""


@hookspec
def register_optimizers() -> list[Offer]:
    """Update rules, chosen by ``optimizer``. ``build(options, context)`` returns an
    :class:`~surogate_core.contracts.Optimizer`."""


@hookspec
def register_schedules() -> list[Offer]:
    """Shapes of the learning rate's decay, chosen by ``lr_scheduler_type``. ``build(options, context)`` returns a
    :data:`~surogate_core.contracts.Schedule`: a pure function of progress in [0, 1]. Warmup and cooldown are the core's."""


@hookspec
def register_datasets() -> list[Offer]:
    """Data set formats, chosen by ``type`` in ``[[datasets]]``; their options are keys of that table.
    ``build(options, context)`` gets a :class:`~surogate_core.contracts.FormatContext` and returns a
    :class:`~surogate_core.contracts.Format`."""


@hookspec
def register_loggers() -> list[Offer]:
    """Loggers. Every installed one is built: ``build(options, context)`` gets a
    :class:`~surogate_core.contracts.LoggerContext` and returns a :class:`~surogate_core.contracts.Logger`, or None when this
    configuration does not ask for it (``report_to`` lists names)."""


@hookspec
def register_observers() -> list[Offer]:
    """Observers with options or a state. Every installed one is built: ``build(options, context)`` gets an
    :class:`~surogate_core.contracts.ObserverContext` and returns an object, or None when this configuration does not ask for it.
    Those of its methods that are named like the observers' hooks below are called as they are, with all their arguments; what
    its ``state()`` says (:class:`~surogate_core.contracts.KeepsState`) is in every checkpoint."""


@hookspec
def register_parallelisms() -> list[Offer]:
    """Ways to spread a run over processes; exactly one is in force. ``build(options, context)`` returns a
    :class:`~surogate_core.contracts.Parallelism`."""


@hookspec
def register_commands() -> list[Offer]:
    """Subcommands of ``surogate``. ``build`` names a :class:`click.Command`, imported when the command is used or its help is
    asked for; ``summary`` is its line in ``surogate --help``."""


# ---------------------------------------------------------------- checks: every plugin is asked, all answers are shown together
@hookspec
def check_config(config: Config) -> list[Problem]:
    """Problems that the configuration alone tells (keys that exclude each other), before torch is imported."""


@hookspec
def check_plan(plan: Plan, device: str) -> list[Problem]:
    """Problems of this plan on this device ("cpu", "cuda"), before any weight is read."""


@hookspec
def data_ready(plan: Plan, training: Batches) -> Decision | None:
    """The data phase is over, ``num_epochs`` is about to be used. A Decision with ``epochs`` replaces it; two of them are an
    error. It must follow from the plan and the data alone, so that a continued run hears the same."""


# ---------------------------------------------------------------- observers: called between steps, never inside one
@hookspec
def run_started(run: RunInfo) -> None:
    """Everything is loaded; the first step comes next."""


@hookspec
def step_finished(run: RunInfo, record: dict[str, Any]) -> Decision | None:
    """After each optimizer step, with the record that the loggers get next: fields that an observer adds to it are logged. May
    return a Decision (stop, scale the rate)."""


@hookspec
def evaluated(run: RunInfo, record: dict[str, Any]) -> Decision | None:
    """After each evaluation, with its record. May return a Decision."""


@hookspec
def part_finished(run: RunInfo, name: str) -> None:
    """A part of a step has ended: "data", "forward" and "backward" (of each micro-batch), "optimizer", "record" (figures read,
    loggers and observers told), "eval", "save". The one exception to "between steps": it is for clocks, and for nothing else."""


@hookspec
def memory_exhausted(run: RunInfo, part: str, step: int) -> Problem | None:
    """The device had no more memory in a ``part`` of a step ("forward", "backward", "optimizer", "eval"); the run ends with this
    Problem. The first plugin that returns one is heard: how much was planned for that part, and what would fit."""


@hookspec
def checkpoint_saved(run: RunInfo, path: str, step: int) -> None:
    """A checkpoint is complete and on disk at ``path``."""


@hookspec
def run_finished(run: RunInfo, summary: dict[str, Any]) -> None:
    """The run has ended well and its last checkpoint is written."""
