"""What a plugin offers: the one class that an author has to learn, and helpers to describe options.

An :class:`Offer` is a name, the options that come with it, and where to find the code. ``plugin.py`` of a plugin holds offers
and imports nothing heavy: ``build`` is a string, resolved when the configuration has chosen the offer and the plan needs it.

    @frozen(kw_only=True)
    class Options:
        '''Options of `recipe = "fp8_hybrid"`.'''
        fp8_amax_history: int = field(default=16, validator=ge(1), metadata=doc("Length of the amax window, optimizer steps."))

    @hookimpl
    def register_recipes():
        return [Offer("fp8_hybrid", Options, build="surogate_recipe_fp8_hybrid.linear:build", requires="sm_89+", summary="...")]
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import attrs
from attrs import frozen
from surogate_settings.ranges import Range, between, ge, gt
from surogate_settings.sources import normal_name

from surogate_core.errors import PluginError

__all__ = ["Offer", "Owner", "Range", "between", "capability", "doc", "ge", "gt", "normal_name"]


@frozen
class Owner:
    """Who brought an offer: the distribution and its version."""

    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


@frozen
class Offer:
    """Something that a config can choose by ``name``.

    name      what a config writes: ``recipe = "bf16"``. Lower case, ``_`` between words; a config may write ``-`` for ``_``.
    options   an attrs class whose fields become config keys owned by this offer (of the data set's table for dataset formats);
              None where there is nothing to set. Offers of one distribution may share a class.
    build     ``"package.module:function"``, called as ``function(options, context)``; see ``hookspecs.py`` for what each kind
              of offer returns.
    requires  the hardware, "" for any device, ``"cuda"``, or ``"sm_89+"`` for a compute capability. Checked by the plan.
    summary   one line for ``surogate plugins`` and the documentation.
    key       the boolean option of ``options`` that chooses this offer, for kinds that no key of the core chooses by name.
    """

    name: str
    options: type | None
    build: str
    requires: str = ""
    summary: str = ""
    key: str = ""
    owner: Owner = attrs.field(default=Owner("unknown", "0"), kw_only=True)

    def load(self) -> Any:
        """Import ``build`` and return it. Raises PluginError naming the owner when that fails."""
        module, _, attribute = self.build.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except Exception as error:
            raise PluginError(
                f"{self.name}: {type(error).__name__}: {error}",
                where=f"{self.owner}, build = {self.build!r}",
                how=f"reinstall or remove {self.owner.distribution}",
            ) from error


def doc(text: str, **more: Any) -> dict[str, Any]:
    """Field metadata: the sentence that ``surogate explain``, the schema and the reference documentation show."""
    return {"doc": text, **more}


def capability(requires: str) -> tuple[int, int] | None:
    """``"sm_89+"`` → (8, 9); None when ``requires`` names no compute capability."""
    found = re.fullmatch(r"sm_(\d+)(\d)\+?", requires)
    return (int(found[1]), int(found[2])) if found else None
