"""What this plugin offers: the model source `transformers`."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_models() -> list[Offer]:
    build = "surogate_model_transformers.source:build"
    return [Offer("transformers", None, build=build, summary="Causal language models of the transformers library.")]
