"""A measurement beside the published number, and everything about it as JSON."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from zoo_seg.data.layouts import SegmentationData
from zoo_seg.evaluation.measure import Measurement
from zoo_seg.manifest import Metric
from zoo_seg.model import SegmentationModel
from zoo_seg.version import __version__

_LIBRARIES = ("torch", "timm", "numpy", "pillow")
"""Those that could change a number."""


@dataclass(frozen=True)
class Comparison:
    """A measurement beside the number it should give."""

    reported: Metric
    difference: float
    """Measured less reported, in percent points."""
    tolerance: float

    @property
    def is_within(self) -> bool:
        """The measurement reproduces the number."""
        return abs(self.difference) <= self.tolerance


def compare(measurement: Measurement, model: SegmentationModel, tolerance: float) -> Comparison | None:
    """The network's own mIoU for the same classes, split and protocol beside the measured one; None without one."""
    as_published = {"resize": "published", "crop": None, "stride": None}
    if model.classes != measurement.classes or any(
        measurement.options.get(name, value) != value for name, value in as_published.items()
    ):
        return None
    measured = measurement.protocol
    for metric in model.metrics:
        theirs = metric.test
        if (
            (metric.name, metric.split) == ("mIoU", measurement.split)
            and (theirs.mode, theirs.flip) == (measured.mode, measured.flip)
            and sorted(theirs.scales) == sorted(measured.scales)
        ):
            return Comparison(metric, measurement.scores["mIoU"] - metric.value, tolerance)
    return None


def as_json(
    name: str,
    model: SegmentationModel,
    data: SegmentationData,
    measurement: Measurement,
    comparison: Comparison | None,
) -> dict[str, Any]:
    """All facts of a measurement; NaN is null. `verdict` is null where only a part was measured."""
    per_class = {key: values.tolist() for key, values in measurement.per_class.items()}
    judged = comparison is not None and measurement.is_whole
    return {
        "weights": name,
        "data": {
            "name": data.root.resolve().name,
            "layout": data.layout,
            "split": measurement.split,
            "pictures": measurement.images,
            "is_whole_split": measurement.is_whole,
        },
        "protocol": {
            "rules": model.protocol,
            **asdict(measurement.protocol),
            **measurement.options,
            "test_size": asdict(model.preprocess.resize) if model.preprocess.resize else None,
        },
        "computed": {
            "device": measurement.device,
            "device_name": _device_name(measurement.device),
            "dtype": measurement.dtype,
            "seconds": round(measurement.seconds, 3),
            "pictures_per_second": round(measurement.images / measurement.seconds, 3),
            "versions": {
                "zoo_seg": __version__,
                "python": platform.python_version(),
                **{library: metadata.version(library) for library in _LIBRARIES},
            },
        },
        "scores": {key: _number(value) for key, value in measurement.scores.items()},
        "classes": [
            {"id": index, "name": label, **{key: _number(values[index]) for key, values in per_class.items()}}
            for index, label in enumerate(measurement.classes)
        ],
        "reported": asdict(comparison.reported) if comparison else None,
        "difference": comparison.difference if comparison else None,
        "tolerance": comparison.tolerance if comparison else None,
        "verdict": ("reproduced" if comparison.is_within else "not reproduced") if comparison and judged else None,
    }


def _number(value: float) -> float | None:
    return None if value != value else value


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return platform.processor() or platform.machine()


def write_json(facts: dict[str, Any], path: Path) -> None:
    """Readable, one value a line."""
    path.write_text(json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
