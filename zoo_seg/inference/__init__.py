"""A picture becomes a class map: read, resize and normalise, network, resize and argmax, `Segmentation`."""

from zoo_seg.inference.predictor import Predictor
from zoo_seg.inference.protocol import predict_logits
from zoo_seg.inference.segmentation import Segmentation

__all__ = ["Predictor", "Segmentation", "predict_logits"]
