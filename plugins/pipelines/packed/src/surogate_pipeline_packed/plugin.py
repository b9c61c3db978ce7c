"""What this plugin offers: the pipeline `packed`, and the command `tokenizer`."""

from __future__ import annotations

from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer


@hookimpl
def register_pipelines() -> list[Offer]:
    build = "surogate_pipeline_packed.pipeline:build"
    return [Offer("packed", None, build=build, summary="Files and Hub data sets, several samples packed into a row.")]


@hookimpl
def register_commands() -> list[Offer]:
    return [Offer("tokenizer", None, build="surogate_pipeline_packed.command:tokenizer", summary="Train a tokenizer of one's own.")]
