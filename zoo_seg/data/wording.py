"""How messages name many things."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 5
"""Things of one kind that a message names."""


def name_some(items: Sequence[object], count: int | None = None) -> str:
    """The first few, and how many more there are (of `count`, where not all are at hand)."""
    more = (len(items) if count is None else count) - len(items[:SHOWN])
    return ", ".join(map(str, items[:SHOWN])) + (f" and {more} more" if more else "")


def many(count: int, what: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count} {what}{'s' if count != 1 else ''}"
