"""Keys and names of the reference that this installation may not have: what ``reference.toml`` says.

``NOT_BUILT``        key → default, for keys whose feature does not exist in this version
``NOT_BUILT_NAMES``  choosing key → names of offers that do not exist in this version
``HOMES``            key → the distribution that brings it
``NAME_HOMES``       (choosing key, name) → the distribution that brings it
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli

_REFERENCE = tomli.loads(Path(__file__).with_name("reference.toml").read_text(encoding="utf-8"))
_HOMES = _REFERENCE["homes"].items()

NOT_BUILT: dict[str, Any] = {key: None if value == "none" else value for key, value in _REFERENCE["not_built"].items()}
NOT_BUILT_NAMES: dict[str, tuple[str, ...]] = {key: tuple(names) for key, names in _REFERENCE["not_built_names"].items()}
HOMES: dict[str, str] = {key: home for home, brought in _HOMES for key in brought.get("keys", ())}
NAME_HOMES: dict[tuple[str, str], str] = {
    (chooser, name): home for home, brought in _HOMES for chooser, _, name in (text.partition(" = ") for text in brought["names"])
}
