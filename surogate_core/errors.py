"""What can go wrong, and how it is said.

Every error that a user can cause is a list of problems, each with one line *what* happened, one line *where* (file and key, or
step, or row) and one line *how* to mend it. The traceback appears only with ``--debug``.

    SurogateError
    ├── Refused                exit 2: nothing was started, nothing was changed
    │   ├── ConfigError        the configuration alone tells
    │   ├── PluginError        a plugin is missing, broken or collides
    │   ├── PlanError          the configuration and the model do not fit
    │   ├── ModelError         the model's files are missing or unusable
    │   ├── DataError          the data are missing, empty, or have nothing to train on
    │   └── ResumeError        a checkpoint does not belong to this run, or the directory is taken
    ├── RunFailed              exit 1: the run had started
    │   ├── NonFiniteLoss      with step, learning rate and the samples of the step
    │   ├── OutOfMemory        with the part of the step, and what would fit
    │   └── SaveFailed         the last good checkpoint is intact
    └── Interrupted            exit 130: asked to stop; a checkpoint was saved unless it says otherwise
"""

from __future__ import annotations

from collections.abc import Iterable

from surogate_settings.problem import Problem


class SurogateError(Exception):
    """Base of every error that surogate raises on purpose. ``problems`` is never empty; ``exit_code`` is the command's."""

    exit_code = 1

    def __init__(self, what: str | Iterable[Problem], where: str = "", how: str = ""):
        self.problems = (Problem(what, where, how),) if isinstance(what, str) else tuple(what)
        super().__init__("\n".join(line for problem in self.problems for line in problem.lines()))

    def __reduce__(self) -> tuple[type[SurogateError], tuple[tuple[Problem, ...]]]:
        """Keeps the problems when the error comes from a worker process."""
        return type(self), (self.problems,)


class Refused(SurogateError):
    exit_code = 2


class ConfigError(Refused):
    pass


class PluginError(Refused):
    pass


class PlanError(Refused):
    pass


class ModelError(Refused):
    pass


class DataError(Refused):
    pass


class ResumeError(Refused):
    pass


class RunFailed(SurogateError):
    exit_code = 1


class NonFiniteLoss(RunFailed):
    pass


class OutOfMemory(RunFailed):
    pass


class SaveFailed(RunFailed):
    pass


class Interrupted(SurogateError):
    exit_code = 130


class BadRow(Exception):
    """Raised by a dataset format for a row that it cannot use. ``reason`` names the fault in a few stable words
    ("missing field 'output'"): the ledger counts rows by reason."""

    def __init__(self, reason: str):
        self.reason = reason
        super().__init__(reason)
