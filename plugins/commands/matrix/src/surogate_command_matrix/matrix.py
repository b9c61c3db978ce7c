"""What goes together, found by asking: each combination of the installed offers is planned on a small model of each kind.

A plan is where plugins say what they cannot do (``check_config``, ``check_plan``, claims), so what it refuses is their own
declaration, in their own words. ``recipe_backend = "emulated"`` leaves out what is a matter of the machine; what a recipe needs to
run natively is told in the heading.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from surogate_core.config import load
from surogate_core.errors import Problem, SurogateError

if TYPE_CHECKING:
    from surogate_core.host import Host
    from surogate_core.plan import Plan

FULL, PLAIN = "full", "none"
"""All weights trained; weights held as they are."""
LINEAR = ("linear", "stacked_linear")
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Qwen3": ("qwen3", {}),
    "Qwen3-MoE": ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    "GPT-OSS": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen3-VL": ("qwen3_vl", {}),
}
"""Kinds of model: transformers' name of the family, and what its small model has besides."""


@frozen(kw_only=True)
class Cell:
    """One combination. ``problems`` is empty when it trains."""

    adapter: str = FULL
    quantizer: str = PLAIN
    recipe: str = "bf16"
    kind: str
    problems: tuple[Problem, ...] = ()

    def config(self, host: Host, model: Path) -> dict[str, Any]:
        """The keys that choose this combination, for a model in a directory."""
        quantizers = host.offers("quantizers")
        return {
            "model": str(model),
            "sequence_len": 64,
            "recipe": self.recipe,
            "recipe_backend": "emulated",
            "lora": self.adapter != FULL,
            **({} if self.adapter == FULL else {"adapter": self.adapter}),
            **({} if self.quantizer == PLAIN else {quantizers[self.quantizer].key: True}),
        }


def make_model(kind: str, directory: Path) -> Path:
    """A random model of this kind with one layer and a byte tokenizer, about 30,000 parameters."""
    from surogate_model_transformers import testing
    from surogate_model_transformers.quiet import quiet

    family, changes = KINDS[kind]
    make = testing.tiny_vision_model if family.endswith("_vl") else testing.tiny_model
    with quiet():
        return make(directory, family, num_hidden_layers=1, **changes)


def cells(host: Host) -> list[Cell]:
    """All combinations of what is installed, not planned yet."""
    adapters, quantizers = [FULL, *sorted(host.offers("adapters"))], [PLAIN, *sorted(host.offers("quantizers"))]
    every = itertools.product(adapters, quantizers, sorted(host.offers("recipes")), KINDS)
    return [Cell(adapter=a, quantizer=q, recipe=r, kind=k) for a, q, r, k in every]


def plan_cell(cell: Cell, host: Host, model: Path) -> Cell:
    """The cell with what its plan refuses."""
    from surogate_core.plan import make_plan

    try:
        make_plan(load(cell.config(host, model), host, need_data=False), host)
    except SurogateError as error:
        return evolve(cell, problems=tuple(error.problems))
    return cell


def plan_all(host: Host) -> tuple[list[Cell], dict[str, str]]:
    """Every cell, planned, and of each kind of model the sites that offers can claim."""
    from surogate_core.plan import make_plan

    with tempfile.TemporaryDirectory(prefix="surogate-matrix-") as place:
        models = {kind: make_model(kind, Path(place, kind)) for kind in KINDS}
        plans = {
            kind: make_plan(load(Cell(kind=kind).config(host, model), host, need_data=False), host)
            for kind, model in models.items()
        }
        return [plan_cell(cell, host, models[cell.kind]) for cell in cells(host)], {
            kind: _sites(plan) for kind, plan in plans.items()
        }


def _sites(plan: Plan) -> str:
    """Roles of a model's linear layers in its blocks."""
    roles = {kind: sorted({site.role for site in plan.sites if site.kind == kind and site.layer is not None}) for kind in LINEAR}
    return "; ".join(f"{kind.replace('_', ' ')} layers: {', '.join(found)}" for kind, found in roles.items() if found)


# ---------------------------------------------------------------- the page
def page(planned: Sequence[Cell], sites: Mapping[str, str], host: Host) -> str:
    """A table of adapters and quantizers by kind of model, and the reasons of what is refused. ``sites``: those of each kind."""
    recipes = list(dict.fromkeys(cell.recipe for cell in planned))
    reasons: dict[tuple[str, ...], list[Cell]] = {}
    rows: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for cell in planned:
        rows.setdefault((cell.adapter, cell.quantizer), {}).setdefault(cell.kind, []).append(cell)
        if cell.problems:
            reasons.setdefault(_said(cell), []).append(cell)
    numbers = {said: number for number, said in enumerate(reasons, 1)}
    native = ", ".join(f"{name} ({host.offers('recipes')[name].requires or 'any device'})" for name in recipes)
    lines = [
        "# What goes together",
        "",
        "Printed by `surogate plugins --matrix`. Each combination of adapter, quantizer, recipe and kind of model is planned on",
        "a small model of that kind, with the default options of each plugin. `trains`: the plan accepts it with every recipe.",
        "A number: it is refused, for the reasons below.",
        "",
        f"Recipes, and where they run natively: {native}. Elsewhere they are emulated (`recipe_backend`), as here.",
        "",
        f"| adapter | quantizer | {' | '.join(sites)} |",
        f"|---|---|{'---|' * len(sites)}",
        *(f"| {a} | {q} | {' | '.join(_entry(row[kind], numbers) for kind in sites)} |" for (a, q), row in rows.items()),
        "",
        *(["## Refused", ""] if reasons else []),
    ]
    for said, number in numbers.items():
        refused = reasons[said]
        parts = _parts(refused, planned)
        together = " × ".join(", ".join(names) for names in parts.values())
        lines += [f"{number}. **{together or 'everything'}**", ""]
        lines += [f"   - {problem.what}. To mend it: {problem.how}." for problem in refused[0].problems]
        lines += [
            f"   - {name}: {side}" for part, names in parts.items() for name in names if (side := _side(part, name, sites, host))
        ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _said(cell: Cell) -> tuple[str, ...]:
    return tuple(problem.what for problem in cell.problems)


def _entry(row: Iterable[Cell], numbers: Mapping[tuple[str, ...], int]) -> str:
    """One word where all recipes agree, else each by name."""
    by_recipe = {cell.recipe: f"[{numbers[_said(cell)]}]" if cell.problems else "trains" for cell in row}
    said = set(by_recipe.values())
    return said.pop() if len(said) == 1 else ", ".join(f"{recipe}: {text}" for recipe, text in by_recipe.items())


def _parts(refused: Sequence[Cell], planned: Sequence[Cell]) -> dict[str, list[str]]:
    """What a refusal depends on: the parts of its cells, without those that take every value."""
    found = {}
    for part in ("adapter", "quantizer", "recipe", "kind"):
        here, everywhere = ({getattr(cell, part): None for cell in some} for some in (refused, planned))
        if here.keys() != everywhere.keys():
            found[part] = list(here)
    return found


def _side(part: str, name: str, sites: Mapping[str, str], host: Host) -> str:
    """What one side of a refusal is, in its own words."""
    if part == "kind":
        return sites[name]
    if name == FULL:
        return "all weights are trained."
    offer = host.offers(f"{part}s").get(name)
    return offer.summary if offer else ""
