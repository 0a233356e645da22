"""Masks in colours that a file beside them names, as CVAT exports them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zoo_seg.data.annotations import read_lines
from zoo_seg.data.files import Files, Listed
from zoo_seg.data.labels import Colour
from zoo_seg.data.samples import Listing
from zoo_seg.errors import DataError

_FILES = {
    "labelmap.txt": re.compile(r"(?P<name>[^:]+):(?P<red>\d+),(?P<green>\d+),(?P<blue>\d+)(:.*)?"),
    "label_colors.txt": re.compile(r"(?P<red>\d+)[\s,]+(?P<green>\d+)[\s,]+(?P<blue>\d+)[\s,]+(?P<name>.+)"),
}
"""What a line of each looks like: of a segmentation mask's export, and of CamVid's."""
_VOC = Files("JPEGImages/{name}.jpg", ["SegmentationClass/{name}.png"])


@dataclass(frozen=True)
class LabelMap:
    """`labelmap.txt` with JPEGImages and SegmentationClass, or `label_colors.txt` with lists of images and masks."""

    splits: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            "labelmap.txt, JPEGImages/NAME.jpg and SegmentationClass/NAME.png (CVAT), listed in ImageSets/Segmentation"
        )

    def lie_in(self, root: Path) -> bool:
        return self._file(root) is not None and any(self._files(root).parts(root))

    def parts(self, root: Path) -> tuple[set[str], set[str]]:
        return self._files(root).parts(root)

    def listing(self, root: Path, split: str) -> Listing:
        return self._files(root).listing(root, split)

    def colours(self, root: Path) -> dict[str, Colour]:
        """The colour of each label, in the order of the file.

        Raises:
            DataError: a line is no label, or two labels have one colour; with the line.
        """
        path = self._file(root)
        if path is None:
            raise DataError(f"{root}: there is no {' or '.join(_FILES)}")
        found: dict[str, Colour] = {}
        for number, line in read_lines(path):
            match = _FILES[path.name].fullmatch(line)
            colour = tuple(int(match[channel]) for channel in ("red", "green", "blue")) if match else (256,)
            if match is None or max(colour) > 255:
                raise DataError(f"{path}:{number}: {line[:60]!r} is no label with its colour")
            if colour in found.values() or match["name"] in found:
                raise DataError(f"{path}:{number}: the label or its colour {colour} stands here for the second time")
            found[match["name"].strip()] = colour  # type: ignore[assignment]
        return found

    def _file(self, root: Path) -> Path | None:
        return next((root / name for name in _FILES if (root / name).is_file()), None)

    def _files(self, root: Path) -> Files | Listed:
        if not (root / "SegmentationClass").is_dir():
            return Listed()
        listed = Listed(_VOC, ("ImageSets/Segmentation",))
        return listed if listed.lists(root) else _VOC
