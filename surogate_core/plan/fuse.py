"""Which installed fusion takes which site. All of them are asked; two that would take one site are an error that names both."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from surogate_core.config import Config
from surogate_core.contracts import Context, Fusion, Outline
from surogate_core.errors import PlanError, Problem
from surogate_core.host import Host, attributed
from surogate_core.offers import Owner

FUSIBLE = ("norm", "activation", "attention", "mlp")


@frozen(kw_only=True)
class Fused:
    """Who replaces the forward function of a site's module."""

    owner: Owner
    fusion: Fusion


def fuse(config: Config, host: Host, context: Context, outline: Outline) -> Mapping[str, Fused]:
    """Site name → the fusion that claims it. None with ``compile = true``: the compiler fuses what it sees, and would not look into
    functions with a backward of their own."""
    found: dict[str, Fused] = {}
    problems = []
    for offer in () if config.core.compile else host.offers("fusions").values():
        with attributed(offer.owner, f"build of {offer.name!r}"):
            fusion: Fusion = offer.load()(config.of(offer.options) if offer.options else None, context)
        for site in outline.sites:
            if site.kind not in FUSIBLE:
                continue
            with attributed(offer.owner, "Fusion.claim"):
                left = fusion.claim(site, outline.skeleton.get_submodule(site.name))
            if left is not None:
                continue
            if other := found.get(site.name):
                problems.append(
                    Problem(
                        f"two fusions claim {site.name}: those of {other.owner} and of {offer.owner}",
                        where="fusions",
                        how=f"uninstall {other.owner.distribution} or {offer.owner.distribution}",
                    )
                )
            found[site.name] = Fused(owner=offer.owner, fusion=fusion)
    if problems:
        raise PlanError(problems[:1])
    return found
