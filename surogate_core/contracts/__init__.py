"""What the objects built from offers must do, and what they are given. Protocols and frozen records; nothing to inherit from.

torch is imported for type checking only: this package is read by plugins that are merely being listed.
"""

from surogate_core.contracts.checkpoints import Checkpoints, CheckpointStore, Saved  # noqa: F401
from surogate_core.contracts.context import (  # noqa: F401
    Context,
    Decision,
    FormatContext,
    LoggerContext,
    ObserverContext,
    PipelineContext,
    RunInfo,
)
from surogate_core.contracts.data import Batch, Batches, Data, Format, Pipeline, Sample, Step  # noqa: F401
from surogate_core.contracts.loop import Loop, Summary  # noqa: F401
from surogate_core.contracts.model import (  # noqa: F401
    Adapter,
    Attaches,
    ChangesWeights,
    Copies,
    FollowsSteps,
    Fusion,
    Held,
    KeepsCopies,
    ModelSource,
    NamesKernels,
    Outline,
    Quantizer,
    ReadsCheckpoints,
    Recipe,
    Rehearses,
    Site,
    SiteKind,
    Storage,
    Tells,
)
from surogate_core.contracts.training import (  # noqa: F401
    HoldsGradients,
    KeepsState,
    Logger,
    Optimizer,
    OptimizerState,
    Parallelism,
    ParamGroup,
    Schedule,
)
