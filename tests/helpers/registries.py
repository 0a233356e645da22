"""Backbones of a test's own."""

from __future__ import annotations

import pytest

from zoo_seg.backbones import registry
from zoo_seg.families.registry import find_family, list_families


def open_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test registers as a backbone is gone after it."""
    registry.list_backbones()
    for name in list_families():  # which register some, so that the registry is whole again afterwards
        find_family(name)
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
