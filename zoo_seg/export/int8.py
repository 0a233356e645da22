"""A file in 8-bit integers: what its runtime's quantiser is given, and how the file's class maps compare afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zoo_seg.errors import DataError
from zoo_seg.export.calibration import Calibration
from zoo_seg.export.facts import Quantisation
from zoo_seg.export.loaded import ExportedModel
from zoo_seg.inference.predicting import Predicting

AGREEMENT = 0.9
"""The share of pixels that must have the network's class, on images that the file was not calibrated with."""


class Inputs:
    """What `predict` gives a file's graph, one input for every image; they are read anew each time."""

    def __init__(self, path: Path, calibration: Calibration) -> None:
        self._file, self._images = _NotRun(path), calibration.images
        self._reading = calibration.reading

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[npt.NDArray[np.float32 | np.uint8]]:
        given = self._file.given
        for place, _ in enumerate(self._file.stream(self._images, scales=(1.0,), flip=False, **self._reading)):
            yield given[place % len(given)].contiguous().numpy()  # of an image's windows each time another one
            given.clear()


class _NotRun(ExportedModel):
    """Keeps what its graph would be given."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.given: list[Tensor] = []

    def forward_logits(self, x: Tensor) -> Tensor:
        self.given.append(self.graph_input(x))
        return torch.zeros(x.shape[0], self.num_classes, -(-x.shape[2] // 32), -(-x.shape[3] // 32))


def compare(network: Predicting, path: Path, calibration: Calibration) -> Quantisation:
    """A file's class maps beside the network's, and both beside the labels, at one scale and without flip.

    Raises:
        ImageError, DataError: an image or a label cannot be read, or their sizes differ.
        MissingExtraError: torchmetrics is not installed.
    """
    others = calibration.others
    options: dict[str, Any] = {"scales": (1.0,), "flip": False, **calibration.reading}
    scores = _Scores(calibration)
    same = pixels = 0
    pairs = zip(network.stream(others, **options), ExportedModel(path).stream(others, **options), strict=True)
    for place, (expected, found) in enumerate(pairs):
        same += int((expected.mask == found.mask).sum())
        pixels += expected.mask.size
        scores.update(place, (expected.mask, found.mask))
    return Quantisation(len(calibration.images), len(others), same / pixels, scores.miou())


class _Scores:
    """mIoU of several class maps of each image; None where there are no labels."""

    def __init__(self, calibration: Calibration) -> None:
        self._data, self._samples = calibration.data, calibration.samples
        self._metrics = []
        if self._data is not None:
            from zoo_seg.evaluation.metrics import SegmentationMetrics  # needs an extra

            self._metrics = [SegmentationMetrics(self._data.num_classes, self._data.ignore_index) for _ in range(2)]

    def update(self, place: int, found: Sequence[npt.NDArray[np.uint8 | np.uint16]]) -> None:
        if self._data is None:
            return
        label = self._data.read_labels(self._samples[place])
        for metric, mask in zip(self._metrics, found, strict=True):
            if mask.shape != label.shape:
                height, width = label.shape
                raise DataError(
                    f"{self._samples[place].place} is {width}x{height} pixels and its image "
                    f"{mask.shape[1]}x{mask.shape[0]}; expected the same size"
                )
            metric.update(mask, label)

    def miou(self) -> tuple[float, float] | None:
        if not self._metrics:
            return None
        network, file = (float(metric.compute()["mIoU"]) for metric in self._metrics)
        return None if network != network else (network, file)  # NaN: every pixel is ignored
