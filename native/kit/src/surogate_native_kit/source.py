"""One translation unit: a ``.cu`` file, the directories of its headers, and what identifies their content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from attrs import frozen

INCLUDE = Path(__file__).with_name("include")
"""Headers for kernels that also compile as plain C++."""


@frozen
class Source:
    """``path`` of the file; ``includes`` beside the kit's own and the file's directory."""

    path: Path
    includes: tuple[Path, ...] = ()

    @property
    def directories(self) -> tuple[Path, ...]:
        return (self.path.parent, *self.includes, INCLUDE)

    def digest(self, *more: str) -> str:
        """Of the file, of every header that it could include, and of ``more`` (architecture, flags, compiler)."""
        state = hashlib.blake2b("\0".join(more).encode(), digest_size=16)
        for file in (self.path, *(header for place in self.directories for header in sorted(place.glob("*.h")))):
            state.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
        return state.hexdigest()
