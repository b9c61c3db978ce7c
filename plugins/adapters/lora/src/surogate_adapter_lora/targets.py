"""Which linear layers ``lora_target_modules`` names. Works on sites alone."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence

from surogate_core.contracts import Site
from surogate_core.errors import Problem

NO_DORA = "stacked experts have LoRA and rsLoRA, no DoRA"


def refusal(site: Site, targets: Sequence[str], dora: bool = False) -> str | None:
    """None when a target names this site and it can be adapted, else why not."""
    if site.layer is None or site.kind not in ("linear", "stacked_linear"):
        return "not a linear layer of a decoder block"
    if "all" not in targets and not any(named(site, target) for target in targets):
        return "not among lora_target_modules"
    return NO_DORA if dora and site.kind == "stacked_linear" else None


def named(site: Site, target: str) -> bool:
    """A target is a whole name or an end of it at a dot, as PEFT matches."""
    return site.name == target or site.name.endswith(f".{target}")


def check_targets(targets: Sequence[str], sites: Sequence[Site], dora: bool = False) -> list[Problem]:
    """A problem for each target that names nothing, or layers that cannot be adapted."""
    within = [site for site in sites if site.layer is not None and site.kind in ("linear", "stacked_linear")]
    usable = sorted({site.role for site in within if not (dora and site.kind == "stacked_linear")})
    problems = []
    for target in targets:
        found = within if target == "all" else [site for site in within if named(site, target)]
        stacked = sorted({site.role for site in found if site.kind == "stacked_linear"})
        if stacked and dora:
            problems.append(
                Problem(
                    f"{target!r} names stacked expert layers ({', '.join(stacked)}): {NO_DORA}",
                    where="lora_target_modules and lora_use_dora",
                    how=f"set lora_target_modules = {json.dumps(usable)}, or lora_use_dora = false",
                )
            )
        elif not found:
            problems.append(_unmatched(target, usable, sites))
    return problems


def _unmatched(target: str, usable: Sequence[str], sites: Sequence[Site]) -> Problem:
    other = next((site for site in sites if named(site, target)), None)
    near = difflib.get_close_matches(target.rpartition(".")[2], usable, n=3)
    if other is not None:
        what = f"{target!r} is no linear layer of a decoder block ({other.kind} {other.name}): it cannot be adapted"
    else:
        what = f"{target!r} matches no layer of this model"
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return Problem(what, where="lora_target_modules", how=f'{hint}there are {", ".join(usable) or "no linear layers"}, or "all"')
