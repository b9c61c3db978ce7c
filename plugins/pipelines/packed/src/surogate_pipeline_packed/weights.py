"""Weights of data sets: how often an epoch has each piece of them.

A weight is taken apart into whole copies and a rest: 2.25 is every piece twice, and a quarter of the pieces, drawn with the seed, a
third time. The tokens are not copied, only named again. Which pieces those are is fixed for the run, like the packing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from surogate_core.errors import DataError
from surogate_pipeline_packed.corpus import Corpus, Sources


def weighted(corpus: Corpus, files: Sequence[int], weights: Sequence[float], seed: int) -> tuple[Corpus, dict[str, dict[str, Any]]]:
    """The corpus with the pieces of each data set as often as its weight says, and what was done for each weight other than 1.

    files    index of the first file of each data set, ascending, in the corpus's sources
    weights  above 0, one for each data set

    A data set with 7 pieces and weight w has round(7 w) of them. Raises DataError when nothing is left.
    """
    if all(weight == 1 for weight in weights):
        return corpus, {}
    sources = corpus.sources
    assert isinstance(sources, Sources)
    owner = np.searchsorted(np.asarray(files), sources.places[:, 0], side="right") - 1
    times = np.ones(len(corpus), dtype=np.int64)
    lengths = corpus.lengths
    told: dict[str, dict[str, Any]] = {}
    for index, weight in enumerate(weights):
        if weight == 1:
            continue
        own = np.flatnonzero(owner == index)
        wanted = round(len(own) * weight)
        times[own] = wanted // max(len(own), 1)
        rest = wanted - int(times[own].sum())
        times[np.random.default_rng([seed, 4, index]).permutation(own)[:rest]] += 1
        told[f"datasets[{index}]"] = {
            "weight": weight,
            "pieces": len(own),
            "placed": wanted,
            "tokens": int((lengths[own] * times[own]).sum()),
        }
    if not times.any():
        raise DataError("the weights leave no piece to train on", "datasets, key weight", "raise weight, or give more data")
    return corpus.take(np.repeat(np.arange(len(corpus)), times)), told
