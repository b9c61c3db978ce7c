"""Making a plan: resolve offers, build the model on the meta device, let every chosen offer claim sites, collect all problems."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from surogate_core import collector
from surogate_core.config import Config
from surogate_core.config.options import CoreOptions
from surogate_core.contracts import Adapter, Context, PipelineContext, Quantizer, ReadsCheckpoints, Recipe, Site, Tells
from surogate_core.errors import PlanError, Problem
from surogate_core.host import Host, attributed
from surogate_core.offers import Offer, capability
from surogate_core.plan.figures import count
from surogate_core.plan.fuse import fuse
from surogate_core.plan.record import Plan, Slots


@collector.paused()
def make_plan(config: Config, host: Host, device: str | None = None) -> Plan:
    """The plan of this configuration. Imports torch and reads the model's config.json, nothing else. ``device`` ("cpu", "cuda")
    may be one that this machine does not have: to look at what a run there would be, not to run it.

    Raises PlanError with every problem found, ModelError when the model cannot be planned.
    """
    import torch

    core = config.core
    device, asked = device or ("cuda" if torch.cuda.is_available() else "cpu"), device
    context = Context(config=core, device=device, of=config.of)
    chosen = {
        "models": host.offer("models", core.model_backend),
        "pipelines": host.offer("pipelines", core.data_pipeline),
        "checkpoints": host.offer("checkpoints", core.checkpoint_store),
        "loops": host.offer("loops", core.training_loop),
        "recipes": host.offer("recipes", core.recipe),
        "optimizers": host.offer("optimizers", core.optimizer),
        "schedules": host.offer("schedules", core.lr_scheduler_type),
        "parallelisms": host.offer("parallelisms", "single"),
    }
    if core.lora:
        chosen["adapters"] = host.offer("adapters", core.adapter)
    for offer in host.offers("quantizers").values():
        if offer.options and getattr(config.of(offer.options), offer.key):  # at most one: the configuration was checked
            chosen["quantizers"] = offer
    emulated = core.recipe_backend == "emulated"
    needing = [offer for kind, offer in chosen.items() if not (emulated and kind == "recipes")]
    problems = [_problem(offer, missing, host, device) for offer in needing if (missing := _lacks(offer, device))]
    if problems:
        raise PlanError(problems)
    formats = functools.partial(host.offer, "datasets")
    contexts = {"pipelines": PipelineContext(config=core, device=device, of=config.of, format=formats)}
    built = {kind: _build(offer, config, contexts.get(kind, context)) for kind, offer in chosen.items()}
    recipe, adapter, optimizer = built["recipes"], built.get("adapters"), built["optimizers"]
    quantizer = built.get("quantizers")

    outline = built["models"].outline()
    if outline.held and core.lora:  # in its own format, if a quantizer has it, unless a key chose another
        for offer in [chosen["quantizers"]] if quantizer else host.offers("quantizers").values():
            reader = quantizer or _build(offer, config, context)
            if isinstance(reader, ReadsCheckpoints) and (own := reader.reading(outline.held)):
                chosen["quantizers"], quantizer = offer, own
                break
    sites = outline.sites
    slots = _claim(core, sites, recipe, adapter, quantizer, chosen)
    figures = count(core, outline, slots, adapter, optimizer, quantizer)
    lock = host.lock()
    notices = () if device == "cuda" or asked else ("no GPU found: this run computes on the CPU",)
    plan = Plan(
        config=config,
        device=device,
        model_source=built["models"],
        pipeline=built["pipelines"],
        checkpoints=built["checkpoints"],
        loop=built["loops"],
        outline=outline,
        slots=slots,
        fused=fuse(config, host, context, outline),
        recipe=recipe,
        adapter=adapter,
        quantizer=quantizer,
        optimizer=optimizer,
        schedule=built["schedules"],
        parallelism=built["parallelisms"],
        figures=figures,
        lock=lock,
        fingerprint=_fingerprint(config, lock, sites),
        notices=(*notices, *(recipe.notices if isinstance(recipe, Tells) else ())),
    )
    problems = [problem for _, answer in host.ask("check_plan", plan=plan, device=device) for problem in answer or ()]
    if problems := problems or _nothing_claimed(plan, chosen):
        raise PlanError(problems)
    return plan


def _build(offer: Offer, config: Config, context: Context) -> Any:
    with attributed(offer.owner, f"build of {offer.name!r}"):
        return offer.load()(config.of(offer.options) if offer.options else None, context)


def _lacks(offer: Offer, device: str) -> str | None:
    """What is found instead, where the device lacks what the offer requires."""
    if not offer.requires:
        return None
    if device != "cuda":
        return "no GPU"
    import torch

    if not torch.cuda.is_available():  # a GPU that is elsewhere, which may have it
        return None
    wanted, have = capability(offer.requires), torch.cuda.get_device_capability()
    return None if wanted is None or have >= wanted else f"a GPU of compute capability {have[0]}.{have[1]}"


def _problem(offer: Offer, missing: str, host: Host, device: str) -> Problem:
    """A refusal, with the recipe that runs here and asks for the most when it is a recipe that is refused."""
    recipes = host.offers("recipes")
    how = "run on a device that has it, or choose another"
    if recipes.get(offer.name) is offer:
        runs = [other for other in recipes.values() if not _lacks(other, device)]
        nearest = max(runs, key=lambda other: capability(other.requires) or (0, 0), default=None)
        how = f'set recipe = "{nearest.name}", which runs here, or ' if nearest else "set "
        how += 'recipe_backend = "emulated", which runs the exact arithmetic of the recipe on any device'
    return Problem(f"{offer.name} needs {offer.requires}, this machine has {missing}", where=f"{offer.owner}", how=how)


def _claim(
    core: CoreOptions,
    sites: tuple[Site, ...],
    recipe: Recipe,
    adapter: Adapter | None,
    quantizer: Quantizer | None,
    chosen: Mapping[str, Offer],
) -> dict[str, Slots]:
    """Slots of every linear of the decoder blocks. Embeddings and head are never claimed: they stay in the model's dtype."""
    slots = {}
    last = max((site.layer for site in sites if site.layer is not None), default=0) - core.skip_quant_last_layers
    for site in sites:
        if site.kind not in ("linear", "stacked_linear") or site.layer is None:
            continue
        part = site.parts[0]
        with attributed(chosen["recipes"].owner, "Recipe.claim"):
            left = recipe.claim(part) if core.skip_quant_first_layers <= site.layer <= last else "skip_quant"
        taken = None
        if adapter is not None:
            with attributed(chosen["adapters"].owner, "Adapter.claim"):
                taken = chosen["adapters"].owner if adapter.claim(site) is None else None
        kept: str | None = ""
        if quantizer is not None:
            with attributed(chosen["quantizers"].owner, "Quantizer.claim"):
                kept = quantizer.claim(part)
        slots[site.name] = Slots(
            storage=chosen["quantizers"].owner if kept is None else None,
            compute=chosen["recipes"].owner if left is None else None,
            adapter=taken,
            left=left or "",
            kept=kept or "",
        )
    return slots


def _nothing_claimed(plan: Plan, chosen: Mapping[str, Offer]) -> list[Problem]:
    if plan.adapter is None or plan.figures.trainable:
        return []
    roles = sorted({site.role for site in plan.sites if plan.slots.get(site.name)})
    return [
        Problem(
            f"adapter {chosen['adapters'].name!r} claims no layer of this model: there is nothing to train",
            where=f"{chosen['adapters'].owner}; linear layers: {', '.join(roles) or 'none'}",
            how="name some of these layers as targets, or set lora = false",
        )
    ]


def _fingerprint(config: Config, lock: Mapping[str, str], sites: tuple[Site, ...]) -> str:
    import torch

    content = json.dumps(
        [config.resolved(), dict(lock), torch.__version__, [[site.name, site.kind, site.shape] for site in sites]], sort_keys=True
    )
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()
