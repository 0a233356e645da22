"""The images of an int8 export: those that it is calibrated with, and others that it is compared on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from zoo_seg.data.description import DESCRIPTION
from zoo_seg.data.layouts import SegmentationData, open_data
from zoo_seg.data.samples import Sample
from zoo_seg.errors import DataError, OptionError

T = TypeVar("T")

_HELD_OUT = 5
"""Without a split to validate on, every so many-th image is kept for the comparison."""
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Calibration:
    """Images that lie on disk."""

    images: tuple[Path, ...]
    """What the file is calibrated with."""
    others: tuple[Path, ...]
    """What it is compared on; none is among `images`."""
    samples: tuple[Sample, ...] = ()
    """The others with their labels, where `data` has them."""
    data: SegmentationData | None = None
    """The data set that they are from; None for a folder of images."""

    @property
    def reading(self) -> dict[str, Any]:
        """What `predict` has to know to read the images."""
        return {} if self.data is None else {"range": self.data.range, "bands": self.data.bands}


def open_calibration(folder: str | os.PathLike[str], count: int = 200) -> Calibration:
    """What lies in a data set's folder, or in a folder of images; nothing is read.

    A data set is calibrated on its first split and compared on `val`, else on its last one. Of a folder of images, and
    of a data set of one split, every fifth is kept for the comparison.

    Args:
        count: the most images to calibrate with, and the most to compare on, evenly chosen by name.

    Raises:
        OptionError: there is no such folder, or it holds fewer than two images; `count` is below 1.
        DataError: it is a data set that cannot be read.
    """
    if count < 1:
        raise OptionError(f"calibration_images is {count}; expected at least 1, a hundred or more as a rule")
    root = Path(folder).expanduser()
    try:
        data = open_data(root)
    except DataError:
        found = _images_in(root)
        if not found or (root / DESCRIPTION).is_file():
            raise
        images, others = _apart(root, found)
        return Calibration(_spread(images, count), _spread(others, count))
    first, last = data.splits[0], "val" if "val" in data.splits else data.splits[-1]
    samples = data.samples(first)
    train, val = (samples, data.samples(last)) if first != last else _apart(root, samples)
    val = _spread(val, count)
    return Calibration(
        tuple(each.image for each in _spread(train, count)),
        tuple(each.image for each in val),
        tuple(val),
        data,
    )


def _images_in(root: Path) -> list[Path]:
    return sorted(
        each
        for each in root.iterdir()
        if each.suffix.lower() in _IMAGES and not each.name.startswith(".") and each.is_file()
    )


def _apart(root: Path, items: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    others = items[::_HELD_OUT]
    rest = [each for place, each in enumerate(items) if place % _HELD_OUT]
    if not rest:
        raise OptionError(
            f"{root} holds 1 image; expected some to calibrate with and others to compare on, a hundred or more"
        )
    return rest, others


def _spread(items: Sequence[T], count: int) -> tuple[T, ...]:
    count = min(count, len(items))
    return tuple(items[place * len(items) // count] for place in range(count))
