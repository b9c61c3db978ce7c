from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process does not lose what the system holds; the order of flushes has its own test."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
