"""An image becomes a class map: read, resize and normalise, network, resize and argmax, `Segmentation`.

The names are imported when they are first used: reading images needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo_seg.inference.predictor import Predictor
    from zoo_seg.inference.protocol import predict_logits
    from zoo_seg.inference.segmentation import Segmentation

__all__ = ["Predictor", "Segmentation", "predict_logits"]


def __getattr__(name: str) -> Any:
    if name == "Predictor":
        from zoo_seg.inference.predictor import Predictor

        return Predictor
    if name == "predict_logits":
        from zoo_seg.inference.protocol import predict_logits

        return predict_logits
    if name == "Segmentation":
        from zoo_seg.inference.segmentation import Segmentation

        return Segmentation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
