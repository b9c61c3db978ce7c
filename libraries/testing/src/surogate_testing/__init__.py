"""For the tests of plugins: a conformance check for each kind of offer.

A check is a function that takes what the offer's ``build`` returned, and raises AssertionError with a sentence that says what is
wrong. It knows the contract (``surogate_core.contracts``) and nothing of the plugin; what only the author can know (how precise a
format is, which module is fused, what the model's logits are) is an argument. Hosts, contexts and sites to build offers with are
in ``surogate_core.testing``.
"""

from __future__ import annotations

from surogate_testing.checkpoints import check_checkpoints
from surogate_testing.data import check_format, check_pipeline
from surogate_testing.fusions import check_fusion
from surogate_testing.linears import check_adapter, check_quantizer, check_recipe, check_storage
from surogate_testing.loops import check_loop
from surogate_testing.models import check_model
from surogate_testing.observers import check_observer
from surogate_testing.training import check_logger, check_optimizer, check_parallelism, check_schedule

__all__ = [
    "CHECKS",
    "check_adapter",
    "check_checkpoints",
    "check_format",
    "check_fusion",
    "check_logger",
    "check_loop",
    "check_model",
    "check_observer",
    "check_optimizer",
    "check_parallelism",
    "check_pipeline",
    "check_quantizer",
    "check_recipe",
    "check_schedule",
    "check_storage",
]

CHECKS = {
    "models": check_model,
    "pipelines": check_pipeline,
    "checkpoints": check_checkpoints,
    "loops": check_loop,
    "recipes": check_recipe,
    "quantizers": check_quantizer,
    "adapters": check_adapter,
    "fusions": check_fusion,
    "optimizers": check_optimizer,
    "schedules": check_schedule,
    "datasets": check_format,
    "loggers": check_logger,
    "observers": check_observer,
    "parallelisms": check_parallelism,
}
"""Kind of offer, as in ``register_<kind>`` → its check."""
