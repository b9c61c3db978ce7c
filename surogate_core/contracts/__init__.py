"""What the objects built from offers must do, and what they are given. Protocols and frozen records; nothing to inherit from.

torch is imported for type checking only: this package is read by plugins that are merely being listed.
"""

from surogate_core.contracts.context import (  # noqa: F401  # noqa: F401
    Context,
    Decision,
    FormatContext,
    LoggerContext,
    ObserverContext,
    PipelineContext,
    RunInfo,
)
from surogate_core.contracts.data import Batch, Batches, Data, Format, Pipeline, Sample, Step  # noqa: F401
from surogate_core.contracts.model import Adapter, Fusion, ModelSource, Outline, Recipe, Site, SiteKind  # noqa: F401
from surogate_core.contracts.training import KeepsState, Logger, Optimizer, OptimizerState, Parallelism, ParamGroup, Schedule  # noqa: F401
