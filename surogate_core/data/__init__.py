"""Rows → samples → packed batches."""

from surogate_core.data.batches import Batch, Batches, Step
from surogate_core.data.corpus import Corpus
from surogate_core.data.ledger import Ledger
from surogate_core.data.prepare import Prepared, prepare

__all__ = ["Batch", "Batches", "Corpus", "Ledger", "Prepared", "Step", "prepare"]
