"""One thing that is wrong."""

from __future__ import annotations

from attrs import frozen


@frozen
class Problem:
    """One thing that is wrong: ``what`` (given, wanted), ``where`` it is, ``how`` to mend it. Each is one line."""

    what: str
    where: str = ""
    how: str = ""

    def lines(self) -> list[str]:
        return [self.what] + [f"  {label}: {text}" for label, text in (("where", self.where), ("how", self.how)) if text]


class UnreadableError(Exception):
    """A file of settings that cannot be read at all."""

    def __init__(self, what: str, where: str, how: str):
        self.problem = Problem(what, where, how)
        super().__init__("\n".join(self.problem.lines()))
