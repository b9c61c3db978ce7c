"""surogate: train language models from one config file, with every feature a plugin.

Public names: :func:`run` does what ``surogate run`` does; :class:`Offer`, :func:`hookimpl` and the option helpers are what a
plugin imports. Importing this package does not import torch.
"""

from __future__ import annotations

from typing import Any

from surogate_core.errors import BadRow, Problem, SurogateError
from surogate_core.hookspecs import hookimpl
from surogate_core.offers import Offer, between, doc, ge, gt

__version__ = "0.1.0.dev0+src"
__all__ = ["BadRow", "Offer", "Problem", "SurogateError", "__version__", "between", "doc", "ge", "gt", "hookimpl", "run"]


def run(config: Any, **overrides: Any) -> Any:
    """Train. ``config`` is a path to a TOML or YAML file, or a dict with the same keys; ``overrides`` win over it.

    Returns the :class:`~surogate_core.contracts.Summary` of the run. Raises :class:`~surogate_core.errors.SurogateError`.
    """
    from surogate_core.train.run import run as train

    return train(config, **overrides)
