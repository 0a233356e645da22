"""How good a network is: the metric, and a weight measured against its published number.

The names are imported when they are first used: they need the extra `evaluate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo_seg.evaluation.metrics import SegmentationMetrics

__all__ = ["SegmentationMetrics"]


def __getattr__(name: str) -> Any:
    if name == "SegmentationMetrics":
        from zoo_seg.evaluation.metrics import SegmentationMetrics

        return SegmentationMetrics
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
