"""The manifest's models as parameters of tests."""

from __future__ import annotations

from typing import Any

import pytest

from zoo_seg.manifest import load_manifest


def first_of_each_family_fast() -> list[Any]:
    """All names; those that are not the first of their family are slow, for the fast lane to leave out."""
    seen: set[str] = set()
    found = []
    for name, model in load_manifest().models.items():
        family = model.architecture.family
        found.append(pytest.param(name, marks=pytest.mark.slow) if family in seen else name)
        seen.add(family)
    return found
